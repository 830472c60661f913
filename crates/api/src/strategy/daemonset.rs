//! Daemon sets.

use serde_json::Value;

use super::deployment::amount;
use super::template::{self, Options};
use super::{Strategy, copy_field, default_at, workload};
use crate::validation::{
    At, Errors, SelectorOptions, has_invalid_values, int_or_percent, internal, label_selector_with,
    percent_at_most_100, selector_matches,
};

const GENERATION: &str = "deprecated.daemonset.template.generation";

pub(super) struct DaemonSet;

impl DaemonSet {
    fn validate_with(object: &Value, options: &Options, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let selector = spec.field("selector");
        let before = errors.len();
        let selector_options = SelectorOptions {
            allow_invalid_values: options.invalid_label_values_in_selectors,
        };
        label_selector_with(errors, &selector, selector_options);
        let well_formed = errors.len() == before;
        let template = spec.field("template");
        let metadata = template.field("metadata");
        let labels = metadata.field("labels");
        if well_formed && !selector_matches(selector.value(), labels.value()) {
            let detail = "`selector` does not match template `labels`";
            errors.invalid(labels, labels.value(), detail);
        }
        if selector.is_set() && template::selector_is_empty(selector.value()) {
            errors.bad(&selector, "empty selector is invalid for daemonset");
        }
        template::validate(&template, options, errors);
        template::validate_always_running(&template, "DaemonSet", errors);
        errors.non_negative(&spec.field("minReadySeconds"));
        validate_strategy(&spec.field("updateStrategy"), errors);
        errors.non_negative(&spec.field("revisionHistoryLimit"));
    }
}

fn validate_strategy(strategy: &At<'_, '_>, errors: &mut Errors) {
    let rolling = strategy.field("rollingUpdate");
    match strategy.text("type") {
        "OnDelete" => {}
        "RollingUpdate" if !rolling.is_set() => errors.required(rolling, ""),
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.field("maxUnavailable"), rolling.field("maxSurge"));
            int_or_percent(errors, &unavailable);
            int_or_percent(errors, &surge);
            percent_at_most_100(errors, &unavailable);
            percent_at_most_100(errors, &surge);
            match (amount(&unavailable) != 0, amount(&surge) != 0) {
                (true, true) => {
                    errors.bad(&surge, "may not be set when maxUnavailable is non-zero");
                }
                (false, false) => {
                    errors.required(unavailable, "cannot be 0 when maxSurge is 0");
                }
                _ => {}
            }
        }
        _ => {
            let shown = internal(
                "io.k8s.api.apps.v1.DaemonSetUpdateStrategy",
                strategy.value(),
            );
            errors.not_supported_as(strategy, &shown, &["RollingUpdate", "OnDelete"]);
        }
    }
}

fn template_generation(object: &Value) -> i64 {
    crate::meta::annotation(object, GENERATION)
        .and_then(|g| g.parse().ok())
        .unwrap_or_default()
}

fn set_template_generation(object: &mut Value, generation: i64) {
    let metadata = crate::meta::metadata(object);
    let annotations = metadata
        .entry("annotations")
        .or_insert_with(|| Value::Object(serde_json::Map::new()));
    annotations[GENERATION] = generation.to_string().into();
}

impl Strategy for DaemonSet {
    fn gated_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[(
            "GenericWorkload",
            &["spec", "template", "spec", "schedulingGroup"],
        )]
    }

    fn default(&self, object: &mut Value) {
        template::default_template(object, &["spec", "template"]);
        let strategy = &object["spec"]["updateStrategy"];
        // Where nothing rolls, what is not said is none.
        let unavailable = match strategy["type"].as_str() {
            Some("RollingUpdate") => 1,
            _ if strategy["rollingUpdate"].is_object() => 0,
            _ => return,
        };
        for (field, number) in [("maxUnavailable", unavailable), ("maxSurge", 0)] {
            default_at(
                object,
                &["spec", "updateStrategy", "rollingUpdate", field],
                number,
            );
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
        set_template_generation(object, template_generation(object).max(1));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
        let changed = object["spec"]["template"] != old["spec"]["template"];
        set_template_generation(object, template_generation(old) + i64::from(changed));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        Self::validate_with(object, &Options::new(false), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let mut options = Options::for_update(false, &old["spec"]["template"]);
        options.invalid_label_values_in_selectors |= has_invalid_values(&old["spec"]["selector"]);
        errors.immutable_as(
            "spec.selector",
            template::SELECTOR,
            &object["spec"]["selector"],
            &old["spec"]["selector"],
        );
        Self::validate_with(object, &options, errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let status = root.field("status");
        errors.non_negative_fields(
            &status,
            &[
                "currentNumberScheduled",
                "numberMisscheduled",
                "desiredNumberScheduled",
                "numberReady",
                "observedGeneration",
                "updatedNumberScheduled",
                "numberAvailable",
                "numberUnavailable",
                "collisionCount",
            ],
        );
        workload::validate_collisions(&status, old, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let same_template =
            old.is_some_and(|old| object["spec"]["template"] == old["spec"]["template"]);
        if same_template {
            return Vec::new();
        }
        workload::template_warnings(object, None)
    }
}

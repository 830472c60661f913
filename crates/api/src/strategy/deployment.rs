//! Deployments.

use serde_json::Value;

use super::template::{self, Options};
use super::{Strategy, copy_field, default_at, workload};
use crate::validation::{At, Errors, int_or_percent, internal, is_percent, percent_at_most_100};

pub(super) struct Deployment;

impl Deployment {
    fn validate_with(object: &Value, options: &Options, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        errors.non_negative(&spec.field("replicas"));
        template::validate_workload(&spec, options, errors);
        validate_strategy(&spec.field("strategy"), errors);
        errors.non_negative_fields(&spec, &["minReadySeconds", "revisionHistoryLimit"]);
        let deadline = spec.field("progressDeadlineSeconds");
        errors.non_negative(&deadline);
        let ready = spec.get("minReadySeconds").as_i64().unwrap_or_default();
        if deadline.int().is_some_and(|seconds| seconds <= ready) {
            errors.bad(&deadline, "must be greater than minReadySeconds");
        }
    }
}

fn validate_strategy(strategy: &At<'_, '_>, errors: &mut Errors) {
    let rolling = strategy.field("rollingUpdate");
    match strategy.text("type") {
        "Recreate" => {
            if rolling.is_set() {
                let detail = "may not be specified when strategy `type` is 'Recreate'";
                errors.forbidden(rolling, detail);
            }
        }
        "RollingUpdate" => {
            if !rolling.is_set() {
                errors.required(rolling, "this should be defaulted and never be nil");
                return;
            }
            let (unavailable, surge) = (rolling.field("maxUnavailable"), rolling.field("maxSurge"));
            int_or_percent(errors, &unavailable);
            int_or_percent(errors, &surge);
            if amount(&unavailable) == 0 && amount(&surge) == 0 {
                errors.bad(&unavailable, "may not be 0 when `maxSurge` is 0");
            }
            percent_at_most_100(errors, &unavailable);
        }
        _ => {
            let shown = internal("io.k8s.api.apps.v1.DeploymentStrategy", strategy.value());
            errors.not_supported_as(strategy, &shown, &["Recreate", "RollingUpdate"]);
        }
    }
}

/// A number, or a percentage's number; other text counts as 0.
pub(super) fn amount(at: &At<'_, '_>) -> i64 {
    match at.value() {
        Value::String(text) => is_percent(text).or_else(|| text.parse().ok()).unwrap_or(0),
        other => other.as_i64().unwrap_or_default(),
    }
}

impl Strategy for Deployment {
    fn gated_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[(
            "GenericWorkload",
            &["spec", "template", "spec", "schedulingGroup"],
        )]
    }

    fn default(&self, object: &mut Value) {
        template::default_template(object, &["spec", "template"]);
        if object["spec"]["strategy"]["type"] == "RollingUpdate" {
            for field in ["maxUnavailable", "maxSurge"] {
                default_at(object, &["spec", "strategy", "rollingUpdate", field], "25%");
            }
        }
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        copy_field(&mut object["metadata"], &old["metadata"], "labels");
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        Self::validate_with(object, &Options::new(false), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let options = Options::for_update(false, &old["spec"]["template"]);
        Self::validate_with(object, &options, errors);
        errors.immutable_as(
            "spec.selector",
            template::SELECTOR,
            &object["spec"]["selector"],
            &old["spec"]["selector"],
        );
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        const OF_ALL: &str = "cannot be greater than status.replicas";
        let root = At::root(object);
        let status = root.field("status");
        workload::validate_counts(
            &status,
            &[
                "observedGeneration",
                "replicas",
                "updatedReplicas",
                "readyReplicas",
                "availableReplicas",
                "unavailableReplicas",
                "terminatingReplicas",
                "collisionCount",
            ],
            &[
                ("updatedReplicas", "replicas", OF_ALL),
                ("readyReplicas", "replicas", OF_ALL),
                ("availableReplicas", "replicas", OF_ALL),
                (
                    "availableReplicas",
                    "readyReplicas",
                    "cannot be greater than readyReplicas",
                ),
            ],
            errors,
        );
        workload::validate_collisions(&status, old, errors);
    }

    /// Annotations count too.
    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        object["spec"] != old["spec"]
            || object["metadata"]["annotations"] != old["metadata"]["annotations"]
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        workload::named_warnings(object, old)
    }
}

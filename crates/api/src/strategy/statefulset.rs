//! Stateful sets.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::deployment::amount;
use super::storage::claim;
use super::template::options::list;
use super::template::{self, Options};
use super::{Strategy, at_mut, copy_field, default_at, items_mut, workload};
use crate::meta;
use crate::validation::{
    At, Errors, Problems, api, dns_label, int_or_percent, internal, percent_at_most_100,
};

/// What may change of a spec.
const MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];
const STRATEGY: &str = "io.k8s.api.apps.v1.StatefulSetUpdateStrategy";
const ROLLING: &str = "io.k8s.api.apps.v1.RollingUpdateStatefulSetStrategy";

pub(super) struct StatefulSet;

/// What an existing set may keep.
#[derive(Clone, Copy, Default)]
struct Kept {
    service_name: bool,
    claim_templates: bool,
    template: bool,
}

fn validate_spec(spec: &At<'_, '_>, options: &Options, kept: Kept, errors: &mut Errors) {
    let policy = spec.field("podManagementPolicy");
    match policy.str() {
        "" => errors.required(policy, ""),
        "OrderedReady" | "Parallel" => {}
        _ => errors.bad(&policy, "must be 'OrderedReady' or 'Parallel'"),
    }
    validate_update_strategy(&spec.field("updateStrategy"), errors);
    let retention = spec.field("persistentVolumeClaimRetentionPolicy");
    if retention.is_set() {
        for when in ["whenDeleted", "whenScaled"] {
            errors.member(&retention.field(when), &["Retain", "Delete"]);
        }
    }
    if !kept.claim_templates {
        for claim in spec.field("volumeClaimTemplates").items() {
            claim::validate_spec(&claim.field("spec"), claim::Options::default(), errors);
        }
    }
    errors.non_negative_fields(spec, &["replicas", "minReadySeconds"]);
    let ordinals = spec.field("ordinals");
    errors.non_negative(&ordinals.field("start"));
    if !kept.service_name {
        errors.optional_name(&spec.field("serviceName"), dns_label);
    }
    let selector = spec.field("selector");
    if template::validate_selector(spec, "statefulset", errors) {
        if !selector.is_set() || !template::selector_is_empty(selector.value()) {
            template::validate_selected(spec, selector.value(), errors);
        }
        validate_template(spec, options, kept, errors);
    } else {
        errors.invalid_as(selector, &api(template::SELECTOR, selector.value()), "");
    }
    template::validate_always_running(&spec.field("template"), "StatefulSet", errors);
}

fn validate_template(spec: &At<'_, '_>, options: &Options, kept: Kept, errors: &mut Errors) {
    let template = spec.field("template");
    let pod_spec = as_pods_have_it(spec);
    let pod_spec = template.place("spec", pod_spec.as_ref().unwrap_or(template.get("spec")));
    if !kept.template {
        template::validate_with_spec(&template, &pod_spec, options, errors);
    }
    // Once more, as upstream does.
    let metadata = template.get("metadata");
    crate::validation::labels(errors, &template.place("labels", &metadata["labels"]));
    let annotations = template.place("annotations", &metadata["annotations"]);
    crate::validation::annotations(errors, &annotations);
    template::annotations::validate(&annotations, &pod_spec, options, errors);
}

/// The pod spec with volumes for claims that are made from templates, and without names that each pod gets of its own.
fn as_pods_have_it(spec: &At<'_, '_>) -> Option<Value> {
    let claims = spec.get("volumeClaimTemplates");
    let pod_spec = &spec.get("template")["spec"];
    let has_claims = list(claims).next().is_some();
    let has_names = ["subdomain", "hostname"]
        .iter()
        .any(|f| !pod_spec[*f].is_null());
    if !has_claims && !has_names {
        return None;
    }
    let mut pod_spec = pod_spec.clone();
    if let Some(map) = pod_spec.as_object_mut() {
        map.remove("subdomain");
        map.remove("hostname");
    }
    if has_claims && pod_spec.is_object() {
        // One for each name, however many templates have it.
        let names: BTreeSet<_> = list(claims).map(meta::name).collect();
        let made = names
            .into_iter()
            .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
        let own = list(&pod_spec["volumes"])
            .filter(|v| !list(claims).any(|c| c["metadata"]["name"] == v["name"]))
            .cloned();
        pod_spec["volumes"] = made.chain(own).collect();
    }
    Some(pod_spec)
}

fn validate_update_strategy(strategy: &At<'_, '_>, errors: &mut Errors) {
    let rolling = strategy.field("rollingUpdate");
    match strategy.text("type") {
        "" => errors.required(strategy, ""),
        "OnDelete" => {
            if rolling.is_set() {
                let shown = internal(ROLLING, rolling.value());
                let detail = "only allowed for updateStrategy 'RollingUpdate'";
                errors.invalid_as(rolling, &shown, detail);
            }
        }
        "RollingUpdate" => {
            errors.non_negative(&rolling.field("partition"));
            let unavailable = rolling.field("maxUnavailable");
            if unavailable.is_set() {
                int_or_percent(errors, &unavailable);
                if amount(&unavailable) == 0 {
                    errors.bad(&unavailable, "cannot be 0");
                }
                percent_at_most_100(errors, &unavailable);
            }
        }
        _ => {
            let shown = internal(STRATEGY, strategy.value());
            errors.invalid_as(strategy, &shown, "must be 'RollingUpdate' or 'OnDelete'");
        }
    }
}

/// The gate for it is closed: what no set has yet, none gets.
fn drop_max_unavailable(object: &mut Value, old: Option<&Value>) {
    let has = |o: &Value| !o["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"].is_null();
    if old.is_some_and(has) || !has(object) {
        return;
    }
    let rolling = at_mut(object, &["spec", "updateStrategy", "rollingUpdate"]);
    if let Some(rolling) = rolling.and_then(Value::as_object_mut) {
        rolling.remove("maxUnavailable");
    }
}

impl Strategy for StatefulSet {
    fn gated_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[(
            "GenericWorkload",
            &["spec", "template", "spec", "schedulingGroup"],
        )]
    }

    fn name_rule(&self) -> fn(&str) -> Problems {
        dns_label
    }

    fn default(&self, object: &mut Value) {
        template::default_template(object, &["spec", "template"]);
        let strategy: &Value = &object["spec"]["updateStrategy"];
        let is_rolling =
            strategy["type"] == "RollingUpdate" && strategy["rollingUpdate"].is_object();
        if strategy["type"].is_null() || is_rolling {
            let partition = ["spec", "updateStrategy", "rollingUpdate", "partition"];
            default_at(object, &partition, 0);
            default_at(object, &["spec", "updateStrategy", "type"], "RollingUpdate");
        }
        for claim in items_mut(object, &["spec", "volumeClaimTemplates"]) {
            claim::default_claim(claim);
            if claim.is_object() {
                claim["apiVersion"] = "v1".into();
                claim["kind"] = "PersistentVolumeClaim".into();
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
        drop_max_unavailable(object, None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
        drop_max_unavailable(object, Some(old));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_spec(
            &root.field("spec"),
            &Options::new(false),
            Kept::default(),
            errors,
        );
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let options = Options::for_update(false, &old["spec"]["template"]);
        let mut kept = Kept {
            service_name: true,
            claim_templates: true,
            template: false,
        };
        let mut found = Errors::default();
        let (root, before) = (At::root(object), At::root(old));
        validate_spec(&before.field("spec"), &options, kept, &mut found);
        kept.template = !found.is_empty();
        validate_spec(&root.field("spec"), &options, kept, errors);
        let fixed = |o: &Value| {
            let mut spec = o["spec"].clone();
            if let Some(map) = spec.as_object_mut() {
                map.retain(|field, _| !MUTABLE.contains(&field.as_str()));
            }
            spec
        };
        if fixed(object) != fixed(old) {
            errors.forbidden("spec", "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
        }
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        const OF_ALL: &str = "cannot be greater than status.replicas";
        let root = At::root(object);
        let status = root.field("status");
        workload::validate_counts(
            &status,
            &[
                "replicas",
                "readyReplicas",
                "currentReplicas",
                "updatedReplicas",
                "availableReplicas",
                "observedGeneration",
                "collisionCount",
            ],
            &[
                ("readyReplicas", "replicas", OF_ALL),
                ("currentReplicas", "replicas", OF_ALL),
                ("updatedReplicas", "replicas", OF_ALL),
                ("availableReplicas", "replicas", OF_ALL),
                (
                    "availableReplicas",
                    "readyReplicas",
                    "cannot be greater than status.readyReplicas",
                ),
            ],
            errors,
        );
        workload::validate_collisions(&status, old, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = workload::template_warnings(object, old);
        let root = At::root(object);
        let spec = root.field("spec");
        for claim in spec.field("volumeClaimTemplates").items() {
            // The place has no `spec` in it, or one of its own.
            let place = if old.is_some() {
                format!("{claim}.Spec")
            } else {
                claim.to_string()
            };
            claim::warnings(&At::named(claim.get("spec"), &place), &mut warnings);
        }
        let limit = spec.field("revisionHistoryLimit");
        if limit.int().is_some_and(|n| n < 0) {
            warnings.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".into());
        }
        warnings
    }
}

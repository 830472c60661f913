//! Pod specs, as pods and the templates of workloads share them.

pub(super) mod annotations;
pub(super) mod container;
mod defaults;
mod environment;
mod mounts;
pub(super) mod options;
mod probe;
pub(super) mod projected;
mod resources;
pub(super) mod scheduling;
mod security;
pub(super) mod spec;
pub(super) mod volume;
pub(super) mod warnings;

use serde_json::Value;

use super::{MetaCheck, Strategy};
use crate::validation::{self, At, Errors, label_selector, labels, selector_matches};

pub(super) use defaults::{default_pod, default_spec, default_template};
pub(super) use options::Options;
pub(super) use resources::validate_overhead;
pub(super) use spec::PREEMPTION;

pub(super) struct PodTemplate;

impl Strategy for PodTemplate {
    fn gated_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("GenericWorkload", &["template", "spec", "schedulingGroup"])]
    }

    fn default(&self, object: &mut Value) {
        default_template(object, &["template"]);
    }

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate(&root.field("template"), &Options::new(false), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let options = Options::for_update(false, &old["template"]);
        validate(&root.field("template"), &options, errors);
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let root = At::root(object);
        warnings::of(&root.field("template"), true)
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &["template"]
    }
}

pub(super) const CONTAINER_LISTS: [&str; 3] =
    ["initContainers", "containers", "ephemeralContainers"];

/// The type of selectors.
pub(super) const SELECTOR: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector";

/// All containers of a pod spec.
pub(super) fn containers_of(spec: &Value) -> impl Iterator<Item = &Value> {
    CONTAINER_LISTS
        .into_iter()
        .flat_map(|name| options::list(&spec[name]))
}

/// A template of pods: labels, annotations and pod spec.
pub(super) fn validate(template: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    validate_with_spec(template, &template.field("spec"), options, errors);
}

/// A template whose pod spec is looked at in another form than the one that is stored.
pub(super) fn validate_with_spec(
    template: &At<'_, '_>,
    pod_spec: &At<'_, '_>,
    options: &Options,
    errors: &mut Errors,
) {
    // Errors leave out that labels and annotations are metadata.
    let metadata = template.get("metadata");
    labels(errors, &template.place("labels", &metadata["labels"]));
    let at = template.place("annotations", &metadata["annotations"]);
    validation::annotations(errors, &at);
    annotations::validate(&at, pod_spec, options, errors);
    spec::validate(pod_spec, None, options, errors);
    annotations::validate_agreement(&at, pod_spec, errors);
    let ephemeral = pod_spec.field("ephemeralContainers");
    if !ephemeral.is_empty() {
        errors.forbidden(
            ephemeral,
            "ephemeral containers not allowed in pod template",
        );
    }
}

/// A workload's selector; returns whether it is well-formed.
pub(super) fn validate_selector(spec: &At<'_, '_>, kind: &str, errors: &mut Errors) -> bool {
    let selector = spec.field("selector");
    if !selector.is_set() {
        errors.required(selector, "");
        return true;
    }
    let before = errors.len();
    label_selector(errors, &selector);
    let well_formed = errors.len() == before;
    if selector.field("matchLabels").is_empty() && selector.field("matchExpressions").is_empty() {
        let detail = format!("empty selector is invalid for {kind}");
        errors.bad(&selector, &detail);
    }
    well_formed
}

/// A template must have the labels that its workload selects by.
pub(super) fn validate_selected(spec: &At<'_, '_>, selector: &Value, errors: &mut Errors) {
    let template = spec.field("template");
    let metadata = template.field("metadata");
    let labels = metadata.field("labels");
    if selector.is_null() || !selector_matches(selector, labels.value()) {
        errors.invalid(
            labels,
            labels.value(),
            "`selector` does not match template `labels`",
        );
    }
}

/// A template of pods that always run: how `kind` says what they may not have.
pub(super) fn validate_always_running(template: &At<'_, '_>, kind: &str, errors: &mut Errors) {
    let spec = template.field("spec");
    let policy = spec.field("restartPolicy");
    errors.member(&policy, &["Always"]);
    let deadline = spec.field("activeDeadlineSeconds");
    if deadline.is_set() {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(deadline, &detail);
    }
}

/// The template and selector of a workload whose pods always run.
pub(super) fn validate_workload(spec: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    let selector = spec.field("selector");
    if !validate_selector(spec, "deployment", errors) {
        let shown = validation::api(SELECTOR, selector.value());
        errors.invalid_as(selector, &shown, "invalid label selector");
        return;
    }
    let template = spec.field("template");
    if !selector.is_set() || !selector_is_empty(selector.value()) {
        validate_selected(spec, selector.value(), errors);
    }
    validate(&template, options, errors);
    validate_always_running(&template, "ReplicaSet", errors);
}

/// Whether a selector selects everything.
pub(super) fn selector_is_empty(selector: &Value) -> bool {
    let is_empty = |part: &Value| {
        part.as_object().is_none_or(serde_json::Map::is_empty)
            && part.as_array().is_none_or(Vec::is_empty)
    };
    is_empty(&selector["matchLabels"]) && is_empty(&selector["matchExpressions"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(spec: Value) -> Vec<String> {
        let mut errors = Errors::default();
        spec::validate(
            &At::named(&spec, "spec"),
            None,
            &Options::new(true),
            &mut errors,
        );
        errors.0.into_iter().map(|c| c.field).collect()
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("r:5000/a", "Always"),
            ("r:5000/a@sha256:0", "IfNotPresent"),
            ("A", "IfNotPresent"),
            ("", "IfNotPresent"),
        ] {
            let mut spec = json!({"containers": [{"image": image}]});
            default_spec(&mut spec);
            assert_eq!(spec["containers"][0]["imagePullPolicy"], policy, "{image}");
        }
    }

    #[test]
    fn limits_become_requests() {
        let mut spec = json!({"containers": [{"resources": {"limits": {"cpu": "1"}}}]});
        default_spec(&mut spec);
        assert!(spec["containers"][0]["resources"]["requests"].is_null());
        default_pod(&mut spec);
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
    }

    #[test]
    fn bad_specs_name_their_fields() {
        let base = json!({"restartPolicy": "Always", "dnsPolicy": "Default", "terminationGracePeriodSeconds": 30});
        let with = |containers: Value| {
            let mut spec = base.clone();
            spec["containers"] = containers;
            spec
        };
        assert_eq!(fields(base.clone()), ["spec.containers"]);
        let containers = json!([{"name": "A", "image": "", "volumeMounts": [{"name": "v", "mountPath": "/x"}],
            "terminationMessagePolicy": "File", "imagePullPolicy": "Never",
            "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}, "ports": [{"containerPort": 70000, "protocol": "TCP"}],
            "readinessProbe": {}}]);
        assert_eq!(
            fields(with(containers)),
            [
                "spec.containers[0].name",
                "spec.containers[0].image",
                "spec.containers[0].ports[0].containerPort",
                "spec.containers[0].volumeMounts[0].name",
                "spec.containers[0].resources.requests",
                "spec.containers[0].readinessProbe",
            ]
        );
    }
}

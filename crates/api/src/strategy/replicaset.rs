//! Replica sets and their predecessor, replication controllers.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::template::{self, Options};
use super::workload::{self, PartOf};
use super::{Strategy, text};
use crate::selector::LabelSelector;
use crate::validation::{At, Errors};

const COUNTS: &[&str] = &[
    "replicas",
    "fullyLabeledReplicas",
    "readyReplicas",
    "availableReplicas",
    "observedGeneration",
    "terminatingReplicas",
];
const OF_ALL: &str = "cannot be greater than status.replicas";
const PARTS: &[PartOf] = &[
    ("fullyLabeledReplicas", "replicas", OF_ALL),
    ("readyReplicas", "replicas", OF_ALL),
    ("availableReplicas", "replicas", OF_ALL),
    (
        "availableReplicas",
        "readyReplicas",
        "cannot be greater than readyReplicas",
    ),
];

pub(super) struct ReplicaSet;

impl ReplicaSet {
    fn validate_with(object: &Value, options: &Options, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        errors.non_negative_fields(&spec, &["replicas", "minReadySeconds"]);
        template::validate_workload(&spec, options, errors);
    }
}

impl Strategy for ReplicaSet {
    fn gated_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[(
            "GenericWorkload",
            &["spec", "template", "spec", "schedulingGroup"],
        )]
    }

    fn default(&self, object: &mut Value) {
        template::default_template(object, &["spec", "template"]);
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

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        workload::validate_counts(&root.field("status"), COUNTS, PARTS, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        workload::named_warnings(object, old)
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "status.replicas").then(|| text(object, "/status/replicas"))
    }
}

pub(super) struct ReplicationController;

impl ReplicationController {
    fn validate_with(object: &Value, options: &Options, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        errors.non_negative(&spec.field("minReadySeconds"));
        let selector = spec.field("selector");
        if selector.is_empty() {
            errors.required(selector, "");
        }
        let replicas = spec.field("replicas");
        if replicas.is_set() {
            errors.non_negative(&replicas);
        } else {
            errors.required(replicas, "");
        }
        let template = spec.field("template");
        if !template.is_set() {
            errors.required(template, "");
            return;
        }
        let metadata = template.field("metadata");
        let labels = metadata.field("labels");
        let selects = LabelSelector::from_match_labels(selector.map());
        if !selector.is_empty() && !selects.matches(labels.map()) {
            let detail = "`selector` does not match template `labels`";
            errors.invalid(labels, labels.value(), detail);
        }
        template::validate(&template, options, errors);
        template::validate_always_running(&template, "ReplicationController", errors);
    }
}

impl Strategy for ReplicationController {
    fn gated_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[(
            "GenericWorkload",
            &["spec", "template", "spec", "schedulingGroup"],
        )]
    }

    fn orphans_by_default(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        template::default_template(object, &["spec", "template"]);
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        if labels.is_object() {
            for holder in ["spec", "metadata"] {
                let field = if holder == "spec" {
                    "selector"
                } else {
                    "labels"
                };
                if object[holder][field].as_object().is_none_or(Map::is_empty) {
                    object[holder][field] = labels.clone();
                }
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        Self::validate_with(object, &Options::new(false), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let options = Options::for_update(false, &old["spec"]["template"]);
        Self::validate_with(object, &options, errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        workload::validate_counts(&root.field("status"), COUNTS, PARTS, errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        match old {
            None => workload::named_warnings(object, None),
            // Upstream takes the old template for the new one.
            Some(old) => workload::template_warnings(old, Some(object)),
        }
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "status.replicas").then(|| text(object, "/status/replicas"))
    }
}

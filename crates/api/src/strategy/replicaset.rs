//! Replica sets and their predecessor, replication controllers.

use std::borrow::Cow;

use serde_json::Value;

use super::{Strategy, template, text};
use crate::validation::Errors;

pub(super) struct ReplicaSet;

impl Strategy for ReplicaSet {
    fn default(&self, object: &mut Value) {
        template::default_spec(&mut object["spec"]["template"]["spec"]);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        errors.non_negative("spec.replicas", &object["spec"]["replicas"]);
        errors.non_negative("spec.minReadySeconds", &object["spec"]["minReadySeconds"]);
        template::validate_selector(object, errors);
        template::validate_template(
            &object["spec"]["template"],
            "spec.template",
            &["Always"],
            errors,
        );
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable(
            "spec.selector",
            &object["spec"]["selector"],
            &old["spec"]["selector"],
        );
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "status.replicas").then(|| text(object, "/status/replicas"))
    }
}

pub(super) struct ReplicationController;

impl Strategy for ReplicationController {
    fn default(&self, object: &mut Value) {
        template::default_spec(&mut object["spec"]["template"]["spec"]);
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        if labels.is_object() {
            if object["spec"]["selector"]
                .as_object()
                .is_none_or(serde_json::Map::is_empty)
            {
                object["spec"]["selector"] = labels.clone();
            }
            if object["metadata"]["labels"]
                .as_object()
                .is_none_or(serde_json::Map::is_empty)
            {
                object["metadata"]["labels"] = labels;
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        errors.non_negative("spec.replicas", &object["spec"]["replicas"]);
        let selector = object["spec"]["selector"].as_object();
        if selector.is_none_or(serde_json::Map::is_empty) {
            errors.required("spec.selector", "");
        }
        let labels = &object["spec"]["template"]["metadata"]["labels"];
        if !crate::selector::LabelSelector::from_match_labels(selector).matches(labels.as_object())
        {
            errors.invalid(
                "spec.template.metadata.labels",
                labels,
                "`selector` does not match template `labels`",
            );
        }
        template::validate_template(
            &object["spec"]["template"],
            "spec.template",
            &["Always"],
            errors,
        );
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "status.replicas").then(|| text(object, "/status/replicas"))
    }
}

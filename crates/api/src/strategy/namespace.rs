//! Namespaces.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{MetaCheck, Strategy, copy_field, text};
use crate::meta;
use crate::validation::{At, Errors, Problems, dns_label, qualified_name, standard_finalizer};

/// What keeps a namespace until its content is gone.
const FINALIZER: &str = "kubernetes";

pub(super) struct Namespace;

impl Namespace {
    fn validate_finalizer(at: &At<'_, '_>, name: &str, errors: &mut Errors) {
        errors.problems(at, qualified_name(name));
        standard_finalizer(errors, at);
    }
}

impl Strategy for Namespace {
    fn name_rule(&self) -> fn(&str) -> Problems {
        dns_label
    }

    fn default(&self, object: &mut Value) {
        let name = meta::name(object).to_owned();
        if !name.is_empty() {
            let labels = meta::metadata(object)
                .entry("labels")
                .or_insert(Value::Null);
            if labels.is_null() {
                *labels = json!({});
            }
            labels["kubernetes.io/metadata.name"] = name.into();
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Active"});
        let spec = meta::child(object, "spec");
        let finalizers = spec.entry("finalizers").or_insert(Value::Null);
        match finalizers.as_array_mut() {
            Some(list) if list.iter().any(|f| f == FINALIZER) => {}
            Some(list) => list.push(FINALIZER.into()),
            None => *finalizers = json!([FINALIZER]),
        }
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        copy_field(object, old, "status");
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
    }

    fn prepare_subresource_update(&self, _finalize: &str, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let finalizers = spec.field("finalizers");
        for finalizer in finalizers.items() {
            // Errors name the list, not its item, and the name.
            let place = spec.place("finalizers", finalizer.value());
            Self::validate_finalizer(&place, finalizer.str(), errors);
        }
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let phase = &object["status"]["phase"];
        let (wanted, when) = if object["metadata"]["deletionTimestamp"].is_null() {
            ("Active", "empty")
        } else {
            ("Terminating", "not empty")
        };
        if *phase != wanted {
            let detail = format!("may only be '{wanted}' if `deletionTimestamp` is {when}");
            errors.invalid_text("status.Phase", phase.as_str().unwrap_or_default(), &detail);
        }
    }

    fn validate_subresource(
        &self,
        _finalize: &str,
        object: &Value,
        _old: &Value,
        errors: &mut Errors,
    ) {
        let root = At::root(object);
        let spec = root.field("spec");
        for finalizer in spec.field("finalizers").items() {
            Self::validate_finalizer(&finalizer, finalizer.str(), errors);
        }
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["status.phase", "name"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        match field {
            "status.phase" => Some(text(object, "/status/phase")),
            "name" => Some(text(object, "/metadata/name")),
            _ => None,
        }
    }
}

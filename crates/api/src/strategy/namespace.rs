//! Namespaces.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{Strategy, copy_field, text};
use crate::meta;
use crate::validation::{self, Problems};

pub(super) struct Namespace;

impl Strategy for Namespace {
    fn name_rule(&self) -> fn(&str) -> Problems {
        validation::dns_label
    }

    fn default(&self, object: &mut Value) {
        let name = meta::name(object).to_owned();
        if !name.is_empty() {
            super::default_at(
                object,
                &["metadata", "labels", "kubernetes.io/metadata.name"],
                name,
            );
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Active"});
        object["spec"] = json!({"finalizers": ["kubernetes"]});
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        copy_field(object, old, "status");
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

//! Nodes.

use std::borrow::Cow;

use serde_json::Value;

use super::{Strategy, text};
use crate::validation::{self, Errors};

pub(super) struct Node;

impl Strategy for Node {
    fn default(&self, object: &mut Value) {
        let capacity = object["status"]["capacity"].clone();
        if capacity.is_object() {
            super::default_at(object, &["status", "allocatable"], capacity);
        }
    }

    fn prepare_create(&self, _object: &mut Value) {
        // A kubelet registers its node with the status it has already found out.
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        for (i, taint) in object["spec"]["taints"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            for problem in validation::qualified_name(taint["key"].as_str().unwrap_or_default()) {
                errors.invalid(&format!("spec.taints[{i}].key"), &taint["key"], &problem);
            }
            let effect = &taint["effect"];
            if !["NoSchedule", "PreferNoSchedule", "NoExecute"]
                .contains(&effect.as_str().unwrap_or_default())
            {
                errors.not_supported(
                    &format!("spec.taints[{i}].effect"),
                    effect,
                    &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                );
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        for field in ["podCIDR", "providerID"] {
            let (new, before) = (&object["spec"][field], &old["spec"][field]);
            if before.as_str().is_some_and(|b| !b.is_empty()) && new != before {
                errors.forbidden(
                    &format!("spec.{field}"),
                    "node updates may not change it once it is set",
                );
            }
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "spec.unschedulable").then(|| match text(object, "/spec/unschedulable") {
            Cow::Borrowed("") => Cow::Borrowed("false"),
            set => set,
        })
    }
}

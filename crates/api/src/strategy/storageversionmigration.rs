//! Orders to store all objects of a resource anew.

use serde_json::Value;

use super::{MetaCheck, Strategy, copy_field, keep_metadata};
use crate::validation::{At, Errors, conditions, dns_1035_label, dns_subdomain, internal};

pub(super) struct StorageVersionMigration;

/// Whether a condition of a type is true.
fn holds(object: &Value, ty: &str) -> bool {
    let all = object["status"]["conditions"].as_array();
    let mut all = all.into_iter().flatten();
    all.any(|c| c["type"] == ty && c["status"] == "True")
}

/// Whether a text is a revision of the store.
fn is_revision(text: &str) -> bool {
    !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit())
}

impl Strategy for StorageVersionMigration {
    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        keep_metadata(object, old);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let of = spec.field("resource");
        let (group, resource) = (of.field("group"), of.field("resource"));
        if resource.is_empty() {
            errors.required(resource, "resource is required to be set");
        } else {
            let problems = dns_1035_label(resource.str());
            if !problems.is_empty() {
                errors.bad(&resource, &problems.join(","));
            }
        }
        let problems = dns_subdomain(group.str());
        if !group.is_empty() && !problems.is_empty() {
            errors.bad(&group, &problems.join(","));
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        if object["spec"] != old["spec"] {
            let ty = "io.k8s.api.storagemigration.v1beta1.StorageVersionMigrationSpec";
            let shown = internal(ty, &object["spec"]);
            errors.invalid_as("spec", &shown, "field is immutable");
        }
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let status = root.field("status");
        let revision = status.field("resourceVersion");
        if !revision.is_empty() && !is_revision(revision.str()) {
            let detail = format!("resource version is not well formed: {}", revision.str());
            errors.bad(&revision, &detail);
        }
        let at = status.field("conditions");
        conditions(errors, &at);
        let before = old["status"]["resourceVersion"].as_str();
        if before.is_some_and(|before| !before.is_empty() && before != revision.str()) {
            errors.bad(&revision, "field is immutable");
        }
        if holds(object, "Succeeded") && holds(object, "Failed") {
            let detail = "Both success and failed conditions cannot be true at the same time";
            errors.bad(&at, detail);
        }
        for (ty, word) in [("Succeeded", "Success"), ("Failed", "Failed")] {
            if holds(old, ty) && !holds(object, ty) {
                let detail = format!("{word} condition cannot be set to false once it is true");
                errors.bad(&at, &detail);
            }
        }
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_done_stays_done() {
        let object = |conditions: Value| json!({"status": {"resourceVersion": "5", "conditions": conditions}});
        let condition = |ty: &str, status: &str| json!({"type": ty, "status": status, "reason": "R", "lastTransitionTime": "2026-01-02T03:04:05Z"});
        let done = object(json!([condition("Succeeded", "True")]));
        let mut errors = Errors::default();
        StorageVersionMigration.validate_status(&done, &done, &mut errors);
        assert!(errors.is_empty());
        let mut undone = object(json!([condition("Succeeded", "False")]));
        undone["status"]["resourceVersion"] = "06".into();
        StorageVersionMigration.validate_status(&undone, &done, &mut errors);
        let fields: Vec<&str> = errors.0.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "status.resourceVersion",
                "status.resourceVersion",
                "status.conditions"
            ]
        );
    }
}

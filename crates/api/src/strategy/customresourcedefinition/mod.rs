//! CustomResourceDefinitions: defaults, what an update keeps, and validation (names and versions in `spec.rs`, schemas in
//! `schema.rs` and `structural.rs`, defaults in `defaults.rs`).

mod defaults;
mod schema;
mod spec;
mod structural;

use serde_json::{Value, json};

use super::Strategy;
use crate::meta;
use crate::validation::{At, Errors, Problems};

pub use schema::{PathLookup, field_path};
pub use structural::violations;

pub(super) struct CustomResourceDefinition;

/// Holds a deleted definition until its instances are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

impl Strategy for CustomResourceDefinition {
    fn default(&self, object: &mut Value) {
        let names = &object["spec"]["names"];
        let kind = names["kind"].as_str().unwrap_or_default().to_owned();
        let is_empty = |value: &Value| value.as_str().unwrap_or_default().is_empty();
        let (singular, list_kind) = (is_empty(&names["singular"]), is_empty(&names["listKind"]));
        if singular && !kind.is_empty() {
            object["spec"]["names"]["singular"] = kind.to_lowercase().into();
        }
        if list_kind && !kind.is_empty() {
            object["spec"]["names"]["listKind"] = format!("{kind}List").into();
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        let empty = json!({"plural": "", "kind": ""});
        object["status"] =
            json!({"acceptedNames": empty, "conditions": null, "storedVersions": []});
        remember_stored_version(object);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        super::copy_field(object, old, "status");
        remember_stored_version(object);
    }

    fn prepare_delete(&self, object: &mut Value) {
        let mut finalizers: Vec<String> = meta::finalizers(object)
            .into_iter()
            .map(Into::into)
            .collect();
        if !finalizers.iter().any(|f| f == CLEANUP_FINALIZER) {
            finalizers.push(CLEANUP_FINALIZER.into());
        }
        meta::set(object, "finalizers", finalizers);
        set_condition(
            object,
            "Terminating",
            true,
            "InstanceDeletionPending",
            "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        );
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let names = &object["spec"]["names"];
        let required = format!(
            "{}.{}",
            names["plural"].as_str().unwrap_or_default(),
            object["spec"]["group"].as_str().unwrap_or_default()
        );
        let root = At::root(object);
        let metadata = root.field("metadata");
        for field in ["generateName", "name"] {
            let at = metadata.field(field);
            if !at.is_empty() && at.str() != required {
                errors.bad(&at, "must be spec.names.plural+\".\"+spec.group");
            }
        }
        spec::validate(&object["spec"], &spec::Options::default(), errors);
        validate_status(object, errors);
        validate_approval(object, None, errors);
        if object["spec"]["preserveUnknownFields"] == true {
            errors.invalid("spec.preserveUnknownFields", &true.into(), "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead");
        }
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let established = condition(old, "Established").is_some_and(|c| c["status"] == "True");
        let options = spec::Options::of_update(&old["spec"], established);
        spec::validate(&object["spec"], &options, errors);
        let mut keep = |pointer: &str, field: &str| {
            let (new, old) = (object.pointer(pointer), old.pointer(pointer));
            errors.immutable(
                field,
                new.unwrap_or(&Value::Null),
                old.unwrap_or(&Value::Null),
            );
        };
        if established {
            keep("/spec/scope", "spec.scope");
            keep("/spec/names/kind", "spec.names.kind");
        }
        keep("/spec/group", "spec.group");
        keep("/spec/names/plural", "spec.names.plural");
        validate_status(object, errors);
        validate_approval(object, Some(old), errors);
        if object["spec"]["preserveUnknownFields"] == true
            && old["spec"]["preserveUnknownFields"] != true
        {
            errors.invalid("spec.preserveUnknownFields", &true.into(), "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead");
        }
    }

    fn validate_status(&self, object: &Value, _: &Value, errors: &mut Errors) {
        spec::validate_names(
            &object["status"]["acceptedNames"],
            "status.acceptedNames",
            errors,
        );
    }

    fn has_standard_finalizers(&self) -> bool {
        false
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let known = old.map(schema::unrecognized_formats).unwrap_or_default();
        schema::unrecognized_formats(object)
            .into_iter()
            .filter(|format| !known.contains(format))
            .map(|format| format!("unrecognized format {format:?}"))
            .collect()
    }

    fn name_rule(&self) -> fn(&str) -> Problems {
        crate::validation::dns_subdomain
    }
}

/// The storage version joins `status.storedVersions`.
fn remember_stored_version(object: &mut Value) {
    let versions = object["spec"]["versions"].as_array();
    let storage = versions
        .into_iter()
        .flatten()
        .find(|v| v["storage"] == true)
        .map(|v| v["name"].clone());
    let Some(name) = storage.filter(Value::is_string) else {
        return;
    };
    let status = meta::child(object, "status");
    let stored = status.entry("storedVersions").or_insert_with(|| json!([]));
    if let Some(list) = stored.as_array_mut()
        && !list.contains(&name)
    {
        list.push(name);
    }
}

fn validate_status(object: &Value, errors: &mut Errors) {
    const FIELD: &str = "status.storedVersions";
    let status = &object["status"];
    spec::validate_names(&status["acceptedNames"], "status.acceptedNames", errors);
    let stored: Vec<&Value> = status["storedVersions"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    if stored.is_empty() {
        errors.invalid(FIELD, &Value::Null, "must have at least one stored version");
        return;
    }
    let versions: Vec<&Value> = object["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    // Of versions with the same name, only the first is a stored one.
    let mut unseen = stored.clone();
    for version in &versions {
        let before = unseen.len();
        unseen.retain(|name| **name != version["name"]);
        if version["storage"] == true && unseen.len() == before {
            let name = version["name"].as_str().unwrap_or_default();
            let detail = format!("must have the storage version {name}");
            errors.invalid(FIELD, &status["storedVersions"], &detail);
        }
    }
    for (i, name) in stored.iter().enumerate() {
        if !versions.iter().any(|v| v["name"] == **name) {
            let v = name.as_str().unwrap_or_default();
            let detail = format!(
                "missing from spec.versions; {v} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {v} and removes {v} from status.storedVersions"
            );
            errors.invalid(format!("{FIELD}[{i}]"), name, &detail);
        }
    }
}

const APPROVAL: &str = "api-approved.kubernetes.io";

#[derive(PartialEq, Eq)]
enum Approval {
    Missing,
    Bypassed,
    Approved,
    Invalid,
}

fn approval(object: &Value) -> Approval {
    let text = meta::annotation(object, APPROVAL).unwrap_or_default();
    let is_url = text.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty() && !rest.is_empty() && !rest.starts_with('/')
    });
    match text {
        "" => Approval::Missing,
        text if text.starts_with("unapproved") => Approval::Bypassed,
        _ if is_url => Approval::Approved,
        _ => Approval::Invalid,
    }
}

/// Groups of the Kubernetes community need a reference to their API review.
fn validate_approval(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let group = object["spec"]["group"].as_str().unwrap_or_default();
    let protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group == *domain || group.ends_with(&format!(".{domain}")));
    let state = approval(object);
    if !protected || old.is_some_and(|old| approval(old) == state) {
        return;
    }
    let field = format!("metadata.annotations[{APPROVAL}]");
    const SEE: &str = "see https://github.com/kubernetes/enhancements/pull/1111";
    match state {
        Approval::Missing => errors.required(
            &field,
            &format!("protected groups must have approval annotation \"{APPROVAL}\", {SEE}"),
        ),
        Approval::Invalid => errors.invalid(
            &field,
            &object["metadata"]["annotations"][APPROVAL],
            &format!("protected groups must have approval annotation \"{APPROVAL}\" with either a URL or a reason starting with \"unapproved\", {SEE}"),
        ),
        Approval::Bypassed | Approval::Approved => {}
    }
}

/// A condition of a definition.
#[must_use]
pub fn condition<'a>(crd: &'a Value, ty: &str) -> Option<&'a Value> {
    crd["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == ty)
}

/// Sets a condition; its transition time moves only with its status.
pub fn set_condition(crd: &mut Value, ty: &str, holds: bool, reason: &str, message: &str) {
    let status = if holds { "True" } else { "False" };
    let since = condition(crd, ty)
        .filter(|c| c["status"] == status)
        .and_then(|c| c["lastTransitionTime"].as_str())
        .map_or_else(meta::now, Into::into);
    let new = json!({"type": ty, "status": status, "reason": reason, "message": message, "lastTransitionTime": since});
    let conditions = &mut meta::child(crd, "status")
        .entry("conditions")
        .or_insert_with(|| json!([]));
    if !conditions.is_array() {
        **conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else {
        return;
    };
    match list.iter_mut().find(|c| c["type"] == ty) {
        Some(present) => *present = new,
        None => list.push(new),
    }
}

#[cfg(test)]
mod tests;

//! `metadata` of objects.

use serde_json::{Value, json};

use super::{At, Errors, Problems, api, as_prefix, dns_label, labels, qualified_name};
use crate::meta;

const MAX_ANNOTATIONS: usize = 256 * 1024;
const MAX_FIELD_MANAGER: usize = 128;
const MAX_SUBRESOURCE: usize = 256;
const STANDARD_FINALIZERS: [&str; 3] = ["orphan", "foregroundDeletion", "kubernetes"];

/// `metadata` of a new or updated object; `name_rule` is the kind's.
pub fn object_meta(
    errors: &mut Errors,
    object: &Value,
    namespaced: bool,
    name_rule: fn(&str) -> Problems,
) {
    let root = At::root(object);
    let metadata = root.field("metadata");
    let generate_name = metadata.field("generateName");
    if !generate_name.is_empty() {
        errors.problems(&generate_name, as_prefix(name_rule, generate_name.str()));
    }
    let name = metadata.field("name");
    if name.is_empty() {
        errors.required(name, "name or generateName is required");
    } else {
        errors.problems(&name, name_rule(name.str()));
    }
    let namespace = metadata.field("namespace");
    if namespaced {
        errors.required_name(&namespace, dns_label);
    } else if !namespace.is_empty() {
        errors.forbidden(namespace, "not allowed on this type");
    }
    errors.non_negative(&metadata.field("generation"));
    common(errors, &metadata);
    finalizers(errors, &metadata.field("finalizers"));
    managed_fields(errors, &metadata.field("managedFields"));
}

/// What creation and updates alike look at.
fn common(errors: &mut Errors, metadata: &At<'_, '_>) {
    labels(errors, &metadata.field("labels"));
    annotations(errors, &metadata.field("annotations"));
    owner_references(errors, &metadata.field("ownerReferences"));
}

/// A map of annotations.
pub fn annotations(errors: &mut Errors, at: &At<'_, '_>) {
    let mut total = 0;
    for (key, value) in at.map().into_iter().flatten() {
        let problems = if key.bytes().any(|b| b.is_ascii_uppercase()) {
            qualified_name(&key.to_lowercase())
        } else {
            qualified_name(key)
        };
        for problem in problems {
            errors.invalid_text(at, key, &problem);
        }
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > MAX_ANNOTATIONS {
        errors.too_long(at, MAX_ANNOTATIONS);
    }
}

fn owner_references(errors: &mut Errors, at: &At<'_, '_>) {
    let mut controller: Option<String> = None;
    for reference in at.list() {
        // Errors name the list, not its item.
        let place = at.place("", reference);
        let version = reference["apiVersion"].as_str().unwrap_or_default();
        let (group, bare) = version.rsplit_once('/').unwrap_or(("", version));
        if bare.is_empty() || version.matches('/').count() > 1 {
            errors.invalid_text(
                place_of(at, "apiVersion"),
                version,
                "version must not be empty",
            );
        }
        for field in ["kind", "name", "uid"] {
            if place.text(field).is_empty() {
                errors.invalid_text(place_of(at, field), "", "must not be empty");
            }
        }
        if (group, bare, place.text("kind")) == ("", "v1", "Event") {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            errors.invalid(at, reference, detail);
        }
        if reference["controller"] == true {
            let current = format!("{}/{}", place.text("kind"), place.text("name"));
            if let Some(first) = &controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {current}"
                );
                errors.invalid_as(at, &shown(at), &detail);
            } else {
                controller = Some(current);
            }
        }
    }
}

/// The references as upstream shows them.
fn shown(references: &At<'_, '_>) -> String {
    const TYPE: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference";
    let each = references.list().iter().map(|r| api(TYPE, r));
    format!("[{}]", each.collect::<Vec<_>>().join(","))
}

fn place_of(at: &At<'_, '_>, field: &str) -> String {
    format!("{at}.{field}")
}

fn finalizers(errors: &mut Errors, at: &At<'_, '_>) {
    for finalizer in at.list() {
        let name = finalizer.as_str().unwrap_or_default();
        for problem in qualified_name(name) {
            errors.invalid_text(at, name, &problem);
        }
    }
    let has = |name: &str| at.list().contains(&json!(name));
    if has("orphan") && has("foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.invalid(at, at.value(), detail);
    }
}

/// `managedFields` as clients may send them.
pub fn managed_fields(errors: &mut Errors, at: &At<'_, '_>) {
    for entry in at.items() {
        if !["Apply", "Update"].contains(&entry.text("operation")) {
            errors.bad(&entry.field("operation"), "must be `Apply` or `Update`");
        }
        let ty = entry.field("fieldsType");
        if !ty.is_empty() && ty.str() != "FieldsV1" {
            errors.bad(&ty, "must be `FieldsV1`");
        }
        let manager = entry.field("manager");
        if manager.str().len() > MAX_FIELD_MANAGER {
            errors.too_long(manager, MAX_FIELD_MANAGER);
        }
        for (i, c) in manager.str().char_indices().filter(|(_, c)| c.is_control()) {
            let detail = format!("invalid character U+{:04X} (at position {i})", u32::from(c));
            errors.bad(&manager, &detail);
        }
        let subresource = entry.field("subresource");
        if subresource.str().len() > MAX_SUBRESOURCE {
            errors.too_long(subresource, MAX_SUBRESOURCE);
        }
    }
}

/// Finalizers of built-in kinds are upstream's own or have a domain.
pub fn standard_finalizers(errors: &mut Errors, object: &Value) {
    let root = At::root(object);
    let metadata = root.field("metadata");
    for finalizer in metadata.field("finalizers").items() {
        standard_finalizer(errors, &finalizer);
    }
}

/// One finalizer that is upstream's own or has a domain.
pub fn standard_finalizer(errors: &mut Errors, at: &At<'_, '_>) {
    if !at.str().contains('/') && !STANDARD_FINALIZERS.contains(&at.str()) {
        errors.bad(
            at,
            "name is neither a standard finalizer name nor is it fully qualified",
        );
    }
}

/// What an update may not change in `metadata`.
pub fn object_meta_update(errors: &mut Errors, object: &Value, old: &Value) {
    let (root, old_root) = (At::root(object), At::root(old));
    let (metadata, before) = (root.field("metadata"), old_root.field("metadata"));
    if meta::is_terminating(old) {
        let known = meta::finalizers(old);
        let mut added: Vec<&str> = meta::finalizers(object)
            .into_iter()
            .filter(|f| !known.contains(f))
            .collect();
        added.sort_unstable();
        added.dedup();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(|f| super::quote(f)).collect();
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                list.join(", ")
            );
            errors.forbidden(metadata.field("finalizers"), &detail);
        }
    }
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        errors.immutable_field(&metadata, &before, field);
    }
    common(errors, &metadata);
    managed_fields(errors, &metadata.field("managedFields"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::dns_subdomain;

    #[test]
    fn metadata_is_validated() {
        let mut errors = Errors::default();
        let object =
            json!({"metadata": {"name": "Bad", "labels": {"a b": "c"}, "finalizers": ["mine"]}});
        object_meta(&mut errors, &object, true, dns_subdomain);
        standard_finalizers(&mut errors, &object);
        let fields: Vec<&str> = errors.0.iter().map(|c| c.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "metadata.name",
                "metadata.namespace",
                "metadata.labels",
                "metadata.finalizers[0]"
            ]
        );
    }
}

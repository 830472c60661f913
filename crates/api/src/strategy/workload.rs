//! What the kinds that run pods have in common.

use serde_json::Value;

use super::template::warnings;
use crate::meta;
use crate::validation::{At, Errors, dns_label};

/// Warnings of a workload with a template in its spec. Updates that are none of the spec's have nothing to warn of.
pub(super) fn template_warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    if !changed(object, old) {
        return Vec::new();
    }
    let root = At::root(object);
    let spec = root.field("spec");
    warnings::of(&spec.field("template"), true)
}

/// Whether an object is new or its generation is.
pub(super) fn changed(object: &Value, old: Option<&Value>) -> bool {
    old.is_none_or(|old| meta::generation(object) != meta::generation(old))
}

/// Names of new workloads become parts of their pods'.
pub(super) fn name_warning(object: &Value, old: Option<&Value>) -> Option<String> {
    let problems = dns_label(meta::name(object));
    (old.is_none() && !problems.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
            problems.join(" ")
        )
    })
}

/// Both of the above.
pub(super) fn named_warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    let mut warnings: Vec<String> = name_warning(object, old).into_iter().collect();
    warnings.extend(template_warnings(object, old));
    warnings
}

/// A count in a status and what it is part of: `(field, whole, what is said of a part that is greater)`.
pub(super) type PartOf = (&'static str, &'static str, &'static str);

/// Counts of a status: none is negative, and no part is greater than its whole.
pub(super) fn validate_counts(
    status: &At<'_, '_>,
    counts: &[&str],
    parts: &[PartOf],
    errors: &mut Errors,
) {
    errors.non_negative_fields(status, counts);
    let number = |field: &str| status.get(field).as_i64().unwrap_or_default();
    for (part, whole, detail) in parts {
        if number(part) > number(whole) {
            errors.invalid(status.field(part), &number(part).into(), detail);
        }
    }
}

/// The count of collisions only goes up.
pub(super) fn validate_collisions(status: &At<'_, '_>, old: &Value, errors: &mut Errors) {
    let count = status.field("collisionCount");
    let before = old["status"]["collisionCount"].as_i64();
    let now = count.int();
    if before.is_some_and(|before| now.is_none_or(|now| now < before)) {
        let detail = "cannot be decremented";
        errors.invalid(count, &now.unwrap_or_default().into(), detail);
    }
}

//! Dynamic resource allocation: classes of devices, claims to them, and what drivers offer. Expressions, and who may ask
//! for access to devices that others use, are looked at where there is more to look with: in the API server.

mod claim;
mod class;
mod device;
mod names;
mod slice;
mod status;

use std::collections::HashSet;

use serde_json::Value;

use crate::validation::{At, Errors, quote};

pub(super) use claim::{ResourceClaim, ResourceClaimTemplate};
pub(super) use class::DeviceClass;
pub(super) use slice::ResourceSlice;

const MAX_CONFIG: usize = 32;

const MAX_REQUESTS: usize = 32;

const MAX_SELECTORS: usize = 32;

/// Bytes of what only a driver understands.
const MAX_PARAMETERS: usize = 10 * 1024;

const TAINT_EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

/// Whether a list has no more items than it may have. If it has, nothing else is said about it.
fn is_within(at: &At<'_, '_>, max: usize, errors: &mut Errors) -> bool {
    let count = at.list().len();
    if count > max {
        errors.too_many(at, count, max);
    }
    count <= max
}

/// Tells the items of a list whose text others before them had.
fn unique<'k>(at: &At<'_, '_>, key: impl Fn(&Value) -> &str + 'k, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for item in at.items() {
        let key = key(item.value());
        if seen.contains(key) {
            errors.duplicate_as(item, &quote(key));
        } else {
            seen.insert(key.to_owned());
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn name(value: &Value) -> &str {
    text(&value["name"])
}

/// What a driver is told that nobody else understands.
fn configuration(config: &At<'_, '_>, stored: bool, errors: &mut Errors) {
    let opaque = config.field("opaque");
    if !opaque.is_set() {
        errors.required(opaque, "");
        return;
    }
    names::driver(&opaque.field("driver"), errors);
    raw(&opaque.field("parameters"), stored, errors);
}

/// Data that must be an object, and not a large one if it is new.
fn raw(at: &At<'_, '_>, stored: bool, errors: &mut Errors) {
    if !at.is_set() {
        errors.required(at, "");
    } else if !stored && at.value().to_string().len() > MAX_PARAMETERS {
        errors.too_long(at, MAX_PARAMETERS);
    } else if !at.value().is_object() {
        errors.invalid_text(at, "<value omitted>", "must be a valid JSON object");
    }
}

/// Expressions that select devices; those have to be there.
fn selectors(at: &At<'_, '_>, errors: &mut Errors) {
    if !is_within(at, MAX_SELECTORS, errors) {
        return;
    }
    for selector in at.items() {
        let cel = selector.field("cel");
        if !cel.is_set() {
            errors.required(cel, "");
        }
    }
}

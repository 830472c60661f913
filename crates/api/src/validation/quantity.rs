//! Quantities.

use serde_json::Value;

use super::{At, Errors};
use crate::quantity::Quantity;

/// The quantity that a value is; `None` when there is none.
#[must_use]
pub fn quantity_of(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

pub fn non_negative_quantity(errors: &mut Errors, at: &At<'_, '_>) {
    if quantity_of(at.value()).is_some_and(|q| q.is_negative()) {
        errors.bad(at, "must be greater than or equal to 0");
    }
}

pub fn positive_quantity(errors: &mut Errors, at: &At<'_, '_>) {
    positive_quantity_as(errors, at, "must be greater than zero");
}

/// A quantity above zero, and what is said of others.
pub fn positive_quantity_as(errors: &mut Errors, at: &At<'_, '_>, detail: &str) {
    if quantity_of(at.value()).is_some_and(|q| q.is_negative() || q.is_zero()) {
        errors.bad(at, detail);
    }
}

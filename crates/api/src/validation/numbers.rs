//! Numbers that may also be shares.

use serde_json::Value;

use super::{At, Errors};

/// The number of a string such as `25%`.
#[must_use]
pub fn is_percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().unwrap_or(i64::MAX))
}

/// A number that is not negative, or a percentage.
pub fn int_or_percent(errors: &mut Errors, at: &At<'_, '_>) {
    match at.value() {
        Value::String(text) if is_percent(text).is_none() => errors.bad(at, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"),
        Value::Number(_) => errors.non_negative(at),
        _ => {}
    }
}

pub fn percent_at_most_100(errors: &mut Errors, at: &At<'_, '_>) {
    if is_percent(at.str()).is_some_and(|n| n > 100) {
        errors.bad(at, "must not be greater than 100%");
    }
}

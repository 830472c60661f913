//! `metav1.Condition`s.

use std::collections::HashSet;

use std::sync::LazyLock;

use regex::Regex;

use super::names::pattern;
use super::{At, Errors, label_key};

static REASON: LazyLock<Regex> =
    LazyLock::new(|| pattern("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"));
const REASON_MESSAGE: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";

const MAX_REASON: usize = 1024;
const MAX_MESSAGE: usize = 32 * 1024;

/// A list of conditions, one of each type.
pub fn conditions(errors: &mut Errors, at: &At<'_, '_>) {
    let mut seen = HashSet::new();
    for condition in at.items() {
        let ty = condition.field("type");
        if !seen.insert(ty.str()) {
            errors.duplicate(ty, ty.value());
        }
        label_key(errors, &ty);
        errors.member(&condition.field("status"), &["False", "True", "Unknown"]);
        let generation = condition.field("observedGeneration");
        if generation.int().is_some_and(|n| n < 0) {
            errors.bad(&generation, "must be greater than or equal to zero");
        }
        errors.required_text(&condition.field("lastTransitionTime"));
        let reason = condition.field("reason");
        if reason.is_empty() {
            errors.required(reason, "");
        } else {
            if !REASON.is_match(reason.str()) {
                errors.bad(&reason, REASON_MESSAGE);
            }
            if reason.str().len() > MAX_REASON {
                errors.too_long(reason, MAX_REASON);
            }
        }
        let message = condition.field("message");
        if message.str().len() > MAX_MESSAGE {
            errors.too_long(message, MAX_MESSAGE);
        }
    }
}

//! Labels and what selects by them.

use serde_json::Value;

use super::{At, Errors, label_value, qualified_name};
use crate::selector::LabelSelector;

/// Validates a map of labels (or a selector's `matchLabels`).
pub fn labels(errors: &mut Errors, at: &At<'_, '_>) {
    for (key, value) in at.map().into_iter().flatten() {
        for problem in qualified_name(key) {
            errors.invalid_text(at, key, &problem);
        }
        for problem in label_value(value.as_str().unwrap_or_default()) {
            errors.invalid(at, value, &problem);
        }
    }
}

pub fn label_key(errors: &mut Errors, at: &At<'_, '_>) {
    errors.problems(at, qualified_name(at.str()));
}

/// What an existing object may keep.
#[derive(Clone, Copy, Debug, Default)]
pub struct SelectorOptions {
    pub allow_invalid_values: bool,
}

/// A `metav1.LabelSelector`.
pub fn label_selector(errors: &mut Errors, at: &At<'_, '_>) {
    label_selector_with(errors, at, SelectorOptions::default());
}

/// A `metav1.LabelSelector` of an object that may have been stored when rules were fewer.
pub fn label_selector_with(errors: &mut Errors, at: &At<'_, '_>, options: SelectorOptions) {
    labels(errors, &at.field("matchLabels"));
    for requirement in at.field("matchExpressions").items() {
        let values = requirement.field("values");
        match requirement.text("operator") {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errors.required(
                        values,
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    );
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    errors.forbidden(
                        values,
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    );
                }
            }
            _ => errors.bad(
                &requirement.field("operator"),
                "not a valid selector operator",
            ),
        }
        label_key(errors, &requirement.field("key"));
        if !options.allow_invalid_values {
            for value in values.items() {
                errors.problems(&value, label_value(value.str()));
            }
        }
    }
}

/// Whether a selector's expressions have values that labels cannot have.
#[must_use]
pub fn has_invalid_values(selector: &Value) -> bool {
    let expressions = selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten();
    expressions
        .flat_map(|e| e["values"].as_array().into_iter().flatten())
        .any(|v| !label_value(v.as_str().unwrap_or_default()).is_empty())
}

/// Whether there is anything wrong with a selector.
#[must_use]
pub fn has_invalid_selector(selector: &Value) -> bool {
    let mut errors = Errors::default();
    label_selector(&mut errors, &At::root(selector));
    !errors.is_empty()
}

/// Whether a well-formed selector selects labels. No selector selects nothing, but is not held against them.
#[must_use]
pub fn selector_matches(selector: &Value, labels: &Value) -> bool {
    LabelSelector::from_json(selector).is_ok_and(|s| s.matches(labels.as_object()))
}

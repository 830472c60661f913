//! The list of field errors that becomes a 422.

use std::fmt::Display;

use serde_json::Value;

use super::At;
use super::render::{api, quote, render};
use crate::error::Cause;

/// Collected field errors.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<Cause>);

impl Errors {
    fn push(&mut self, reason: &'static str, field: impl Display, message: String) {
        self.0.push(Cause {
            reason,
            message,
            field: field.to_string(),
        });
    }

    pub fn required(&mut self, field: impl Display, detail: &str) {
        self.push(
            "FieldValueRequired",
            field,
            with_detail("Required value", detail),
        );
    }

    pub fn invalid(&mut self, field: impl Display, value: &Value, detail: &str) {
        let message = format!("Invalid value: {}", render(value));
        self.push("FieldValueInvalid", field, with_detail(&message, detail));
    }

    /// The value at a place; nothing at all counts as an empty string.
    pub fn bad(&mut self, at: &At<'_, '_>, detail: &str) {
        if at.is_set() {
            self.invalid(at, at.value(), detail);
        } else {
            self.invalid_text(at, "", detail);
        }
    }

    /// An invalid value that is written as it is: what is wrong is not a value of the object.
    pub fn invalid_as(&mut self, field: impl Display, value: &str, detail: &str) {
        let message = format!("Invalid value: {value}");
        self.push("FieldValueInvalid", field, with_detail(&message, detail));
    }

    pub fn invalid_text(&mut self, field: impl Display, value: &str, detail: &str) {
        self.invalid_as(field, &quote(value), detail);
    }

    /// An invalid value that the message leaves out.
    pub fn invalid_omitted(&mut self, field: impl Display, detail: &str) {
        self.push(
            "FieldValueInvalid",
            field,
            with_detail("Invalid value", detail),
        );
    }

    /// What a naming rule has to say about a string.
    pub fn problems(&mut self, at: &At<'_, '_>, problems: impl IntoIterator<Item = String>) {
        for problem in problems {
            self.invalid_text(at, at.str(), &problem);
        }
    }

    /// A string that must be there and follow a naming rule.
    pub fn required_name(&mut self, at: &At<'_, '_>, rule: fn(&str) -> Vec<String>) {
        if at.is_empty() {
            self.required(at, "");
        } else {
            self.problems(at, rule(at.str()));
        }
    }

    /// A string that follows a naming rule if it is there.
    pub fn optional_name(&mut self, at: &At<'_, '_>, rule: fn(&str) -> Vec<String>) {
        if !at.is_empty() {
            self.problems(at, rule(at.str()));
        }
    }

    /// A domain and a path, `acme.io/foo`, that must be there.
    pub fn domain_prefixed_path(&mut self, field: impl Display, value: &str) {
        if value.is_empty() {
            return self.required(field, "");
        }
        for (part, problem) in super::domain_prefixed_path(value) {
            self.invalid_text(&field, part, &problem);
        }
    }

    /// A string that must not be empty.
    pub fn required_text(&mut self, at: &At<'_, '_>) {
        if at.is_empty() {
            self.required(at, "");
        }
    }

    /// A value of the wrong type.
    pub fn type_invalid(&mut self, field: impl Display, value: &Value, detail: &str) {
        self.push(
            "FieldValueTypeInvalid",
            field,
            format!("Invalid value: {}: {detail}", render(value)),
        );
    }

    pub fn too_many(&mut self, field: impl Display, actual: impl Display, max: impl Display) {
        let max = max.to_string();
        let items = if max == "1" { "item" } else { "items" };
        self.push(
            "FieldValueTooMany",
            field,
            format!("Too many: {actual}: must have at most {max} {items}"),
        );
    }

    pub fn not_supported(&mut self, field: impl Display, value: &Value, supported: &[&str]) {
        self.not_supported_as(field, &render(value), supported);
    }

    /// An unsupported value that is written as it is.
    pub fn not_supported_as(&mut self, field: impl Display, value: &str, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        let detail = if list.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", list.join(", "))
        };
        self.push(
            "FieldValueNotSupported",
            field,
            with_detail(&format!("Unsupported value: {value}"), &detail),
        );
    }

    /// The value at a place; nothing at all counts as an empty string.
    pub fn unsupported(&mut self, at: &At<'_, '_>, supported: &[&str]) {
        if at.is_set() {
            self.not_supported(at, at.value(), supported);
        } else {
            self.not_supported_as(at, "\"\"", supported);
        }
    }

    /// A string that must be one of `supported`, which are in the order that the message lists them in.
    pub fn one_of_required(&mut self, at: &At<'_, '_>, supported: &[&str]) {
        if at.is_empty() {
            self.required(at, "");
        } else {
            self.member(at, supported);
        }
    }

    /// A string that must be one of `supported` when it is there, even empty.
    pub fn one_of_optional(&mut self, at: &At<'_, '_>, supported: &[&str]) {
        if at.is_set() {
            self.member(at, supported);
        }
    }

    /// A string that must be one of `supported`; absence is no excuse.
    pub fn member(&mut self, at: &At<'_, '_>, supported: &[&str]) {
        if !supported.contains(&at.str()) {
            self.unsupported(at, supported);
        }
    }

    pub fn duplicate(&mut self, field: impl Display, value: &Value) {
        self.duplicate_as(field, &render(value));
    }

    /// A duplicate that is written as it is.
    pub fn duplicate_as(&mut self, field: impl Display, value: &str) {
        self.push(
            "FieldValueDuplicate",
            field,
            format!("Duplicate value: {value}"),
        );
    }

    /// A duplicate in a sense that has to be told.
    pub fn duplicate_because(&mut self, field: impl Display, value: &str, detail: &str) {
        self.push(
            "FieldValueDuplicate",
            field,
            with_detail(&format!("Duplicate value: {value}"), detail),
        );
    }

    pub fn forbidden(&mut self, field: impl Display, detail: &str) {
        self.push(
            "FieldValueForbidden",
            field,
            with_detail("Forbidden", detail),
        );
    }

    pub fn not_found(&mut self, field: impl Display, value: &Value) {
        self.not_found_because(field, value, "");
    }

    pub fn not_found_because(&mut self, field: impl Display, value: &Value, detail: &str) {
        let message = format!("Not found: {}", render(value));
        self.push("FieldValueNotFound", field, with_detail(&message, detail));
    }

    pub fn too_long(&mut self, field: impl Display, max: usize) {
        let unit = if max == 1 { "byte" } else { "bytes" };
        self.push(
            "FieldValueTooLong",
            field,
            format!("Too long: may not be more than {max} {unit}"),
        );
    }

    pub fn too_long_characters(&mut self, field: impl Display, max: usize) {
        let unit = if max == 1 { "character" } else { "characters" };
        self.push(
            "FieldValueTooLong",
            field,
            format!("Too long: may not be more than {max} {unit}"),
        );
    }

    pub fn internal(&mut self, field: impl Display, detail: &str) {
        self.push(
            "InternalError",
            field,
            with_detail("Internal error", detail),
        );
    }

    /// `value` must be one of `supported`; absent values pass.
    pub fn one_of(&mut self, field: impl Display, value: &Value, supported: &[&str]) {
        if value.as_str().is_some_and(|v| !supported.contains(&v)) {
            self.not_supported(field, value, supported);
        }
    }

    /// A number must not be negative; absent values pass.
    pub fn non_negative(&mut self, at: &At<'_, '_>) {
        if at.int().is_some_and(|n| n < 0) {
            self.bad(at, "must be greater than or equal to 0");
        }
    }

    /// Several numbers that must not be negative.
    pub fn non_negative_fields(&mut self, at: &At<'_, '_>, fields: &[&str]) {
        for field in fields {
            self.non_negative(&at.field(field));
        }
    }

    /// A number between two others; absent values pass.
    pub fn in_range(&mut self, at: &At<'_, '_>, low: i64, high: i64) {
        if at.int().is_some_and(|n| !(low..=high).contains(&n)) {
            self.bad(at, &format!("must be between {low} and {high}, inclusive"));
        }
    }

    /// A field that must keep its value in updates.
    pub fn immutable(&mut self, field: impl Display, new: &Value, old: &Value) {
        if new != old {
            self.invalid(field, new, "field is immutable");
        }
    }

    /// The same of an object of a type, which is shown as upstream shows it.
    pub fn immutable_as(&mut self, field: impl Display, type_name: &str, new: &Value, old: &Value) {
        if new != old {
            self.invalid_as(field, &api(type_name, new), "field is immutable");
        }
    }

    /// A field at the same place in two objects that must keep its value.
    pub fn immutable_field(&mut self, new: &At<'_, '_>, old: &At<'_, '_>, field: &str) {
        self.immutable(new.field(field), new.get(field), old.get(field));
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

fn with_detail(message: &str, detail: &str) -> String {
    if detail.is_empty() {
        message.to_owned()
    } else {
        format!("{message}: {detail}")
    }
}

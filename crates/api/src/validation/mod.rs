//! Validation building blocks. A check takes an [`At`], which is a value and its place in the object, and pushes what is
//! wrong to [`Errors`], which becomes a 422. A place is written out only when there is something to say about it.

mod at;
mod conditions;
mod diff;
mod errors;
pub mod ip;
mod meta;
mod names;
mod numbers;
mod paths;
mod ports;
mod quantity;
mod render;
pub mod resource;
mod selector;
mod url;
mod webhook;

pub use at::At;
pub use conditions::conditions;
pub use diff::internal_diff;
pub use errors::Errors;
pub use meta::{
    annotations, managed_fields, object_meta, object_meta_update, standard_finalizer,
    standard_finalizers,
};
pub(crate) use names::pattern;
pub use names::*;
pub use numbers::{int_or_percent, is_percent, percent_at_most_100};
pub use paths::{descending_path, no_backsteps, non_reserved_path};
pub use ports::{PROTOCOLS, port_name, port_number, port_number_or_name, port_range};
pub use quantity::{non_negative_quantity, positive_quantity, positive_quantity_as, quantity_of};
pub use render::{api, go_json, internal, quote};
pub use selector::{
    SelectorOptions, has_invalid_selector, has_invalid_values, label_key, label_selector,
    label_selector_with, labels, selector_matches,
};
pub use url::Url;
pub use webhook::{review_versions, webhook_client};

/// A regular expression's error in one line, in Go's words for what goes wrong most.
#[must_use]
pub fn regex_error(pattern: &str, error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    let why = match last.trim_start_matches("error: ") {
        "unclosed character class" => {
            let open = pattern.rfind('[').unwrap_or_default();
            format!("missing closing ]: `{}`", &pattern[open..])
        }
        "unclosed group" => format!("missing closing ): `{pattern}`"),
        "unopened group" => format!("unexpected ): `{pattern}`"),
        other => other.to_owned(),
    };
    format!("error parsing regexp: {why}")
}

/// Whether a value is what an absent one would be.
#[must_use]
pub fn is_empty_value(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

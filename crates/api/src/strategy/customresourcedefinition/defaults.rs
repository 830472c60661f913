//! Defaults must be values that their own schema accepts.

use serde_json::Value;

use crate::custom::structural::Structural;
use crate::custom::{prune, validate as instance};
use crate::validation::Errors;

/// Checks every default of a structural schema.
pub(super) fn validate(schema: &Value, at: &str, errors: &mut Errors) {
    walk(schema, at, false, true, errors);
}

fn walk(schema: &Value, at: &str, inside_meta: bool, root: bool, errors: &mut Errors) {
    let embedded = schema["x-kubernetes-embedded-resource"] == true;
    let inside_meta = inside_meta && !embedded;
    if let Some(default) = schema.get("default").filter(|d| !d.is_null()) {
        let node = Structural::parse(schema);
        let field = format!("{at}.default");
        let before = errors.0.len();
        if !inside_meta {
            let mut pruned = default.clone();
            prune::prune_value(&node, &mut pruned);
            if pruned != *default {
                errors.invalid(&field, default, "must not have unknown fields");
            }
            instance::embedded(&node, &field, default, errors);
        }
        if errors.0.len() == before {
            let mut found = Errors::default();
            instance::validate(&node, "", default, None, &mut found);
            for mut cause in found.0 {
                cause.field = match cause.field.as_str() {
                    "<nil>" => field.clone(),
                    path => format!("{field}.{path}"),
                };
                errors.0.push(cause);
            }
        }
    }
    if schema["items"].is_object() {
        walk(
            &schema["items"],
            &format!("{at}.items"),
            inside_meta,
            false,
            errors,
        );
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let meta =
            (root || embedded) && ["metadata", "apiVersion", "kind"].contains(&name.as_str());
        walk(
            property,
            &format!("{at}.properties[{name}]"),
            inside_meta || meta,
            false,
            errors,
        );
    }
}

//! Whether a schema is structural: every value has a type outside of the logical junctors, which may only restrict it.

use serde_json::{Map, Value};

use crate::validation::Errors;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What keeps a schema from being structural, in order of the messages.
#[must_use]
pub fn violations(schema: &Value, at: &str) -> Errors {
    let mut errors = Errors::default();
    invariants(schema, Level::Root, at, &mut errors);
    completeness(schema, Some(schema), at, at, &mut errors);
    errors
        .0
        .sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
    errors
}

fn entries<'a>(schema: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    schema[field].as_object().into_iter().flatten()
}

fn list<'a>(schema: &'a Value, field: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    schema[field].as_array().into_iter().flatten().enumerate()
}

fn is(schema: &Value, flag: &str) -> bool {
    schema[flag] == true
}

fn invariants(schema: &Value, level: Level, at: &str, errors: &mut Errors) {
    let ty = schema["type"].as_str().unwrap_or_default();
    let items = &schema["items"];
    if ty == "array" && !items.is_object() {
        errors.required(format!("{at}.items"), "must be specified");
    }
    if items.is_object() {
        invariants(items, Level::Item, &format!("{at}.items"), errors);
    }
    for (name, property) in entries(schema, "properties") {
        invariants(
            property,
            Level::Field,
            &format!("{at}.properties[{name}]"),
            errors,
        );
    }
    let additional = &schema["additionalProperties"];
    if !additional.is_null() {
        let field = format!("{at}.additionalProperties");
        if level == Level::Root {
            errors.forbidden(&field, "must not be used at the root");
        }
        if additional.is_object() {
            invariants(additional, Level::Field, &field, errors);
        }
    }
    let (int_or_string, preserve, embedded) = (
        is(schema, "x-kubernetes-int-or-string"),
        is(schema, "x-kubernetes-preserve-unknown-fields"),
        is(schema, "x-kubernetes-embedded-resource"),
    );
    if int_or_string && preserve {
        errors.invalid(
            format!("{at}.x-kubernetes-preserve-unknown-fields"),
            &true.into(),
            "must be false if x-kubernetes-int-or-string is true",
        );
    }
    if int_or_string && embedded {
        errors.invalid(
            format!("{at}.x-kubernetes-embedded-resource"),
            &true.into(),
            "must be false if x-kubernetes-int-or-string is true",
        );
    }
    let (skip_any_of, skip_all_of) = (
        is_int_or_string(&schema["anyOf"]),
        is_int_or_string(&schema["allOf"][0]["anyOf"]),
    );
    validations(schema, skip_any_of, skip_all_of, at, errors);
    let field = format!("{at}.type");
    if embedded && ty != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        if ty.is_empty() {
            errors.required(&field, detail);
        } else {
            errors.invalid(&field, &ty.into(), detail);
        }
    } else if ty.is_empty() && !int_or_string && !preserve {
        errors.required(
            &field,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        );
    }
    if embedded && !additional.is_null() {
        errors.forbidden(
            format!("{at}.additionalProperties"),
            "must not be used if x-kubernetes-embedded-resource is set",
        );
    }
    if level == Level::Root && !ty.is_empty() && ty != "object" {
        errors.invalid(&field, &ty.into(), "must be object at the root");
    }
    metadata(schema, level, at, errors);
    let properties = schema["properties"]
        .as_object()
        .is_some_and(|p| !p.is_empty());
    if embedded && !preserve && !properties {
        errors.required(format!("{at}.properties"), "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields");
    }
}

/// Resources are typed and named the same way everywhere.
fn metadata(schema: &Value, level: Level, at: &str, errors: &mut Errors) {
    let resource = level == Level::Root || is(schema, "x-kubernetes-embedded-resource");
    for name in ["kind", "apiVersion"] {
        let property = &schema["properties"][name];
        if resource && property.is_object() && property["type"] != "string" {
            let ty = property["type"].as_str().unwrap_or_default();
            errors.invalid(
                format!("{at}.properties[{name}].type"),
                &ty.into(),
                "must be string",
            );
        }
    }
    let Some(meta) = schema["properties"]["metadata"].as_object() else {
        return;
    };
    let field = format!("{at}.properties[metadata]");
    let ty = meta.get("type").and_then(Value::as_str).unwrap_or_default();
    if resource && ty != "object" {
        errors.invalid(format!("{field}.type"), &ty.into(), "must be object");
    }
    if level != Level::Root {
        return;
    }
    let named_only = |properties: &Map<String, Value>| {
        properties
            .keys()
            .all(|k| k == "name" || k == "generateName")
    };
    let plain = meta.iter().all(|(name, value)| match name.as_str() {
        "type" | "default" => true,
        "properties" => value.as_object().is_some_and(named_only),
        _ => false,
    });
    if !plain {
        errors.forbidden(&field, "must not specify anything other than name and generateName, but metadata is implicitly specified");
    }
}

fn is_int_or_string(any_of: &Value) -> bool {
    *any_of == serde_json::json!([{"type": "integer"}, {"type": "string"}])
}

fn validations(
    schema: &Value,
    skip_any_of: bool,
    skip_all_of: bool,
    at: &str,
    errors: &mut Errors,
) {
    if !skip_any_of {
        for (i, sub) in list(schema, "anyOf") {
            nested(sub, false, false, &format!("{at}.anyOf[{i}]"), errors);
        }
    }
    for (i, sub) in list(schema, "allOf") {
        nested(
            sub,
            skip_all_of && i == 0,
            false,
            &format!("{at}.allOf[{i}]"),
            errors,
        );
    }
    for (i, sub) in list(schema, "oneOf") {
        nested(sub, false, false, &format!("{at}.oneOf[{i}]"), errors);
    }
    if schema["not"].is_object() {
        nested(&schema["not"], false, false, &format!("{at}.not"), errors);
    }
    if let Some(pattern) = schema["pattern"].as_str().filter(|p| !p.is_empty())
        && let Err(error) = regex::Regex::new(pattern)
    {
        let why = crate::validation::regex_error(pattern, &error);
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        errors.invalid(format!("{at}.pattern"), &pattern.into(), &detail);
    }
}

/// Inside of a junctor only restrictions may stand.
fn nested(schema: &Value, skip_any_of: bool, skip_all_of: bool, at: &str, errors: &mut Errors) {
    validations(schema, skip_any_of, skip_all_of, at, errors);
    if schema["items"].is_object() {
        nested(
            &schema["items"],
            false,
            false,
            &format!("{at}.items"),
            errors,
        );
    }
    for (name, property) in entries(schema, "properties") {
        nested(
            property,
            false,
            false,
            &format!("{at}.properties[{name}]"),
            errors,
        );
    }
    for (field, detail) in [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        (
            "x-kubernetes-preserve-unknown-fields",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-embedded-resource",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-int-or-string",
            "must be false to be structural",
        ),
        (
            "x-kubernetes-list-map-keys",
            "must be empty to be structural",
        ),
        (
            "x-kubernetes-list-type",
            "must be undefined to be structural",
        ),
        (
            "x-kubernetes-map-type",
            "must be undefined to be structural",
        ),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ] {
        let set = match &schema[field] {
            Value::Null | Value::Bool(false) => {
                field == "additionalProperties" && schema[field] == false
            }
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        };
        if set {
            errors.forbidden(format!("{at}.{field}"), detail);
        }
    }
    if !schema["properties"]["metadata"].is_null() {
        errors.forbidden(
            format!("{at}.properties[metadata]"),
            "must not be specified in a nested context",
        );
    }
}

/// What a junctor restricts must be specified outside of it.
fn completeness(
    validation: &Value,
    schema: Option<&Value>,
    at: &str,
    from: &str,
    errors: &mut Errors,
) {
    let Some(schema) = schema else {
        errors.required(at, &format!("because it is defined in {from}"));
        return;
    };
    let mut nested = |sub: &Value, from: String| {
        nested_completeness(sub, Some(schema), at, &from, errors);
    };
    if validation["not"].is_object() {
        nested(&validation["not"], format!("{from}.not"));
    }
    for junctor in ["allOf", "anyOf", "oneOf"] {
        for (i, sub) in list(validation, junctor) {
            nested(sub, format!("{from}.{junctor}[{i}]"));
        }
    }
}

fn nested_completeness(
    validation: &Value,
    schema: Option<&Value>,
    at: &str,
    from: &str,
    errors: &mut Errors,
) {
    completeness(validation, schema, at, from, errors);
    let Some(schema) = schema else { return };
    if validation["items"].is_object() {
        let items = Some(&schema["items"]).filter(|i| i.is_object());
        nested_completeness(
            &validation["items"],
            items,
            &format!("{at}.items"),
            &format!("{from}.items"),
            errors,
        );
    }
    for (name, property) in entries(validation, "properties") {
        let (at, from) = (
            format!("{at}.properties[{name}]"),
            format!("{from}.properties[{name}]"),
        );
        match schema["properties"].get(name) {
            Some(own) => nested_completeness(property, Some(own), &at, &from, errors),
            None => errors.required(&at, &format!("because it is defined in {from}")),
        }
    }
}

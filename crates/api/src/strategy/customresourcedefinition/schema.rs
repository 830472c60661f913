//! What upstream allows in an OpenAPI schema of a definition, besides being structural.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::custom::formats;
use crate::validation::Errors;

/// What decides about the root of a schema.
pub(super) struct Context<'a> {
    pub has_status: bool,
    /// The present schema of the version, in an update.
    pub old: Option<&'a Value>,
}

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

const REASONS: [&str; 4] = [
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];

/// The words of a schema's root that are allowed beside a status subresource, and upstream's names of them.
const AT_ROOT: [(&str, &str); 22] = [
    ("description", "Description"),
    ("type", "Type"),
    ("format", "Format"),
    ("title", "Title"),
    ("maximum", "Maximum"),
    ("exclusiveMaximum", "ExclusiveMaximum"),
    ("minimum", "Minimum"),
    ("exclusiveMinimum", "ExclusiveMinimum"),
    ("maxLength", "MaxLength"),
    ("minLength", "MinLength"),
    ("pattern", "Pattern"),
    ("maxItems", "MaxItems"),
    ("minItems", "MinItems"),
    ("uniqueItems", "UniqueItems"),
    ("multipleOf", "MultipleOf"),
    ("required", "Required"),
    ("items", "Items"),
    ("properties", "Properties"),
    ("externalDocs", "ExternalDocs"),
    ("example", "Example"),
    (
        "x-kubernetes-preserve-unknown-fields",
        "XPreserveUnknownFields",
    ),
    ("x-kubernetes-validations", "XValidations"),
];

pub(super) fn validate_root(schema: &Value, at: &str, context: &Context<'_>, errors: &mut Errors) {
    if context.has_status {
        for (name, value) in schema.as_object().into_iter().flatten() {
            if name == "type" && value != "object" {
                errors.invalid(format!("{at}.type"), value, "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled");
                break;
            }
            if !AT_ROOT.iter().any(|(allowed, _)| allowed == name) && !is_zero(value) {
                let names: Vec<&str> = AT_ROOT.iter().map(|(_, name)| *name).collect();
                let detail = format!(
                    "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
                    names.join(" ")
                );
                errors.invalid(at, schema, &detail);
                break;
            }
        }
    }
    if schema["nullable"] == true {
        errors.forbidden(
            format!("{at}.nullable"),
            "nullable cannot be true at the root",
        );
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Checks a schema and everything below it.
pub(super) fn validate(schema: &Value, at: &str, errors: &mut Errors) {
    walk(schema, at, true, &Place::default(), errors);
}

/// Where in a schema something stands.
#[derive(Clone, Default)]
struct Place {
    /// Why defaults are not allowed here.
    no_defaults: Option<String>,
    inside_meta: bool,
}

fn walk(schema: &Value, at: &str, root: bool, place: &Place, errors: &mut Errors) {
    words(schema, at, place, errors);
    if schema["uniqueItems"] == true {
        errors.forbidden(
            format!("{at}.uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
    let additional = &schema["additionalProperties"];
    let has_properties = schema["properties"]
        .as_object()
        .is_some_and(|p| !p.is_empty());
    if has_properties && (additional.is_object() || *additional == false) {
        errors.forbidden(
            format!("{at}.additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        );
    }
    if additional.is_object() {
        let mut below = place.clone();
        if place.inside_meta {
            below.no_defaults =
                Some(" inside additionalProperties applying to object metadata".into());
        }
        walk(
            additional,
            &format!("{at}.additionalProperties"),
            false,
            &below,
            errors,
        );
    }
    let resource = root || schema["x-kubernetes-embedded-resource"] == true;
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let mut below = place.clone();
        if resource && ["metadata", "kind", "apiVersion"].contains(&name.as_str()) {
            below.inside_meta = true;
            if root {
                below.no_defaults = Some(format!(" in top-level {name}"));
            }
        }
        walk(
            property,
            &format!("{at}.properties[{name}]"),
            false,
            &below,
            errors,
        );
    }
    if schema["not"].is_object() {
        walk(&schema["not"], &format!("{at}.not"), false, place, errors);
    }
    for junctor in ["allOf", "oneOf", "anyOf"] {
        for (i, sub) in schema[junctor].as_array().into_iter().flatten().enumerate() {
            walk(sub, &format!("{at}.{junctor}[{i}]"), false, place, errors);
        }
    }
    if schema["items"].is_object() {
        walk(
            &schema["items"],
            &format!("{at}.items"),
            false,
            place,
            errors,
        );
    }
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        errors.invalid(
            format!("{at}.x-kubernetes-preserve-unknown-fields"),
            &false.into(),
            "must be true or undefined",
        );
    }
    lists_and_maps(schema, at, errors);
    for (i, rule) in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        validate_rule(
            schema,
            rule,
            &format!("{at}.x-kubernetes-validations[{i}]"),
            errors,
        );
    }
}

fn words(schema: &Value, at: &str, place: &Place, errors: &mut Errors) {
    let ty = schema["type"].as_str().unwrap_or_default();
    if !ty.is_empty() && !TYPES.contains(&ty) {
        errors.not_supported(format!("{at}.type"), &ty.into(), &TYPES);
    }
    if let (Some(reason), false) = (&place.no_defaults, schema["default"].is_null()) {
        errors.forbidden(format!("{at}.default"), &format!("must not be set{reason}"));
    }
    for word in [
        "id",
        "additionalItems",
        "patternProperties",
        "definitions",
        "dependencies",
        "$ref",
    ] {
        if !is_zero(&schema[word]) {
            errors.forbidden(format!("{at}.{word}"), &format!("{word} is not supported"));
        }
    }
    if ty == "null" {
        errors.forbidden(
            format!("{at}.type"),
            "type cannot be set to null, use nullable as an alternative",
        );
    }
    if schema["items"].is_array() {
        errors.forbidden(
            format!("{at}.items"),
            "items must be a schema object and not an array",
        );
    }
    if place.inside_meta && schema["x-kubernetes-embedded-resource"] == true {
        errors.forbidden(
            format!("{at}.x-kubernetes-embedded-resource"),
            "must not be used inside of resource meta",
        );
    }
}

fn lists_and_maps(schema: &Value, at: &str, errors: &mut Errors) {
    let ty = &schema["type"];
    let typed = |word: &str, wanted: &str, errors: &mut Errors| {
        if schema[word].is_null() || ty == wanted {
            return true;
        }
        let detail = format!("must be {wanted} if {word} is specified");
        match ty.as_str().unwrap_or_default() {
            "" => errors.required(format!("{at}.type"), &detail),
            _ => errors.invalid(format!("{at}.type"), ty, &detail),
        }
        false
    };
    let (map_type, list_type) = (
        &schema["x-kubernetes-map-type"],
        &schema["x-kubernetes-list-type"],
    );
    typed("x-kubernetes-map-type", "object", errors);
    errors.one_of(
        format!("{at}.x-kubernetes-map-type"),
        map_type,
        &["atomic", "granular"],
    );
    let items = &schema["items"];
    if typed("x-kubernetes-list-type", "array", errors) && list_type == "set" && items.is_object() {
        const DETAIL: &str = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let (inner_list, inner_map) = (
            &items["x-kubernetes-list-type"],
            &items["x-kubernetes-map-type"],
        );
        if items["type"] == "array" && !inner_list.is_null() && inner_list != "atomic" {
            errors.invalid(
                format!("{at}.items.x-kubernetes-list-type"),
                inner_list,
                DETAIL,
            );
        }
        if items["type"] == "object" && inner_map != "atomic" {
            errors.invalid(
                format!("{at}.items.x-kubernetes-map-type"),
                inner_list,
                DETAIL,
            );
        }
    }
    errors.one_of(
        format!("{at}.x-kubernetes-list-type"),
        list_type,
        &["atomic", "set", "map"],
    );
    let keys: Vec<&Value> = schema["x-kubernetes-list-map-keys"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    if !keys.is_empty() && list_type != "map" {
        let field = format!("{at}.x-kubernetes-list-type");
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        if list_type.is_null() {
            errors.required(&field, detail);
        } else {
            errors.invalid(&field, list_type, detail);
        }
    }
    if list_type == "map" {
        list_map(schema, &keys, at, errors);
    }
    if (list_type == "map" || list_type == "set") && items["nullable"] == true {
        let ty = list_type.as_str().unwrap_or_default();
        errors.forbidden(
            format!("{at}.items.nullable"),
            &format!("cannot be nullable when x-kubernetes-list-type is {ty}"),
        );
    }
    if list_type == "map" {
        let required = items["required"].as_array();
        for key in &keys {
            let name = key.as_str().unwrap_or_default();
            let property = &items["properties"][name];
            if property.is_null() {
                continue;
            }
            let field = format!("{at}.items.properties[{name}]");
            if !required.is_some_and(|r| r.contains(key)) && property["default"].is_null() {
                errors.required(format!("{field}.default"), "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property");
            }
            if property["nullable"] == true {
                errors.forbidden(
                    format!("{field}.nullable"),
                    "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
                );
            }
        }
    }
}

fn list_map(schema: &Value, keys: &[&Value], at: &str, errors: &mut Errors) {
    let items = &schema["items"];
    let field = format!("{at}.x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.required(&field, "must not be empty if x-kubernetes-list-type is map");
    }
    if !items.is_object() {
        errors.required(
            format!("{at}.items"),
            "must have a schema if x-kubernetes-list-type is map",
        );
        return;
    }
    if items["type"] != "object" {
        let ty = items["type"].as_str().unwrap_or_default();
        errors.invalid(
            format!("{at}.items.type"),
            &ty.into(),
            "must be object if parent array's x-kubernetes-list-type is map",
        );
        return;
    }
    for (i, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or_default();
        match items["properties"].get(name) {
            Some(property) if property["type"] == "array" || property["type"] == "object" => {
                errors.invalid(
                    format!("{at}.items.properties[{name}].type"),
                    &items["type"],
                    "must be a scalar type if parent array's x-kubernetes-list-type is map",
                );
            }
            Some(_) => {}
            None => errors.invalid(
                &field,
                &schema["x-kubernetes-list-map-keys"],
                "entries must all be names of item properties",
            ),
        }
        if keys[..i].contains(key) {
            errors.invalid(
                &field,
                &schema["x-kubernetes-list-map-keys"],
                "must not contain duplicate entries",
            );
        }
    }
}

fn validate_rule(schema: &Value, rule: &Value, at: &str, errors: &mut Errors) {
    let text = |name: &str| rule[name].as_str().unwrap_or_default();
    let broken = |text: &str| text.contains(['\n', '\r']);
    let (expression, message) = (text("rule").trim(), text("message").trim());
    if expression.is_empty() {
        errors.required(format!("{at}.rule"), "rule is not specified");
    } else if !text("message").is_empty() && message.is_empty() {
        errors.invalid(
            format!("{at}.message"),
            &rule["message"],
            "must be non-empty if specified",
        );
    } else if broken(message) {
        errors.invalid(
            format!("{at}.message"),
            &rule["message"],
            "must not contain line breaks",
        );
    } else if broken(expression) && message.is_empty() {
        errors.required(
            format!("{at}.message"),
            "message must be specified if rule contains line breaks",
        );
    }
    if !text("messageExpression").is_empty() && text("messageExpression").trim().is_empty() {
        errors.required(
            format!("{at}.messageExpression"),
            "messageExpression must be non-empty if specified",
        );
    }
    errors.one_of(format!("{at}.reason"), &rule["reason"], &REASONS);
    let path = text("fieldPath");
    let field = format!("{at}.fieldPath");
    if !path.is_empty() {
        if path.trim().is_empty() {
            errors.invalid(&field, &path.into(), "must be non-empty if specified");
        }
        if broken(path) {
            errors.invalid(&field, &path.into(), "must not contain line breaks");
        }
        if field_path(schema, path, true).is_err() {
            errors.invalid(&field, &path.into(), "must be a valid path");
        }
    }
}

/// Where a field path leads.
#[derive(Debug)]
pub struct PathLookup<'a> {
    pub names: Vec<String>,
    /// The path as errors show it: `spec.map[key]`.
    pub shown: String,
    pub schema: &'a Value,
}

/// Follows `.spec.field['with.dots']` through a schema.
///
/// # Errors
/// Why the path does not lead anywhere.
pub fn field_path<'a>(
    schema: &'a Value,
    path: &str,
    brackets: bool,
) -> Result<PathLookup<'a>, String> {
    const NOWHERE: &str = "does not refer to a valid field";
    let mut found = PathLookup {
        names: Vec::new(),
        shown: String::new(),
        schema,
    };
    let mut rest = path;
    while !rest.is_empty() {
        let (name, tail) = if let Some(tail) = rest.strip_prefix('[') {
            if !brackets {
                return Err("array notation is not allowed".into());
            }
            let (name, tail) = quoted(tail)?;
            let tail = tail
                .strip_prefix(']')
                .ok_or_else(|| match tail.chars().next() {
                    None => "unexpected end of JSON path".to_owned(),
                    Some(c) => format!("expected ] but got {c}"),
                })?;
            (name, tail)
        } else if let Some(tail) = rest.strip_prefix('.') {
            let end = tail.find(['.', '[', ']']).unwrap_or(tail.len());
            if end == 0 {
                return Err(if tail.is_empty() {
                    "unexpected end of JSON path"
                } else {
                    NOWHERE
                }
                .into());
            }
            (tail[..end].to_owned(), &tail[end..])
        } else {
            let end = rest.find(['.', '[', ']']).unwrap_or(rest.len()).max(1);
            let word = rest.get(..end).unwrap_or(rest);
            return Err(format!("expected [ or . but got: {word}"));
        };
        if found.schema["properties"].is_object() {
            found.schema = found.schema["properties"].get(&name).ok_or(NOWHERE)?;
            if !found.shown.is_empty() {
                found.shown.push('.');
            }
            found.shown.push_str(&name);
        } else if found.schema["additionalProperties"].is_object() {
            found.schema = &found.schema["additionalProperties"];
            found.shown.push_str(&format!("[{name}]"));
        } else {
            return Err(NOWHERE.into());
        }
        found.names.push(name);
        rest = tail;
    }
    Ok(found)
}

/// A single-quoted name and what follows it.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let Some(inner) = text.strip_prefix('\'') else {
        let end = text.find([']', '.', '[']).unwrap_or(text.len());
        return Err(if text.is_empty() {
            "unexpected end of JSON path".into()
        } else {
            format!("expected single quoted string but got {}", &text[..end])
        });
    };
    let mut name = String::new();
    let mut chars = inner.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' => return Ok((name, &inner[at + 1..])),
            '\\' => match chars.next() {
                Some((_, c @ ('\'' | '\\'))) => name.push(c),
                _ => return Err("invalid string literal: unable to unescape string".into()),
            },
            c => name.push(c),
        }
    }
    Err("unexpected end of JSON path".into())
}

/// Whether a schema says what dialect it is in.
pub(super) fn names_its_dialect(schema: &Value) -> bool {
    !is_zero(&schema["$schema"])
}

/// Whether a schema says that it does not keep what it does not know, which it can only leave out.
pub(super) fn keeps_nothing_unknown(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == false
}

/// Whether something holds for a schema or for one below it.
pub(super) fn anywhere(schema: &Value, holds: fn(&Value) -> bool) -> bool {
    let below_holds = |schema: &Value| anywhere(schema, holds);
    let below = ["items", "additionalProperties", "not"];
    let lists = ["allOf", "anyOf", "oneOf"];
    let mut properties = schema["properties"].as_object().into_iter().flatten();
    holds(schema)
        || below
            .iter()
            .any(|word| schema[*word].is_object() && below_holds(&schema[*word]))
        || properties.any(|(_, property)| below_holds(property))
        || lists
            .iter()
            .flat_map(|word| schema[*word].as_array().into_iter().flatten())
            .any(below_holds)
}

/// Formats in a definition's schemas that nothing enforces.
pub(super) fn unrecognized_formats(crd: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for version in crd["spec"]["versions"].as_array().into_iter().flatten() {
        collect_formats(&version["schema"]["openAPIV3Schema"], &mut found);
    }
    found
}

fn collect_formats(schema: &Value, found: &mut BTreeSet<String>) {
    if let Some(format) = schema["format"].as_str().filter(|f| !f.is_empty()) {
        let known = match schema["type"].as_str().unwrap_or_default() {
            "" | "string" => formats::check(format, "").is_some(),
            "integer" => matches!(format, "int32" | "int64"),
            "number" => matches!(format, "float" | "double"),
            _ => formats::check(format, "").is_some(),
        };
        if !known {
            found.insert(format.to_owned());
        }
    }
    for below in ["items", "additionalProperties", "not"] {
        if schema[below].is_object() {
            collect_formats(&schema[below], found);
        }
    }
    for property in schema["properties"].as_object().into_iter().flatten() {
        collect_formats(property.1, found);
    }
    for junctor in ["allOf", "anyOf", "oneOf"] {
        for sub in schema[junctor].as_array().into_iter().flatten() {
            collect_formats(sub, found);
        }
    }
}

//! Values as error messages write them.

use std::fmt::Write as _;

use serde_json::Value;

use crate::schema::{Field, Kind, Schema, TypeId};

/// A value: strings quoted as Go quotes them, everything else as JSON.
pub(super) fn render(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        other => go_json(other),
    }
}

/// A string in Go's quotes.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\x{:02x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// JSON as Go writes it: safe inside HTML.
#[must_use]
pub fn go_json(value: &Value) -> String {
    value
        .to_string()
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

/// Words inside names that Go writes in capitals throughout.
const INITIALISMS: [(&str, &str); 14] = [
    ("apiVersion", "APIVersion"),
    ("apiGroup", "APIGroup"),
    ("apiGroups", "APIGroups"),
    ("fsGroup", "FSGroup"),
    ("fsGroupChangePolicy", "FSGroupChangePolicy"),
    ("fsType", "FSType"),
    ("ip", "IP"),
    ("nfs", "NFS"),
    ("os", "OS"),
    ("seLinuxOptions", "SELinuxOptions"),
    ("seLinuxChangePolicy", "SELinuxChangePolicy"),
    ("tty", "TTY"),
    ("uid", "UID"),
    ("uri", "URI"),
];

fn go_name(name: &str) -> String {
    if let Some((_, go)) = INITIALISMS.iter().find(|(json, _)| *json == name) {
        return (*go).to_owned();
    }
    let mut letters = name.chars();
    letters
        .next()
        .map(|first| first.to_ascii_uppercase().to_string() + letters.as_str())
        .unwrap_or_default()
}

/// A value as upstream's messages show objects of its internal types: with Go's names, every field, in the type's order.
#[must_use]
pub fn internal(type_name: &str, value: &Value) -> String {
    let schema = Schema::builtin();
    let mut text = String::new();
    match schema.find(type_name) {
        Some(ty) => write_object(schema, ty, value, &mut text),
        None => text.push_str(&go_json(value)),
    }
    text
}

/// A value as messages show objects of the API's types: with JSON's names, in the type's order.
#[must_use]
pub fn api(type_name: &str, value: &Value) -> String {
    let schema = Schema::builtin();
    let mut text = String::new();
    match schema.find(type_name) {
        Some(ty) => write_api_value(schema, &Kind::Object(ty), value, &mut text),
        None => text.push_str(&go_json(value)),
    }
    text
}

/// Types whose fields are written in another order than that of their numbers.
const ORDERS: [(&str, &[&str]); 1] = [(
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
    &["apiVersion", "kind", "name", "uid"],
)];

fn ordered(schema: &Schema, ty: TypeId) -> Vec<&Field> {
    let described = schema.get(ty);
    let first = ORDERS.iter().find(|(name, _)| *name == &*described.name);
    let first = first.map_or(&[] as &[&str], |(_, fields)| fields);
    let place = |field: &Field| first.iter().position(|f| *f == &*field.name);
    let mut fields: Vec<&Field> = described.fields.iter().collect();
    fields.sort_by_key(|field| (place(field).unwrap_or(usize::MAX), &field.path));
    fields
}

fn write_api_value(schema: &Schema, kind: &Kind, value: &Value, text: &mut String) {
    match (kind, value) {
        (Kind::Object(ty), Value::Object(_)) => {
            text.push('{');
            let start = text.len();
            for field in ordered(schema, *ty) {
                let value = &value[&*field.name];
                if value.is_null() && !field.required {
                    continue;
                }
                let comma = if text.len() > start { "," } else { "" };
                let _ = write!(text, "{comma}\"{}\":", field.name);
                match (&field.kind, value) {
                    (Kind::String, Value::Null) => text.push_str("\"\""),
                    (Kind::Int32 | Kind::Int64, Value::Null) => text.push('0'),
                    (Kind::Bool, Value::Null) => text.push_str("false"),
                    (kind, value) => write_api_value(schema, kind, value, text),
                }
            }
            text.push('}');
        }
        (Kind::List(item), Value::Array(items)) => {
            text.push('[');
            for (i, value) in items.iter().enumerate() {
                text.push_str(if i > 0 { "," } else { "" });
                write_api_value(schema, item, value, text);
            }
            text.push(']');
        }
        (_, value) => text.push_str(&go_json(value)),
    }
}

fn write_object(schema: &Schema, ty: TypeId, value: &Value, text: &mut String) {
    text.push('{');
    for (i, field) in ordered(schema, ty).into_iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        let _ = write!(text, "\"{}\":", go_name(&field.name));
        write_field(schema, field, &value[&*field.name], text);
    }
    text.push('}');
}

fn write_field(schema: &Schema, field: &Field, value: &Value, text: &mut String) {
    let by_value = field.omit_zero || field.required;
    let absent = match &field.kind {
        Kind::String | Kind::Bytes if by_value => "\"\"",
        Kind::Bool if by_value => "false",
        Kind::Int32 | Kind::Int64 if by_value => "0",
        Kind::Object(ty) if field.by_value => return write_object(schema, *ty, value, text),
        _ => "null",
    };
    if value.is_null() {
        text.push_str(absent);
    } else {
        write_value(schema, &field.kind, value, text);
    }
}

fn write_value(schema: &Schema, kind: &Kind, value: &Value, text: &mut String) {
    match (kind, value) {
        (Kind::Object(ty), value) => write_object(schema, *ty, value, text),
        (Kind::List(item), Value::Array(items)) => {
            text.push('[');
            for (i, value) in items.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                write_value(schema, item, value, text);
            }
            text.push(']');
        }
        (_, value) => text.push_str(&go_json(value)),
    }
}

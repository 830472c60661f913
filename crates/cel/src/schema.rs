//! Types of schemas: a custom resource's structural schema, or a built-in kind's.

use std::collections::BTreeMap;
use std::sync::Arc;

use fluyt_api::custom::Structural;
use fluyt_api::custom::structural::Additional;
use fluyt_api::schema::{Kind, Schema, TypeId};

use crate::types::{Field, ObjectType, Type};

/// The largest request; nothing inside of one is larger.
pub(crate) const MAX_REQUEST: u64 = 3 * 1024 * 1024;

const MIN_BOOL: u64 = 4;
const MIN_NUMBER: u64 = 1;
const MIN_STRING: u64 = 2;
const MIN_LIST: u64 = 2;
const MIN_MAP: u64 = 2;

/// Words that mean something in expressions.
pub const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A property's name as expressions write it; `None` when they cannot.
#[must_use]
pub fn escape(name: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(valid)
    {
        return None;
    }
    let escaped = name
        .replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__");
    Some(escaped)
}

fn part(ty: Type, max_elements: u64, min_size: u64) -> Field {
    Field {
        ty,
        name: String::new(),
        max_elements,
        element: None,
        key: None,
        min_size,
    }
}

fn text(ty: Type, max: u64) -> Field {
    part(ty, max, MIN_STRING)
}

/// The type of a structural schema; with `root` it has the fields of every object. `None` where a schema says nothing.
#[must_use]
pub fn of_structural(name: &str, schema: &Structural, root: bool) -> Option<Field> {
    if schema.int_or_string {
        return Some(part(Type::Dyn, MAX_REQUEST - 2, MIN_NUMBER));
    }
    let limits = &schema.validation;
    let given = |limit: Option<i64>| limit.map(|n| u64::try_from(n).unwrap_or(0));
    Some(match &*schema.ty {
        "boolean" => part(Type::Bool, 1, MIN_BOOL),
        "integer" => part(Type::Int, 1, MIN_NUMBER),
        "number" => part(Type::Double, 1, MIN_NUMBER),
        "string" => {
            let max = given(limits.max_length);
            match &*limits.format {
                "byte" => text(Type::Bytes, max.unwrap_or(MAX_REQUEST - 2)),
                "duration" => text(Type::Duration, max.unwrap_or(32)),
                "date" => part(Type::Timestamp, 12, 12),
                "date-time" => part(Type::Timestamp, 37, 22),
                _ if max.is_some() => text(Type::String, max.unwrap_or(0).saturating_mul(4)),
                _ if !limits.enumeration.is_empty() => {
                    let lengths = limits
                        .enumeration
                        .iter()
                        .filter_map(|v| Some(v.as_str()?.len()));
                    text(Type::String, lengths.max().unwrap_or(0) as u64)
                }
                _ => text(Type::String, MAX_REQUEST - 2),
            }
        }
        "array" => {
            let item = of_structural(&format!("{name}.@idx"), schema.items.as_deref()?, false)?;
            let max = given(limits.max_items).unwrap_or((MAX_REQUEST - 2) / (item.min_size + 1));
            Field {
                element: Some(Arc::new(item.clone())),
                ..part(Type::list(item.ty), max, MIN_LIST)
            }
        }
        "object" => {
            if let Additional::Schema(values) = &schema.additional {
                let value = of_structural(&format!("{name}.@elem"), values, false)?;
                let max = given(limits.max_properties)
                    .unwrap_or((MAX_REQUEST - 2) / (value.min_size + 6));
                return Some(Field {
                    key: Some(Arc::new(text(Type::String, MAX_REQUEST - 2))),
                    element: Some(Arc::new(value.clone())),
                    ..part(Type::map(Type::String, value.ty), max, MIN_MAP)
                });
            }
            object(name, schema, root || schema.embedded_resource)
        }
        _ => return None,
    })
}

fn object(name: &str, schema: &Structural, resource: bool) -> Field {
    let mut fields = BTreeMap::new();
    let mut min_size = MIN_MAP;
    for (property, child) in &schema.properties {
        if resource && ["apiVersion", "kind", "metadata"].contains(&&**property) {
            continue;
        }
        let (Some(escaped), Some(field)) = (
            escape(property),
            of_structural(&format!("{name}.{property}"), child, false),
        ) else {
            continue;
        };
        if schema.validation.required.contains(property) && child.default.is_none() {
            min_size += property.len() as u64 + field.min_size + 4;
        }
        let named = Field {
            name: property.to_string(),
            ..field
        };
        fields.insert(escaped, named);
    }
    if resource {
        for (property, field) in type_and_name(name) {
            fields.insert(property, field);
        }
    }
    let ty = Type::Object(Arc::new(ObjectType {
        name: name.to_owned(),
        fields,
    }));
    part(ty, 1, min_size)
}

/// What rules see of every resource: its type, and of metadata the names.
fn type_and_name(name: &str) -> Vec<(String, Field)> {
    let string = |n: &str| Field {
        name: n.to_owned(),
        ..text(Type::String, MAX_REQUEST - 2)
    };
    let metadata = ObjectType {
        name: format!("{name}.metadata"),
        fields: ["name", "generateName"]
            .map(|n| (n.to_owned(), string(n)))
            .into(),
    };
    let metadata = Field {
        name: "metadata".into(),
        ..part(Type::Object(Arc::new(metadata)), 1, MIN_MAP)
    };
    vec![
        ("apiVersion".into(), string("apiVersion")),
        ("kind".into(), string("kind")),
        ("metadata".into(), metadata),
    ]
}

/// Types nested deeper than this are dynamic; a few of the API's types contain themselves.
const MAX_NESTING: usize = 24;

/// The type of a built-in kind, or of any kind by its [`Schema`].
#[must_use]
pub fn of_schema(schema: &Schema, id: TypeId) -> Field {
    let mut path = Vec::new();
    of_type(schema, id, &mut path)
}

fn of_type(schema: &Schema, id: TypeId, path: &mut Vec<TypeId>) -> Field {
    if path.contains(&id) || path.len() > MAX_NESTING {
        return part(Type::Dyn, MAX_REQUEST, MIN_NUMBER);
    }
    path.push(id);
    let ty = schema.get(id);
    let mut fields = BTreeMap::new();
    for field in &ty.fields {
        if let Some(escaped) = escape(&field.name) {
            let known = Field {
                name: field.name.to_string(),
                ..of_kind(schema, &field.kind, path)
            };
            fields.insert(escaped, known);
        }
    }
    path.pop();
    let name = ty.name.to_string();
    part(
        Type::Object(Arc::new(ObjectType { name, fields })),
        1,
        MIN_MAP,
    )
}

fn of_kind(schema: &Schema, kind: &Kind, path: &mut Vec<TypeId>) -> Field {
    match kind {
        Kind::String | Kind::Quantity => text(Type::String, MAX_REQUEST - 2),
        Kind::Int32 | Kind::Int64 => part(Type::Int, 1, MIN_NUMBER),
        Kind::Bool => part(Type::Bool, 1, MIN_BOOL),
        Kind::Double => part(Type::Double, 1, MIN_NUMBER),
        Kind::Bytes => text(Type::Bytes, MAX_REQUEST - 2),
        Kind::Time | Kind::MicroTime => part(Type::Timestamp, 37, 22),
        Kind::IntOrString | Kind::Json => part(Type::Dyn, MAX_REQUEST - 2, MIN_NUMBER),
        Kind::Object(id) => of_type(schema, *id, path),
        Kind::List(item) => {
            let item = of_kind(schema, item, path);
            let max = (MAX_REQUEST - 2) / (item.min_size + 1);
            Field {
                element: Some(Arc::new(item.clone())),
                ..part(Type::list(item.ty), max, MIN_LIST)
            }
        }
        Kind::Map(value) => {
            let value = of_kind(schema, value, path);
            let max = (MAX_REQUEST - 2) / (value.min_size + 6);
            Field {
                key: Some(Arc::new(text(Type::String, MAX_REQUEST - 2))),
                element: Some(Arc::new(value.clone())),
                ..part(Type::map(Type::String, value.ty), max, MIN_MAP)
            }
        }
    }
}

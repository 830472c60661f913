//! The places of a `JSONSchemaProps` where JSON has one of several types, and protobuf a message that says which.

use serde_json::{Value, json};

use super::decode::decode_at;
use super::encode::encode as encode_object;
use super::utf8;
use super::wire::{Fields, Wire, bytes, message, tag, varint};
use crate::defaults;
use crate::schema::{Schema, Type, TypeId};

const JSON_SCHEMA: &str =
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Whether a field holds such a union.
pub(super) fn is_union(ty: &Type, field: &str) -> bool {
    matches!(
        field,
        "items" | "additionalItems" | "additionalProperties" | "dependencies"
    ) && &*ty.name == JSON_SCHEMA
}

fn schema_type() -> Option<TypeId> {
    Schema::builtin().find(JSON_SCHEMA)
}

pub(super) fn encode(field: &str, value: &Value, out: &mut Vec<u8>) {
    let Some(ty) = schema_type() else { return };
    let schema = |out: &mut Vec<u8>, number, value: &Value| {
        let raw = encode_object(ty, value);
        message(out, number, |out| out.extend_from_slice(&raw));
    };
    match (field, value) {
        // A schema, or several.
        ("items", Value::Array(items)) => {
            for item in items {
                schema(out, 2, item);
            }
        }
        // A schema, or the names of other properties.
        ("dependencies", Value::Array(names)) => {
            for name in names {
                bytes(out, 2, name.as_str().unwrap_or_default().as_bytes());
            }
        }
        ("items" | "dependencies", value) => schema(out, 1, value),
        // A schema, or whether anything is allowed.
        (_, value) => {
            tag(out, 1, 0);
            varint(out, u64::from(value != &Value::Bool(false)));
            if value.is_object() {
                schema(out, 2, value);
            }
        }
    }
}

pub(super) fn decode(field: &str, content: &[u8], depth: usize) -> Result<Value, String> {
    let Some(ty) = schema_type() else {
        return Ok(Value::Null);
    };
    // Go writes what means nothing, and nobody else will look into the union for it.
    let nested = |raw: &[u8]| {
        let mut object = decode_at(ty, raw, depth + 1)?;
        defaults::strip_absent(Schema::builtin(), ty, &mut object);
        Ok::<_, String>(object)
    };
    let (mut schema, mut list, mut allows) = (None, Vec::new(), false);
    for entry in Fields(content) {
        match (field, entry?) {
            ("items" | "dependencies", (1, Wire::Bytes(raw))) => {
                schema = Some(nested(raw)?);
            }
            ("items", (2, Wire::Bytes(raw))) => {
                list.push(nested(raw)?);
            }
            ("dependencies", (2, Wire::Bytes(name))) => list.push(utf8(name)?.into()),
            (_, (1, Wire::Varint(n))) => allows = n != 0,
            (_, (2, Wire::Bytes(raw))) => {
                schema = Some(nested(raw)?);
            }
            _ => {}
        }
    }
    Ok(match (schema, field) {
        (Some(schema), _) => schema,
        (None, "items" | "dependencies") => json!(list),
        (None, _) => allows.into(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_go_writes_and_means_nothing_is_not_read() {
        let written = json!({"type": "object", "nullable": false, "items": {"type": "string", "uniqueItems": false},
            "properties": {"a": {"type": "string", "exclusiveMaximum": false}}});
        let mut out = Vec::new();
        encode("items", &written, &mut out);
        let expected = json!({"type": "object", "items": {"type": "string"}, "properties": {"a": {"type": "string"}}});
        assert_eq!(decode("items", &out, 0).unwrap(), expected);
    }
}

//! Objects into messages. Fields are written in order of their numbers, keys of maps in order, as upstream's encoder does.

use std::sync::OnceLock;

use base64::Engine as _;
use serde_json::{Map, Value};

use super::MAGIC;
use super::wire::{bytes, message, prefix_length, tag, varint};
use crate::managedfields::Set;
use crate::resources::type_of;
use crate::schema::{Field, Kind, Schema, Type, TypeId};

/// A body: the magic and an envelope that names the kind around the object's message.
#[must_use]
pub fn seal(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(raw.len() + 64);
    seal_head(api_version, kind, raw.len(), &mut body);
    body.extend_from_slice(raw);
    seal_tail(&mut body);
    body
}

/// A body around a message that `content` writes.
pub fn seal_into(
    api_version: &str,
    kind: &str,
    out: &mut Vec<u8>,
    content: impl FnOnce(&mut Vec<u8>),
) {
    head(api_version, kind, out);
    message(out, 2, content);
    seal_tail(out);
}

/// What comes before a message of `length` bytes in its body.
pub fn seal_head(api_version: &str, kind: &str, length: usize, out: &mut Vec<u8>) {
    head(api_version, kind, out);
    tag(out, 2, 2);
    varint(out, length as u64);
}

fn head(api_version: &str, kind: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(MAGIC);
    message(out, 1, |out| {
        bytes(out, 1, api_version.as_bytes());
        bytes(out, 2, kind.as_bytes());
    });
}

/// What comes after a message in its body: that it is neither compressed nor of another type.
pub fn seal_tail(out: &mut Vec<u8>) {
    bytes(out, 3, b"");
    bytes(out, 4, b"");
}

/// The message of an object of a built-in type.
#[must_use]
pub fn encode(ty: TypeId, object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    encode_into(ty, object, &mut out);
    out
}

/// Writes the message of an object of a built-in type.
pub fn encode_into(ty: TypeId, object: &Value, out: &mut Vec<u8>) {
    if let Value::Object(map) = object {
        fields(ty, map, out);
    }
}

/// The head of an item of a list: its tag and length.
#[must_use]
pub fn item_head(length: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(6);
    tag(&mut head, 2, 2);
    varint(&mut head, length as u64);
    head
}

/// A list's metadata, its first field.
#[must_use]
pub fn list_metadata(metadata: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    match Schema::builtin().find("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta") {
        Some(ty) => bytes(&mut out, 1, &encode(ty, metadata)),
        None => bytes(&mut out, 1, b""),
    }
    out
}

/// The message of a `PartialObjectMetadata`.
#[must_use]
pub fn partial_metadata(metadata: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    match Schema::builtin().find(crate::managedfields::OBJECT_META) {
        Some(ty) => bytes(&mut out, 1, &encode(ty, metadata)),
        None => bytes(&mut out, 1, b""),
    }
    out
}

/// One frame of a watch: its length in four bytes, and a `WatchEvent` around an object's whole body.
#[must_use]
pub fn watch_frame(event: &str, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 4];
    frame.reserve(body.len() + 32);
    bytes(&mut frame, 1, event.as_bytes());
    message(&mut frame, 2, |out| bytes(out, 1, body));
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

/// Indices of the fields that have a number, in order of their numbers, for every built-in type.
fn order(ty: TypeId) -> &'static [u16] {
    static ORDER: OnceLock<Vec<Box<[u16]>>> = OnceLock::new();
    let order = ORDER.get_or_init(|| {
        let of_type = |ty: &Type| {
            let mut order: Vec<u16> = (0..ty.fields.len())
                .filter(|i| !ty.fields[*i].path.is_empty())
                .filter_map(|i| u16::try_from(i).ok())
                .collect();
            order.sort_by_key(|i| &ty.fields[usize::from(*i)].path);
            order.into()
        };
        Schema::builtin().types().map(of_type).collect()
    });
    order.get(ty.index()).map_or(&[], |o| o)
}

fn fields(ty: TypeId, map: &Map<String, Value>, out: &mut Vec<u8>) {
    let schema = Schema::builtin();
    level(schema.get(ty), order(ty), 0, map, out);
}

/// The fields whose numbers agree up to `depth`, which is how many messages JSON has inlined so far.
fn level(ty: &Type, order: &[u16], depth: usize, map: &Map<String, Value>, out: &mut Vec<u8>) {
    let mut rest = order;
    while let Some(first) = rest.first() {
        let field = &ty.fields[usize::from(*first)];
        let number = field.path[depth];
        if field.path.len() == depth + 1 {
            if let Some(present) = map.get(&*field.name).filter(|v| !v.is_null()) {
                write(ty, field, number, present, out);
            }
            rest = &rest[1..];
            continue;
        }
        let inlined = |i: &u16| ty.fields[usize::from(*i)].path.get(depth) == Some(&number);
        let count = rest.iter().take_while(|i| inlined(i)).count();
        let (group, others) = rest.split_at(count);
        let start = out.len();
        tag(out, number, 2);
        let content = out.len();
        level(ty, group, depth + 1, map, out);
        if out.len() == content {
            out.truncate(start);
        } else {
            prefix_length(out, content);
        }
        rest = others;
    }
}

fn write(ty: &Type, field: &Field, number: u32, present: &Value, out: &mut Vec<u8>) {
    match (&field.kind, present) {
        (Kind::List(item), Value::Array(items)) => {
            let write = |number, out: &mut Vec<u8>| {
                for item_value in items {
                    value(item, number, item_value, out);
                }
            };
            if super::is_wrapped_list(ty, field) {
                message(out, number, |out| write(1, out));
            } else {
                write(number, out);
            }
        }
        (Kind::Map(item), Value::Object(map)) => {
            for (key, entry) in map {
                message(out, number, |out| {
                    bytes(out, 1, key.as_bytes());
                    match (&**item, entry) {
                        // Lists as values of a map are wrapped in a message.
                        (Kind::List(inner), Value::Array(items)) => message(out, 2, |out| {
                            for item_value in items {
                                value(inner, 1, item_value, out);
                            }
                        }),
                        (Kind::Json, entry) if super::unions::is_union(ty, &field.name) => {
                            message(out, 2, |out| {
                                super::unions::encode(&field.name, entry, out);
                            });
                        }
                        (item, entry) => value(item, 2, entry, out),
                    }
                });
            }
        }
        (Kind::Json, present) if super::unions::is_union(ty, &field.name) => {
            message(out, number, |out| {
                super::unions::encode(&field.name, present, out);
            });
        }
        (Kind::Json, present) if &*field.name == "fieldsV1" => {
            let text = Set::to_text(present);
            message(out, number, |out| bytes(out, 1, text.as_bytes()));
        }
        (kind, present) => value(kind, number, present, out),
    }
}

fn value(kind: &Kind, number: u32, value: &Value, out: &mut Vec<u8>) {
    match (kind, value) {
        (Kind::String, Value::String(text)) => bytes(out, number, text.as_bytes()),
        (Kind::Bytes, Value::String(text)) => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(text);
            bytes(out, number, &decoded.unwrap_or_default());
        }
        (Kind::Int32 | Kind::Int64, Value::Number(n)) => {
            tag(out, number, 0);
            varint(out, n.as_i64().unwrap_or_default().cast_unsigned());
        }
        (Kind::Bool, Value::Bool(b)) => {
            tag(out, number, 0);
            varint(out, u64::from(*b));
        }
        (Kind::Double, Value::Number(n)) => {
            tag(out, number, 1);
            out.extend_from_slice(&n.as_f64().unwrap_or_default().to_le_bytes());
        }
        (Kind::Time | Kind::MicroTime, Value::String(text)) => message(out, number, |out| {
            if let Ok(at) = text.parse::<jiff::Timestamp>() {
                let nanos = match kind {
                    Kind::MicroTime => at.subsec_nanosecond() / 1000 * 1000,
                    _ => 0,
                };
                tag(out, 1, 0);
                varint(out, at.as_second().cast_unsigned());
                tag(out, 2, 0);
                varint(out, i64::from(nanos).cast_unsigned());
            }
        }),
        (Kind::Quantity, Value::String(text)) => {
            message(out, number, |out| bytes(out, 1, text.as_bytes()));
        }
        (Kind::Quantity, Value::Number(n)) => {
            message(out, number, |out| bytes(out, 1, n.to_string().as_bytes()));
        }
        (Kind::IntOrString, value) => message(out, number, |out| {
            tag(out, 1, 0);
            varint(out, u64::from(value.is_string()));
            tag(out, 2, 0);
            varint(out, value.as_i64().unwrap_or_default().cast_unsigned());
            bytes(out, 3, value.as_str().unwrap_or_default().as_bytes());
        }),
        (Kind::Json, value) => {
            let raw = value.to_string();
            message(out, number, |out| bytes(out, 1, raw.as_bytes()));
        }
        (Kind::Object(ty), Value::Object(map)) => {
            message(out, number, |out| fields(*ty, map, out));
        }
        // A value of another type than the schema's has no place in a message.
        _ => {}
    }
}

/// The whole body of any object, list or answer of the server that has a protobuf form.
#[must_use]
pub fn body(object: &Value) -> Option<Vec<u8>> {
    const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
    let api_version = object["apiVersion"].as_str().unwrap_or("v1");
    let kind = object["kind"].as_str()?;
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let items = |field: &str| object[field].as_array().map_or(&[][..], Vec::as_slice);
    let meta = |name: &str| Schema::builtin().find(&format!("{META}.{name}"));
    let mut raw = Vec::new();
    match kind {
        "PartialObjectMetadata" => raw = partial_metadata(&object["metadata"]),
        "PartialObjectMetadataList" => {
            raw = list_metadata(&object["metadata"]);
            for item in items("items") {
                bytes(&mut raw, 2, &partial_metadata(&item["metadata"]));
            }
        }
        "APIGroupList" => {
            let ty = meta("APIGroup")?;
            for group in items("groups") {
                bytes(&mut raw, 1, &encode(ty, group));
            }
        }
        "APIResourceList" => {
            let ty = meta("APIResource")?;
            let version = object["groupVersion"].as_str().unwrap_or_default();
            bytes(&mut raw, 1, version.as_bytes());
            for resource in items("resources") {
                bytes(&mut raw, 2, &encode(ty, resource));
            }
        }
        _ => match (type_of(group, version, kind), kind.strip_suffix("List")) {
            (Some(ty), _) => raw = encode(ty, object),
            (None, Some(item)) => {
                let ty = type_of(group, version, item)?;
                raw = list_metadata(&object["metadata"]);
                for item in items("items") {
                    bytes(&mut raw, 2, &encode(ty, item));
                }
            }
            (None, None) => return None,
        },
    }
    Some(seal(api_version, kind, &raw))
}

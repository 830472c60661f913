//! Messages into objects.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::wire::{Fields, Wire};
use super::{is_wrapped_list, unions, utf8};
use crate::decode::MAX_DEPTH;
use crate::resources;
use crate::schema::{Field, Kind, Schema, Type, TypeId};

/// Decodes the message of an object of a built-in type.
///
/// # Errors
/// When the message is cut off, nested too deeply, or a value is not of its field's type. Unknown fields are skipped, as
/// protobuf has it.
pub fn decode(ty: TypeId, message: &[u8]) -> Result<Value, String> {
    decode_at(ty, message, 0)
}

pub(super) fn decode_at(ty: TypeId, message: &[u8], depth: usize) -> Result<Value, String> {
    let mut object = Map::new();
    object_fields(ty, message, &mut object, depth)?;
    Ok(Value::Object(object))
}

/// What a number stands for in a message.
enum Slot {
    Nothing,
    /// The field at this place among its type's.
    Field(u16),
    /// A message whose fields JSON inlines.
    Inlined(Box<[Slot]>),
}

/// The slots of a type, by their numbers.
fn slots(ty: TypeId) -> &'static [Slot] {
    static SLOTS: OnceLock<Vec<OnceLock<Box<[Slot]>>>> = OnceLock::new();
    let all = SLOTS.get_or_init(|| {
        let types = Schema::builtin().types();
        types.map(|_| OnceLock::new()).collect()
    });
    let Some(of) = all.get(ty.index()) else {
        return &[];
    };
    of.get_or_init(|| {
        let fields = &Schema::builtin().get(ty).fields;
        let numbered = fields.iter().enumerate().filter_map(|(i, field)| {
            let i = u16::try_from(i).ok()?;
            (!field.path.is_empty()).then_some((&*field.path, i))
        });
        level(&numbered.collect::<Vec<_>>())
    })
}

/// The slots of the fields that are left of their paths.
fn level(fields: &[(&[u32], u16)]) -> Box<[Slot]> {
    let largest = fields.iter().map(|(path, _)| path[0]).max().unwrap_or(0);
    (0..=largest)
        .map(|number| {
            let here = fields.iter().filter(|(path, _)| path[0] == number);
            let inner: Vec<(&[u32], u16)> = here.map(|(path, i)| (&path[1..], *i)).collect();
            match inner.as_slice() {
                [] => Slot::Nothing,
                [([], i), ..] => Slot::Field(*i),
                inner => Slot::Inlined(level(inner)),
            }
        })
        .collect()
}

/// Version and kind of a type that is a resource's.
fn kind_of(ty: TypeId) -> Option<&'static (String, &'static str)> {
    static KINDS: OnceLock<HashMap<TypeId, (String, &'static str)>> = OnceLock::new();
    let kinds = KINDS.get_or_init(|| {
        let named = resources::builtin()
            .iter()
            .filter_map(|r| Some((r.ty?, (r.api_version(), r.kind))));
        named.collect()
    });
    kinds.get(&ty)
}

fn object_fields(
    ty: TypeId,
    message: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), String> {
    slot_fields(Schema::builtin().get(ty), slots(ty), message, object, depth)
}

fn slot_fields(
    of: &Type,
    slots: &[Slot],
    message: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err("exceeded max depth".into());
    }
    for entry in Fields(message) {
        let (number, wire) = entry?;
        match (slots.get(number as usize), wire) {
            (Some(Slot::Field(i)), wire) => {
                add(of, &of.fields[usize::from(*i)], wire, object, depth)?;
            }
            (Some(Slot::Inlined(inner)), Wire::Bytes(message)) => {
                slot_fields(of, inner, message, object, depth + 1)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Adds one occurrence of a field.
fn add(
    of: &Type,
    field: &Field,
    wire: Wire<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), String> {
    let name = || field.name.to_string();
    if is_wrapped_list(of, field) {
        object.insert(name(), map_value(&field.kind, wire, depth)?);
        return Ok(());
    }
    match &field.kind {
        Kind::List(item) => {
            // Items mostly follow each other: the list is there already.
            if !object.contains_key(&*field.name) {
                object.insert(name(), Value::Array(Vec::new()));
            }
            let Some(Value::Array(list)) = object.get_mut(&*field.name) else {
                return Ok(());
            };
            match (wire, &**item) {
                // Numbers may be packed into one field.
                (Wire::Bytes(packed), Kind::Int32 | Kind::Int64 | Kind::Bool) => {
                    let mut numbers = Fields(packed);
                    while !numbers.0.is_empty() {
                        let number = numbers.varint()?;
                        list.push(value(item, Wire::Varint(number), depth)?);
                    }
                }
                _ => list.push(value(item, wire, depth)?),
            }
        }
        Kind::Map(item) => {
            let Wire::Bytes(entry) = wire else {
                return Err(mismatch(field));
            };
            let (mut key, mut content) = (String::new(), None);
            for part in Fields(entry) {
                match part? {
                    (1, Wire::Bytes(text)) => key = utf8(text)?.to_owned(),
                    (2, Wire::Bytes(raw)) if unions::is_union(of, &field.name) => {
                        content = Some(unions::decode(&field.name, raw, depth)?);
                    }
                    (2, wire) => content = Some(map_value(item, wire, depth)?),
                    _ => {}
                }
            }
            let slot = object.entry(name()).or_insert_with(|| json!({}));
            if let Some(map) = slot.as_object_mut() {
                map.insert(key, content.unwrap_or_else(|| zero(item)));
            }
        }
        // A message may come in parts; they are merged.
        Kind::Object(inner) => {
            let Wire::Bytes(message) = wire else {
                return Err(mismatch(field));
            };
            let slot = object.entry(name()).or_insert_with(|| json!({}));
            if let Some(map) = slot.as_object_mut() {
                object_fields(*inner, message, map, depth + 1)?;
            }
        }
        Kind::Json if unions::is_union(of, &field.name) => {
            let Wire::Bytes(raw) = wire else {
                return Err(mismatch(field));
            };
            object.insert(name(), unions::decode(&field.name, raw, depth)?);
        }
        kind => {
            let value = value(kind, wire, depth)?;
            // What Go writes for an unset string is not there in JSON; neither is the zero time.
            let unset = value.is_null() || (value == "" && field.omit_zero);
            if !unset {
                object.insert(name(), value);
            }
        }
    }
    Ok(())
}

/// Lists as values of a map are wrapped in a message with `items`.
fn map_value(kind: &Kind, wire: Wire<'_>, depth: usize) -> Result<Value, String> {
    let (Kind::List(item), Wire::Bytes(message)) = (kind, wire) else {
        return value(kind, wire, depth);
    };
    Fields(message)
        .filter_map(|entry| match entry {
            Ok((1, wire)) => Some(value(item, wire, depth)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
        .collect()
}

fn zero(kind: &Kind) -> Value {
    match kind {
        Kind::Object(_) | Kind::Map(_) => json!({}),
        Kind::List(_) => json!([]),
        Kind::Int32 | Kind::Int64 | Kind::Double => 0.into(),
        Kind::Bool => false.into(),
        _ => "".into(),
    }
}

fn value(kind: &Kind, wire: Wire<'_>, depth: usize) -> Result<Value, String> {
    use base64::Engine as _;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    Ok(match (kind, wire) {
        (Kind::String, Wire::Bytes(text)) => utf8(text)?.into(),
        #[allow(clippy::cast_possible_truncation)]
        (Kind::Int32, Wire::Varint(n)) => (n.cast_signed() as i32).into(),
        (Kind::Int64, Wire::Varint(n)) => n.cast_signed().into(),
        (Kind::Bool, Wire::Varint(n)) => (n != 0).into(),
        (Kind::Double, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
        (Kind::Double, Wire::Fixed32(bits)) => f32::from_bits(bits).into(),
        (Kind::Bytes, Wire::Bytes(bytes)) => encode(bytes).into(),
        (Kind::Time, Wire::Bytes(message)) => time(message, false)?,
        (Kind::MicroTime, Wire::Bytes(message)) => time(message, true)?,
        (Kind::Quantity, Wire::Bytes(message)) => match first_bytes(message)? {
            Some(text) => utf8(text)?.into(),
            None => "0".into(),
        },
        (Kind::IntOrString, Wire::Bytes(message)) => int_or_string(message)?,
        (Kind::Json, Wire::Bytes(message)) => match first_bytes(message)? {
            Some(raw) => serde_json::from_slice(raw).map_err(|e| e.to_string())?,
            None => Value::Null,
        },
        (Kind::Object(ty), Wire::Bytes(message)) => {
            let mut object = Map::new();
            object_fields(*ty, message, &mut object, depth + 1)?;
            // A message does not say of which kind it is; an object in a list of such, as of claims, does.
            if let Some((api_version, kind)) = kind_of(*ty) {
                object.insert("apiVersion".to_owned(), api_version.as_str().into());
                object.insert("kind".to_owned(), (*kind).into());
            }
            Value::Object(object)
        }
        _ => {
            return Err(format!(
                "proto: wrong wireType for a field of kind {kind:?}"
            ));
        }
    })
}

fn mismatch(field: &Field) -> String {
    format!("proto: wrong wireType for field {}", field.name)
}

/// The content of field 1, for messages that wrap one value.
fn first_bytes(message: &[u8]) -> Result<Option<&[u8]>, String> {
    for entry in Fields(message) {
        if let (1, Wire::Bytes(bytes)) = entry? {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

fn time(message: &[u8], micros: bool) -> Result<Value, String> {
    let (mut seconds, mut nanos) = (None, 0);
    for entry in Fields(message) {
        match entry? {
            (1, Wire::Varint(n)) => seconds = Some(n.cast_signed()),
            (2, Wire::Varint(n)) => {
                nanos = i32::try_from(n.cast_signed()).map_err(|e| e.to_string())?
            }
            _ => {}
        }
    }
    // Go's zero time is an empty message, or the year 1.
    let Some(seconds) = seconds.filter(|s| *s > -62_135_596_800) else {
        return Ok(Value::Null);
    };
    let nanos = if micros { nanos } else { 0 };
    let at = jiff::Timestamp::new(seconds, nanos).map_err(|e| e.to_string())?;
    Ok(if micros {
        at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string().into()
    } else {
        at.to_string().into()
    })
}

fn int_or_string(message: &[u8]) -> Result<Value, String> {
    let (mut is_string, mut number, mut text) = (false, 0, "");
    for entry in Fields(message) {
        match entry? {
            (1, Wire::Varint(n)) => is_string = n == 1,
            (2, Wire::Varint(n)) => number = n.cast_signed(),
            (3, Wire::Bytes(bytes)) => text = utf8(bytes)?,
            _ => {}
        }
    }
    Ok(if is_string {
        text.into()
    } else {
        number.into()
    })
}

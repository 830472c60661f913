//! From request bytes to a typed-checked object: duplicate keys are noticed, fields that the schema does not know are
//! removed and reported, values of the wrong type are errors.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::go_time;
use crate::schema::{Kind, Schema, TypeId};

/// Objects nested deeper than this are refused, as any JSON parser here does.
pub const MAX_DEPTH: usize = 128;

/// Parses JSON and collects the paths of duplicate keys.
///
/// # Errors
/// The parser's message.
pub fn parse_json(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    let mut duplicates = Vec::new();
    let mut path = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Tracked {
        path: &mut path,
        duplicates: &mut duplicates,
    }
    .deserialize(&mut deserializer)
    .and_then(|v| deserializer.end().map(|()| v))
    .map_err(|e| json_error(&e))?;
    Ok((value, duplicates))
}

/// What is wrong with a text that is no JSON, in Go's words where they are known.
#[must_use]
pub fn json_error(error: &serde_json::Error) -> String {
    if error.is_eof() {
        "unexpected end of JSON input".into()
    } else {
        error.to_string()
    }
}

/// What Go calls a value's type.
#[must_use]
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A value of any format, and the paths of keys that it has twice.
#[derive(Debug)]
pub struct Parsed {
    pub value: Value,
    pub duplicates: Vec<String>,
}

impl<'de> serde::Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (mut path, mut duplicates) = (Vec::new(), Vec::new());
        let value = Tracked {
            path: &mut path,
            duplicates: &mut duplicates,
        }
        .deserialize(deserializer)?;
        Ok(Self { value, duplicates })
    }
}

/// Builds a [`Value`] like serde_json does but notices duplicate keys.
struct Tracked<'a> {
    path: &'a mut Vec<String>,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Tracked<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tracked<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            self.path.push(format!("[{}]", list.len()));
            let item = items.next_element_seed(Tracked {
                path: self.path,
                duplicates: self.duplicates,
            })?;
            self.path.pop();
            match item {
                Some(item) => list.push(item),
                None => return Ok(list.into()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        if self.path.len() > MAX_DEPTH {
            return Err(A::Error::custom("exceeded max depth"));
        }
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.path.push(key.clone());
            if map.contains_key(&key) {
                self.duplicates.push(join(self.path));
            }
            let value = entries.next_value_seed(Tracked {
                path: self.path,
                duplicates: self.duplicates,
            })?;
            self.path.pop();
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

/// `spec`, `containers`, `[0]`, `name` -> `spec.containers[0].name`.
pub(crate) fn join(path: &[String]) -> String {
    let mut joined = String::new();
    for segment in path {
        if !segment.starts_with('[') && !joined.is_empty() {
            joined.push('.');
        }
        joined.push_str(segment);
    }
    joined
}

/// What conforming an object to its schema found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Paths of fields that were removed because the schema does not know them.
    pub unknown: Vec<String>,
}

/// Removes unknown fields and nulls, and checks types.
///
/// # Errors
/// The first value of a wrong type, in the words of upstream's decoder.
pub fn conform(schema: &Schema, ty: TypeId, object: &mut Value) -> Result<Findings, String> {
    let mut walk = Walk {
        schema,
        path: Vec::new(),
        findings: Findings::default(),
    };
    walk.object(ty, object)?;
    Ok(walk.findings)
}

struct Walk<'a> {
    schema: &'a Schema,
    path: Vec<String>,
    findings: Findings,
}

impl Walk<'_> {
    fn object(&mut self, ty: TypeId, value: &mut Value) -> Result<(), String> {
        let schema = self.schema;
        let ty = schema.get(ty);
        let Value::Object(map) = value else {
            return Err(self.mismatch(value, short(&ty.name)));
        };
        let mut unknown = Vec::new();
        for (name, value) in map.iter_mut() {
            let Some(field) = ty.field(name) else {
                if ty.rest.is_none() {
                    unknown.push(name.clone());
                }
                continue;
            };
            if value.is_null() {
                continue;
            }
            self.path.push(name.clone());
            self.value(&field.kind, value)?;
            self.path.pop();
        }
        for name in unknown {
            map.remove(&name);
            self.path.push(name);
            self.findings.unknown.push(join(&self.path));
            self.path.pop();
        }
        map.retain(|_, v| !v.is_null());
        Ok(())
    }

    fn value(&mut self, kind: &Kind, value: &mut Value) -> Result<(), String> {
        match kind {
            Kind::Json => Ok(()),
            Kind::Object(ty) => self.object(*ty, value),
            Kind::List(item) => {
                let Value::Array(items) = value else {
                    return Err(self.mismatch(value, "list"));
                };
                for (i, v) in items.iter_mut().enumerate() {
                    self.path.push(format!("[{i}]"));
                    self.value(item, v)?;
                    self.path.pop();
                }
                Ok(())
            }
            Kind::Map(item) => {
                let Value::Object(entries) = value else {
                    return Err(self.mismatch(value, "map"));
                };
                for (key, v) in entries.iter_mut() {
                    self.path.push(key.clone());
                    if v.is_null() && **item == Kind::String {
                        *v = Value::String(String::new());
                    }
                    self.value(item, v)?;
                    self.path.pop();
                }
                Ok(())
            }
            Kind::Quantity => {
                // Numbers are accepted and become the string that they would be written as.
                if let Value::Number(n) = value {
                    *value = Value::String(n.to_string());
                }
                match value.as_str().map(str::parse::<crate::quantity::Quantity>) {
                    Some(Ok(_)) => Ok(()),
                    Some(Err(_)) => Err(crate::quantity::PATTERN_MESSAGE.to_owned()),
                    None => Err(self.mismatch(value, "Quantity")),
                }
            }
            Kind::Time => self.time(value, go_time::RFC3339),
            Kind::MicroTime => self.time(value, go_time::RFC3339_MICRO),
            scalar => self.scalar(scalar, value),
        }
    }

    fn time(&self, value: &Value, layout: &str) -> Result<(), String> {
        let Some(text) = value.as_str() else {
            return Err(self.mismatch(value, "string"));
        };
        go_time::check(text, layout)?;
        let parsed = text.parse::<jiff::Timestamp>();
        parsed.map(drop).map_err(|error| error.to_string())
    }

    fn scalar(&self, kind: &Kind, value: &Value) -> Result<(), String> {
        use base64::Engine as _;
        let (ok, name) = match kind {
            Kind::String => (value.is_string(), "string"),
            Kind::Bool => (value.is_boolean(), "bool"),
            Kind::Int32 => (
                value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
                "int32",
            ),
            Kind::Int64 => (value.is_i64(), "int64"),
            Kind::Double => (value.is_number(), "float64"),
            Kind::IntOrString => (value.is_string() || value.is_i64(), "int32"),
            Kind::Bytes => {
                let Some(text) = value.as_str() else {
                    return Err(self.mismatch(value, "[]uint8"));
                };
                return match base64::engine::general_purpose::STANDARD.decode(text) {
                    Ok(_) => Ok(()),
                    Err(base64::DecodeError::InvalidByte(at, _)) => {
                        Err(format!("illegal base64 data at input byte {at}"))
                    }
                    Err(_) => Err(format!("illegal base64 data at input byte {}", text.len())),
                };
            }
            _ => (true, ""),
        };
        if ok {
            Ok(())
        } else {
            Err(self.mismatch(value, name))
        }
    }

    fn mismatch(&self, value: &Value, expected: &str) -> String {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(n) if n.is_f64() || matches!(expected, "int32" | "int64") => {
                format!("number {n}")
            }
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        format!(
            "json: cannot unmarshal {found} into Go struct field {} of type {expected}",
            join(&self.path)
        )
    }
}

/// `io.k8s.api.core.v1.Pod` -> `v1.Pod`.
fn short(name: &str) -> &str {
    let mut dots = name.rmatch_indices('.').map(|(i, _)| i);
    dots.nth(1).map_or(name, |i| &name[i + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(mut value: Value) -> (Value, Result<Findings, String>) {
        let schema = Schema::builtin();
        let found = conform(
            schema,
            schema.find("io.k8s.api.core.v1.Pod").unwrap(),
            &mut value,
        );
        (value, found)
    }

    #[test]
    fn unknown_fields_are_pruned_and_named() {
        let (object, findings) =
            pod(json!({"spec": {"containers": [{"name": "a", "imagee": "x"}], "nodeName": null}}));
        assert_eq!(findings.unwrap().unknown, ["spec.containers[0].imagee"]);
        assert_eq!(object, json!({"spec": {"containers": [{"name": "a"}]}}));
    }

    #[test]
    fn wrong_types_are_errors() {
        let (_, found) = pod(json!({"spec": {"containers": [{"name": 1}]}}));
        assert_eq!(
            found.unwrap_err(),
            "json: cannot unmarshal number into Go struct field spec.containers[0].name of type string"
        );
        assert!(pod(json!({"spec": {"containers": {}}})).1.is_err());
        assert!(
            pod(json!({"metadata": {"creationTimestamp": "yesterday"}}))
                .1
                .is_err()
        );
        assert!(
            pod(json!({"spec": {"priority": 3_000_000_000_i64}}))
                .1
                .is_err()
        );
    }

    #[test]
    fn duplicates_are_found() {
        let (value, duplicates) =
            parse_json(br#"{"a": {"b": 1, "b": 2}, "c": [{"d": 1, "d": 1}]}"#).unwrap();
        assert_eq!(duplicates, ["a.b", "c[0].d"]);
        assert_eq!(value["a"]["b"], 2);
        assert!(parse_json(b"{} x").is_err());
    }
}

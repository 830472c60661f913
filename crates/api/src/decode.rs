//! From request bytes to a typed-checked object: duplicate keys are noticed, fields that the schema does not know are
//! removed and reported, values of the wrong type are errors.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
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
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Tracked {
        path: Path::ROOT,
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
        let mut duplicates = Vec::new();
        let value = Tracked {
            path: Path::ROOT,
            duplicates: &mut duplicates,
        }
        .deserialize(deserializer)?;
        Ok(Self { value, duplicates })
    }
}

/// Where in a document something is: a list on the stack of those who walk there, which costs nothing until it is shown.
#[derive(Clone, Copy)]
pub(crate) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
    depth: usize,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

impl<'a> Path<'a> {
    pub(crate) const ROOT: Path<'static> = Path {
        parent: None,
        step: Step::Field(""),
        depth: 0,
    };

    pub(crate) fn field(&'a self, name: &'a str) -> Self {
        self.then(Step::Field(name))
    }

    pub(crate) fn item(&'a self, index: usize) -> Self {
        self.then(Step::Item(index))
    }

    fn then(&'a self, step: Step<'a>) -> Self {
        Self {
            parent: Some(self),
            step,
            depth: self.depth + 1,
        }
    }
}

/// `spec.containers[0].name`
impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else {
            return Ok(());
        };
        parent.fmt(f)?;
        match self.step {
            Step::Item(index) => write!(f, "[{index}]"),
            Step::Field(name) if parent.depth == 0 => f.write_str(name),
            Step::Field(name) => write!(f, ".{name}"),
        }
    }
}

/// Builds a [`Value`] like serde_json does but notices duplicate keys.
struct Tracked<'a> {
    path: Path<'a>,
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
        while let Some(item) = items.next_element_seed(Tracked {
            path: self.path.item(list.len()),
            duplicates: self.duplicates,
        })? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        if self.path.depth > MAX_DEPTH {
            return Err(A::Error::custom("exceeded max depth"));
        }
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let path = self.path.field(&key);
            if map.contains_key(&key) {
                self.duplicates.push(path.to_string());
            }
            let value = entries.next_value_seed(Tracked {
                path,
                duplicates: self.duplicates,
            })?;
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

/// What a decoder that is strict objects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    Unknown(String),
    Duplicate(String),
}

impl Problem {
    fn path(&self) -> &str {
        match self {
            Self::Unknown(path) | Self::Duplicate(path) => path,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(path) => write!(f, "unknown field \"{path}\""),
            Self::Duplicate(path) => write!(f, "duplicate field \"{path}\""),
        }
    }
}

/// Brings problems into the order in which a JSON document has them, each once: what is there twice is seen at the second
/// time.
pub fn in_order(document: &[u8], problems: &mut Vec<Problem>) {
    let mut fields = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(document);
    let walk = Fields {
        path: Path::ROOT,
        found: &mut fields,
    };
    if walk.deserialize(&mut deserializer).is_err() {
        return;
    }
    let mut places: HashMap<&str, [usize; 2]> = HashMap::new();
    for (i, field) in fields.iter().enumerate() {
        match places.entry(field) {
            Entry::Vacant(first) => drop(first.insert([i, usize::MAX])),
            Entry::Occupied(mut known) => {
                let [_, second] = known.get_mut();
                *second = i.min(*second);
            }
        }
    }
    let place = |problem: &Problem| {
        let nth = usize::from(matches!(problem, Problem::Duplicate(_)));
        places
            .get(problem.path())
            .map_or(usize::MAX, |places| places[nth])
    };
    problems.sort_by_cached_key(place);
    problems.dedup();
}

/// Notes the path of every field in the order of a document.
struct Fields<'a> {
    path: Path<'a>,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut index = 0;
        while items
            .next_element_seed(Fields {
                path: self.path.item(index),
                found: self.found,
            })?
            .is_some()
        {
            index += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            let path = self.path.field(&key);
            self.found.push(path.to_string());
            entries.next_value_seed(Fields {
                path,
                found: self.found,
            })?;
        }
        Ok(())
    }
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
        findings: Findings::default(),
    };
    walk.object(ty, Path::ROOT, object)?;
    Ok(walk.findings)
}

struct Walk<'a> {
    schema: &'a Schema,
    findings: Findings,
}

impl Walk<'_> {
    fn object(&mut self, ty: TypeId, path: Path<'_>, value: &mut Value) -> Result<(), String> {
        let schema = self.schema;
        let ty = schema.get(ty);
        let Value::Object(map) = value else {
            return Err(mismatch(path, value, short(&ty.name)));
        };
        let (mut unknown, mut nulls) = (Vec::new(), false);
        for (name, value) in map.iter_mut() {
            let Some(field) = ty.field(name) else {
                if ty.rest.is_none() {
                    unknown.push(name.clone());
                }
                continue;
            };
            if value.is_null() {
                nulls = true;
                continue;
            }
            self.value(&field.kind, path.field(name), value)?;
        }
        for name in unknown {
            map.remove(&name);
            self.findings.unknown.push(path.field(&name).to_string());
        }
        if nulls || ty.rest.is_some() {
            map.retain(|_, v| !v.is_null());
        }
        Ok(())
    }

    fn value(&mut self, kind: &Kind, path: Path<'_>, value: &mut Value) -> Result<(), String> {
        match kind {
            Kind::Json => Ok(()),
            Kind::Object(ty) => self.object(*ty, path, value),
            Kind::List(item) => {
                let Value::Array(items) = value else {
                    return Err(mismatch(path, value, "list"));
                };
                for (i, v) in items.iter_mut().enumerate() {
                    self.value(item, path.item(i), v)?;
                }
                Ok(())
            }
            Kind::Map(item) => {
                let Value::Object(entries) = value else {
                    return Err(mismatch(path, value, "map"));
                };
                for (key, v) in entries.iter_mut() {
                    if v.is_null() && **item == Kind::String {
                        *v = Value::String(String::new());
                    }
                    self.value(item, path.field(key), v)?;
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
                    None => Err(mismatch(path, value, "Quantity")),
                }
            }
            Kind::Time => time(path, value, go_time::RFC3339),
            Kind::MicroTime => time(path, value, go_time::RFC3339_MICRO),
            kind => scalar(kind, path, value),
        }
    }
}

fn time(path: Path<'_>, value: &Value, layout: &str) -> Result<(), String> {
    let Some(text) = value.as_str() else {
        return Err(mismatch(path, value, "string"));
    };
    go_time::check(text, layout)?;
    let parsed = text.parse::<jiff::Timestamp>();
    parsed.map(drop).map_err(|error| error.to_string())
}

fn scalar(kind: &Kind, path: Path<'_>, value: &Value) -> Result<(), String> {
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
                return Err(mismatch(path, value, "[]uint8"));
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
        Err(mismatch(path, value, name))
    }
}

fn mismatch(path: Path<'_>, value: &Value, expected: &str) -> String {
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
    format!("json: cannot unmarshal {found} into Go struct field {path} of type {expected}")
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

    #[test]
    fn problems_are_told_in_the_order_of_the_document() {
        let document = br#"{"z": 1, "a": {"b": 1, "y": 1, "b": 2, "b": 3}, "c": [{}, {"x": 1}]}"#;
        let unknown = |path: &str| Problem::Unknown(path.into());
        let twice = || Problem::Duplicate("a.b".into());
        let mut problems = vec![
            unknown("a.y"),
            unknown("c[1].x"),
            unknown("z"),
            twice(),
            twice(),
        ];
        in_order(document, &mut problems);
        assert_eq!(
            problems,
            [unknown("z"), unknown("a.y"), twice(), unknown("c[1].x")]
        );
    }
}

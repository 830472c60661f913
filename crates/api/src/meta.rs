//! Reading and writing `ObjectMeta` inside a JSON object.

use serde_json::{Map, Value};

/// The string at `metadata.<field>`, empty when absent.
#[must_use]
pub fn str<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

#[must_use]
pub fn name(object: &Value) -> &str {
    str(object, "name")
}

#[must_use]
pub fn namespace(object: &Value) -> &str {
    str(object, "namespace")
}

#[must_use]
pub fn uid(object: &Value) -> &str {
    str(object, "uid")
}

#[must_use]
pub fn resource_version(object: &Value) -> &str {
    str(object, "resourceVersion")
}

#[must_use]
pub fn generation(object: &Value) -> i64 {
    object["metadata"]["generation"]
        .as_i64()
        .unwrap_or_default()
}

#[must_use]
pub fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

#[must_use]
pub fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

#[must_use]
pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    object["metadata"]["labels"].as_object()
}

#[must_use]
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["annotations"][key].as_str()
}

/// The `metadata` map, made when it is missing or not an object.
pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    child(object, "metadata")
}

/// The object at `field`, made when it is missing or not an object.
pub fn child<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let slot = match object {
        Value::Object(map) => map.entry(field).or_insert(Value::Null),
        _ => unreachable!("made an object above"),
    };
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// Sets `metadata.<field>`, or removes it when the value is null.
pub fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    let value = value.into();
    if value.is_null() {
        metadata(object).remove(field);
    } else {
        metadata(object).insert(field.to_owned(), value);
    }
}

/// Now, as a `Time`.
#[must_use]
pub fn now() -> String {
    let second = jiff::Timestamp::now().as_second();
    // A whole second is written without a fraction.
    jiff::Timestamp::from_second(second)
        .unwrap_or_default()
        .to_string()
}

//! The stored form of an object: all of it but its resourceVersion, which is the store's to say.

use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Map, Value};

/// Encodes an object without copying it first.
pub(super) fn encode(object: &Value) -> Vec<u8> {
    let stored = match object {
        Value::Object(map) => serde_json::to_vec(&Object(map)),
        other => serde_json::to_vec(other),
    };
    stored.unwrap_or_default()
}

struct Object<'a>(&'a Map<String, Value>);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            match value {
                Value::Object(metadata) if key == "metadata" => {
                    map.serialize_entry(key, &Metadata(metadata))?;
                }
                value => map.serialize_entry(key, value)?,
            }
        }
        map.end()
    }
}

struct Metadata<'a>(&'a Map<String, Value>);

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter(|(key, _)| *key != "resourceVersion"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_but_the_version_is_stored() {
        let object = json!({"metadata": {"name": "a", "resourceVersion": "1"}, "data": {"resourceVersion": "2"}});
        let stored: Value = serde_json::from_slice(&encode(&object)).unwrap();
        assert_eq!(
            stored,
            json!({"metadata": {"name": "a"}, "data": {"resourceVersion": "2"}})
        );
    }
}

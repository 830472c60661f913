//! One object as the cache holds it: its encoded form and what selectors look at.

use std::sync::OnceLock;

use bytes::Bytes;
use fluyt_api::resources::{self, Resource};
use fluyt_api::schema::TypeId;
use fluyt_api::{meta, protobuf};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Map, Value};

use crate::storage::Stored;

/// An immutable object version.
#[derive(Debug)]
pub struct Entry {
    /// `namespace/name`, or `name` for cluster-scoped objects.
    pub key: Box<str>,
    pub revision: i64,
    pub labels: Option<Box<Map<String, Value>>>,
    /// The version that `json` is in, of a custom resource.
    pub version: Option<&'static str>,
    /// Selectable fields that are not empty.
    fields: Box<[(&'static str, Box<str>)]>,
    /// The object in its stored version, with `resourceVersion`.
    pub json: Bytes,
    /// It would be stored in another form now, so that an update has to write even what stays the same.
    pub stale: bool,
    /// The same as a protobuf message, made when somebody asks for it.
    message: OnceLock<Bytes>,
}

impl Entry {
    /// From an object as it is stored: without a `resourceVersion`, or with one that does not count.
    #[must_use]
    pub fn new(resource: &Resource, key: &str, revision: i64, object: &Value) -> Self {
        let strategy = resource.strategy();
        let fields = strategy
            .selectable_fields()
            .iter()
            .filter_map(|name| {
                let value = strategy.field(object, name)?;
                (!value.is_empty()).then(|| (*name, value.into()))
            })
            .collect();
        Self {
            key: key.into(),
            revision,
            labels: meta::labels(object).cloned().map(Box::new),
            version: resource.definition.as_ref().map(|_| version_of(object)),
            fields,
            stale: false,
            json: versioned(object, revision),
            message: OnceLock::new(),
        }
    }

    /// From a stored value.
    #[must_use]
    pub fn of_stored(resource: &Resource, key: &str, revision: i64, mut stored: Stored) -> Self {
        // The schema may have changed since the object was written.
        if let Some(definition) = &resource.definition
            && stored.object["apiVersion"] == resource.api_version().as_str()
        {
            definition.refresh(&mut stored.object);
        }
        Self {
            stale: stored.stale,
            ..Self::new(resource, key, revision, &stored.object)
        }
    }

    #[must_use]
    pub fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(ns, _)| ns)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        self.key
            .rsplit_once('/')
            .map_or(&self.key, |(_, name)| name)
    }

    /// A selectable field; empty when it is not set.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        match name {
            "metadata.name" => self.name(),
            "metadata.namespace" => self.namespace(),
            name => self
                .fields
                .iter()
                .find(|(n, _)| *n == name)
                .map_or("", |(_, v)| v),
        }
    }

    /// The protobuf message of the object, which is of a built-in type.
    #[must_use]
    pub fn message(&self, ty: TypeId) -> Bytes {
        let encode = || protobuf::encode(ty, &self.object()).into();
        self.message.get_or_init(encode).clone()
    }

    /// The parsed object.
    #[must_use]
    pub fn object(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_default()
    }

    /// The same object as of a later revision: what a watch reports of a deletion.
    #[must_use]
    pub fn at_revision(&self, revision: i64) -> Self {
        Self {
            key: self.key.clone(),
            revision,
            labels: self.labels.clone(),
            version: self.version,
            fields: self.fields.clone(),
            stale: self.stale,
            json: versioned(&self.object(), revision),
            message: OnceLock::new(),
        }
    }
}

/// The version of an object of a custom resource.
fn version_of(object: &Value) -> &'static str {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    resources::intern(api_version.rsplit('/').next().unwrap_or_default())
}

const RESOURCE_VERSION: &str = "resourceVersion";

/// The JSON of an object with its `resourceVersion`, without copying the object.
fn versioned(object: &Value, revision: i64) -> Bytes {
    let json = match object {
        Value::Object(map) => serde_json::to_vec(&Versioned(map, revision)),
        other => serde_json::to_vec(other),
    };
    json.unwrap_or_default().into()
}

struct Versioned<'a>(&'a Map<String, Value>, i64);

impl Serialize for Versioned<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            match value {
                Value::Object(metadata) if key == "metadata" => {
                    map.serialize_entry(key, &Metadata(metadata, self.1))?;
                }
                value => map.serialize_entry(key, value)?,
            }
        }
        map.end()
    }
}

struct Metadata<'a>(&'a Map<String, Value>, i64);

impl Serialize for Metadata<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut fields = self
            .0
            .iter()
            .filter(|(key, _)| *key != RESOURCE_VERSION)
            .peekable();
        while let Some((key, value)) = fields.next_if(|(key, _)| key.as_str() < RESOURCE_VERSION) {
            map.serialize_entry(key, value)?;
        }
        map.serialize_entry(RESOURCE_VERSION, &self.1.to_string())?;
        for (key, value) in fields {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_version_is_the_stores() {
        let object = json!({"metadata": {"name": "a", "resourceVersion": "1", "uid": "u"}, "data": {"resourceVersion": "2"}});
        let json: Value = serde_json::from_slice(&versioned(&object, 7)).unwrap();
        let expected = json!({"metadata": {"name": "a", "resourceVersion": "7", "uid": "u"}, "data": {"resourceVersion": "2"}});
        assert_eq!(json, expected);
    }
}

//! One object as the cache holds it: its encoded form and what selectors look at.

use std::sync::OnceLock;

use bytes::Bytes;
use fluyt_api::resources::{self, Resource};
use fluyt_api::schema::TypeId;
use fluyt_api::{meta, protobuf};
use serde_json::{Map, Value};

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
    /// The same as a protobuf message, made when somebody asks for it.
    message: OnceLock<Bytes>,
}

impl Entry {
    /// From a stored value.
    ///
    /// # Errors
    /// When the value is not JSON.
    pub fn decode(
        resource: &Resource,
        key: &str,
        revision: i64,
        stored: &[u8],
    ) -> Result<Self, serde_json::Error> {
        let mut object: Value = serde_json::from_slice(stored)?;
        // The schema may have changed since the object was written.
        if let Some(definition) = &resource.definition
            && object["apiVersion"] == resource.api_version().as_str()
        {
            definition.refresh(&mut object);
        }
        meta::set(&mut object, "resourceVersion", revision.to_string());
        Ok(Self::new(resource, key, revision, &object))
    }

    /// From an object that has its `resourceVersion`.
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
            json: serde_json::to_vec(object).unwrap_or_default().into(),
            message: OnceLock::new(),
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
        let mut object = self.object();
        meta::set(&mut object, "resourceVersion", revision.to_string());
        Self {
            key: self.key.clone(),
            revision,
            labels: self.labels.clone(),
            version: self.version,
            fields: self.fields.clone(),
            json: serde_json::to_vec(&object).unwrap_or_default().into(),
            message: OnceLock::new(),
        }
    }
}

/// The version of an object of a custom resource.
fn version_of(object: &Value) -> &'static str {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    resources::intern(api_version.rsplit('/').next().unwrap_or_default())
}

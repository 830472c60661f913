//! One object as the cache holds it: its encoded forms and what selectors look at.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use fluyt_api::resources::{self, Resource};
use fluyt_api::schema::TypeId;
use fluyt_api::{cbor, meta, protobuf};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Map, Value, json};

use super::{Change, Pairs};
use crate::storage::Stored;

/// An immutable object version.
#[derive(Debug)]
pub struct Entry {
    /// `namespace/name`, or `name` for cluster-scoped objects.
    pub key: Arc<str>,
    pub revision: i64,
    /// What it was whose outcome this is: a watcher of everything is told of it so.
    pub arrived: Change,
    pub labels: Pairs,
    /// The version that the object is in, of a custom resource.
    pub version: Option<&'static str>,
    /// Selectable fields that are not empty.
    fields: Pairs,
    /// The object in its stored version, with `resourceVersion`.
    json: Form,
    /// It would be stored in another form now, so that an update has to write even what stays the same.
    pub stale: bool,
    /// The same in other formats, made when somebody asks for them.
    protobuf: OnceLock<Box<Form>>,
    cbor: OnceLock<Box<Bytes>>,
}

/// The event of an object's arrival in one format, and where the object is in it: there is one copy of both.
#[derive(Debug)]
struct Form {
    event: Bytes,
    object: Range<usize>,
}

impl Form {
    fn object(&self) -> Bytes {
        self.event.slice(self.object.clone())
    }
}

impl Entry {
    /// From an object as it is stored: without a `resourceVersion`, or with one that does not count.
    #[must_use]
    pub fn new(
        resource: &Resource,
        key: &str,
        revision: i64,
        arrived: Change,
        object: &Value,
    ) -> Self {
        let strategy = resource.strategy();
        let names = strategy.selectable_fields().iter().copied();
        let indexed = strategy.indexed_field();
        let fields = names
            .clone()
            .chain(indexed.filter(|field| !names.clone().any(|name| name == *field)))
            .filter_map(|name| Some((name, strategy.field(object, name)?)))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        let labels = meta::labels(object).into_iter().flatten();
        Self {
            key: key.into(),
            revision,
            arrived,
            labels: labels.filter_map(|(k, v)| Some((k, v.as_str()?))).collect(),
            version: resource.definition.as_ref().map(|_| version_of(object)),
            fields,
            stale: false,
            json: json_form(arrived, object, revision),
            protobuf: OnceLock::new(),
            cbor: OnceLock::new(),
        }
    }

    /// From a stored value.
    #[must_use]
    pub fn of_stored(
        resource: &Resource,
        key: &str,
        revision: i64,
        arrived: Change,
        mut stored: Stored,
    ) -> Self {
        // The schema may have changed since the object was written.
        if let Some(definition) = &resource.definition
            && stored.object["apiVersion"] == resource.api_version().as_str()
        {
            definition.refresh(&mut stored.object);
        }
        Self {
            stale: stored.stale,
            ..Self::new(resource, key, revision, arrived, &stored.object)
        }
    }

    /// Whether it can be shown as it is in requests of a resource's version.
    #[must_use]
    pub fn is_in_version_of(&self, resource: &Resource) -> bool {
        resource.definition.is_none() || self.version.is_none_or(|v| v == resource.version)
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

    /// A selectable field, or the indexed one; empty when it is not set.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        match name {
            "metadata.name" => self.name(),
            "metadata.namespace" => self.namespace(),
            name => self.fields.get(name).unwrap_or_default(),
        }
    }

    /// The object's JSON.
    #[must_use]
    pub fn json(&self) -> Bytes {
        self.json.object()
    }

    /// How long the object's JSON is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.json.object.len()
    }

    /// Whether its JSON has a text somewhere: quicker to tell than where.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        memchr::memmem::find(&self.json.event, text.as_bytes()).is_some()
    }

    /// Whether the object is being deleted.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.mentions("\"deletionTimestamp\"") && meta::is_terminating(&self.object())
    }

    /// The object's arrival as one line of a JSON watch.
    #[must_use]
    pub fn json_event(&self) -> Bytes {
        self.json.event.clone()
    }

    /// The protobuf message of the object, which is of a built-in type.
    #[must_use]
    pub fn message(&self, resource: &Resource, ty: TypeId) -> Bytes {
        self.protobuf(resource, ty).object()
    }

    /// The object's arrival as one frame of a protobuf watch.
    #[must_use]
    pub fn protobuf_event(&self, resource: &Resource, ty: TypeId) -> Bytes {
        self.protobuf(resource, ty).event.clone()
    }

    fn protobuf(&self, resource: &Resource, ty: TypeId) -> &Form {
        self.protobuf.get_or_init(|| {
            let message = protobuf::encode(ty, &self.object());
            let body = protobuf::seal(&resource.api_version(), resource.kind, &message);
            let event = protobuf::watch_frame(self.arrived.word(), &body);
            let mut tail = Vec::new();
            protobuf::seal_tail(&mut tail);
            let end = event.len() - tail.len();
            Box::new(Form {
                event: exact(&event),
                object: end - message.len()..end,
            })
        })
    }

    /// The object's arrival as one item of a CBOR watch.
    #[must_use]
    pub fn cbor_event(&self) -> Bytes {
        let encode = || {
            let event = json!({"type": self.arrived.word(), "object": self.object()});
            Box::new(exact(&cbor::encode(&event)))
        };
        Bytes::clone(self.cbor.get_or_init(encode))
    }

    /// The parsed object.
    #[must_use]
    pub fn object(&self) -> Value {
        let json = self.json.event.get(self.json.object.clone());
        serde_json::from_slice(json.unwrap_or_default()).unwrap_or_default()
    }

    /// The same object at its end: what a watch reports of a deletion.
    #[must_use]
    pub fn gone_at(&self, revision: i64) -> Self {
        Self {
            key: self.key.clone(),
            revision,
            arrived: Change::Deleted,
            labels: self.labels.clone(),
            version: self.version,
            fields: self.fields.clone(),
            stale: self.stale,
            json: json_form(Change::Deleted, &self.object(), revision),
            protobuf: OnceLock::new(),
            cbor: OnceLock::new(),
        }
    }
}

/// A copy that takes no more than it needs.
fn exact(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// `{"type":…,"object":…}` and a newline.
#[must_use]
pub fn json_event(change: Change, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 40);
    begin_event(change, &mut line);
    line.extend_from_slice(object);
    line.extend_from_slice(END_OF_EVENT);
    line.into()
}

fn begin_event(change: Change, line: &mut Vec<u8>) {
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(change.word().as_bytes());
    line.extend_from_slice(b"\",\"object\":");
}

const END_OF_EVENT: &[u8] = b"}\n";

thread_local! {
    /// Where objects are encoded before it is known how much room they need.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that has grown beyond this is not kept.
const LARGE: usize = 1 << 20;

/// An object with its `resourceVersion` inside its event.
fn json_form(change: Change, object: &Value, revision: i64) -> Form {
    BUFFER.with_borrow_mut(|line| {
        line.clear();
        begin_event(change, line);
        let start = line.len();
        // Into memory, and of maps whose keys are strings: nothing can fail.
        let _ = match object {
            Value::Object(map) => serde_json::to_writer(&mut *line, &Versioned(map, revision)),
            other => serde_json::to_writer(&mut *line, other),
        };
        let object = start..line.len();
        line.extend_from_slice(END_OF_EVENT);
        let event = exact(line);
        if line.capacity() > LARGE {
            *line = Vec::new();
        }
        Form { event, object }
    })
}

/// The version of an object of a custom resource.
fn version_of(object: &Value) -> &'static str {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    resources::intern(api_version.rsplit('/').next().unwrap_or_default())
}

const RESOURCE_VERSION: &str = "resourceVersion";

/// An object with its `resourceVersion`, without copying it.
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
        // What is not stored has none.
        if self.1 != 0 {
            map.serialize_entry(RESOURCE_VERSION, &self.1.to_string())?;
        }
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
        let json: Value =
            serde_json::from_slice(&json_form(Change::Added, &object, 7).object()).unwrap();
        let expected = json!({"metadata": {"name": "a", "resourceVersion": "7", "uid": "u"}, "data": {"resourceVersion": "2"}});
        assert_eq!(json, expected);
    }
}

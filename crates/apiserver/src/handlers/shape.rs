//! What a client sees of entries: the view and the format that it asked for, of single objects, lists and events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut as _, Bytes, BytesMut};
use fluyt_api::resources::Handle;
use fluyt_api::schema::TypeId;
use fluyt_api::{Error, cbor, convert, protobuf, table};
use serde_json::{Value, json};

use super::Call;
use crate::audit::{Layer, Record};
use crate::cache::{Change, Entry, json_event, working_resource};
use crate::http::{Accepted, Format, Offer, View, negotiate};

/// Frames of a list response are gathered to about this size.
const FRAME: usize = 64 * 1024;

/// Puts small pieces together to frames.
fn gathered(parts: impl Iterator<Item = Bytes> + Send) -> impl Iterator<Item = Bytes> + Send {
    let mut parts = parts;
    std::iter::from_fn(move || {
        let mut frame = BytesMut::from(&*parts.next()?);
        while frame.len() < FRAME {
            match parts.next() {
                Some(part) => frame.put(part),
                None => break,
            }
        }
        Some(frame.freeze())
    })
}

/// Turns entries into what the client asked for.
pub(super) struct Shape {
    pub(super) resource: Handle,
    view: View,
    format: Format,
    /// Stored version and served version differ.
    convert: bool,
    /// What a table row carries of its object.
    include: Include,
    told_columns: AtomicBool,
    /// Of a request that is answered with one object, or one list.
    record: Record,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Include {
    None,
    Metadata,
    Object,
}

impl Shape {
    /// Agrees with the client on a format and a view.
    ///
    /// # Errors
    /// 406 when it accepts nothing that there is.
    pub(super) fn accepted(call: &Call) -> Result<Accepted, Error> {
        let offer = Offer {
            features: call.server.config.features,
            protobuf: call.resource.definition.is_none(),
            only_whole: false,
            watch: call.info.verb == "watch",
            list: call.info.verb == "list",
        };
        let accepted = negotiate(&call.parts.headers, offer)?;
        let include = call.info.query.get("includeObject").unwrap_or_default();
        if accepted.view == View::Table && !["", "None", "Metadata", "Object"].contains(&include) {
            return Err(Error::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {include:?}: must be 'Metadata', 'Object', 'None', or empty"
            )));
        }
        Ok(accepted)
    }

    pub(super) fn new(resource: &Handle, accepted: Accepted, call: &Call) -> Self {
        let include = match call.info.query.get("includeObject") {
            Some("None") => Include::None,
            Some("Object") => Include::Object,
            _ => Include::Metadata,
        };
        Self {
            resource: resource.clone(),
            view: accepted.view,
            format: accepted.format,
            convert: !std::ptr::eq(&**resource, working_resource(resource)),
            include,
            told_columns: AtomicBool::new(false),
            record: match call.info.verb {
                "watch" => Record::default(),
                _ => call.record(),
            },
        }
    }

    /// What becomes of objects that are not sent as they are.
    fn transformed<T>(&self, make: impl FnOnce() -> T) -> T {
        self.record.measured(Layer::Transformation, make)
    }

    /// A watch tells the columns with its first event.
    fn columns(&self) -> Value {
        if self.told_columns.swap(true, Ordering::Relaxed) {
            Value::Null
        } else {
            table::definitions_of(&self.resource)
        }
    }

    /// Of one object, or a list. What is not written in its format right away is JSON until the answer is finished.
    pub(super) fn content_type(&self) -> &'static str {
        match self.message_type() {
            Some(_) => Format::Protobuf.media_type(),
            None => Format::Json.media_type(),
        }
    }

    pub(super) fn watch_content_type(&self) -> &'static str {
        self.format.watch_media_type()
    }

    /// The type of the messages to write; `None` when they are not wanted.
    fn message_type(&self) -> Option<TypeId> {
        self.resource
            .ty
            .filter(|_| self.format == Format::Protobuf && self.resource.definition.is_none())
    }

    /// Entries are sent as they are.
    fn is_plain(&self) -> bool {
        self.view == View::Object && !self.convert
    }

    /// The object in the served version.
    fn object(&self, entry: &Entry) -> Value {
        let object = entry.object();
        if self.convert {
            convert::from_storage(&self.resource, object)
        } else {
            object
        }
    }

    /// One object as a response, or as a watch event's object.
    pub(super) fn single(&self, entry: &Entry) -> Bytes {
        if let Some(ty) = self.message_type() {
            let (api_version, kind) = self.kind();
            return protobuf::seal(&api_version, kind, &self.message(ty, entry)).into();
        }
        match self.view {
            View::Object if !self.convert => self.transformed(|| entry.json()),
            View::Object => to_bytes(&self.transformed(|| self.object(entry))),
            View::PartialMetadata => to_bytes(&self.transformed(|| partial(&self.object(entry)))),
            View::Table => to_bytes(&json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1",
                "metadata": version(entry),
                "columnDefinitions": self.columns(), "rows": [self.row(entry)],
            })),
        }
    }

    /// What objects are said to be.
    fn kind(&self) -> (String, &str) {
        match self.view {
            View::PartialMetadata => ("meta.k8s.io/v1".into(), "PartialObjectMetadata"),
            _ => (self.resource.api_version(), self.resource.kind),
        }
    }

    /// The protobuf message of an object.
    fn message(&self, ty: TypeId, entry: &Entry) -> Bytes {
        match self.view {
            View::PartialMetadata => self
                .transformed(|| protobuf::partial_metadata(&entry.object()["metadata"]))
                .into(),
            _ if self.convert => protobuf::encode(ty, &self.object(entry)).into(),
            _ => entry.message(&self.resource, ty),
        }
    }

    /// One object as an item of a list.
    fn item(&self, entry: &Entry) -> Bytes {
        match self.view {
            View::Table => to_bytes(&self.row(entry)),
            _ => self.single(entry),
        }
    }

    fn row(&self, entry: &Entry) -> Value {
        self.transformed(|| self.row_of(entry))
    }

    fn row_of(&self, entry: &Entry) -> Value {
        let object = self.object(entry);
        let stored = working_resource(&self.resource);
        // Columns are written for the stored version, and what goes with another one is not shown beside them.
        let own = if self.convert {
            entry.object()
        } else {
            object.clone()
        };
        let mut row = json!({"cells": table::cells_of(stored, &own)});
        match self.include {
            Include::None => row["object"] = Value::Null,
            Include::Metadata => row["object"] = partial(&own),
            Include::Object => row["object"] = object,
        }
        row
    }

    /// A list, in frames of a reasonable size.
    pub(super) fn list(
        self,
        metadata: &Value,
        mut entries: Vec<Arc<Entry>>,
    ) -> Box<dyn Iterator<Item = Bytes> + Send> {
        let stored = working_resource(&self.resource);
        if self.view == View::Table
            && let Some(precedence) = table::precedence(stored.group, stored.kind)
        {
            entries.sort_by_cached_key(|entry| precedence(&entry.object()));
        }
        match self.message_type() {
            Some(ty) => Box::new(self.list_of_messages(ty, metadata, entries)),
            None => Box::new(self.list_of_json(metadata, entries)),
        }
    }

    /// The list's length is told in front, so that all messages are made first; they are kept with their entries.
    fn list_of_messages(
        &self,
        ty: TypeId,
        metadata: &Value,
        entries: Vec<Arc<Entry>>,
    ) -> impl Iterator<Item = Bytes> + Send + use<> {
        let (api_version, kind) = self.kind();
        let metadata = protobuf::list_metadata(metadata);
        let messages: Vec<Bytes> = entries.iter().map(|e| self.message(ty, e)).collect();
        let items: usize = messages
            .iter()
            .map(|m| protobuf::item_head(m.len()).len() + m.len())
            .sum();
        let mut head = Vec::new();
        let length = metadata.len() + items;
        protobuf::seal_head(&api_version, &format!("{kind}List"), length, &mut head);
        head.extend_from_slice(&metadata);
        let mut tail = Vec::new();
        protobuf::seal_tail(&mut tail);
        let parts = std::iter::once(Bytes::from(head))
            .chain(
                messages
                    .into_iter()
                    .flat_map(|m| [protobuf::item_head(m.len()).into(), m]),
            )
            .chain(std::iter::once(tail.into()));
        gathered(parts)
    }

    /// Header, items with their separators, and end.
    fn list_of_json(
        self,
        metadata: &Value,
        entries: Vec<Arc<Entry>>,
    ) -> impl Iterator<Item = Bytes> + Send + use<> {
        let head = self.list_head(metadata);
        let items = entries.into_iter().enumerate().flat_map(move |(i, entry)| {
            let separator = if i == 0 { "" } else { "," };
            [Bytes::from_static(separator.as_bytes()), self.item(&entry)]
        });
        let end = std::iter::once(Bytes::from_static(b"]}"));
        gathered(std::iter::once(head).chain(items).chain(end))
    }

    /// An object as an event of a watch. Of objects that are sent as they are there is one event for all who see it arrive.
    pub(super) fn event(&self, change: Change, entry: &Entry) -> Bytes {
        let is_shared = change == entry.arrived && self.is_plain();
        match (self.format, self.resource.ty) {
            (Format::Protobuf, Some(ty)) if is_shared => entry.protobuf_event(&self.resource, ty),
            (Format::Cbor, _) if is_shared => entry.cbor_event(),
            (Format::Json | Format::Yaml, _) if is_shared => entry.json_event(),
            _ => self.own_event(change, entry),
        }
    }

    fn own_event(&self, change: Change, entry: &Entry) -> Bytes {
        match self.format {
            Format::Protobuf => protobuf::watch_frame(change.word(), &self.single(entry)).into(),
            Format::Cbor => {
                let object = serde_json::from_slice(&self.single(entry)).unwrap_or_default();
                self.event_of(change.word(), &object)
            }
            _ => json_event(change, &self.single(entry)),
        }
    }

    /// An event of a watch that is not about an object of the cache.
    pub(super) fn event_of(&self, word: &str, object: &Value) -> Bytes {
        match self.format {
            Format::Protobuf => {
                let body = protobuf::body(object).unwrap_or_default();
                protobuf::watch_frame(word, &body).into()
            }
            Format::Cbor => cbor::encode(&json!({"type": word, "object": object})).into(),
            _ => format!("{}\n", json!({"type": word, "object": object})).into(),
        }
    }

    /// The end of a watch that cannot go on from where it was.
    pub(super) fn gone(&self, revision: i64) -> Bytes {
        let error = Error::expired(format!("too old resource version: {revision}"));
        let mut status = error.to_status();
        // Clients of watches know this as Expired inside an ERROR event.
        status["reason"] = "Expired".into();
        self.event_of("ERROR", &status)
    }

    /// How far a watch has got.
    pub(super) fn bookmark(&self, revision: i64, end_of_initial: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if end_of_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (api_version, kind) = self.kind();
        let object = match self.view {
            View::Table => {
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": null, "rows": []})
            }
            _ => json!({"kind": kind, "apiVersion": api_version, "metadata": metadata}),
        };
        self.event_of("BOOKMARK", &object)
    }

    /// Everything of a list before its items.
    fn list_head(&self, metadata: &Value) -> Bytes {
        let metadata = metadata.to_string();
        let head = match self.view {
            View::Object => format!(
                "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                self.resource.kind,
                self.resource.api_version()
            ),
            View::PartialMetadata => format!(
                "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata},\"items\":["
            ),
            View::Table => {
                let columns = table::definitions_of(working_resource(&self.resource));
                format!(
                    "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{metadata},\"columnDefinitions\":{columns},\"rows\":["
                )
            }
        };
        head.into()
    }
}

fn to_bytes(value: &Value) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// The metadata of a table of one object.
fn version(entry: &Entry) -> Value {
    match entry.revision {
        0 => json!({}),
        revision => json!({"resourceVersion": revision.to_string()}),
    }
}

fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

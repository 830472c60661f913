//! The last step of a write: an object in its stored form, on its way to the store and to the cache.

use std::sync::Arc;

use bytes::Bytes;
use fluyt_api::{Error, meta};
use fluyt_etcd::{Delete, Keys, Op, Put};
use serde_json::Value;

use super::{Location, Registry};
use crate::cache::{Handed, storage_resource};
use crate::storage;

/// A write that is about to be committed.
pub(super) struct Write {
    op: Op,
    object: Object,
    /// Ends before the object is taken back.
    handed: Option<Handed>,
}

/// The object as its author gets it back.
enum Object {
    /// It is what is stored, too.
    Stored(Arc<Value>),
    Own(Value),
}

impl Registry {
    /// Encodes an object in its resource's stored version.
    ///
    /// # Errors
    /// When it cannot be converted or encrypted.
    pub(super) async fn write(
        &self,
        at: Location<'_>,
        mut object: Value,
        lease: i64,
    ) -> Result<Write, Error> {
        let stored_as = storage_resource(at.resource);
        // The version is the store's to say.
        meta::set(&mut object, "resourceVersion", Value::Null);
        let key = key_of(&at);
        let codec = &self.caches.codec;
        if at.resource.definition.is_some() {
            let converted = self.converter.one(object.clone(), stored_as).await?;
            let value = codec.encode(stored_as, &key, &converted).await;
            let value = value.map_err(Error::internal)?;
            return Ok(Write {
                op: put(key, value.into(), lease),
                object: Object::Own(object),
                // What is read of it depends on the definition at that time.
                handed: None,
            });
        }
        storage::prepare(stored_as, &mut object);
        let object = Arc::new(object);
        let value = codec.encode(stored_as, &key, &object).await;
        let value = Bytes::from(value.map_err(Error::internal)?);
        let handed = self
            .caches
            .hand_over(key.clone(), value.clone(), object.clone());
        Ok(Write {
            op: put(key, value, lease),
            object: Object::Stored(object),
            handed: Some(handed),
        })
    }
}

fn put(key: Bytes, value: Bytes, lease: i64) -> Op {
    Op::Put(Put {
        lease,
        ..Put::new(key, value)
    })
}

impl Write {
    /// The end of an object.
    pub(super) fn removal(at: Location<'_>, object: Value) -> Self {
        Self {
            op: Op::Delete(Delete {
                keys: at.store_key(),
                prev_kv: false,
            }),
            object: Object::Own(object),
            handed: None,
        }
    }

    pub(super) fn op(&self) -> Op {
        self.op.clone()
    }

    /// The object as it was committed.
    pub(super) fn finish(self, revision: i64) -> Value {
        drop(self.handed);
        let mut object = match self.object {
            Object::Own(object) => object,
            // The cache is done with it, as a rule.
            Object::Stored(object) => Arc::try_unwrap(object).unwrap_or_else(|o| (*o).clone()),
        };
        meta::set(&mut object, "resourceVersion", revision.to_string());
        object
    }
}

fn key_of(at: &Location<'_>) -> Bytes {
    match at.store_key() {
        Keys::One(key) | Keys::Range(key, _) => key,
    }
}

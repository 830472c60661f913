//! The last step of a write: an object in its stored form, on its way to the store and to the cache.

use std::sync::Arc;

use bytes::Bytes;
use fluyt_api::{Error, meta};
use fluyt_etcd::{Compare, CompareOp, Delete, Keys, Op, Put, Range, Target, Txn};
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

/// A further write in the same transaction, about another key.
pub(crate) struct Side {
    key: Bytes,
    /// Which the key must be at; 0 when it must not exist.
    revision: i64,
    op: Op,
    /// Lives until the transaction is in the caches.
    _handed: Option<Handed>,
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

impl Side {
    pub(super) fn new(key: Bytes, revision: i64, op: Op) -> Self {
        Self {
            key,
            revision,
            op,
            _handed: None,
        }
    }

    /// The write of an object of its own.
    pub(super) fn of(at: Location<'_>, revision: i64, write: Write) -> Self {
        Self {
            key: key_of(&at),
            revision,
            op: write.op,
            _handed: write.handed,
        }
    }

    pub(super) fn compare(&self) -> Compare {
        is_at(Keys::One(self.key.clone()), self.revision)
    }

    pub(super) fn op(&self) -> Op {
        self.op.clone()
    }
}

fn is_at(keys: Keys, revision: i64) -> Compare {
    Compare {
        keys,
        target: Target::Mod(revision),
        op: CompareOp::Equal,
    }
}

impl Write {
    /// The transaction that commits this and its sides if all of their keys are where they must be, and otherwise tells
    /// what there is under each of them, this one's first.
    pub(super) fn txn<'s>(
        &self,
        at: Location<'_>,
        revision: i64,
        sides: impl Iterator<Item = &'s Side>,
    ) -> Txn {
        let mut txn = Txn {
            compares: vec![is_at(at.store_key(), revision)],
            success: vec![self.op.clone()],
            failure: vec![Op::Range(Range::new(at.store_key()))],
        };
        for side in sides {
            let keys = Keys::One(side.key.clone());
            txn.compares.push(side.compare());
            txn.success.push(side.op());
            txn.failure.push(Op::Range(Range::new(keys)));
        }
        txn
    }

    /// What it does to the object, as metrics name it.
    pub(super) fn operation(&self, revision: i64) -> &'static str {
        match self.op {
            Op::Delete(_) => "delete",
            _ if revision == 0 => "create",
            _ => "update",
        }
    }

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

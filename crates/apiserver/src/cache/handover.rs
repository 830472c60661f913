//! Objects on their way from the write path to the cache: the store's watch brings a value that its writer, in the same
//! server, has in hand as an object. The watch alone says what is stored, and in which order.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use fluyt_etcd::KeyValue;
use parking_lot::Mutex;
use serde_json::Value;

/// What is being stored, and the object that it is the stored form of.
type Given = (Bytes, Arc<Value>);

/// What is given, by its key.
#[derive(Clone, Default)]
pub(super) struct HandOver(Arc<Mutex<HashMap<Bytes, Given>>>);

/// An object that the cache may take until this is dropped.
pub struct Handed {
    from: HandOver,
    key: Bytes,
    object: Arc<Value>,
}

impl HandOver {
    pub(super) fn give(&self, key: Bytes, value: Bytes, object: Arc<Value>) -> Handed {
        let given = (value, object.clone());
        self.0.lock().insert(key.clone(), given);
        Handed {
            from: self.clone(),
            key,
            object,
        }
    }

    /// The object whose stored form a value is, if its writer is of this server.
    pub(super) fn take(&self, kv: &KeyValue) -> Option<Arc<Value>> {
        let mut all = self.0.lock();
        let (value, _) = all.get(&kv.key)?;
        if *value != kv.value {
            return None;
        }
        all.remove(&kv.key).map(|(_, object)| object)
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        let mut all = self.from.0.lock();
        // Another writer of the same key may have come since.
        if all
            .get(&self.key)
            .is_some_and(|(_, object)| Arc::ptr_eq(object, &self.object))
        {
            all.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kv(value: &'static str) -> KeyValue {
        KeyValue {
            key: "k".into(),
            value: value.into(),
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: 0,
        }
    }

    #[test]
    fn an_object_is_taken_once_and_only_for_what_was_stored() {
        let all = HandOver::default();
        let handed = all.give("k".into(), "a".into(), Arc::new(json!(1)));
        assert!(all.take(&kv("b")).is_none());
        assert_eq!(all.take(&kv("a")).as_deref(), Some(&json!(1)));
        assert!(all.take(&kv("a")).is_none());
        let second = all.give("k".into(), "c".into(), Arc::new(json!(2)));
        drop(handed);
        assert!(all.0.lock().contains_key(&Bytes::from("k")));
        drop(second);
        assert!(all.0.lock().is_empty());
    }
}

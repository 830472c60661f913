//! Whether an informer shows our own writes already. A controller that plans from an older view would make the
//! same objects twice.

use std::{collections::HashMap, fmt::Debug};

use fluyt_client::{Informer, ObjectKey};
use kube::Resource;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

/// The last write per controlling object. The informer's event about that write wakes the controller, so one that
/// finds its view stale just waits.
#[derive(Default)]
pub struct Freshness {
    written: Mutex<HashMap<ObjectKey, String>>,
}

impl Freshness {
    /// Remember that `written` is the newest write for `key`.
    pub fn wrote<K: Resource>(&self, key: &ObjectKey, written: &K) {
        if let Some(version) = &written.meta().resource_version {
            let mut all = self.written.lock();
            let number = |version: &str| version.parse::<u64>().unwrap_or(0);
            let newest = all.entry(key.clone()).or_default();
            if number(version) > number(newest) {
                newest.clone_from(version);
            }
        }
    }

    /// Whether `informer` shows everything that was written for `key`.
    pub fn is_current<K>(&self, key: &ObjectKey, informer: &Informer<K>) -> bool
    where
        K: Resource + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
    {
        let mut all = self.written.lock();
        let current = all
            .get(key)
            .is_none_or(|version| informer.has_seen(Some(version)));
        if current {
            all.remove(key);
        }
        current
    }
}

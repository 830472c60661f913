//! The service's own state: resource groups, clusters and operations, kept in the embedded store.
//!
//! Readers see an immutable picture. A change is made on a copy, written as one transaction, and only then shown.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fluyt_etcd::embedded::Embedded;
use fluyt_etcd::{Delete, DynStore, Keys, Op, Put, Range, Txn};
use jiff::Timestamp;
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Mutex, watch};

use crate::cluster::record::{Cluster, ClusterKey};

/// Operations are remembered for this many hours after their end.
const OPERATION_HOURS: i64 = 48;

/// A resource group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    pub subscription: String,
    pub name: String,
    pub location: String,
    pub tags: Option<BTreeMap<String, String>>,
}

/// An asynchronous operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    pub id: String,
    pub subscription: String,
    pub location: String,
    /// The resource that it is about.
    pub resource_id: String,
    /// What it does, in a word: `create`, `delete`.
    pub verb: String,
    pub started: Timestamp,
    pub ended: Option<Timestamp>,
    /// ARM's error, if it failed.
    pub error: Option<Value>,
}

/// Everything, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// By subscription and name, in lower case.
    pub groups: BTreeMap<(String, String), Arc<Group>>,
    pub clusters: BTreeMap<ClusterKey, Arc<Cluster>>,
    pub operations: BTreeMap<String, Arc<Operation>>,
}

/// The tables and their store.
pub struct State {
    store: DynStore,
    tables: RwLock<Tables>,
    writing: Mutex<()>,
    /// Counts changes, for those who wait for one.
    changes: watch::Sender<u64>,
    /// What each operation is doing just now; not worth remembering.
    progress: RwLock<BTreeMap<String, String>>,
}

// === impl Operation ===

impl Operation {
    #[must_use]
    pub fn status(&self) -> &'static str {
        match (&self.ended, &self.error) {
            (None, _) => "InProgress",
            (Some(_), None) => "Succeeded",
            (Some(_), Some(_)) => "Failed",
        }
    }
}

// === impl Tables ===

impl Tables {
    /// Makes a change to a cluster that exists.
    pub fn edit(&mut self, key: &ClusterKey, change: impl FnOnce(&mut Cluster)) {
        if let Some(cluster) = self.clusters.get_mut(key) {
            let cluster = Arc::make_mut(cluster);
            change(cluster);
            cluster.generation += 1;
            cluster.changed = Timestamp::now();
        }
    }

    /// Ends an operation.
    pub fn finish(&mut self, operation: &str, error: Option<Value>) {
        if let Some(operation) = self.operations.get_mut(operation)
            && operation.ended.is_none()
        {
            let operation = Arc::make_mut(operation);
            operation.ended = Some(Timestamp::now());
            operation.error = error;
        }
    }
}

// === impl State ===

impl State {
    /// Opens or makes the store in `directory`.
    ///
    /// # Errors
    /// When the directory cannot be used or holds what we did not write.
    pub async fn open(directory: &Path) -> anyhow::Result<Self> {
        let store: DynStore = Arc::new(Embedded::open(directory)?);
        let mut tables = Tables::default();
        for group in load::<Group>(&store, "groups").await? {
            tables.groups.insert(
                (group.subscription.to_lowercase(), group.name.to_lowercase()),
                Arc::new(group),
            );
        }
        for cluster in load::<Cluster>(&store, "clusters").await? {
            tables.clusters.insert(cluster.key(), Arc::new(cluster));
        }
        for operation in load::<Operation>(&store, "operations").await? {
            tables
                .operations
                .insert(operation.id.clone(), Arc::new(operation));
        }
        let state = Self {
            store,
            tables: RwLock::new(tables),
            writing: Mutex::new(()),
            changes: watch::Sender::new(0),
            progress: RwLock::default(),
        };
        let oldest = Timestamp::now() - jiff::SignedDuration::from_hours(OPERATION_HOURS);
        state
            .update(|tables| {
                tables
                    .operations
                    .retain(|_, o| o.ended.is_none_or(|ended| ended > oldest));
                anyhow::Ok(())
            })
            .await?;
        Ok(state)
    }

    /// Everything, as it is now.
    #[must_use]
    pub fn read(&self) -> Tables {
        self.tables.read().clone()
    }

    #[must_use]
    pub fn cluster(&self, key: &ClusterKey) -> Option<Arc<Cluster>> {
        self.tables.read().clusters.get(key).cloned()
    }

    /// Makes a change durable, or none at all.
    ///
    /// # Errors
    /// The change's own, or the store's.
    pub async fn update<T, E: From<anyhow::Error>>(
        &self,
        change: impl FnOnce(&mut Tables) -> Result<T, E>,
    ) -> Result<T, E> {
        let _turn = self.writing.lock().await;
        let before = self.read();
        let mut after = before.clone();
        let result = change(&mut after)?;
        let operations = differences(&before, &after).map_err(E::from)?;
        if !operations.is_empty() {
            let txn = Txn {
                compares: Vec::new(),
                success: operations,
                failure: Vec::new(),
            };
            self.store
                .txn(txn)
                .await
                .map_err(|error| E::from(error.into()))?;
        }
        *self.tables.write() = after;
        self.changed();
        Ok(result)
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    /// Wakes at every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Says what an operation is doing.
    pub fn set_progress(&self, operation: &str, step: String) {
        let before = self
            .progress
            .write()
            .insert(operation.to_owned(), step.clone());
        if before.as_ref() != Some(&step) {
            tracing::info!(operation, "{step}");
            self.changed();
        }
    }

    #[must_use]
    pub fn progress(&self, operation: &str) -> Option<String> {
        self.progress.read().get(operation).cloned()
    }

    /// Forgets what a finished operation was doing.
    pub fn clear_progress(&self, operation: &str) {
        self.progress.write().remove(operation);
    }
}

async fn load<T: DeserializeOwned>(store: &DynStore, table: &str) -> anyhow::Result<Vec<T>> {
    let found = store
        .range(Range::new(Keys::prefix(format!("/fluyt/{table}/"))))
        .await?;
    let parse = |value: &[u8]| serde_json::from_slice(value);
    Ok(found
        .kvs
        .iter()
        .map(|kv| parse(&kv.value))
        .collect::<Result<_, _>>()?)
}

fn differences(before: &Tables, after: &Tables) -> anyhow::Result<Vec<Op>> {
    let mut operations = Vec::new();
    difference(
        &mut operations,
        &before.groups,
        &after.groups,
        |(s, name)| format!("/fluyt/groups/{s}/{name}"),
    )?;
    difference(&mut operations, &before.clusters, &after.clusters, |k| {
        format!("/fluyt/clusters/{}/{}/{}", k.subscription, k.group, k.name)
    })?;
    difference(
        &mut operations,
        &before.operations,
        &after.operations,
        |id| format!("/fluyt/operations/{id}"),
    )?;
    Ok(operations)
}

fn difference<K: Ord, V: Serialize>(
    operations: &mut Vec<Op>,
    before: &BTreeMap<K, Arc<V>>,
    after: &BTreeMap<K, Arc<V>>,
    key: impl Fn(&K) -> String,
) -> anyhow::Result<()> {
    for (name, value) in after {
        if before.get(name).is_none_or(|old| !Arc::ptr_eq(old, value)) {
            operations.push(Op::Put(Put::new(key(name), serde_json::to_vec(&**value)?)));
        }
    }
    for name in before.keys().filter(|name| !after.contains_key(name)) {
        operations.push(Op::Delete(Delete {
            keys: Keys::One(key(name).into()),
            prev_kv: false,
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::record::tests::cluster;

    #[tokio::test]
    async fn changes_last_and_failed_ones_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let key = cluster(1).key();
        {
            let state = State::open(directory.path()).await.unwrap();
            let insert = |tables: &mut Tables| {
                tables.clusters.insert(key.clone(), Arc::new(cluster(2)));
                anyhow::Ok(())
            };
            state.update(insert).await.unwrap();
            let fail = |tables: &mut Tables| {
                tables.clusters.clear();
                Err::<(), _>(anyhow::anyhow!("no"))
            };
            assert!(state.update(fail).await.is_err());
            let edit = |tables: &mut Tables| {
                tables.edit(&key, |c| c.pools[0].count = 5);
                anyhow::Ok(())
            };
            state.update(edit).await.unwrap();
        }
        let state = State::open(directory.path()).await.unwrap();
        assert_eq!(state.cluster(&key).unwrap().pools[0].count, 5);
        let remove = |tables: &mut Tables| {
            tables.clusters.clear();
            anyhow::Ok(())
        };
        state.update(remove).await.unwrap();
        drop(state);
        assert!(
            State::open(directory.path())
                .await
                .unwrap()
                .read()
                .clusters
                .is_empty()
        );
    }
}

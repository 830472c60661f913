//! The watch cache: what every read is answered from. One watch of the store feeds the caches of all resources in commit
//! order; nothing else writes to them.

mod entry;
mod resource;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fluyt_api::resources::Resource;
use fluyt_api::{Error, resources};
use fluyt_etcd::{DynStore, Keys, Range, Watch, WatchUpdate};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use entry::Entry;
pub use resource::{Change, Filter, ResourceCache, Snapshot, Subscription, WatchEvent, encode};

/// Prefix of all keys, upstream's default.
pub const REGISTRY: &str = "/registry/";

/// How long a consistent read waits for the cache to catch up.
const CATCH_UP: Duration = Duration::from_secs(3);

/// The caches of all resources.
pub struct Caches {
    store: DynStore,
    by_storage: HashMap<&'static str, Arc<ResourceCache>>,
    /// The revision up to which every cache is complete.
    applied: watch::Sender<i64>,
}

impl Caches {
    /// Caches for every stored built-in resource, empty until [`Caches::run`] fills them.
    #[must_use]
    pub fn new(store: DynStore) -> Arc<Self> {
        let mut by_storage: HashMap<&'static str, Arc<ResourceCache>> = HashMap::new();
        for resource in resources::builtin().iter().filter(|r| !r.is_virtual()) {
            let resource = storage_resource(resource);
            by_storage
                .entry(resource.storage)
                .or_insert_with(|| Arc::new(ResourceCache::new(resource)));
        }
        Arc::new(Self {
            store,
            by_storage,
            applied: watch::Sender::new(0),
        })
    }

    /// The cache that holds a resource's objects.
    ///
    /// # Panics
    /// Never for a stored resource of the table.
    #[must_use]
    pub fn of(&self, resource: &Resource) -> &Arc<ResourceCache> {
        &self.by_storage[resource.storage]
    }

    #[must_use]
    pub fn store(&self) -> &DynStore {
        &self.store
    }

    /// The revision up to which every cache is complete; 0 before the first load.
    #[must_use]
    pub fn applied(&self) -> i64 {
        *self.applied.borrow()
    }

    /// Waits until everything that was committed before this call is in the caches.
    ///
    /// # Errors
    /// When the store cannot tell, or the cache does not catch up in time.
    pub async fn consistent(&self) -> Result<i64, Error> {
        let revision = self.store.revision().await.map_err(Error::internal)?;
        self.wait_for(revision).await?;
        Ok(revision)
    }

    /// Waits until the caches are at least at `revision`.
    ///
    /// # Errors
    /// Timeout with the cause `ResourceVersionTooLarge`.
    pub async fn wait_for(&self, revision: i64) -> Result<(), Error> {
        if self.applied() >= revision {
            return Ok(());
        }
        let mut applied = self.applied.subscribe();
        let deadline = tokio::time::Instant::now() + CATCH_UP;
        while *applied.borrow_and_update() < revision {
            let changed = tokio::time::timeout_at(deadline, applied.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Err(Error::too_large_resource_version(revision, self.applied()));
            }
        }
        Ok(())
    }

    /// Fills the caches and follows the store until shutdown. After a break it loads everything again.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut delay = Duration::from_millis(10);
        loop {
            let followed = tokio::select! {
                followed = self.follow() => followed,
                () = shutdown.cancelled() => return,
            };
            if let Err(error) = followed {
                tracing::warn!(%error, "the store's watch ended; loading again");
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => delay = (delay * 2).min(Duration::from_secs(5)),
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn follow(&self) -> Result<(), fluyt_etcd::Error> {
        let keys = Keys::prefix(REGISTRY);
        let loaded = self.store.range(Range::new(keys.clone())).await?;
        let mut by_cache: HashMap<&str, Vec<Entry>> = HashMap::new();
        for kv in loaded.kvs {
            let Some((cache, key)) = self.locate(&kv.key) else {
                continue;
            };
            match Entry::decode(cache.resource(), key, kv.mod_revision, &kv.value) {
                Ok(entry) => by_cache
                    .entry(cache.resource().storage)
                    .or_default()
                    .push(entry),
                Err(error) => {
                    tracing::error!(key = %String::from_utf8_lossy(&kv.key), %error, "an object cannot be decoded")
                }
            }
        }
        for (storage, cache) in &self.by_storage {
            cache.replace(
                by_cache.remove(storage).unwrap_or_default(),
                loaded.revision,
            );
        }
        self.applied.send_replace(loaded.revision);
        let start_revision = loaded.revision + 1;
        let mut stream = self
            .store
            .watch(Watch {
                keys,
                start_revision,
                prev_kv: false,
            })
            .await?;
        while let Some(update) = stream.next().await {
            let revision = match update? {
                WatchUpdate::Events { revision, events } => {
                    for event in events {
                        self.apply(event);
                    }
                    revision
                }
                WatchUpdate::Progress { revision } => revision,
            };
            self.applied.send_replace(revision);
        }
        Err(fluyt_etcd::Error::Stopped)
    }

    fn apply(&self, event: fluyt_etcd::Event) {
        let Some((cache, key)) = self.locate(&event.kv.key) else {
            return;
        };
        if event.deleted {
            cache.delete(key, event.kv.mod_revision);
            return;
        }
        match Entry::decode(
            cache.resource(),
            key,
            event.kv.mod_revision,
            &event.kv.value,
        ) {
            Ok(entry) => cache.put(entry),
            Err(error) => tracing::error!(key, %error, "an object cannot be decoded"),
        }
    }

    /// `/registry/pods/default/a` -> the pods' cache and `default/a`.
    fn locate<'k>(&self, key: &'k [u8]) -> Option<(&Arc<ResourceCache>, &'k str)> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(REGISTRY)?;
        let mut slashes = rest.match_indices('/').map(|(i, _)| i);
        let (first, second) = (slashes.next()?, slashes.next());
        let found = |at: usize| {
            self.by_storage
                .get(&rest[..at])
                .map(|c| (c, &rest[at + 1..]))
        };
        second.and_then(found).or_else(|| found(first))
    }
}

/// The version in which a resource's objects are stored, for resources that several groups or versions serve.
#[must_use]
pub fn storage_resource(resource: &'static Resource) -> &'static Resource {
    let stored = match (resource.group, resource.version, resource.plural) {
        ("events.k8s.io", _, "events") => resources::find("", "v1", "events"),
        ("autoscaling", "v1", "horizontalpodautoscalers") => {
            resources::find("autoscaling", "v2", "horizontalpodautoscalers")
        }
        _ => None,
    };
    stored.unwrap_or(resource)
}

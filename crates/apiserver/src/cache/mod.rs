//! The watch cache: what every read is answered from. One watch of the store feeds the caches of all resources in commit
//! order; nothing else writes to them.

mod entry;
mod resource;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use fluyt_api::custom;
use fluyt_api::resources::{self, Handle, Resource};
use fluyt_api::{Error, meta};
use fluyt_etcd::{DynStore, Keys, Range, Watch, WatchUpdate};
use parking_lot::RwLock;
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
    builtin: HashMap<&'static str, Arc<ResourceCache>>,
    custom: RwLock<Custom>,
    /// The revision up to which every cache is complete.
    applied: watch::Sender<i64>,
}

/// What CustomResourceDefinitions have added.
#[derive(Default)]
struct Custom {
    caches: HashMap<&'static str, Arc<ResourceCache>>,
    /// The served resources of each definition, by its name, and the definition's content that they were made of.
    definitions: HashMap<Box<str>, (serde_json::Value, Vec<Arc<Resource>>)>,
    served: Arc<resources::Snapshot>,
}

/// Definitions are stored here.
const DEFINITIONS: &str = "apiextensions.k8s.io/customresourcedefinitions";

impl Caches {
    /// Caches for every stored built-in resource, empty until [`Caches::run`] fills them.
    #[must_use]
    pub fn new(store: DynStore) -> Arc<Self> {
        let mut builtin: HashMap<&'static str, Arc<ResourceCache>> = HashMap::new();
        for resource in resources::builtin().iter().filter(|r| !r.is_virtual()) {
            let resource = storage_resource(resource);
            builtin
                .entry(resource.storage)
                .or_insert_with(|| Arc::new(ResourceCache::new(resource)));
        }
        Arc::new(Self {
            store,
            builtin,
            custom: RwLock::default(),
            applied: watch::Sender::new(0),
        })
    }

    /// The cache that holds a resource's objects; an empty one for a custom resource that is not defined any more.
    #[must_use]
    pub fn of(&self, resource: &Resource) -> Arc<ResourceCache> {
        self.find(resource.storage)
            .unwrap_or_else(|| Arc::new(ResourceCache::new(&resources::builtin()[0])))
    }

    fn find(&self, storage: &str) -> Option<Arc<ResourceCache>> {
        match self.builtin.get(storage) {
            Some(cache) => Some(cache.clone()),
            None => self.custom.read().caches.get(storage).cloned(),
        }
    }

    /// Everything that is served at this moment.
    #[must_use]
    pub fn served(&self) -> Arc<resources::Snapshot> {
        self.custom.read().served.clone()
    }

    /// Whether a custom resource's definition is being deleted.
    #[must_use]
    pub fn is_terminating(&self, resource: &Resource) -> bool {
        resource.definition.is_some()
            && self.builtin.get(DEFINITIONS).is_some_and(|cache| {
                cache
                    .get(&resource.group_resource())
                    .is_some_and(|crd| meta::is_terminating(&crd.object()))
            })
    }

    /// Takes over what a definition says now (`None`: it is gone). Tells which cache has to be loaded because of it.
    fn define(&self, name: &str, crd: Option<&serde_json::Value>) -> Option<Arc<ResourceCache>> {
        let crd = crd.filter(|crd| is_established(crd));
        let content = crd.map(
            |crd| serde_json::json!({"spec": crd["spec"], "names": crd["status"]["acceptedNames"]}),
        );
        let known = self
            .custom
            .read()
            .definitions
            .get(name)
            .map(|d| d.0.clone());
        if known == content {
            return None;
        }
        let resources = crd
            .map(|crd| custom::resources_of(crd, crate::custom::compile_rules))
            .unwrap_or_default();
        let mut custom = self.custom.write();
        match content {
            Some(content) => {
                let entry = (content, resources.clone());
                custom.definitions.insert(name.into(), entry);
            }
            None => {
                custom.definitions.remove(name);
            }
        }
        let mut served: Vec<Arc<Resource>> = custom
            .definitions
            .values()
            .flat_map(|(_, resources)| resources.iter().cloned())
            .collect();
        served.sort_by_key(|r| (r.group, r.plural, r.version));
        let storages: HashSet<&str> = served.iter().map(|r| r.storage).collect();
        // A watch of what is not served any more ends.
        custom.caches.retain(|storage, cache| {
            let kept = storages.contains(storage);
            if !kept {
                cache.replace(Vec::new(), self.applied());
            }
            kept
        });
        custom.served = Arc::new(resources::Snapshot::new(served));
        let first = resources.into_iter().next()?;
        let stored = match first.definition.as_ref().and_then(|d| d.stored.clone()) {
            Some(stored) => stored,
            None => first,
        };
        let cache = custom
            .caches
            .entry(stored.storage)
            .or_insert_with(|| Arc::new(ResourceCache::new(Handle::Custom(stored.clone()))));
        cache.redefine(Handle::Custom(stored));
        Some(cache.clone())
    }

    /// Fills the cache of a custom resource, as of a revision that the feed has reached.
    async fn load(&self, cache: &ResourceCache, revision: i64) -> Result<(), fluyt_etcd::Error> {
        let resource = cache.resource();
        let prefix = format!("{REGISTRY}{}/", resource.storage);
        let range = Range {
            revision,
            ..Range::new(Keys::prefix(prefix.clone()))
        };
        let loaded = self.store.range(range).await?;
        let mut entries = Vec::new();
        for kv in loaded.kvs {
            let Some(key) = kv
                .key
                .get(prefix.len()..)
                .and_then(|k| std::str::from_utf8(k).ok())
            else {
                continue;
            };
            match Entry::decode(&resource, key, kv.mod_revision, &kv.value) {
                Ok(entry) => entries.push(entry),
                Err(error) => tracing::error!(key, %error, "an object cannot be decoded"),
            }
        }
        cache.replace(entries, revision);
        Ok(())
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
        // What is defined decides which other keys are objects.
        let prefix = format!("{REGISTRY}{DEFINITIONS}/");
        let defined = loaded
            .kvs
            .iter()
            .filter(|kv| kv.key.starts_with(prefix.as_bytes()));
        let mut names: HashSet<String> = HashSet::new();
        for kv in defined {
            if let Ok(crd) = serde_json::from_slice::<serde_json::Value>(&kv.value) {
                names.insert(meta::name(&crd).to_owned());
                self.define(meta::name(&crd), Some(&crd));
            }
        }
        let known: Vec<Box<str>> = self.custom.read().definitions.keys().cloned().collect();
        for gone in known.iter().filter(|name| !names.contains(&***name)) {
            self.define(gone, None);
        }
        let mut by_cache: HashMap<&str, Vec<Entry>> = HashMap::new();
        for kv in loaded.kvs {
            let Some((cache, key)) = self.locate(&kv.key) else {
                continue;
            };
            match Entry::decode(&cache.resource(), key, kv.mod_revision, &kv.value) {
                Ok(entry) => by_cache
                    .entry(cache.resource().storage)
                    .or_default()
                    .push(entry),
                Err(error) => {
                    tracing::error!(key = %String::from_utf8_lossy(&kv.key), %error, "an object cannot be decoded")
                }
            }
        }
        let custom = self.custom.read().caches.clone();
        for (storage, cache) in self.builtin.iter().chain(&custom) {
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
                        // Whoever hears that a definition is established finds its resources served.
                        if let Some(cache) = self.redefine(&event) {
                            self.load(&cache, revision).await?;
                        }
                        self.apply(&event);
                    }
                    revision
                }
                WatchUpdate::Progress { revision } => revision,
            };
            self.applied.send_replace(revision);
        }
        Err(fluyt_etcd::Error::Stopped)
    }

    /// Takes over what the event of a definition says. That may make a cache that has to be loaded.
    fn redefine(&self, event: &fluyt_etcd::Event) -> Option<Arc<ResourceCache>> {
        let (cache, key) = self.locate(&event.kv.key)?;
        if cache.resource().storage != DEFINITIONS {
            return None;
        }
        if event.deleted {
            return self.define(key, None);
        }
        let crd: serde_json::Value = serde_json::from_slice(&event.kv.value).ok()?;
        self.define(key, Some(&crd))
    }

    /// Passes an event on to its cache.
    fn apply(&self, event: &fluyt_etcd::Event) {
        let Some((cache, key)) = self.locate(&event.kv.key) else {
            return;
        };
        if event.deleted {
            cache.delete(key, event.kv.mod_revision);
            return;
        }
        match Entry::decode(
            &cache.resource(),
            key,
            event.kv.mod_revision,
            &event.kv.value,
        ) {
            Ok(entry) => cache.put(entry),
            Err(error) => tracing::error!(key, %error, "an object cannot be decoded"),
        }
    }

    /// `/registry/pods/default/a` -> the pods' cache and `default/a`.
    fn locate<'k>(&self, key: &'k [u8]) -> Option<(Arc<ResourceCache>, &'k str)> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(REGISTRY)?;
        let mut slashes = rest.match_indices('/').map(|(i, _)| i);
        let (first, second) = (slashes.next()?, slashes.next());
        let found = |at: usize| self.find(&rest[..at]).map(|cache| (cache, &rest[at + 1..]));
        second.and_then(found).or_else(|| found(first))
    }
}

/// The version that the write path works in: the stored one of a built-in resource, the request's own of a custom one,
/// which is converted where it is read and written.
#[must_use]
pub fn working_resource(resource: &Resource) -> &Resource {
    if resource.definition.is_some() {
        resource
    } else {
        storage_resource(resource)
    }
}

/// The version in which a resource's objects are stored, for resources that several groups or versions serve.
#[must_use]
pub fn storage_resource(resource: &Resource) -> &Resource {
    if let Some(definition) = &resource.definition {
        return definition.stored.as_deref().unwrap_or(resource);
    }
    let stored = match (resource.group, resource.version, resource.plural) {
        ("events.k8s.io", _, "events") => resources::find("", "v1", "events"),
        ("autoscaling", "v1", "horizontalpodautoscalers") => {
            resources::find("autoscaling", "v2", "horizontalpodautoscalers")
        }
        _ => None,
    };
    stored.unwrap_or(resource)
}

/// Whether a definition's resources are served: its names are accepted, and it has not been withdrawn.
fn is_established(crd: &serde_json::Value) -> bool {
    crd["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Established" && c["status"] == "True")
}

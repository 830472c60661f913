//! The watch cache: what every read is answered from. One watch of the store feeds the caches of all resources in commit
//! order; nothing else writes to them. Where some resources have a store of their own, each store feeds the caches of its
//! own.

mod entry;
mod event;
mod feed;
mod handover;
mod history;
mod objects;
mod pairs;
mod parts;
mod queue;
mod resource;
mod watchers;

use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fluyt_api::custom;
use fluyt_api::resources::{self, Handle, Hidden, Resource};
use fluyt_api::{Error, meta};
use fluyt_etcd::{DynStore, KeyValue, Keys, Txn, TxnResult, Watch, WatchUpdate};
use parking_lot::RwLock;
use serde_json::Value;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::storage::Codec;

pub use entry::{Entry, json_event};
pub use event::{Change, WatchEvent};
pub use feed::Feed;
pub use handover::Handed;
pub use objects::Objects;
pub use pairs::Pairs;
pub use parts::Parts;
pub use queue::Nothing;
pub use resource::{ResourceCache, Snapshot};
pub use watchers::{Filter, Subscription};

/// Prefix of all keys, upstream's default.
pub const REGISTRY: &str = "/registry/";

/// Keys that are loaded at once.
const PART: usize = 500;

/// The caches of all resources.
pub struct Caches {
    main: Feed,
    /// Other stores.
    apart: Vec<Feed>,
    /// Which of them resources are in, by their places there.
    places: HashMap<&'static str, usize>,
    pub(crate) codec: Codec,
    pub(crate) metrics: Arc<Metrics>,
    hidden: Arc<Hidden>,
    /// Objects that writers of this server have in hand.
    handover: handover::HandOver,
    builtin: HashMap<&'static str, Arc<ResourceCache>>,
    custom: RwLock<Custom>,
}

/// A store that some resources are kept in, apart from all others.
#[derive(Clone)]
pub struct Apart {
    pub store: DynStore,
    /// In their stored versions.
    pub resources: Vec<&'static Resource>,
}

/// What CustomResourceDefinitions have added.
#[derive(Default)]
struct Custom {
    caches: HashMap<&'static str, Arc<ResourceCache>>,
    /// The served resources of each definition, by its name, and the definition's content that they were made of.
    definitions: HashMap<Box<str>, (Value, Vec<Arc<Resource>>)>,
    served: Arc<resources::Snapshot>,
}

/// Definitions are stored here.
const DEFINITIONS: &str = "apiextensions.k8s.io/customresourcedefinitions";

impl Caches {
    /// Caches for every stored built-in resource, empty until [`Caches::run`] fills them.
    #[must_use]
    pub fn new(store: DynStore, apart: &[Apart], codec: Codec, hidden: Arc<Hidden>) -> Arc<Self> {
        let mut builtin: HashMap<&'static str, Arc<ResourceCache>> = HashMap::new();
        for resource in resources::builtin().iter().filter(|r| !r.is_virtual()) {
            let resource = storage_resource(resource);
            builtin
                .entry(resource.storage)
                .or_insert_with(|| Arc::new(ResourceCache::new(resource)));
        }
        let places = apart
            .iter()
            .enumerate()
            .flat_map(|(place, apart)| apart.resources.iter().map(move |r| (r.storage, place)));
        Arc::new(Self {
            main: Feed::new(store),
            places: places.collect(),
            apart: apart.iter().map(|a| Feed::new(a.store.clone())).collect(),
            codec,
            metrics: Arc::default(),
            hidden: hidden.clone(),
            handover: handover::HandOver::default(),
            builtin,
            custom: RwLock::new(Custom {
                served: Arc::new(resources::Snapshot::default().hiding(hidden)),
                ..Custom::default()
            }),
        })
    }

    /// The cache that holds a resource's objects; an empty one for a custom resource that is not defined any more.
    #[must_use]
    pub fn of(&self, resource: &Resource) -> Arc<ResourceCache> {
        self.find(resource.storage)
            .unwrap_or_else(|| Arc::new(ResourceCache::new(&resources::builtin()[0])))
    }

    /// What the objects of most resources are in.
    #[must_use]
    pub fn main(&self) -> &Feed {
        &self.main
    }

    /// What a resource's objects are in.
    #[must_use]
    pub fn feed(&self, resource: &Resource) -> &Feed {
        if self.apart.is_empty() {
            return &self.main;
        }
        self.feed_at(storage_resource(resource).storage)
    }

    fn feed_at(&self, storage: &str) -> &Feed {
        let place = self.places.get(storage);
        place.map_or(&self.main, |place| &self.apart[*place])
    }

    /// All of them, the main one first.
    pub fn feeds(&self) -> impl Iterator<Item = &Feed> {
        std::iter::once(&self.main).chain(&self.apart)
    }

    /// Whether a store fills a cache. What else is found in it, left from before, is nobody's.
    fn feeds_cache(&self, feed: &Feed, cache: &ResourceCache) -> bool {
        self.apart.is_empty() || std::ptr::eq(self.feed_at(cache.resource().storage), feed)
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
    fn define(&self, name: &str, crd: Option<&Value>) -> Option<Arc<ResourceCache>> {
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
                cache.replace(Vec::new(), self.main.applied());
            }
            kept
        });
        let served = resources::Snapshot::new(served).hiding(self.hidden.clone());
        custom.served = Arc::new(served);
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
        let keys = Keys::prefix(format!("{REGISTRY}{}/", resource.storage));
        let mut parts = Parts::new(self.main.store().clone(), keys, revision, PART);
        let mut entries = Vec::new();
        while let Some(part) = parts.next().await? {
            entries.extend(
                self.entries(&self.main, &part.kvs)
                    .await
                    .into_iter()
                    .map(|(_, e)| e),
            );
        }
        cache.replace(entries, revision);
        Ok(())
    }

    /// Fills all caches of a store. Answers with the revision they are as of.
    async fn load_all(self: &Arc<Self>, place: Option<usize>) -> Result<i64, fluyt_etcd::Error> {
        let feed = self.feed_in(place);
        let revision = match place {
            None => self.load_definitions().await?,
            Some(_) => feed.store().revision().await?,
        };
        let keys = Keys::prefix(REGISTRY);
        let mut parts = Parts::new(feed.store().clone(), keys, revision, PART);
        let mut by_cache: HashMap<&str, Vec<Entry>> = HashMap::new();
        let mut take = |decoded: Result<Vec<(&'static str, Entry)>, JoinError>| {
            for (storage, entry) in decoded.map_err(|_| fluyt_etcd::Error::Stopped)? {
                by_cache.entry(storage).or_default().push(entry);
            }
            Ok(())
        };
        // The next part is read while others are decoded.
        let at_once = std::thread::available_parallelism().map_or(1, NonZero::get);
        let mut decoding = JoinSet::new();
        while let Some(part) = parts.next().await? {
            if decoding.len() == at_once
                && let Some(decoded) = decoding.join_next().await
            {
                take(decoded)?;
            }
            let caches = self.clone();
            decoding.spawn(async move {
                let feed = caches.feed_in(place);
                caches.entries(feed, &part.kvs).await
            });
        }
        while let Some(decoded) = decoding.join_next().await {
            take(decoded)?;
        }
        let custom = self.custom.read().caches.clone();
        let all = self.builtin.iter().chain(&custom);
        for (storage, cache) in all.filter(|(_, cache)| self.feeds_cache(feed, cache)) {
            let entries = by_cache.remove(storage).unwrap_or_default();
            cache.replace(entries, revision);
        }
        Ok(revision)
    }

    /// Takes over which custom resources there are: that decides which other keys are objects.
    async fn load_definitions(&self) -> Result<i64, fluyt_etcd::Error> {
        let keys = Keys::prefix(format!("{REGISTRY}{DEFINITIONS}/"));
        let mut parts = Parts::new(self.main.store().clone(), keys, 0, PART);
        let mut names: HashSet<String> = HashSet::new();
        while let Some(part) = parts.next().await? {
            for kv in &part.kvs {
                if let Some((cache, _)) = self.locate(&kv.key)
                    && let Ok(crd) = self.object(&cache.resource(), kv).await
                {
                    names.insert(meta::name(&crd).to_owned());
                    self.define(meta::name(&crd), Some(&crd));
                }
            }
        }
        let known: Vec<Box<str>> = self.custom.read().definitions.keys().cloned().collect();
        for gone in known.iter().filter(|name| !names.contains(&***name)) {
            self.define(gone, None);
        }
        Ok(parts.revision())
    }

    /// The entries of stored objects, each with the place of its resource in the store.
    async fn entries(&self, feed: &Feed, kvs: &[KeyValue]) -> Vec<(&'static str, Entry)> {
        let mut entries = Vec::with_capacity(kvs.len());
        for kv in kvs {
            let Some((cache, key)) = self.locate(&kv.key) else {
                continue;
            };
            if !self.feeds_cache(feed, &cache) {
                continue;
            }
            let resource = cache.resource();
            match self.entry(&resource, key, kv).await {
                Ok(entry) => entries.push((resource.storage, entry)),
                Err(error) => {
                    let key = String::from_utf8_lossy(&kv.key);
                    tracing::error!(%key, %error, "an object cannot be decoded");
                }
            }
        }
        entries
    }

    /// Commits a transaction about an object of a resource, and counts it.
    ///
    /// # Errors
    /// The store's.
    pub async fn commit(
        &self,
        operation: &'static str,
        resource: &Resource,
        txn: Txn,
    ) -> Result<TxnResult, fluyt_etcd::Error> {
        let started = Instant::now();
        let result = self.feed(resource).store().txn(txn).await;
        self.metrics
            .stored(operation, resource, started, result.is_ok());
        result
    }

    /// How many objects there are of each stored resource: its group, its name, and the number.
    #[must_use]
    pub fn counts(&self) -> Vec<(&'static str, &'static str, usize)> {
        let custom = self.custom.read().caches.clone();
        let caches = self.builtin.values().chain(custom.values());
        let served = self.served();
        let shown: HashSet<&str> = served.all().map(|r| r.storage).collect();
        let mut counts: Vec<_> = caches
            .filter(|cache| shown.contains(cache.resource().storage))
            .map(|cache| {
                let resource = cache.resource();
                (resource.group, resource.plural, cache.len())
            })
            .collect();
        counts.sort_unstable();
        counts
    }

    /// Waits until everything that was committed to any store before this call is in the caches.
    ///
    /// # Errors
    /// As for [`Feed::consistent`].
    pub async fn consistent(&self) -> Result<(), Error> {
        for feed in self.feeds() {
            feed.consistent().await?;
        }
        Ok(())
    }

    /// Waits until a resource's cache, and those of what else its objects are judged by, show what was committed before
    /// this call.
    ///
    /// # Errors
    /// As for [`Feed::consistent`].
    pub async fn settled(&self, resource: &Resource) -> Result<(), Error> {
        self.main.consistent().await?;
        let own = self.feed(resource);
        if !std::ptr::eq(own, &self.main) {
            own.consistent().await?;
        }
        Ok(())
    }

    /// Waits until all caches have been filled for the first time, as long as that takes.
    ///
    /// # Errors
    /// When a store cannot be asked, or at shutdown.
    pub async fn filled(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        for feed in self.feeds() {
            feed.filled(shutdown).await?;
        }
        Ok(())
    }

    /// Whether all caches have been filled.
    #[must_use]
    pub fn are_filled(&self) -> bool {
        self.feeds().all(|feed| feed.applied() > 0)
    }

    fn feed_in(&self, place: Option<usize>) -> &Feed {
        place.map_or(&self.main, |place| &self.apart[place])
    }

    /// Fills the caches and follows the stores until shutdown.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let places = std::iter::once(None).chain((0..self.apart.len()).map(Some));
        let running = places.map(|place| self.clone().keep_up(place, shutdown.clone()));
        futures::future::join_all(running).await;
    }

    /// Follows one store. After a break it loads everything again.
    async fn keep_up(self: Arc<Self>, place: Option<usize>, shutdown: CancellationToken) {
        let mut delay = Duration::from_millis(10);
        loop {
            let followed = tokio::select! {
                followed = self.follow(place) => followed,
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

    async fn follow(self: &Arc<Self>, place: Option<usize>) -> Result<(), fluyt_etcd::Error> {
        let feed = self.feed_in(place);
        let loaded = self.load_all(place).await?;
        feed.apply(loaded);
        let mut stream = feed
            .store()
            .watch(Watch {
                keys: Keys::prefix(REGISTRY),
                start_revision: loaded + 1,
                prev_kv: false,
            })
            .await?;
        let mut aging = tokio::time::interval(history::FRESH);
        loop {
            let update = tokio::select! {
                biased;
                update = stream.next() => update,
                _ = aging.tick() => {
                    self.forget_old();
                    continue;
                }
            };
            let Some(update) = update else { break };
            let revision = match update? {
                WatchUpdate::Events { revision, events } => {
                    for event in events {
                        // Whoever hears that a definition is established finds its resources served.
                        if place.is_none()
                            && let Some(cache) = self.redefine(&event).await
                        {
                            self.load(&cache, revision).await?;
                        }
                        self.apply(feed, &event).await;
                    }
                    revision
                }
                WatchUpdate::Progress { revision } => revision,
            };
            feed.apply(revision);
        }
        Err(fluyt_etcd::Error::Stopped)
    }

    /// Has all caches forget events that are of no use any more.
    fn forget_old(&self) {
        let custom = self.custom.read();
        for cache in self.builtin.values().chain(custom.caches.values()) {
            cache.forget_old();
        }
    }

    /// Takes over what the event of a definition says. That may make a cache that has to be loaded.
    async fn redefine(&self, event: &fluyt_etcd::Event) -> Option<Arc<ResourceCache>> {
        let (cache, key) = self.locate(&event.kv.key)?;
        let resource = cache.resource();
        if resource.storage != DEFINITIONS {
            return None;
        }
        if event.deleted {
            return self.define(key, None);
        }
        let crd = self.object(&resource, &event.kv).await.ok()?;
        self.define(key, Some(&crd))
    }

    /// Passes an event on to its cache.
    async fn apply(&self, feed: &Feed, event: &fluyt_etcd::Event) {
        let Some((cache, key)) = self.locate(&event.kv.key) else {
            return;
        };
        if !self.feeds_cache(feed, &cache) {
            return;
        }
        if event.deleted {
            cache.delete(key, event.kv.mod_revision);
            return;
        }
        let resource = cache.resource();
        // What a writer of this server has in hand needs no decoding.
        if let Some(object) = self.handover.take(&event.kv) {
            let revision = event.kv.mod_revision;
            return cache.put(Entry::new(
                &resource,
                key,
                revision,
                arrival(&event.kv),
                &object,
            ));
        }
        match self.entry(&resource, key, &event.kv).await {
            Ok(entry) => cache.put(entry),
            Err(error) => tracing::error!(key, %error, "an object cannot be decoded"),
        }
    }

    /// The entry of a stored value of a resource, whose own part of the key is given.
    ///
    /// # Errors
    /// When it cannot be decrypted or decoded.
    pub async fn entry(
        &self,
        resource: &Resource,
        key: &str,
        kv: &KeyValue,
    ) -> Result<Entry, String> {
        let stored = self.codec.decode(resource, &kv.key, &kv.value).await?;
        let entry = Entry::of_stored(resource, key, kv.mod_revision, arrival(kv), stored);
        Ok(entry)
    }

    async fn object(&self, resource: &Resource, kv: &KeyValue) -> Result<Value, String> {
        let stored = self.codec.decode(resource, &kv.key, &kv.value).await?;
        Ok(stored.object)
    }

    /// Lets the cache have an object that is about to be stored as `value`, for as long as the answer lives.
    #[must_use]
    pub fn hand_over(&self, key: Bytes, value: Bytes, object: Arc<Value>) -> Handed {
        self.handover.give(key, value, object)
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

/// Whether a stored value is the first of its key.
fn arrival(kv: &KeyValue) -> Change {
    if kv.create_revision == kv.mod_revision {
        Change::Added
    } else {
        Change::Modified
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
    resource.hub()
}

/// Whether a definition's resources are served: its names are accepted, and it has not been withdrawn.
fn is_established(crd: &Value) -> bool {
    crd["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Established" && c["status"] == "True")
}

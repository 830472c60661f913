//! A local, always current copy of a collection of the API.
//!
//! An informer lists the collection, then watches it from the list's resourceVersion with bookmarks. When the
//! server has forgotten that version (410) it lists again and reports the difference, so an object that was
//! deleted while the connection was down is still reported as deleted.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use futures::{AsyncBufReadExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::{
    Api, Resource,
    api::{ListParams, WatchParams},
    core::Request,
};
use parking_lot::RwLock;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::{
    Backoff, ObjectKey,
    received::{self, Event, Received},
};

/// Objects per page of a list: bounds the memory of the first read of a large collection.
const PAGE_SIZE: u32 = 500;
/// Seconds until the server ends a watch; the real value is spread over this and half as much again.
const WATCH_TIMEOUT: u32 = 190;

/// Restricts an informer to a part of the collection, in the syntax of the API's query parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selectors {
    pub fields: Option<String>,
    pub labels: Option<String>,
}

/// One change of the collection, in the order in which the informer's store saw it.
pub enum Change<K> {
    Added(Arc<K>),
    Updated { old: Arc<K>, new: Arc<K> },
    Deleted(Arc<K>),
}

/// A shared list-and-watch of one collection; cheap to clone, all clones are one informer.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    state: RwLock<State<K>>,
    synced: watch::Sender<bool>,
    /// Removes what nobody needs, before an object is stored.
    strip: fn(&mut K),
}

struct State<K> {
    /// The newest resourceVersion of the collection that is reflected in `objects`.
    version: u64,
    /// By namespace (empty for cluster-scoped kinds), then name.
    objects: HashMap<String, BTreeMap<String, Arc<K>>>,
    subscribers: Vec<mpsc::UnboundedSender<Change<K>>>,
}

impl<K> Change<K> {
    /// The object as it is now (or was last).
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Added(object) | Change::Deleted(object) => object,
            Change::Updated { new, .. } => new,
        }
    }
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Change::Added(object) => Change::Added(Arc::clone(object)),
            Change::Updated { old, new } => Change::Updated {
                old: Arc::clone(old),
                new: Arc::clone(new),
            },
            Change::Deleted(object) => Change::Deleted(Arc::clone(object)),
        }
    }
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

// === impl Informer ===

impl<K> Informer<K>
where
    K: Resource + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    /// Start following `api` until `shutdown`. `metadata.managedFields` is dropped on entry: nothing in a
    /// controller reads it, and it is half of a small object's memory.
    pub fn start(api: Api<K>, selectors: Selectors, shutdown: CancellationToken) -> Self {
        Self::start_stripped(api, selectors, |_| {}, shutdown)
    }

    /// As [`start`](Self::start), keeping only what `strip` leaves of every object.
    pub fn start_stripped(
        api: Api<K>,
        selectors: Selectors,
        strip: fn(&mut K),
        shutdown: CancellationToken,
    ) -> Self {
        let informer = Self::detached_stripped(strip);
        let reflector = Reflector {
            api,
            selectors,
            shared: Arc::clone(&informer.shared),
        };
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = reflector.run() => {}
            }
        });
        informer
    }

    /// An informer that follows nothing and holds `objects`: for tests of pure logic.
    pub fn of_objects(objects: impl IntoIterator<Item = K>) -> Self {
        let informer = Self::detached();
        informer.shared.replace(objects.into_iter().collect());
        informer.shared.synced.send_replace(true);
        informer
    }

    fn detached() -> Self {
        Self::detached_stripped(|_| {})
    }

    fn detached_stripped(strip: fn(&mut K)) -> Self {
        let state = State {
            version: 0,
            objects: HashMap::new(),
            subscribers: Vec::new(),
        };
        let shared = Shared {
            state: RwLock::new(state),
            synced: watch::Sender::new(false),
            strip,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The object of this name, if the informer has seen it. `namespace` is `None` for cluster-scoped kinds.
    pub fn get(&self, namespace: Option<&str>, name: &str) -> Option<Arc<K>> {
        let state = self.shared.state.read();
        state
            .objects
            .get(namespace.unwrap_or(""))?
            .get(name)
            .cloned()
    }

    /// The object of this key, if the informer has seen it.
    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.get(key.namespace(), &key.name)
    }

    /// All objects, in no particular order.
    pub fn list(&self) -> Vec<Arc<K>> {
        let state = self.shared.state.read();
        state
            .objects
            .values()
            .flat_map(|objects| objects.values().cloned())
            .collect()
    }

    /// The objects of one namespace, by name.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let state = self.shared.state.read();
        state
            .objects
            .get(namespace)
            .map(|objects| objects.values().cloned().collect())
            .unwrap_or_default()
    }

    /// Wait until the first list is in.
    pub async fn synced(&self) {
        let mut synced = self.shared.synced.subscribe();
        // The sender lives in `self.shared`, so this can't fail.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Whether the first list is in.
    pub fn has_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Whether the informer has caught up with a write that returned this resourceVersion. Versions are ordered
    /// across the whole collection, so this also holds for objects that are gone again.
    pub fn has_seen(&self, resource_version: Option<&str>) -> bool {
        // A server with other version numbers than ours gives nothing to wait for.
        let written = resource_version
            .and_then(|version| version.parse().ok())
            .unwrap_or(0);
        self.shared.state.read().version >= written
    }

    /// All changes from now on, after an `Added` for every object that is already there.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Change<K>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.shared.state.write();
        for object in state.objects.values().flat_map(BTreeMap::values) {
            // Can't fail: the receiver is ours.
            let _ = sender.send(Change::Added(Arc::clone(object)));
        }
        state.subscribers.push(sender);
        receiver
    }

    /// Call `handler` with every change, in a task that ends with the informer.
    pub fn on_change(&self, mut handler: impl FnMut(Change<K>) + Send + 'static) {
        let mut changes = self.subscribe();
        tokio::spawn(async move {
            while let Some(change) = changes.recv().await {
                handler(change);
            }
        });
    }
}

// === impl Shared ===

impl<K: Resource> Shared<K> {
    fn upsert(&self, mut object: K) {
        object.meta_mut().managed_fields = None;
        (self.strip)(&mut object);
        let key = ObjectKey::of(&object);
        let object = Arc::new(object);
        let mut state = self.state.write();
        state.advance(object.meta().resource_version.as_deref());
        let old = state
            .objects
            .entry(key.namespace)
            .or_default()
            .insert(key.name, Arc::clone(&object));
        match old {
            None => state.send(Change::Added(object)),
            Some(old) if same_uid(&*old, &*object) => {
                state.send(Change::Updated { old, new: object })
            }
            Some(old) => {
                // Deleted and created again behind our back: two objects, not one that changed.
                state.send(Change::Deleted(old));
                state.send(Change::Added(object));
            }
        }
    }

    fn remove(&self, last: K) {
        let key = ObjectKey::of(&last);
        let mut state = self.state.write();
        state.advance(last.meta().resource_version.as_deref());
        let Some(objects) = state.objects.get_mut(&key.namespace) else {
            return;
        };
        let removed = objects.remove(&key.name);
        if objects.is_empty() {
            state.objects.remove(&key.namespace);
        }
        if removed.is_some() {
            state.send(Change::Deleted(Arc::new(last)));
        }
    }

    /// Make the store equal to a fresh list, reporting only what differs.
    fn replace(&self, fresh: Vec<K>) {
        let listed: HashSet<ObjectKey> = fresh.iter().map(ObjectKey::of).collect();
        let gone: Vec<Arc<K>> = {
            let state = self.state.read();
            let known = state.objects.values().flat_map(BTreeMap::values);
            known
                .filter(|object| !listed.contains(&ObjectKey::of(&***object)))
                .cloned()
                .collect()
        };
        for object in gone {
            let key = ObjectKey::of(&*object);
            let mut state = self.state.write();
            if let Some(objects) = state.objects.get_mut(&key.namespace) {
                objects.remove(&key.name);
                if objects.is_empty() {
                    state.objects.remove(&key.namespace);
                }
            }
            state.send(Change::Deleted(object));
        }
        for object in fresh {
            let key = ObjectKey::of(&object);
            let unchanged = {
                let state = self.state.read();
                let known = state.objects.get(&key.namespace);
                known
                    .and_then(|objects| objects.get(&key.name))
                    .is_some_and(|known| {
                        known.meta().resource_version == object.meta().resource_version
                            && same_uid(&**known, &object)
                    })
            };
            if !unchanged {
                self.upsert(object);
            }
        }
    }
}

impl<K> State<K> {
    fn advance(&mut self, version: Option<&str>) {
        let version = version
            .and_then(|version| version.parse().ok())
            .unwrap_or(0);
        self.version = self.version.max(version);
    }

    fn send(&mut self, change: Change<K>) {
        self.subscribers
            .retain(|subscriber| subscriber.send(change.clone()).is_ok());
    }
}

fn same_uid<K: Resource>(a: &K, b: &K) -> bool {
    a.meta().uid == b.meta().uid
}

/// Fills the store of one informer.
struct Reflector<K> {
    api: Api<K>,
    selectors: Selectors,
    shared: Arc<Shared<K>>,
}

/// Why a watch ended.
enum WatchEnd {
    /// Go on from the last version.
    Closed,
    /// The server has forgotten the version: list again.
    Expired,
    Failed(kube::Error),
}

// === impl Reflector ===

impl<K> Reflector<K>
where
    K: Resource + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    async fn run(self) {
        let mut backoff = Backoff::for_requests();
        loop {
            let version = match self.list().await {
                Ok(version) => version,
                Err(error) => {
                    let delay = backoff.next_delay();
                    self.report("list", &error, delay);
                    tokio::time::sleep(delay).await;
                    continue;
                }
            };
            self.shared.synced.send_replace(true);
            self.follow(version, &mut backoff).await;
        }
    }

    /// Watch from `version` until the server has forgotten where we are.
    async fn follow(&self, mut version: String, backoff: &mut Backoff) {
        loop {
            let before = version.clone();
            let end = self.watch(&mut version).await;
            if before != version {
                backoff.reset();
            }
            match end {
                WatchEnd::Expired => {
                    debug!(
                        url = self.api.resource_url(),
                        version, "watch expired, listing again"
                    );
                    // Usually immediate; the delay keeps a confused server from being hammered.
                    tokio::time::sleep(backoff.next_delay()).await;
                    return;
                }
                // Every watch is ended by the server now and then. A server that ends them at once is not well.
                WatchEnd::Closed => {
                    if before == version {
                        tokio::time::sleep(backoff.next_delay()).await;
                    }
                }
                WatchEnd::Failed(error) => {
                    let delay = backoff.next_delay();
                    self.report("watch", &error, delay);
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    fn report(&self, verb: &'static str, error: &kube::Error, delay: Duration) {
        let url = self.api.resource_url();
        if delay < Duration::from_secs(1) {
            debug!(verb, url, %error, "API request failed, will retry");
        } else {
            warn!(verb, url, %error, ?delay, "API request keeps failing, will retry");
        }
    }

    async fn list(&self) -> kube::Result<String> {
        let mut params = ListParams {
            label_selector: self.selectors.labels.clone(),
            field_selector: self.selectors.fields.clone(),
            limit: Some(PAGE_SIZE),
            ..ListParams::default()
        };
        let mut objects = Vec::new();
        loop {
            let request = Request::new(self.api.resource_url()).list(&params);
            let request = request.map_err(kube::Error::BuildRequest)?;
            let page: Page<K> = self.api.clone().into_client().request(request).await?;
            objects.extend(page.items.into_iter().filter_map(readable));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    let version = page.metadata.resource_version.unwrap_or_default();
                    self.shared.replace(objects);
                    self.shared.state.write().advance(Some(&version));
                    return Ok(version);
                }
            }
        }
    }

    async fn watch(&self, version: &mut String) -> WatchEnd {
        let params = WatchParams {
            label_selector: self.selectors.labels.clone(),
            field_selector: self.selectors.fields.clone(),
            timeout: Some(WATCH_TIMEOUT + rand::random_range(0..WATCH_TIMEOUT / 2)),
            ..WatchParams::default()
        };
        let request = match Request::new(self.api.resource_url()).watch(&params, version) {
            Ok(request) => request,
            Err(error) => return WatchEnd::Failed(kube::Error::BuildRequest(error)),
        };
        let client = self.api.clone().into_client();
        let stream = match client.request_stream(request).await {
            Ok(stream) => stream,
            Err(error) if is_expired(&error) => return WatchEnd::Expired,
            Err(error) => return WatchEnd::Failed(error),
        };
        let mut lines = std::pin::pin!(stream.lines());
        while let Some(line) = lines.next().await {
            // How a connection ends tells nothing that the next one would not.
            let Ok(line) = line else { break };
            match received::event(&line) {
                Ok(Event::Set(object)) => {
                    advance(version, &object);
                    if let Some(object) = readable(object) {
                        self.shared.upsert(object);
                    }
                }
                Ok(Event::Deleted(object)) => {
                    advance(version, &object);
                    if let Some(object) = readable(object) {
                        self.shared.remove(object);
                    }
                }
                Ok(Event::Bookmark(seen)) => *version = seen,
                Ok(Event::Failed(status)) => {
                    let error = kube::Error::Api(status);
                    if is_expired(&error) {
                        return WatchEnd::Expired;
                    }
                    return WatchEnd::Failed(error);
                }
                Err(error) => return WatchEnd::Failed(kube::Error::SerdeError(error)),
            }
        }
        WatchEnd::Closed
    }
}

fn advance<K: Resource>(version: &mut String, object: &Received<K>) {
    let seen = match object {
        Received::Object(object) => object.meta().resource_version.as_ref(),
        Received::Unreadable { version, .. } => version.as_ref(),
    };
    if let Some(seen) = seen {
        version.clone_from(seen);
    }
}

fn readable<K>(object: Received<K>) -> Option<K> {
    match object {
        Received::Object(object) => Some(object),
        Received::Unreadable { name, why, .. } => {
            error!(
                object = name,
                why, "passing over an object that is not as its type says"
            );
            None
        }
    }
}

/// A chunk of a list.
#[derive(Deserialize)]
#[serde(bound = "K: DeserializeOwned")]
struct Page<K> {
    #[serde(default)]
    metadata: ListMeta,
    items: Vec<Received<K>>,
}

fn is_expired(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status)
        if status.code == 410 || status.reason == "Expired" || status.reason == "Gone")
}

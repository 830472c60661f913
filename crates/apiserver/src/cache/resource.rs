//! The cache of one resource: an ordered map of entries that is cheap to snapshot, the recent events, and the watchers.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use fluyt_api::resources::Handle;
use fluyt_api::selector::{FieldSelector, LabelSelector};
use imbl::OrdMap;
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;

use super::Entry;

/// Events kept for watches that start in the past.
const HISTORY: usize = 1000;

/// Events a watcher may have waiting; one that falls further behind is ended and must list again.
const WATCH_QUEUE: usize = 1024;

/// Objects of one resource.
pub struct ResourceCache {
    resource: RwLock<Handle>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: OrdMap<Arc<str>, Arc<Entry>>,
    /// Of the newest change, or of the load when there was none since.
    revision: i64,
    /// Watches may start after this revision.
    oldest: i64,
    history: VecDeque<Arc<WatchEvent>>,
    watchers: Vec<Watcher>,
}

struct Watcher {
    filter: Filter,
    sender: mpsc::Sender<(Change, Arc<WatchEvent>)>,
}

/// Which objects a list or watch is about.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub namespace: String,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

/// A consistent view of all entries.
pub struct Snapshot {
    pub entries: OrdMap<Arc<str>, Arc<Entry>>,
    /// Of the newest change in this resource.
    pub revision: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

/// One change, shared by all its watchers.
#[derive(Debug)]
pub struct WatchEvent {
    pub revision: i64,
    pub deleted: bool,
    pub entry: Arc<Entry>,
    pub previous: Option<Arc<Entry>>,
    encoded: [OnceLock<Bytes>; 3],
    framed: [OnceLock<Bytes>; 3],
}

/// A running watch; dropping it ends it.
pub struct Subscription {
    /// Closed when the watcher fell too far behind.
    pub events: mpsc::Receiver<(Change, Arc<WatchEvent>)>,
}

impl Filter {
    #[must_use]
    pub fn matches(&self, entry: &Entry) -> bool {
        (self.namespace.is_empty() || entry.namespace() == self.namespace)
            && (self.labels.is_everything() || self.labels.matches(entry.labels.as_deref()))
            && (self.fields.is_everything()
                || self.fields.matches(|f| entry.field(f).to_owned().into()))
    }

    /// How a watcher with this filter sees a change, if at all.
    fn sees(&self, event: &WatchEvent) -> Option<Change> {
        let before = event.previous.as_ref().is_some_and(|p| self.matches(p));
        let now = !event.deleted && self.matches(&event.entry);
        match (before, now) {
            (false, true) => Some(Change::Added),
            (true, true) => Some(Change::Modified),
            (true, false) => Some(Change::Deleted),
            (false, false) => None,
        }
    }
}

impl WatchEvent {
    fn new(
        revision: i64,
        deleted: bool,
        entry: Arc<Entry>,
        previous: Option<Arc<Entry>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            revision,
            deleted,
            entry,
            previous,
            encoded: Default::default(),
            framed: Default::default(),
        })
    }

    /// The state before the change, at the revision of the change: how those see it for whom the object is gone.
    #[must_use]
    pub fn last(&self) -> Arc<Entry> {
        let last = self.previous.as_ref().unwrap_or(&self.entry);
        Arc::new(last.at_revision(self.revision))
    }

    /// The event as one frame of a protobuf watch, which `make` makes once for all watchers.
    pub fn frame(&self, change: Change, make: impl FnOnce() -> Bytes) -> Bytes {
        self.framed[change as usize].get_or_init(make).clone()
    }

    /// The event as one line of a JSON watch, encoded once for all watchers.
    #[must_use]
    pub fn json(&self, change: Change) -> Bytes {
        self.encoded[change as usize]
            .get_or_init(|| encode(change, &self.entry.json))
            .clone()
    }
}

impl Change {
    /// As events name it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// `{"type":…,"object":…}` and a newline.
#[must_use]
pub fn encode(change: Change, object: &[u8]) -> Bytes {
    let word = change.word();
    let mut line = Vec::with_capacity(object.len() + 40);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(word.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

impl ResourceCache {
    pub(super) fn new(resource: impl Into<Handle>) -> Self {
        Self {
            resource: RwLock::new(resource.into()),
            state: Mutex::default(),
        }
    }

    /// The resource in its stored version.
    #[must_use]
    pub fn resource(&self) -> Handle {
        self.resource.read().clone()
    }

    /// Another definition of the same resource holds from now on.
    pub(super) fn redefine(&self, resource: Handle) {
        *self.resource.write() = resource;
    }

    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.state.lock().entries.get(key).cloned()
    }

    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();
        Snapshot {
            entries: state.entries.clone(),
            revision: state.revision,
        }
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().entries.len()
    }

    /// The revision of the newest change, cheaply.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.state.lock().revision
    }

    /// How many objects there are, and the average length of some of them.
    #[must_use]
    pub fn size_sample(&self, sample: usize) -> (u64, u64) {
        let state = self.state.lock();
        let lengths = state.entries.values().take(sample);
        let (mut count, mut total) = (0, 0_u64);
        for entry in lengths {
            count += 1;
            total += entry.json.len() as u64;
        }
        let average = total.checked_div(count).unwrap_or(0);
        (state.entries.len() as u64, average)
    }

    /// How many watches are running.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.state.lock().watchers.len()
    }

    /// Loads everything anew. Watchers cannot be told what they missed, so they are ended.
    pub(super) fn replace(&self, entries: Vec<Entry>, revision: i64) {
        let mut state = self.state.lock();
        state.entries = entries
            .into_iter()
            .map(|e| (Arc::from(&*e.key), Arc::new(e)))
            .collect();
        state.revision = revision;
        state.oldest = revision;
        state.history.clear();
        state.watchers.clear();
    }

    pub(super) fn put(&self, entry: Entry) {
        let entry = Arc::new(entry);
        let mut state = self.state.lock();
        let previous = state.entries.insert(Arc::from(&*entry.key), entry.clone());
        state.publish(WatchEvent::new(entry.revision, false, entry, previous));
    }

    pub(super) fn delete(&self, key: &str, revision: i64) {
        let mut state = self.state.lock();
        let Some(previous) = state.entries.remove(key) else {
            return;
        };
        let last = Arc::new(previous.at_revision(revision));
        state.publish(WatchEvent::new(revision, true, last, Some(previous)));
    }

    /// Starts a watch after `revision`; `None` when the events since then are not all at hand any more.
    #[must_use]
    pub fn subscribe(&self, filter: Filter, after: i64) -> Option<Subscription> {
        let mut state = self.state.lock();
        if after < state.oldest {
            return None;
        }
        let backlog: Vec<_> = state
            .history
            .iter()
            .filter(|e| e.revision > after)
            .filter_map(|e| filter.sees(e).map(|change| (change, e.clone())))
            .collect();
        Some(state.attach(filter, backlog))
    }

    /// Starts a watch that begins with the present objects; also the revision they are as of.
    #[must_use]
    pub fn subscribe_with_state(&self, filter: Filter) -> (Vec<Arc<Entry>>, i64, Subscription) {
        let mut state = self.state.lock();
        let present = state
            .entries
            .values()
            .filter(|e| filter.matches(e))
            .cloned()
            .collect();
        let revision = state.revision;
        let subscription = state.attach(filter, Vec::new());
        (present, revision, subscription)
    }
}

impl State {
    fn attach(&mut self, filter: Filter, backlog: Vec<(Change, Arc<WatchEvent>)>) -> Subscription {
        let (sender, events) = mpsc::channel(WATCH_QUEUE.max(backlog.len()));
        for event in backlog {
            // The channel was made large enough.
            let _ = sender.try_send(event);
        }
        self.watchers.push(Watcher { filter, sender });
        Subscription { events }
    }

    fn publish(&mut self, event: Arc<WatchEvent>) {
        self.revision = event.revision;
        self.watchers
            .retain(|watcher| match watcher.filter.sees(&event) {
                Some(change) => watcher.sender.try_send((change, event.clone())).is_ok(),
                None => !watcher.sender.is_closed(),
            });
        if self.history.len() == HISTORY
            && let Some(dropped) = self.history.pop_front()
        {
            self.oldest = dropped.revision;
        }
        self.history.push_back(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluyt_api::resources;
    use serde_json::json;

    fn entry(name: &str, revision: i64, label: &str) -> Entry {
        let pods = resources::find("", "v1", "pods").unwrap();
        let object =
            json!({"metadata": {"name": name, "namespace": "d", "labels": {"app": label}}});
        Entry::new(pods, &format!("d/{name}"), revision, &object)
    }

    fn cache() -> ResourceCache {
        ResourceCache::new(resources::find("", "v1", "pods").unwrap())
    }

    #[tokio::test]
    async fn selectors_turn_changes_into_additions_and_deletions() {
        let cache = cache();
        let filter = Filter {
            labels: LabelSelector::parse("app=x").unwrap(),
            ..Filter::default()
        };
        let mut watch = cache.subscribe(filter, 0).unwrap();
        cache.put(entry("a", 1, "x"));
        cache.put(entry("a", 2, "y"));
        cache.put(entry("a", 3, "x"));
        cache.put(entry("a", 4, "x"));
        cache.delete("d/a", 5);
        let mut seen = Vec::new();
        while let Ok((change, event)) = watch.events.try_recv() {
            seen.push((change, event.revision));
        }
        use Change::{Added, Deleted, Modified};
        assert_eq!(
            seen,
            [
                (Added, 1),
                (Deleted, 2),
                (Added, 3),
                (Modified, 4),
                (Deleted, 5)
            ]
        );
    }

    #[tokio::test]
    async fn watches_start_in_the_past_as_far_as_history_reaches() {
        let cache = cache();
        for revision in 1..=i64::try_from(HISTORY).unwrap() + 10 {
            cache.put(entry("a", revision, "x"));
        }
        assert!(cache.subscribe(Filter::default(), 9).is_none());
        let mut watch = cache.subscribe(Filter::default(), 10).unwrap();
        assert_eq!(watch.events.try_recv().unwrap().1.revision, 11);
    }

    #[tokio::test]
    async fn a_slow_watcher_is_ended_and_holds_up_nobody() {
        let cache = cache();
        let mut slow = cache.subscribe(Filter::default(), 0).unwrap();
        for revision in 1..=i64::try_from(WATCH_QUEUE).unwrap() + 5 {
            cache.put(entry("a", revision, "x"));
        }
        let mut received = 0;
        while slow.events.recv().await.is_some() {
            received += 1;
        }
        assert_eq!(received, WATCH_QUEUE);
    }
}

//! The cache of one resource: its objects, the recent events, and the watchers.

use std::sync::Arc;

use fluyt_api::resources::Handle;
use parking_lot::{Mutex, RwLock};

use super::history::History;
use super::watchers::{Layout, Watchers};
use super::{Entry, Filter, Objects, Subscription, WatchEvent};

/// Objects of one resource.
pub struct ResourceCache {
    resource: RwLock<Handle>,
    layout: Layout,
    state: Mutex<State>,
    watchers: Watchers,
}

struct State {
    objects: Objects,
    /// Of the newest change, or of the load when there was none since.
    revision: i64,
    history: History,
}

/// A consistent view of all objects.
#[derive(Clone)]
pub struct Snapshot {
    pub objects: Objects,
    /// Of the newest change in this resource.
    pub revision: i64,
}

impl std::ops::Deref for Snapshot {
    type Target = Objects;

    fn deref(&self) -> &Objects {
        &self.objects
    }
}

impl ResourceCache {
    pub(super) fn new(resource: impl Into<Handle>) -> Self {
        let resource = resource.into();
        Self {
            layout: Layout::of(&resource),
            state: Mutex::new(State {
                objects: Objects::of(&resource, []),
                revision: 0,
                history: History::default(),
            }),
            resource: RwLock::new(resource),
            watchers: Watchers::default(),
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
        self.state.lock().objects.entries.get(key).cloned()
    }

    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();
        Snapshot {
            objects: state.objects.clone(),
            revision: state.revision,
        }
    }

    /// The objects as of a revision that the cache has reached, if it still knows.
    #[must_use]
    pub fn snapshot_at(&self, revision: i64) -> Option<Snapshot> {
        let state = self.state.lock();
        if !state.history.covers(revision) {
            return None;
        }
        let mut objects = state.objects.clone();
        state.history.undo(&mut objects, revision);
        Some(Snapshot {
            objects,
            revision: state.revision.min(revision),
        })
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().objects.entries.len()
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
        let lengths = state.objects.entries.values().take(sample);
        let (mut count, mut total) = (0, 0_u64);
        for entry in lengths {
            count += 1;
            total += entry.len() as u64;
        }
        let average = total.checked_div(count).unwrap_or(0);
        (state.objects.entries.len() as u64, average)
    }

    /// How many watches are running.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.watchers.count()
    }

    /// Loads everything anew. Watchers cannot be told what they missed, so they are ended.
    pub(super) fn replace(&self, entries: Vec<Entry>, revision: i64) {
        let objects = Objects::of(&self.resource(), entries.into_iter().map(Arc::new));
        let mut state = self.state.lock();
        state.objects = objects;
        state.revision = revision;
        state.history.restart(revision);
        self.watchers.end();
    }

    pub(super) fn put(&self, entry: Entry) {
        let entry = Arc::new(entry);
        let mut state = self.state.lock();
        let previous = state.objects.insert(entry.clone());
        self.publish(&mut state, entry, previous);
    }

    pub(super) fn delete(&self, key: &str, revision: i64) {
        let mut state = self.state.lock();
        let Some(previous) = state.objects.remove(key) else {
            return;
        };
        let last = Arc::new(previous.gone_at(revision));
        self.publish(&mut state, last, Some(previous));
    }

    fn publish(&self, state: &mut State, entry: Arc<Entry>, previous: Option<Arc<Entry>>) {
        let event = Arc::new(WatchEvent {
            revision: entry.revision,
            entry,
            previous,
        });
        state.revision = event.revision;
        self.watchers.tell(&event, self.layout);
        state.history.push(event);
    }

    /// Forgets events that are of no use any more, even if none come after them.
    pub(super) fn forget_old(&self) {
        self.state.lock().history.trim();
    }

    /// Starts a watch after `revision`; `None` when the events since then are not all at hand any more.
    #[must_use]
    pub fn subscribe(&self, filter: Filter, after: i64) -> Option<Subscription> {
        let state = self.state.lock();
        if !state.history.covers(after) {
            return None;
        }
        let missed = state.history.since(after);
        Some(self.watchers.attach(filter, self.layout, missed))
    }

    /// Starts a watch that begins with the present objects; also the revision they are as of.
    #[must_use]
    pub fn subscribe_with_state(&self, filter: Filter) -> (Vec<Arc<Entry>>, i64, Subscription) {
        let state = self.state.lock();
        let present = state.objects.clone();
        let revision = state.revision;
        let subscription = self
            .watchers
            .attach(filter.clone(), self.layout, std::iter::empty());
        drop(state);
        let present = present.select(&filter, "").cloned().collect();
        (present, revision, subscription)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fluyt_api::resources;
    use fluyt_api::selector::{FieldSelector, LabelSelector};
    use serde_json::json;

    use super::super::Change;
    use super::super::history::{FRESH, LEAST};
    use super::super::watchers::QUEUE;
    use super::*;

    fn entry(name: &str, revision: i64, label: &str) -> Entry {
        let pods = resources::find("", "v1", "pods").unwrap();
        let object =
            json!({"metadata": {"name": name, "namespace": "d", "labels": {"app": label}}});
        Entry::new(
            pods,
            &format!("d/{name}"),
            revision,
            Change::Modified,
            &object,
        )
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
        // Events of a moment ago are kept unless what they keep is too much.
        let pods = resources::find("", "v1", "pods").unwrap();
        let large = json!({"metadata": {"name": "a", "namespace": "d", "annotations": {"a": "x".repeat(20_000)}}});
        for revision in 1..=i64::try_from(LEAST).unwrap() + 10 {
            cache.put(Entry::new(pods, "d/a", revision, Change::Modified, &large));
        }
        assert!(cache.subscribe(Filter::default(), 9).is_none());
        let mut watch = cache.subscribe(Filter::default(), 10).unwrap();
        assert_eq!(watch.events.try_recv().unwrap().1.revision, 11);
    }

    #[tokio::test(start_paused = true)]
    async fn old_events_are_forgotten_even_if_nothing_happens() {
        let cache = cache();
        let last = i64::try_from(LEAST).unwrap() + 10;
        for revision in 1..=last {
            cache.put(entry("a", revision, "x"));
        }
        cache.forget_old();
        assert!(cache.subscribe(Filter::default(), 0).is_some());
        tokio::time::advance(FRESH + Duration::from_secs(1)).await;
        assert!(cache.subscribe(Filter::default(), 0).is_some());
        cache.forget_old();
        assert!(cache.subscribe(Filter::default(), 9).is_none());
        assert!(cache.subscribe(Filter::default(), 10).is_some());
    }

    #[tokio::test]
    async fn a_slow_watcher_is_ended_and_holds_up_nobody() {
        let cache = cache();
        let mut slow = cache.subscribe(Filter::default(), 0).unwrap();
        for revision in 1..=i64::try_from(QUEUE).unwrap() + 5 {
            cache.put(entry("a", revision, "x"));
        }
        let mut received = 0;
        while slow.events.recv().await.is_some() {
            received += 1;
        }
        assert_eq!(received, QUEUE);
    }

    #[tokio::test]
    async fn watchers_of_parts_hear_what_concerns_them_and_leave_nothing_behind() {
        let cache = cache();
        let pod = |name: &str, revision, node: &str| {
            let pods = resources::find("", "v1", "pods").unwrap();
            let object =
                json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"nodeName": node}});
            cache.put(Entry::new(
                pods,
                &format!("d/{name}"),
                revision,
                Change::Modified,
                &object,
            ));
        };
        let watch = |namespace: &str, fields: &str| {
            let filter = Filter {
                namespace: namespace.into(),
                fields: FieldSelector::parse(fields).unwrap(),
                ..Filter::default()
            };
            cache.subscribe(filter, 0).unwrap()
        };
        let mut watches = [
            watch("", ""),
            watch("d", ""),
            watch("e", ""),
            watch("d", "metadata.name=a"),
            watch("", "metadata.name=a"),
            watch("", "spec.nodeName=n"),
            watch("d", "spec.nodeName=m,metadata.name=a"),
        ];
        pod("a", 1, "");
        pod("a", 2, "n");
        pod("b", 3, "n");
        pod("a", 4, "m");
        cache.delete("d/b", 5);
        let mut heard = Vec::new();
        for watch in &mut watches {
            let mut one = Vec::new();
            while let Ok((change, event)) = watch.events.try_recv() {
                one.push((change, event.revision));
            }
            heard.push(one);
        }
        use Change::{Added, Deleted, Modified};
        let all = vec![
            (Added, 1),
            (Modified, 2),
            (Added, 3),
            (Modified, 4),
            (Deleted, 5),
        ];
        let of_a = vec![(Added, 1), (Modified, 2), (Modified, 4)];
        assert_eq!(
            heard,
            [
                all.clone(),
                all,
                vec![],
                of_a.clone(),
                of_a,
                vec![(Added, 2), (Added, 3), (Deleted, 4), (Deleted, 5)],
                vec![(Added, 4)],
            ]
        );
        assert_eq!(cache.watchers(), watches.len());
        drop(watches);
        assert_eq!(cache.watchers(), 0);
    }

    #[test]
    fn the_cache_knows_what_there_was_a_moment_ago() {
        let cache = cache();
        cache.replace(vec![entry("a", 1, "x"), entry("b", 2, "x")], 2);
        cache.put(entry("c", 3, "x"));
        cache.put(entry("a", 4, "y"));
        cache.delete("d/b", 5);
        cache.put(entry("b", 6, "z"));
        let at = |revision| {
            let snapshot = cache.snapshot_at(revision)?;
            let entries = snapshot.entries.values();
            Some(
                entries
                    .map(|e| (e.name().to_owned(), e.revision))
                    .collect::<Vec<_>>(),
            )
        };
        let named = |list: &[(&str, i64)]| {
            Some(
                list.iter()
                    .map(|(n, r)| ((*n).to_owned(), *r))
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(at(1), None);
        assert_eq!(at(2), named(&[("a", 1), ("b", 2)]));
        assert_eq!(at(3), named(&[("a", 1), ("b", 2), ("c", 3)]));
        assert_eq!(at(4), named(&[("a", 4), ("b", 2), ("c", 3)]));
        assert_eq!(at(5), named(&[("a", 4), ("c", 3)]));
        assert_eq!(at(6), named(&[("a", 4), ("b", 6), ("c", 3)]));
        assert_eq!(at(60), at(6));
    }
}

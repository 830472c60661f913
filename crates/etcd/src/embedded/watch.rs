//! Watches. Each one is a task with a [`Follower`], a position of its own: that reads the recent changes in memory and,
//! when it has fallen behind those, the log. It waits for nobody and nobody waits for it.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::codec::{self, Record};
use super::storage::Space;
use super::{Shared, failed, read};
use crate::{Error, Event, KeyValue, Watch, WatchStream, WatchUpdate};

/// What is kept in memory for watchers: so many revisions, and so many bytes of keys and values.
const RECENT: usize = 1024;
const RECENT_BYTES: usize = 8 << 20;

/// Updates a watcher may have waiting before it falls back to reading the log.
const QUEUE: usize = 64;

/// Log records read at once by a watcher that catches up.
const CATCH_UP: usize = 512;

/// Announces revisions and keeps the recent ones.
pub(super) struct Hub {
    recent: Mutex<Recent>,
    revision: watch::Sender<i64>,
    compacted: std::sync::atomic::AtomicI64,
    /// The store is closed.
    pub stopped: CancellationToken,
}

/// All changes of one revision.
pub(crate) struct Revision {
    pub revision: i64,
    pub events: Vec<Event>,
}

impl Revision {
    fn bytes(&self) -> usize {
        let bytes = |event: &Event| event.kv.key.len() + event.kv.value.len();
        self.events.iter().map(bytes).sum()
    }
}

/// The newest revisions, in order.
#[derive(Default)]
struct Recent {
    revisions: VecDeque<Arc<Revision>>,
    bytes: usize,
}

impl Recent {
    fn push(&mut self, revision: Revision) {
        self.bytes += revision.bytes();
        self.revisions.push_back(Arc::new(revision));
        while self.revisions.len() > RECENT || self.bytes > RECENT_BYTES {
            let Some(oldest) = self.revisions.pop_front() else {
                return;
            };
            self.bytes -= oldest.bytes();
        }
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            recent: Mutex::default(),
            revision: watch::Sender::new(1),
            compacted: 0.into(),
            stopped: CancellationToken::new(),
        }
    }
}

impl Hub {
    pub fn start(&self, revision: i64, compacted: i64) {
        self.revision.send_replace(revision);
        self.set_compacted(compacted);
    }

    pub fn revision(&self) -> i64 {
        *self.revision.borrow()
    }

    pub fn compacted(&self) -> i64 {
        self.compacted.load(std::sync::atomic::Ordering::Acquire)
    }

    pub fn set_compacted(&self, revision: i64) {
        self.compacted
            .store(revision, std::sync::atomic::Ordering::Release);
    }

    /// Publishes durable changes, in order.
    pub fn publish(&self, revisions: Vec<Revision>) {
        let Some(last) = revisions.last().map(|r| r.revision) else {
            return;
        };
        let mut recent = self.recent.lock();
        for revision in revisions {
            recent.push(revision);
        }
        drop(recent);
        self.revision.send_replace(last);
    }

    /// Recent revisions from `from` on, or `None` when memory does not reach back that far.
    fn since(&self, from: i64) -> Option<Vec<Arc<Revision>>> {
        let recent = &self.recent.lock().revisions;
        if recent.front().is_none_or(|first| first.revision > from) {
            return None;
        }
        let start = recent.partition_point(|r| r.revision < from);
        Some(recent.iter().skip(start).take(CATCH_UP).cloned().collect())
    }
}

pub(super) fn start(shared: Arc<Shared>, watch: Watch) -> WatchStream {
    let (sender, updates) = mpsc::channel(QUEUE);
    let mut follower = Follower::new(shared);
    if watch.start_revision > 0 {
        follower.skip_to(watch.start_revision - 1);
        follower.live = false;
    }
    tokio::spawn(async move {
        let mut watcher = Watcher {
            reported: follower.position(),
            follower,
            watch,
            sender,
        };
        let stopped = watcher.follower.shared.hub.stopped.clone();
        let ended = tokio::select! {
            ended = watcher.run() => ended,
            () = stopped.cancelled() => Err(Error::Stopped),
        };
        if let Err(error) = ended {
            // The receiver may be gone; then nobody needs to know.
            let _ = watcher.sender.send(Err(error)).await;
        }
    });
    WatchStream { updates }
}

/// Follows all changes, from its own position, at its reader's pace.
pub(crate) struct Follower {
    shared: Arc<Shared>,
    revisions: watch::Receiver<i64>,
    /// The first revision not yet read.
    next: i64,
    /// It has been up to date: what is committed from then on reaches it from memory, whatever is compacted meanwhile.
    live: bool,
    /// What is being read from the log.
    reading: Option<JoinHandle<Result<Vec<Arc<Revision>>, Error>>>,
}

impl Follower {
    /// From now on.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let revisions = shared.hub.revision.subscribe();
        let next = *revisions.borrow() + 1;
        Self {
            shared,
            revisions,
            next,
            live: true,
            reading: None,
        }
    }

    /// Everything up to here was read.
    pub fn position(&self) -> i64 {
        self.next - 1
    }

    /// Goes on behind this revision.
    pub fn skip_to(&mut self, position: i64) {
        self.next = position + 1;
        self.reading = None;
    }

    fn has_caught_up(&mut self) -> bool {
        let caught_up = *self.revisions.borrow_and_update() < self.next;
        self.live |= caught_up;
        caught_up
    }

    async fn changed(&mut self) -> Result<(), Error> {
        self.revisions.changed().await.map_err(|_| Error::Stopped)
    }

    /// Whole revisions, at least one, in order; waits until there is one. Nothing is lost when this is dropped.
    pub async fn read(&mut self) -> Result<Vec<Arc<Revision>>, Error> {
        loop {
            let caught_up = self.has_caught_up();
            let recent = self.shared.hub.since(self.next);
            let compact_revision = self.shared.hub.compacted();
            if self.next < compact_revision && !(self.live && recent.is_some()) {
                return Err(Error::Compacted { compact_revision });
            }
            if caught_up {
                self.changed().await?;
                continue;
            }
            let batch = match recent {
                Some(recent) => recent,
                None => self.read_log().await?,
            };
            if let Some(last) = batch.last() {
                self.next = last.revision + 1;
                return Ok(batch);
            }
        }
    }

    /// Whole revisions from the log, at least one. A caller that did not wait finds its reading under way.
    async fn read_log(&mut self) -> Result<Vec<Arc<Revision>>, Error> {
        let (shared, from) = (&self.shared, self.next);
        let reading = self.reading.get_or_insert_with(|| {
            let shared = shared.clone();
            tokio::task::spawn_blocking(move || shared.read_log(from))
        });
        let read = reading.await;
        self.reading = None;
        read.map_err(failed)?
    }

    /// What a changed key was before.
    pub fn previous(&self, event: &Event) -> Result<Option<KeyValue>, Error> {
        let KeyValue {
            key,
            mod_revision,
            version,
            ..
        } = &event.kv;
        // It is gone once it is compacted, even where the change is still in memory.
        if *mod_revision <= self.shared.hub.compacted() || !(event.deleted || *version > 1) {
            return Ok(None);
        }
        self.shared.previous(key, *mod_revision)
    }
}

struct Watcher {
    follower: Follower,
    watch: Watch,
    /// The revision up to which the receiver knows to have everything.
    reported: i64,
    sender: mpsc::Sender<Result<WatchUpdate, Error>>,
}

impl Watcher {
    /// Returns when the receiver is gone.
    async fn run(&mut self) -> Result<(), Error> {
        loop {
            if self.follower.has_caught_up() && self.reported < self.follower.position() {
                self.reported = self.follower.position();
                let revision = self.reported;
                let update = Ok(WatchUpdate::Progress { revision });
                if self.sender.send(update).await.is_err() {
                    return Ok(());
                }
            }
            let batch = tokio::select! {
                batch = self.follower.read() => batch?,
                () = self.sender.closed() => return Ok(()),
            };
            let revision = self.follower.position();
            let events = self.select(&batch)?;
            if events.is_empty() {
                // Nothing of interest. When the queue is full, progress is reported once this has caught up.
                let update = Ok(WatchUpdate::Progress { revision });
                if self.sender.try_send(update).is_ok() {
                    self.reported = revision;
                }
                continue;
            }
            self.reported = revision;
            let update = Ok(WatchUpdate::Events { revision, events });
            if self.sender.send(update).await.is_err() {
                return Ok(());
            }
        }
    }

    fn select(&self, batch: &[Arc<Revision>]) -> Result<Vec<Event>, Error> {
        let mut selected = Vec::new();
        for event in batch
            .iter()
            .flat_map(|r| &r.events)
            .filter(|e| self.watch.keys.contains(&e.kv.key))
        {
            let mut event = event.clone();
            if self.watch.prev_kv {
                event.prev = self.follower.previous(&event)?;
            }
            selected.push(event);
        }
        Ok(selected)
    }
}

impl Shared {
    fn read_log(&self, from: i64) -> Result<Vec<Arc<Revision>>, Error> {
        // Read before the log: what is committed from here on must not be skipped when the log ends early.
        let newest = self.hub.revision();
        let mut revisions: Vec<Revision> = Vec::new();
        let snapshot = self.storage.snapshot();
        let start = Bound::Included(codec::log_key(from, 0).to_vec());
        let items = snapshot.range(Space::History, (start, Bound::Unbounded));
        for (count, item) in items.enumerate() {
            let (position, bytes) = item?;
            let (revision, _) = codec::split_log_key(&position).ok_or_else(read::damaged)?;
            let (key, record) = codec::decode_log(&bytes).ok_or_else(read::damaged)?;
            if revisions.last().is_none_or(|r| r.revision != revision) {
                if count >= CATCH_UP {
                    break;
                }
                revisions.push(Revision {
                    revision,
                    events: Vec::new(),
                });
            }
            if let Some(last) = revisions.last_mut() {
                last.events.push(event(key, record));
            }
        }
        // Revisions without changes (none are written) or a log that ends early must still move the reader on.
        if revisions.is_empty() {
            revisions.push(Revision {
                revision: newest.max(from),
                events: Vec::new(),
            });
        }
        // A compaction that ran meanwhile may have taken records out of what was read.
        let compact_revision = self.hub.compacted();
        if from < compact_revision {
            return Err(Error::Compacted { compact_revision });
        }
        Ok(revisions.into_iter().map(Arc::new).collect())
    }
}

/// A change as watchers see it.
pub(super) fn event(key: bytes::Bytes, record: Record) -> Event {
    if record.is_deletion() {
        let kv = KeyValue {
            key,
            value: bytes::Bytes::new(),
            create_revision: 0,
            mod_revision: record.mod_revision,
            version: 0,
            lease: 0,
        };
        return Event {
            kv,
            deleted: true,
            prev: None,
        };
    }
    Event {
        kv: record.into_kv(key),
        deleted: false,
        prev: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::embedded::Embedded;
    use crate::{Keys, Op, Put, Store as _, Txn};

    #[tokio::test]
    async fn compaction_takes_nothing_from_who_was_up_to_date() {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(directory.path()).unwrap();
        let mut follower = store.follow();
        let first = store.current_revision() + 1;
        for _ in 0..3 {
            let txn = Txn {
                success: vec![Op::Put(Put::new("key", "value"))],
                ..Txn::default()
            };
            store.txn(txn).await.unwrap();
        }
        let newest = store.current_revision();
        store.compact(newest).await.unwrap();
        let batch = follower.read().await.unwrap();
        let seen: Vec<i64> = batch.iter().map(|revision| revision.revision).collect();
        assert_eq!(seen, (first..=newest).collect::<Vec<i64>>());
        // Who asks for it only now is told that it is gone.
        let watch = Watch {
            keys: Keys::One("key".into()),
            start_revision: first,
            prev_kv: false,
        };
        let mut late = store.watch(watch).await.unwrap();
        let compact_revision = newest;
        let gone = late.next().await.unwrap().unwrap_err();
        assert_eq!(gone, Error::Compacted { compact_revision });
    }
}

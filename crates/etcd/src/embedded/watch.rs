//! Watches. Each one is a task with its own position: it follows the recent changes in memory and, when it has fallen
//! behind those, reads the log. It waits for nobody and nobody waits for it.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::codec::{self, Record};
use super::storage::Space;
use super::{Shared, failed, read};
use crate::{Error, Event, KeyValue, Watch, WatchStream, WatchUpdate};

/// Revisions kept in memory for watchers.
const RECENT: usize = 1024;

/// Updates a watcher may have waiting before it falls back to reading the log.
const QUEUE: usize = 64;

/// Log records read at once by a watcher that catches up.
const CATCH_UP: usize = 512;

/// Announces revisions and keeps the recent ones.
pub(super) struct Hub {
    recent: Mutex<VecDeque<Arc<Revision>>>,
    revision: watch::Sender<i64>,
    compacted: std::sync::atomic::AtomicI64,
    /// The store is closed.
    pub stopped: CancellationToken,
}

/// All changes of one revision.
pub(super) struct Revision {
    pub revision: i64,
    pub events: Vec<Event>,
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
            if recent.len() == RECENT {
                recent.pop_front();
            }
            recent.push_back(Arc::new(revision));
        }
        drop(recent);
        self.revision.send_replace(last);
    }

    /// Recent revisions from `from` on, or `None` when memory does not reach back that far.
    fn since(&self, from: i64) -> Option<Vec<Arc<Revision>>> {
        let recent = self.recent.lock();
        if recent.front().is_none_or(|first| first.revision > from) {
            return None;
        }
        let start = recent.partition_point(|r| r.revision < from);
        Some(recent.iter().skip(start).take(CATCH_UP).cloned().collect())
    }
}

pub(super) fn start(shared: Arc<Shared>, watch: Watch) -> WatchStream {
    let (sender, updates) = mpsc::channel(QUEUE);
    let next = if watch.start_revision > 0 {
        watch.start_revision
    } else {
        shared.hub.revision() + 1
    };
    tokio::spawn(async move {
        let mut watcher = Watcher {
            shared,
            watch,
            next,
            reported: next - 1,
            sender,
        };
        let stopped = watcher.shared.hub.stopped.clone();
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

struct Watcher {
    shared: Arc<Shared>,
    watch: Watch,
    /// The first revision not yet looked at.
    next: i64,
    /// The revision up to which the receiver knows to have everything.
    reported: i64,
    sender: mpsc::Sender<Result<WatchUpdate, Error>>,
}

impl Watcher {
    /// Returns when the receiver is gone.
    async fn run(&mut self) -> Result<(), Error> {
        let mut revisions = self.shared.hub.revision.subscribe();
        loop {
            let compact_revision = self.shared.hub.compacted();
            if self.next < compact_revision {
                return Err(Error::Compacted { compact_revision });
            }
            if *revisions.borrow_and_update() < self.next {
                if self.reported < self.next - 1 {
                    self.reported = self.next - 1;
                    let revision = self.reported;
                    if self
                        .sender
                        .send(Ok(WatchUpdate::Progress { revision }))
                        .await
                        .is_err()
                    {
                        return Ok(());
                    }
                    continue;
                }
                tokio::select! {
                    changed = revisions.changed() => if changed.is_err() { return Err(Error::Stopped) },
                    () = self.sender.closed() => return Ok(()),
                }
                continue;
            }
            let batch = match self.shared.hub.since(self.next) {
                Some(recent) => recent,
                None => self.read_log().await?,
            };
            let Some(last) = batch.last().map(|r| r.revision) else {
                continue;
            };
            self.next = last + 1;
            let events = self.select(&batch)?;
            let update = if events.is_empty() {
                // Nothing of interest. When the queue is full, progress is reported once this has caught up.
                if self
                    .sender
                    .try_send(Ok(WatchUpdate::Progress { revision: last }))
                    .is_ok()
                {
                    self.reported = last;
                }
                continue;
            } else {
                WatchUpdate::Events {
                    revision: last,
                    events,
                }
            };
            self.reported = last;
            if self.sender.send(Ok(update)).await.is_err() {
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
            // What came before is gone once it is compacted, even where it is still in memory.
            if !self.watch.prev_kv || event.kv.mod_revision <= self.shared.hub.compacted() {
                event.prev = None;
            } else if event.prev.is_none() && (event.deleted || event.kv.version > 1) {
                event.prev = self.shared.previous(&event.kv.key, event.kv.mod_revision)?;
            }
            selected.push(event);
        }
        Ok(selected)
    }

    /// Whole revisions from the log, at least one.
    async fn read_log(&self) -> Result<Vec<Arc<Revision>>, Error> {
        let (shared, from) = (self.shared.clone(), self.next);
        tokio::task::spawn_blocking(move || shared.read_log(from))
            .await
            .map_err(failed)?
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

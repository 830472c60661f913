//! The one writer: a thread that takes all waiting transactions, evaluates them in order against the store and each
//! other, and commits them with one fsync. Nothing is answered or published before it is durable.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::codec;
use super::lease::{LeaseStatus, Leases};
use super::queue::Queue;
use super::storage::{self, Batch, Space, Writing};
use super::transaction::{self, Base, Change, Latest};
use super::watch::{Revision, event};
use super::{Shared, quota};
use crate::{Delete, Error, Event, Keys, Op, Txn, TxnResult};

/// Transactions committed with one fsync.
const GROUP: usize = 512;

/// What part of the last commit's time a group waits for the next command.
const GAP: u32 = 4;

type Reply<T> = oneshot::Sender<Result<T, Error>>;

pub(super) enum Command {
    Txn {
        txn: Txn,
        reply: Reply<TxnResult>,
    },
    Compact {
        revision: i64,
        reply: Reply<()>,
    },
    LeaseGrant {
        id: i64,
        ttl: i64,
        reply: Reply<(i64, i64)>,
    },
    LeaseRevoke {
        id: i64,
        reply: Reply<()>,
    },
    LeaseKeepAlive {
        id: i64,
        reply: Reply<i64>,
    },
    LeaseTimeToLive {
        id: i64,
        reply: Reply<LeaseStatus>,
    },
    Leases {
        reply: Reply<Vec<i64>>,
    },
    /// Raises or disarms the quota's alarm.
    Alarm {
        raised: bool,
        reply: Reply<()>,
    },
    /// Entries that need not be durable at once: after a crash they are written again.
    Write {
        batch: Batch,
        reply: Reply<()>,
    },
    /// Has everything in memory written to tables.
    Seal {
        reply: Reply<()>,
    },
}

/// The thread and its queue; dropping waits for what is queued.
pub(super) struct Thread {
    commands: Queue<Command>,
    thread: Option<JoinHandle<()>>,
}

impl Thread {
    pub fn spawn(shared: Arc<Shared>, writing: Writing, quota: u64) -> Result<Self, Error> {
        let commands = Queue::default();
        let receiver = commands.clone();
        let leases = Leases::load(&shared)?;
        let revision = shared.hub.revision();
        let thread = std::thread::Builder::new()
            .name("etcd-writer".into())
            .spawn(move || {
                // Whatever ends the writer, nobody waits for it any more.
                let commands = Closing(receiver);
                Writer {
                    shared,
                    writing,
                    quota,
                    revision,
                    leases,
                    last: Pace::default(),
                }
                .run(&commands.0);
            })
            .map_err(super::failed)?;
        Ok(Self {
            commands,
            thread: Some(thread),
        })
    }

    pub fn send(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).map_err(|_| Error::Stopped)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.commands.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

/// Closes a queue, and drops what is in it, when it goes.
struct Closing(Queue<Command>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
        let mut rest = Vec::new();
        while self.0.receive(0, GROUP, None, &mut rest) {
            rest.clear();
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    writing: Writing,
    /// Bytes that the store may have.
    quota: u64,
    revision: i64,
    leases: Leases,
    last: Pace,
}

/// How the last group went.
#[derive(Default)]
struct Pace {
    commands: usize,
    took: Duration,
}

/// Gives one command its answer.
type Answer = Box<dyn FnOnce(Result<(), Error>)>;

/// What one group of commands will have written.
#[derive(Default)]
struct Group {
    latest: Latest,
    revisions: Vec<Revision>,
    batch: Batch,
    /// Somebody is told that it is durable.
    durable: bool,
    /// Leases have changed.
    leases: bool,
    /// Answers to give once the group is durable.
    replies: Vec<Answer>,
    compacted: Option<i64>,
    alarm: Option<bool>,
    seal: bool,
}

impl Group {
    fn answer<T: 'static>(&mut self, reply: Reply<T>, result: Result<T, Error>) {
        self.replies.push(Box::new(move |committed| {
            // A caller that went away needs no answer.
            let _ = reply.send(committed.and(result));
        }));
    }

    fn put(&mut self, space: Space, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.durable = true;
        self.batch.put(space, key, value);
    }

    fn remove(&mut self, space: Space, key: impl Into<Vec<u8>>) {
        self.durable = true;
        self.batch.remove(space, key);
    }
}

impl Writer {
    fn run(mut self, commands: &Queue<Command>) {
        let mut taken = Vec::new();
        while commands.receive(1, GROUP, self.leases.next_expiry(), &mut taken) {
            let mut group = Group::default();
            self.fill(commands, &mut taken, &mut group);
            for lease in self.leases.expired(Instant::now()) {
                if let Err(error) = self.revoke(lease, &mut group) {
                    tracing::error!(lease, %error, "cannot expire a lease");
                }
            }
            self.commit(group);
        }
    }

    /// Takes in what is waiting. Those who were answered together come back one after the other: to commit what the
    /// first of them wants alone would have the others wait for two fsyncs. So a group waits, as long as commands
    /// keep coming and no longer than a commit takes, until it is as large as the one before.
    fn fill(&mut self, commands: &Queue<Command>, taken: &mut Vec<Command>, group: &mut Group) {
        let begin = Instant::now();
        let end = begin + self.last.took;
        loop {
            for command in taken.drain(..) {
                self.evaluate(command, group);
            }
            let (had, now) = (group.replies.len(), Instant::now());
            let missing = self.last.commands.saturating_sub(had);
            let (wanted, deadline) = if group.durable && now < end {
                (missing, end.min(now + self.last.took / GAP))
            } else {
                (0, now)
            };
            commands.receive(wanted, GROUP.saturating_sub(had), Some(deadline), taken);
            if taken.is_empty() {
                return;
            }
        }
    }

    /// Refuses what would grow the store beyond its quota, and raises the alarm.
    fn afford(&self, cost: u64, group: &mut Group) -> Result<(), Error> {
        if cost == 0 {
            return Ok(());
        }
        let raised = self.shared.alarms.quota.load(Ordering::Relaxed);
        if group.alarm.unwrap_or(raised) {
            return Err(Error::NoSpace);
        }
        if self.shared.storage.size() + cost < self.quota {
            return Ok(());
        }
        tracing::warn!(quota = self.quota, "the quota is used up: alarm NOSPACE");
        group.put(Space::Meta, "alarm", 1_u64.to_be_bytes());
        group.alarm = Some(true);
        Err(Error::NoSpace)
    }

    fn evaluate(&mut self, command: Command, group: &mut Group) {
        match command {
            Command::Txn { txn, reply } => {
                let result = self
                    .afford(quota::cost(&txn), group)
                    .and_then(|()| self.transaction(&txn, group));
                group.answer(reply, result);
            }
            Command::Compact { revision, reply } => {
                let result = self.compact(revision, group);
                group.answer(reply, result);
            }
            Command::LeaseGrant { id, ttl, reply } => {
                let result = self
                    .afford(quota::lease_cost(), group)
                    .and_then(|()| self.leases.grant(id, ttl));
                if let Ok((id, ttl)) = result {
                    group.leases = true;
                    group.put(Space::Leases, id.to_be_bytes(), ttl.to_be_bytes());
                }
                group.answer(reply, result);
            }
            Command::LeaseRevoke { id, reply } => {
                let result = if self.leases.contains(id) {
                    self.revoke(id, group)
                } else {
                    Err(Error::LeaseNotFound)
                };
                group.answer(reply, result);
            }
            Command::LeaseKeepAlive { id, reply } => {
                let ttl = self.leases.keep_alive(id);
                group.answer(reply, Ok(ttl));
            }
            Command::LeaseTimeToLive { id, reply } => {
                let status = self.leases.status(id).ok_or(Error::LeaseNotFound);
                group.answer(reply, status);
            }
            Command::Leases { reply } => {
                let leases = self.leases.by_expiry();
                group.answer(reply, Ok(leases));
            }
            Command::Alarm { raised, reply } => {
                if raised {
                    group.put(Space::Meta, "alarm", 1_u64.to_be_bytes());
                } else {
                    group.remove(Space::Meta, "alarm");
                }
                group.alarm = Some(raised);
                group.answer(reply, Ok(()));
            }
            Command::Write { batch, reply } => {
                group.batch.entries.extend(batch.entries);
                group.answer(reply, Ok(()));
            }
            Command::Seal { reply } => {
                group.seal = true;
                group.answer(reply, Ok(()));
            }
        }
    }

    fn compact(&self, revision: i64, group: &mut Group) -> Result<(), Error> {
        let compact_revision = group
            .compacted
            .unwrap_or_else(|| self.shared.hub.compacted());
        if revision <= compact_revision {
            return Err(Error::Compacted { compact_revision });
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        group.compacted = Some(revision);
        group.put(Space::Meta, "compacted", revision.to_be_bytes());
        Ok(())
    }

    fn revoke(&mut self, lease: i64, group: &mut Group) -> Result<(), Error> {
        let keys = self.leases.revoke(lease);
        group.leases = true;
        group.remove(Space::Leases, lease.to_be_bytes());
        for key in &keys {
            group.remove(Space::Attached, codec::attached_key(lease, key));
        }
        let deletions = keys
            .into_iter()
            .map(|key| {
                Op::Delete(Delete {
                    keys: Keys::One(key),
                    prev_kv: false,
                })
            })
            .collect();
        self.transaction(
            &Txn {
                success: deletions,
                ..Txn::default()
            },
            group,
        )
        .map(drop)
    }

    fn transaction(&mut self, txn: &Txn, group: &mut Group) -> Result<TxnResult, Error> {
        let base = Base {
            shared: &self.shared,
            leases: &self.leases,
            revision: self.revision,
        };
        let (result, changes) = transaction::evaluate(txn, base, &mut group.latest)?;
        self.accept(changes, group);
        Ok(result)
    }

    /// Takes over the changes of a transaction that succeeded.
    fn accept(&mut self, changes: Vec<Change>, group: &mut Group) {
        if changes.is_empty() {
            return;
        }
        self.revision += 1;
        let mut events: Vec<Event> = Vec::with_capacity(changes.len());
        for (position, change) in (0_u32..).zip(changes) {
            let before = change.before.as_ref().map_or(0, |b| b.lease);
            let after = change.record.lease;
            if before != after {
                group.leases = true;
                self.leases.move_key(&change.key, before, after);
                if before != 0 {
                    group.remove(Space::Attached, codec::attached_key(before, &change.key));
                }
                if after != 0 {
                    group.put(Space::Attached, codec::attached_key(after, &change.key), "");
                }
            }
            // Watchers that want to know what was there before look it up themselves.
            events.push(event(change.key.clone(), change.record.clone()));
            group.durable = true;
            group.batch.changes.push(storage::Change {
                revision: self.revision,
                position,
                key: change.key,
                record: change.record,
            });
        }
        group.revisions.push(Revision {
            revision: self.revision,
            events,
        });
    }

    fn commit(&mut self, mut group: Group) {
        let begin = Instant::now();
        let nothing = group.batch.changes.is_empty() && group.batch.entries.is_empty();
        let shared = &self.shared;
        group.batch.revision = self.revision;
        let mut committed = if nothing {
            shared.storage.trim(&mut self.writing);
            shared.storage.check()
        } else {
            let batch = std::mem::take(&mut group.batch);
            shared
                .storage
                .commit(&mut self.writing, batch, group.durable)
        };
        if group.seal && committed.is_ok() {
            committed = shared.storage.seal(&mut self.writing);
        }
        if !nothing {
            let full = committed == Err(Error::NoSpace);
            if full != shared.alarms.disk_full.swap(full, Ordering::Relaxed) {
                tracing::warn!(full, "the disk is full, or has room again");
            }
        }
        if group.durable {
            self.last = Pace {
                commands: group.replies.len(),
                took: begin.elapsed(),
            };
        }
        match &committed {
            Ok(()) => {
                if let Some(raised) = group.alarm {
                    shared.alarms.quota.store(raised, Ordering::Relaxed);
                }
                if let Some(compacted) = group.compacted {
                    shared.hub.set_compacted(compacted);
                }
                shared.hub.publish(group.revisions);
            }
            Err(error) => {
                tracing::error!(%error, "cannot commit; no write of this group is acknowledged");
                self.revision = shared.hub.revision();
                if group.leases {
                    match Leases::load(shared) {
                        Ok(leases) => self.leases = leases,
                        Err(error) => tracing::error!(%error, "cannot read leases back"),
                    }
                }
            }
        }
        for reply in group.replies {
            reply(committed.clone());
        }
    }
}

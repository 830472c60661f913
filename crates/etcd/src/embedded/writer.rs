//! The one writer: a thread that takes all waiting transactions, evaluates them in order against the store and each
//! other, and commits them with one fsync. Nothing is answered or published before it is durable.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::codec::{self, Head, Record};
use super::lease::{LeaseStatus, Leases};
use super::queue::Queue;
use super::storage::{Batch, Change as Changed, Space, Writing};
use super::watch::{Revision, event};
use super::{Shared, quota, read, storage};
use crate::{
    Compare, CompareOp, Delete, Error, Event, KeyValue, Keys, Op, OpResult, Put, Range,
    RangeResult, Target, Txn, TxnResult,
};

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
    /// Newest records by key; `None` is a deletion.
    latest: BTreeMap<Bytes, Option<Record>>,
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
        let mut write = Write {
            writer: self,
            group,
            revision: 0,
            changes: Vec::new(),
            looked_up: RefCell::default(),
        };
        write.revision = write.writer.revision + 1;
        let result = write.transaction(txn);
        let changes = std::mem::take(&mut write.changes);
        match result {
            Ok(result) => {
                self.accept(changes, group);
                // Every result of a transaction names the revision that it ended at.
                Ok(stamp(result, self.revision))
            }
            Err(error) => {
                for change in changes.into_iter().rev() {
                    match change.before_in_group {
                        Some(before) => group.latest.insert(change.key, before),
                        None => group.latest.remove(&change.key),
                    };
                }
                Err(error)
            }
        }
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
            group.batch.changes.push(Changed {
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

fn stamp(mut result: TxnResult, revision: i64) -> TxnResult {
    result.revision = revision;
    for op in &mut result.results {
        match op {
            OpResult::Range(range) => range.revision = revision,
            OpResult::Txn(nested) => {
                *nested = stamp(
                    std::mem::replace(
                        nested,
                        TxnResult {
                            revision,
                            succeeded: false,
                            results: Vec::new(),
                        },
                    ),
                    revision,
                );
            }
            OpResult::Put { .. } | OpResult::Delete { .. } => {}
        }
    }
    result
}

/// Refuses what etcd refuses before looking at any data.
pub(super) fn check(txn: &Txn) -> Result<(), Error> {
    for ops in [&txn.success, &txn.failure] {
        written(ops)?;
    }
    Ok(())
}

/// What a list of operations may write, in whatever branch of nested transactions.
#[derive(Default)]
struct Written<'a> {
    put: HashSet<&'a Bytes>,
    deleted: Vec<&'a Keys>,
}

impl Written<'_> {
    /// etcd overlooks deletions without an upper bound here, and runs such transactions in order.
    fn deletes(&self, key: &[u8]) -> bool {
        self.deleted.iter().any(|keys| {
            !matches!(keys, Keys::Range(_, end) if end.is_empty()) && keys.contains(key)
        })
    }
}

/// Refuses operations of which two write the same key. Only one branch of a nested transaction runs, so that both may
/// put the same key.
fn written(ops: &[Op]) -> Result<Written<'_>, Error> {
    let mut all = Written::default();
    all.deleted.extend(ops.iter().filter_map(|op| match op {
        Op::Delete(delete) => Some(&delete.keys),
        _ => None,
    }));
    for op in ops {
        let Op::Txn(nested) = op else { continue };
        let (success, failure) = (written(&nested.success)?, written(&nested.failure)?);
        for key in success.put.union(&failure.put) {
            if all.deletes(key) || !all.put.insert(*key) {
                return Err(Error::DuplicateKey);
            }
        }
        all.deleted.extend(success.deleted);
        all.deleted.extend(failure.deleted);
    }
    for op in ops {
        let Op::Put(put) = op else { continue };
        if put.key.is_empty() {
            return Err(Error::EmptyKey);
        }
        if !storage::fits(&put.key) {
            return Err(Error::TooLarge);
        }
        if all.deletes(&put.key) || !all.put.insert(&put.key) {
            return Err(Error::DuplicateKey);
        }
    }
    Ok(all)
}

fn branch(txn: &Txn, succeeded: bool) -> &[Op] {
    if succeeded {
        &txn.success
    } else {
        &txn.failure
    }
}

/// The newest record of a key, with the value or without.
enum Current {
    Whole(Record),
    Stored(Head),
}

impl Current {
    fn stored(bytes: &Bytes) -> Result<Self, Error> {
        let head = Head::decode(bytes).ok_or_else(read::damaged)?;
        Ok(Self::Stored(head))
    }

    fn record(&self) -> &Record {
        match self {
            Self::Whole(record) => record,
            Self::Stored(head) => &head.record,
        }
    }

    fn into_record(self) -> Record {
        match self {
            Self::Whole(record) => record,
            Self::Stored(head) => head.record,
        }
    }
}

/// One change of the transaction under evaluation.
struct Change {
    key: Bytes,
    record: Record,
    /// Maybe without the value.
    before: Option<Record>,
    /// What the group held for the key before, to undo a failed transaction.
    before_in_group: Option<Option<Record>>,
}

/// A transaction under evaluation: it sees the store, the group's earlier writes, and its own.
struct Write<'a> {
    writer: &'a Writer,
    group: &'a mut Group,
    revision: i64,
    changes: Vec<Change>,
    /// The key that was looked up last, and what is stored of it: what is compared is what is put, mostly.
    looked_up: RefCell<Option<(Bytes, Option<Head>)>>,
}

impl Write<'_> {
    /// As etcd does it: all compares first, those of nested transactions too, against what was there before; then what
    /// puts and reads demand; then the operations.
    fn transaction(&mut self, txn: &Txn) -> Result<TxnResult, Error> {
        let mut path = Vec::new();
        self.choose(txn, &mut path)?;
        self.check(txn, &mut path.iter().copied(), Self::check_put)?;
        self.check(txn, &mut path.iter().copied(), Self::check_range)?;
        self.apply(txn, &mut path.into_iter())
    }

    /// Which branch every transaction takes, an outer one before its nested ones.
    fn choose(&self, txn: &Txn, path: &mut Vec<bool>) -> Result<(), Error> {
        let mut succeeded = true;
        for compare in &txn.compares {
            succeeded &= self.compare(compare)?;
        }
        path.push(succeeded);
        for op in branch(txn, succeeded) {
            if let Op::Txn(nested) = op {
                self.choose(nested, path)?;
            }
        }
        Ok(())
    }

    fn check(
        &self,
        txn: &Txn,
        path: &mut impl Iterator<Item = bool>,
        check: fn(&Self, &Op) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for op in branch(txn, path.next().unwrap_or_default()) {
            match op {
                Op::Txn(nested) => self.check(nested, path, check)?,
                op => check(self, op)?,
            }
        }
        Ok(())
    }

    fn check_put(&self, op: &Op) -> Result<(), Error> {
        let Op::Put(put) = op else { return Ok(()) };
        if (put.ignore_value || put.ignore_lease) && self.current(&put.key)?.is_none() {
            return Err(Error::KeyNotFound);
        }
        if put.lease != 0 && !self.writer.leases.contains(put.lease) {
            return Err(Error::LeaseNotFound);
        }
        Ok(())
    }

    fn check_range(&self, op: &Op) -> Result<(), Error> {
        let Op::Range(range) = op else { return Ok(()) };
        let compact_revision = self.writer.shared.hub.compacted();
        if range.revision > self.writer.revision {
            return Err(Error::FutureRevision);
        }
        if range.revision > 0 && range.revision < compact_revision {
            return Err(Error::Compacted { compact_revision });
        }
        Ok(())
    }

    fn apply(
        &mut self,
        txn: &Txn,
        path: &mut impl Iterator<Item = bool>,
    ) -> Result<TxnResult, Error> {
        let succeeded = path.next().unwrap_or_default();
        let ops = branch(txn, succeeded);
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(match op {
                Op::Range(range) => OpResult::Range(self.range(range)?),
                Op::Put(put) => OpResult::Put {
                    prev: self.put(put)?,
                },
                Op::Delete(delete) => self.delete(delete)?,
                Op::Txn(nested) => OpResult::Txn(self.apply(nested, path)?),
            });
        }
        Ok(TxnResult {
            revision: 0,
            succeeded,
            results,
        })
    }

    fn current(&self, key: &Bytes) -> Result<Option<Current>, Error> {
        if let Some(record) = self.group.latest.get(key) {
            return Ok(record.clone().map(Current::Whole));
        }
        let mut looked_up = self.looked_up.borrow_mut();
        let head = match &*looked_up {
            Some((last, head)) if last == key => head.clone(),
            _ => {
                let found = self.writer.shared.storage.get(Space::Latest, key)?;
                let head = found.map(|bytes| Head::decode(&bytes).ok_or_else(read::damaged));
                let head = head.transpose()?;
                *looked_up = Some((key.clone(), head.clone()));
                head
            }
        };
        Ok(head.map(Current::Stored))
    }

    /// A key's record with its value.
    fn load(&self, current: Current) -> Result<Record, Error> {
        match current {
            Current::Whole(record) => Ok(record),
            Current::Stored(head) => {
                let storage = &self.writer.shared.storage;
                let bytes = storage.get(Space::History, &head.place())?;
                let entry = bytes.and_then(|bytes| codec::decode_log(&bytes));
                entry.map(|(_, record)| record).ok_or_else(read::damaged)
            }
        }
    }

    /// All live records of an interval, in order.
    fn records(&self, keys: &Keys) -> Result<Vec<(Bytes, Current)>, Error> {
        if let Keys::One(key) = keys {
            return Ok(self
                .current(key)?
                .map(|r| (key.clone(), r))
                .into_iter()
                .collect());
        }
        let mut merged = BTreeMap::new();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let storage = &self.writer.shared.storage;
        for item in storage.range(Space::Latest, read::bounds(keys)) {
            let (key, value) = item?;
            merged.insert(key, Current::stored(&value)?);
        }
        for (key, record) in self.group.latest.iter().filter(|(k, _)| keys.contains(k)) {
            match record {
                Some(record) => merged.insert(key.clone(), Current::Whole(record.clone())),
                None => merged.remove(key),
            };
        }
        Ok(merged.into_iter().collect())
    }

    fn compare(&self, compare: &Compare) -> Result<bool, Error> {
        let records = self.records(&compare.keys)?;
        if records.is_empty() {
            // A missing key compares as zeros; a value cannot be compared with nothing.
            let zero = Record {
                mod_revision: 0,
                create_revision: 0,
                version: 0,
                lease: 0,
                value: Bytes::new(),
            };
            return Ok(!matches!(compare.target, Target::Value(_)) && holds(compare, &zero));
        }
        let of_value = matches!(compare.target, Target::Value(_));
        for (_, current) in records {
            let holds = if of_value {
                holds(compare, &self.load(current)?)
            } else {
                holds(compare, current.record())
            };
            if !holds {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn range(&self, range: &Range) -> Result<RangeResult, Error> {
        if range.revision > 0 && range.revision <= self.writer.shared.hub.revision() {
            return self.writer.shared.range(range);
        }
        let records = self.records(&range.keys)?;
        let count = i64::try_from(records.len()).unwrap_or(i64::MAX);
        let limit = if range.limit == 0 {
            usize::MAX
        } else {
            range.limit
        };
        let more = records.len() > limit;
        let kvs = if range.count_only {
            Vec::new()
        } else {
            let kept = records.into_iter().take(limit);
            kept.map(|(key, current)| {
                if range.keys_only {
                    return Ok(strip(current.into_record().into_kv(key), true));
                }
                Ok(self.load(current)?.into_kv(key))
            })
            .collect::<Result<_, Error>>()?
        };
        Ok(RangeResult {
            revision: self.revision,
            kvs,
            count,
            more,
        })
    }

    fn put(&mut self, put: &Put) -> Result<Option<KeyValue>, Error> {
        let before = match self.current(&put.key)? {
            Some(current) if put.prev_kv || put.ignore_value => Some(self.load(current)?),
            current => current.map(Current::into_record),
        };
        let mut record = Record {
            mod_revision: self.revision,
            create_revision: before.as_ref().map_or(self.revision, |b| b.create_revision),
            version: before.as_ref().map_or(1, |b| b.version + 1),
            lease: put.lease,
            value: put.value.clone(),
        };
        if let Some(before) = &before {
            if put.ignore_value {
                record.value = before.value.clone();
            }
            if put.ignore_lease {
                record.lease = before.lease;
            }
        }
        let prev = if put.prev_kv {
            before.clone().map(|b| b.into_kv(put.key.clone()))
        } else {
            None
        };
        self.change(put.key.clone(), record, before);
        Ok(prev)
    }

    fn delete(&mut self, delete: &Delete) -> Result<OpResult, Error> {
        let records = self.records(&delete.keys)?;
        let deleted = i64::try_from(records.len()).unwrap_or(i64::MAX);
        let mut prev = Vec::new();
        for (key, current) in records {
            let before = if delete.prev_kv {
                self.load(current)?
            } else {
                current.into_record()
            };
            if delete.prev_kv {
                prev.push(before.clone().into_kv(key.clone()));
            }
            let tombstone = Record {
                mod_revision: self.revision,
                create_revision: 0,
                version: 0,
                lease: 0,
                value: Bytes::new(),
            };
            self.change(key, tombstone, Some(before));
        }
        Ok(OpResult::Delete { deleted, prev })
    }

    fn change(&mut self, key: Bytes, record: Record, before: Option<Record>) {
        let live = (!record.is_deletion()).then(|| record.clone());
        let before_in_group = self.group.latest.insert(key.clone(), live);
        self.changes.push(Change {
            key,
            record,
            before,
            before_in_group,
        });
    }
}

fn strip(mut kv: KeyValue, keys_only: bool) -> KeyValue {
    if keys_only {
        kv.value = Bytes::new();
    }
    kv
}

fn holds(compare: &Compare, record: &Record) -> bool {
    let order = match &compare.target {
        Target::Version(n) => record.version.cmp(n),
        Target::Create(n) => record.create_revision.cmp(n),
        Target::Mod(n) => record.mod_revision.cmp(n),
        Target::Lease(n) => record.lease.cmp(n),
        Target::Value(value) => record.value.cmp(value),
    };
    match compare.op {
        CompareOp::Equal => order.is_eq(),
        CompareOp::NotEqual => order.is_ne(),
        CompareOp::Greater => order.is_gt(),
        CompareOp::Less => order.is_lt(),
    }
}

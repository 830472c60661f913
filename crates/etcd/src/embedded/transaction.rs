//! Transactions as the writer evaluates them: against what is stored, and what others before them in the group have written.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use super::codec::{self, Head, Record};
use super::lease::Leases;
use super::storage::Space;
use super::{Shared, read, storage};
use crate::{
    Compare, CompareOp, Delete, Error, KeyValue, Keys, Op, OpResult, Put, Range, RangeResult,
    Target, Txn, TxnResult,
};

/// What a group has written so far: newest records by key; `None` is a deletion.
pub(super) type Latest = BTreeMap<Bytes, Option<Record>>;

/// What transactions are evaluated against.
#[derive(Clone, Copy)]
pub(super) struct Base<'a> {
    pub shared: &'a Shared,
    pub leases: &'a Leases,
    /// The newest revision, that of the group's last transaction.
    pub revision: i64,
}

/// One change of a transaction.
pub(super) struct Change {
    pub key: Bytes,
    pub record: Record,
    /// Maybe without the value.
    pub before: Option<Record>,
    /// What the group held for the key before, to undo a failed transaction.
    before_in_group: Option<Option<Record>>,
}

/// A transaction under evaluation: it sees the store, the group's earlier writes, and its own.
struct Evaluation<'a> {
    base: Base<'a>,
    latest: &'a mut Latest,
    /// Of what it changes.
    revision: i64,
    changes: Vec<Change>,
    /// The key that was looked up last, and what is stored of it: what is compared is what is put, mostly.
    looked_up: RefCell<Option<(Bytes, Option<Head>)>>,
}

/// Evaluates a transaction: its result, and the changes that it made to `latest`; none if it fails.
pub(super) fn evaluate(
    txn: &Txn,
    base: Base<'_>,
    latest: &mut Latest,
) -> Result<(TxnResult, Vec<Change>), Error> {
    let mut evaluation = Evaluation {
        base,
        latest,
        revision: base.revision + 1,
        changes: Vec::new(),
        looked_up: RefCell::default(),
    };
    let result = evaluation.transaction(txn);
    let changes = evaluation.changes;
    match result {
        // Every result of a transaction names the revision that it ended at.
        Ok(result) if changes.is_empty() => Ok((stamp(result, base.revision), changes)),
        Ok(result) => Ok((stamp(result, base.revision + 1), changes)),
        Err(error) => {
            for change in changes.into_iter().rev() {
                match change.before_in_group {
                    Some(before) => latest.insert(change.key, before),
                    None => latest.remove(&change.key),
                };
            }
            Err(error)
        }
    }
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

impl Evaluation<'_> {
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
        if put.lease != 0 && !self.base.leases.contains(put.lease) {
            return Err(Error::LeaseNotFound);
        }
        Ok(())
    }

    fn check_range(&self, op: &Op) -> Result<(), Error> {
        let Op::Range(range) = op else { return Ok(()) };
        let compact_revision = self.base.shared.hub.compacted();
        if range.revision > self.base.revision {
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
        if let Some(record) = self.latest.get(key) {
            return Ok(record.clone().map(Current::Whole));
        }
        let mut looked_up = self.looked_up.borrow_mut();
        let head = match &*looked_up {
            Some((last, head)) if last == key => head.clone(),
            _ => {
                let found = self.base.shared.storage.get(Space::Latest, key)?;
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
                let storage = &self.base.shared.storage;
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
        let storage = &self.base.shared.storage;
        for item in storage.range(Space::Latest, read::bounds(keys)) {
            let (key, value) = item?;
            merged.insert(key, Current::stored(&value)?);
        }
        for (key, record) in self.latest.iter().filter(|(k, _)| keys.contains(k)) {
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
        if range.revision > 0 && range.revision <= self.base.shared.hub.revision() {
            return self.base.shared.range(range);
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
        let before_in_group = self.latest.insert(key.clone(), live);
        self.changes.push(Change {
            key,
            record,
            before,
            before_in_group,
        });
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

//! Range reads, at the newest revision and at older ones.

use std::ops::Bound;

use bytes::Bytes;

use super::Shared;
use super::codec::{self, Head, Record};
use super::compact::versions_at;
use super::storage::{Bounds, Snapshot, Space};
use crate::{Error, KeyValue, Keys, Range, RangeResult};

pub(super) fn damaged() -> Error {
    Error::Unavailable("a stored record is damaged".into())
}

/// The bounds of an interval.
pub(super) fn bounds(keys: &Keys) -> Bounds {
    match keys {
        Keys::One(key) => (Bound::Included(key.to_vec()), Bound::Included(key.to_vec())),
        Keys::Range(start, end) => {
            let end = if end.is_empty() {
                Bound::Unbounded
            } else {
                Bound::Excluded(end.to_vec())
            };
            (Bound::Included(start.to_vec()), end)
        }
    }
}

impl Shared {
    pub(super) fn range(&self, range: &Range) -> Result<RangeResult, Error> {
        let snapshot = self.storage.snapshot();
        snapshot.check()?;
        let revision = snapshot.revision;
        if range.revision > revision {
            return Err(Error::FutureRevision);
        }
        let compact_revision = self.hub.compacted();
        if range.revision > 0 && range.revision < compact_revision {
            return Err(Error::Compacted { compact_revision });
        }
        let mut collected = Collected {
            range,
            result: RangeResult {
                revision,
                ..RangeResult::default()
            },
        };
        if range.keys.is_empty() {
            return Ok(collected.result);
        }
        if range.revision == 0 || range.revision == revision {
            if let Keys::One(key) = &range.keys {
                if let Some(head) = snapshot.get(Space::Latest, key)? {
                    collected.add_latest(&snapshot, key.clone(), &head)?;
                }
                return Ok(collected.result);
            }
            let mut heads = Vec::new();
            for item in snapshot.range(Space::Latest, bounds(&range.keys)) {
                let (key, head) = item?;
                collected.result.count += 1;
                if collected.takes(heads.len()) {
                    heads.push((key, Head::decode(&head).ok_or_else(damaged)?));
                } else if range.uncounted {
                    break;
                }
            }
            collected.result.kvs = if range.keys_only {
                let kvs = heads.into_iter();
                kvs.map(|(key, head)| head.record.into_kv(key)).collect()
            } else {
                with_values(&snapshot, heads)?
            };
            return Ok(collected.result);
        }
        self.range_at(&snapshot, range.revision, collected)
    }

    /// Walks the versions of every key and picks the newest that is not newer than `revision`.
    fn range_at(
        &self,
        snapshot: &Snapshot<'_>,
        revision: i64,
        mut collected: Collected<'_>,
    ) -> Result<RangeResult, Error> {
        let (start, end) = match &collected.range.keys {
            Keys::One(key) => {
                let prefix = codec::version_prefix(key);
                let end = crate::prefix_end(&prefix).to_vec();
                (Bound::Included(prefix), Bound::Excluded(end))
            }
            Keys::Range(start, end) => {
                // A key's versions start with the key's own bytes, so unescaped bounds would cut wrongly only at zeros.
                let escape = |key: &[u8]| {
                    let mut prefix = codec::version_prefix(key);
                    prefix.truncate(prefix.len() - 2);
                    prefix
                };
                let upper = if end.is_empty() {
                    Bound::Unbounded
                } else {
                    Bound::Excluded(escape(end))
                };
                (Bound::Included(escape(start)), upper)
            }
        };
        let mut done: Option<Vec<u8>> = None;
        for item in snapshot.range(Space::Versions, (start, end)) {
            let (version, position) = item?;
            let (key, at) = codec::split_version_key(&version).ok_or_else(damaged)?;
            if at > revision || done.as_ref() == Some(&key) || !collected.range.keys.contains(&key)
            {
                continue;
            }
            let position = position
                .as_ref()
                .try_into()
                .map(u32::from_be_bytes)
                .map_err(|_| damaged())?;
            let bytes = snapshot
                .get(Space::History, &codec::log_key(at, position))?
                .ok_or_else(damaged)?;
            let (_, record) = codec::decode_log(&bytes).ok_or_else(damaged)?;
            if !record.is_deletion() {
                collected.add(Bytes::from(key.clone()), record);
                if collected.result.more && collected.range.uncounted {
                    break;
                }
            }
            done = Some(key);
        }
        Ok(collected.result)
    }

    /// The version of a key that was current just before `revision`.
    pub(super) fn previous(&self, key: &Bytes, revision: i64) -> Result<Option<KeyValue>, Error> {
        let snapshot = self.storage.snapshot();
        let newest = versions_at(&snapshot, key, revision - 1).next();
        let Some((at, position)) = newest.transpose()? else {
            return Ok(None);
        };
        let Some(bytes) = snapshot.get(Space::History, &codec::log_key(at, position))? else {
            return Ok(None);
        };
        let (key, record) = codec::decode_log(&bytes).ok_or_else(damaged)?;
        Ok((!record.is_deletion()).then(|| record.into_kv(key)))
    }
}

/// So many records of a range within [`NEAR`] revisions are read with one walk through the history.
const TOGETHER: usize = 8;
const NEAR: i64 = 32;

/// Others than the ones wanted that a walk passes over before the next is looked up instead.
const PASSED: usize = 32;

/// Reads the values of keys, in the order in which the history has them: a walk costs a fraction of as many look-ups.
fn with_values(snapshot: &Snapshot<'_>, heads: Vec<(Bytes, Head)>) -> Result<Vec<KeyValue>, Error> {
    let mut places: Vec<([u8; 12], usize)> = heads
        .iter()
        .enumerate()
        .map(|(i, (_, head))| (head.place(), i))
        .collect();
    places.sort_unstable();
    let revision_of = |i: usize| heads[i].1.record.mod_revision;
    let mut records = vec![None; heads.len()];
    let mut walk = None;
    for (nth, (place, i)) in places.iter().enumerate() {
        let crowded = places
            .get(nth + TOGETHER - 1)
            .is_some_and(|(_, last)| revision_of(*last) - revision_of(*i) < NEAR);
        if walk.is_none() && crowded {
            let rest = (Bound::Included(place.to_vec()), Bound::Unbounded);
            walk = Some(snapshot.range(Space::History, rest));
        }
        let mut found = None;
        for item in walk.iter_mut().flatten().take(PASSED) {
            let (at, bytes) = item?;
            if at[..] >= place[..] {
                found = (at[..] == place[..]).then_some(bytes);
                break;
            }
        }
        let bytes = match found {
            Some(bytes) => bytes,
            None => {
                walk = None;
                snapshot.get(Space::History, place)?.ok_or_else(damaged)?
            }
        };
        let (_, record) = codec::decode_log(&bytes).ok_or_else(damaged)?;
        records[*i] = Some(record);
    }
    heads
        .into_iter()
        .zip(records)
        .map(|((key, _), record)| Ok(record.ok_or_else(damaged)?.into_kv(key)))
        .collect()
}

struct Collected<'a> {
    range: &'a Range,
    result: RangeResult,
}

impl Collected<'_> {
    /// Whether a record after `taken` others is returned, or only counted.
    fn takes(&mut self, taken: usize) -> bool {
        let full = self.range.limit > 0 && taken >= self.range.limit;
        self.result.more |= full;
        !full && !self.range.count_only
    }

    /// Adds what `latest` says of a key, with the value that is in the history.
    fn add_latest(
        &mut self,
        snapshot: &Snapshot<'_>,
        key: Bytes,
        head: &Bytes,
    ) -> Result<(), Error> {
        let head = Head::decode(head).ok_or_else(damaged)?;
        let mut record = head.record.clone();
        if !self.range.keys_only && !self.range.count_only {
            let stored = snapshot.get(Space::History, &head.place())?;
            (_, record) = stored
                .and_then(|bytes| codec::decode_log(&bytes))
                .ok_or_else(damaged)?;
        }
        self.add(key, record);
        Ok(())
    }

    fn add(&mut self, key: Bytes, record: Record) {
        self.result.count += 1;
        if !self.takes(self.result.kvs.len()) {
            return;
        }
        let mut kv = record.into_kv(key);
        if self.range.keys_only {
            kv.value = Bytes::new();
        }
        self.result.kvs.push(kv);
    }
}

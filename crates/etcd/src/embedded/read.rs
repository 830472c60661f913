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
                if let Some(bytes) = snapshot.get(Space::Latest, key)? {
                    collected.add_latest(&snapshot, key.clone(), &bytes)?;
                }
                return Ok(collected.result);
            }
            for item in snapshot.range(Space::Latest, bounds(&range.keys)) {
                let (key, value) = item?;
                if collected.wants_values() {
                    collected.add_latest(&snapshot, key, &value)?;
                } else {
                    collected.result.count += 1;
                }
            }
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

struct Collected<'a> {
    range: &'a Range,
    result: RangeResult,
}

impl Collected<'_> {
    /// Whether another record would be returned, or only counted.
    fn wants_values(&mut self) -> bool {
        let full = self.range.limit > 0 && self.result.kvs.len() >= self.range.limit;
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
        if !self.wants_values() {
            return;
        }
        let mut kv = record.into_kv(key);
        if self.range.keys_only {
            kv.value = Bytes::new();
        }
        self.result.kvs.push(kv);
    }
}

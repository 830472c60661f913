//! The hash of the key space as etcd computes it (CRC-32C over its backend's records), so that it can be compared with
//! a real member's.

use etcd_client::proto::PbKeyValue;
use prost::Message as _;

use std::ops::Bound;

use super::codec::{self, Record};
use super::compact::versions_at;
use super::storage::Space;
use super::{Shared, read};
use crate::{Error, Keys, Range};

/// A hash and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    pub hash: u32,
    pub revision: i64,
    pub compact_revision: i64,
}

impl Shared {
    pub(super) fn hash(&self, revision: i64) -> Result<Hash, Error> {
        let (newest, compact_revision) = (self.hub.revision(), self.hub.compacted());
        if revision > 0 && revision <= compact_revision {
            return Err(Error::Compacted { compact_revision });
        }
        if revision > newest {
            return Err(Error::FutureRevision);
        }
        let revision = if revision > 0 { revision } else { newest };
        // Of compacted history only what the revision still shows counts: the rest may be gone or not. If it shows
        // nothing at all, etcd takes what the compaction left.
        let shown = self.range(&Range {
            revision,
            count_only: true,
            ..Range::new(Keys::prefix(""))
        })?;
        let kept_at = if shown.count > 0 {
            revision
        } else {
            compact_revision
        };
        let mut crc = Crc32c::default();
        crc.update(b"key");
        let snapshot = self.storage.snapshot();
        let until = Bound::Included(codec::log_key(revision, u32::MAX).to_vec());
        for item in snapshot.range(Space::History, (Bound::Unbounded, until)) {
            let (position, bytes) = item?;
            let (at, sub) = codec::split_log_key(&position).ok_or_else(read::damaged)?;
            let (key, record) = codec::decode_log(&bytes).ok_or_else(read::damaged)?;
            if at <= compact_revision {
                let newest = versions_at(&snapshot, &key, kept_at).next().transpose()?;
                if record.is_deletion() || newest != Some((at, sub)) {
                    continue;
                }
            }
            crc.update(&backend_key(at, sub, record.is_deletion()));
            crc.update(&backend_value(&key, record));
        }
        Ok(Hash {
            hash: crc.finish(),
            revision,
            compact_revision,
        })
    }
}

/// etcd's record key: main revision, `_`, sub revision, and `t` for a tombstone.
pub(super) fn backend_key(revision: i64, sub: u32, deletion: bool) -> Vec<u8> {
    let mut key = revision.to_be_bytes().to_vec();
    key.push(b'_');
    key.extend_from_slice(&i64::from(sub).to_be_bytes());
    if deletion {
        key.push(b't');
    }
    key
}

pub(super) fn backend_value(key: &[u8], record: Record) -> Vec<u8> {
    let tombstone = record.is_deletion();
    PbKeyValue {
        key: key.to_vec(),
        create_revision: record.create_revision,
        mod_revision: if tombstone { 0 } else { record.mod_revision },
        version: record.version,
        value: record.value.to_vec(),
        lease: record.lease,
    }
    .encode_to_vec()
}

/// CRC-32 with Castagnoli's polynomial (RFC 3720, appendix B.4).
pub(super) struct Crc32c(u32);

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut value = i as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                (value >> 1) ^ 0x82f6_3b78
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[i] = value;
        i += 1;
    }
    table
};

impl Default for Crc32c {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Crc32c {
    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = TABLE[usize::from(self.0.to_le_bytes()[0] ^ byte)] ^ (self.0 >> 8);
        }
    }

    pub fn finish(self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_castagnolis() {
        let mut crc = Crc32c::default();
        crc.update(b"123456789");
        assert_eq!(crc.finish(), 0xe306_9283);
    }
}

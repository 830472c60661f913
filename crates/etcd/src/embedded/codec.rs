//! On-disk records. Integers are big-endian so that byte order is numeric order.

use bytes::Bytes;

use crate::KeyValue;

/// A value with its metadata, as the history holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::embedded) struct Record {
    pub mod_revision: i64,
    pub create_revision: i64,
    /// 0 marks a deletion.
    pub version: i64,
    pub lease: i64,
    pub value: Bytes,
}

const HEADER: usize = 32;

/// What `latest` holds of a key: its newest record without the value, and the record's place in its revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::embedded) struct Head {
    /// Without the value.
    pub record: Record,
    pub position: u32,
}

impl Head {
    pub fn encode(record: &Record, position: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + 4);
        record.encode_header(&mut bytes);
        bytes.extend_from_slice(&position.to_be_bytes());
        bytes
    }

    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let mut record = Record::decode(bytes)?;
        let position = u32::from_be_bytes(record.value.as_ref().try_into().ok()?);
        record.value = Bytes::new();
        Some(Self { record, position })
    }

    /// Where in the history the record is.
    pub fn place(&self) -> [u8; 12] {
        log_key(self.record.mod_revision, self.position)
    }
}

impl Record {
    fn encode_header(&self, bytes: &mut Vec<u8>) {
        for number in [
            self.mod_revision,
            self.create_revision,
            self.version,
            self.lease,
        ] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
    }

    /// Shares the value's memory.
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let number = |i: usize| {
            bytes
                .get(i * 8..i * 8 + 8)?
                .try_into()
                .ok()
                .map(i64::from_be_bytes)
        };
        Some(Self {
            mod_revision: number(0)?,
            create_revision: number(1)?,
            version: number(2)?,
            lease: number(3)?,
            value: bytes.slice(HEADER..),
        })
    }

    pub fn into_kv(self, key: Bytes) -> KeyValue {
        KeyValue {
            key,
            value: self.value,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }

    pub fn is_deletion(&self) -> bool {
        self.version == 0
    }
}

/// Key of a log record: revision, then position within the transaction.
pub(super) fn log_key(revision: i64, position: u32) -> [u8; 12] {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&revision.to_be_bytes());
    key[8..].copy_from_slice(&position.to_be_bytes());
    key
}

pub(super) fn split_log_key(key: &[u8]) -> Option<(i64, u32)> {
    Some((
        i64::from_be_bytes(key.get(..8)?.try_into().ok()?),
        u32::from_be_bytes(key.get(8..12)?.try_into().ok()?),
    ))
}

/// Value of a log record: length of the key, the key, the record.
pub(super) fn encode_log(bytes: &mut Vec<u8>, key: &[u8], record: &Record) {
    bytes.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(key);
    record.encode_header(bytes);
    bytes.extend_from_slice(&record.value);
}

/// How long that is.
pub(super) fn log_length(key: &[u8], record: &Record) -> usize {
    4 + key.len() + HEADER + record.value.len()
}

pub(super) fn decode_log(bytes: &Bytes) -> Option<(Bytes, Record)> {
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let end = length.checked_add(4).filter(|end| *end <= bytes.len())?;
    let record = Record::decode(&bytes.slice(end..))?;
    Some((bytes.slice(4..end), record))
}

/// Key of a key's attachment to a lease.
pub(super) fn attached_key(lease: i64, key: &[u8]) -> Vec<u8> {
    [&lease.to_be_bytes()[..], key].concat()
}

pub(super) fn split_attached_key(bytes: &Bytes) -> Option<(i64, Bytes)> {
    let (lease, _) = bytes.split_first_chunk()?;
    Some((i64::from_be_bytes(*lease), bytes.slice(8..)))
}

/// Prefix of all versions of a key. The key is escaped so that no key's versions fall between another's, and order is
/// kept: 0x00 becomes 0x00 0xff, and 0x00 0x01 ends it.
pub(super) fn version_prefix(key: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(key.len() + 16);
    for &byte in key {
        escaped.push(byte);
        if byte == 0 {
            escaped.push(0xff);
        }
    }
    escaped.extend_from_slice(&[0, 1]);
    escaped
}

/// Key of one version: newest first.
pub(super) fn version_key(key: &[u8], revision: i64) -> Vec<u8> {
    let mut bytes = version_prefix(key);
    bytes.extend_from_slice(&(!revision).to_be_bytes());
    bytes
}

/// The user key and revision of a version's key.
pub(super) fn split_version_key(bytes: &[u8]) -> Option<(Vec<u8>, i64)> {
    let (escaped, revision) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
    let escaped = escaped.strip_suffix(&[0, 1])?;
    let mut key = Vec::with_capacity(escaped.len());
    let mut skip = false;
    for &byte in escaped {
        if !skip {
            key.push(byte);
        }
        skip = byte == 0 && !skip;
    }
    Some((key, !i64::from_be_bytes(revision.try_into().ok()?)))
}

pub(super) fn read_u64(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn versions_keep_the_order_of_keys(a in prop::collection::vec(0u8..3, 0..6), b in prop::collection::vec(0u8..3, 0..6), r in 1i64..9, s in 1i64..9) {
            let expected = a.cmp(&b).then(s.cmp(&r));
            prop_assert_eq!(version_key(&a, r).cmp(&version_key(&b, s)), expected);
            prop_assert_eq!(split_version_key(&version_key(&a, r)), Some((a, r)));
        }

        #[test]
        fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let bytes = Bytes::from(bytes);
            let _ = Record::decode(&bytes);
            let _ = Head::decode(&bytes);
            let _ = decode_log(&bytes);
            let _ = split_version_key(&bytes);
            let _ = split_attached_key(&bytes);
        }
    }
}

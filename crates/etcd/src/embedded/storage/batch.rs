//! What one group of transactions writes, and its form in the log.

use bytes::Bytes;

use super::super::codec::{self, Record};

/// The parts of the store. All but the history live in one LSM tree, told apart by their keys' first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// The newest record of every live key, without its value.
    Latest,
    /// Every change with its value, in order of revisions; a tree of its own, because it only grows at its end.
    History,
    /// By key and revision: the place in the history.
    Versions,
    /// Granted leases.
    Leases,
    /// By lease and key: which keys go with a lease.
    Attached,
    Meta,
}

impl Space {
    pub fn prefix(self) -> u8 {
        match self {
            Self::Latest => b'k',
            Self::History => b'h',
            Self::Versions => b'v',
            Self::Leases => b'l',
            Self::Attached => b'a',
            Self::Meta => b'm',
        }
    }

    fn of(prefix: u8) -> Option<Self> {
        [
            Self::Latest,
            Self::History,
            Self::Versions,
            Self::Leases,
            Self::Attached,
            Self::Meta,
        ]
        .into_iter()
        .find(|space| space.prefix() == prefix)
    }
}

/// One change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: i64,
    /// Its place in the transaction.
    pub position: u32,
    pub key: Bytes,
    pub record: Record,
}

/// One entry to write, or to remove (`None`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub space: Space,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// Changes of keys in order, and other entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The newest revision once this is written.
    pub revision: i64,
    pub changes: Vec<Change>,
    pub entries: Vec<Entry>,
}

const REMOVED: u32 = u32::MAX;

impl Batch {
    pub fn put(&mut self, space: Space, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        let (key, value) = (key.into(), Some(value.into()));
        self.entries.push(Entry { space, key, value });
    }

    pub fn remove(&mut self, space: Space, key: impl Into<Vec<u8>>) {
        let key = key.into();
        let value = None;
        self.entries.push(Entry { space, key, value });
    }

    /// Appends its form in the log.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let values: usize = self.changes.iter().map(|c| c.record.value.len()).sum();
        bytes.reserve(64 + 128 * self.changes.len() + values);
        bytes.extend_from_slice(&self.revision.to_le_bytes());
        bytes.extend_from_slice(&size(self.changes.len()));
        for change in &self.changes {
            bytes.extend_from_slice(&change.revision.to_le_bytes());
            bytes.extend_from_slice(&change.position.to_le_bytes());
            let length = codec::log_length(&change.key, &change.record);
            bytes.extend_from_slice(&size(length));
            codec::encode_log(bytes, &change.key, &change.record);
        }
        bytes.extend_from_slice(&size(self.entries.len()));
        for entry in &self.entries {
            bytes.push(entry.space.prefix());
            bytes.extend_from_slice(&size(entry.key.len()));
            bytes.extend_from_slice(&entry.key);
            match &entry.value {
                Some(value) => {
                    bytes.extend_from_slice(&size(value.len()));
                    bytes.extend_from_slice(value);
                }
                None => bytes.extend_from_slice(&REMOVED.to_le_bytes()),
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut batch = Self {
            revision: i64::from_le_bytes(*take(&mut rest)?),
            ..Self::default()
        };
        for _ in 0..u32::from_le_bytes(*take(&mut rest)?) {
            let revision = i64::from_le_bytes(*take(&mut rest)?);
            let position = u32::from_le_bytes(*take(&mut rest)?);
            let (key, record) = codec::decode_log(&Bytes::copy_from_slice(sized(&mut rest)?))?;
            batch.changes.push(Change {
                revision,
                position,
                key,
                record,
            });
        }
        for _ in 0..u32::from_le_bytes(*take(&mut rest)?) {
            let [prefix] = *take(&mut rest)?;
            let space = Space::of(prefix)?;
            let key = sized(&mut rest)?.to_vec();
            let value = if rest.starts_with(&REMOVED.to_le_bytes()) {
                rest = &rest[4..];
                None
            } else {
                Some(sized(&mut rest)?.to_vec())
            };
            batch.entries.push(Entry { space, key, value });
        }
        rest.is_empty().then_some(batch)
    }
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(taken)
}

fn sized<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_le_bytes(*take(rest)?) as usize;
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn change() -> impl Strategy<Value = Change> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..20);
        (
            any::<i64>(),
            any::<u32>(),
            bytes(),
            bytes(),
            any::<[i64; 4]>(),
        )
            .prop_map(|(revision, position, key, value, numbers)| Change {
                revision,
                position,
                key: key.into(),
                record: Record {
                    mod_revision: numbers[0],
                    create_revision: numbers[1],
                    version: numbers[2],
                    lease: numbers[3],
                    value: value.into(),
                },
            })
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..20);
        let space = prop::sample::select(vec![Space::Latest, Space::Meta, Space::History]);
        (space, bytes(), prop::option::of(bytes())).prop_map(|(space, key, value)| Entry {
            space,
            key,
            value,
        })
    }

    proptest! {
        #[test]
        fn batches_come_back(revision in any::<i64>(), changes in prop::collection::vec(change(), 0..5), entries in prop::collection::vec(entry(), 0..5)) {
            let batch = Batch { revision, changes, entries };
            let mut bytes = Vec::new();
            batch.encode(&mut bytes);
            prop_assert_eq!(Batch::decode(&bytes), Some(batch));
            for cut in 0..bytes.len() {
                prop_assert_eq!(Batch::decode(&bytes[..cut]), None);
            }
        }

        #[test]
        fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Batch::decode(&bytes);
        }
    }
}

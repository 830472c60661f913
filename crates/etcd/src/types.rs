//! Requests and results of [`crate::Store`], in etcd's terms but without its wire encoding.

use bytes::Bytes;
use tokio::sync::mpsc;

/// One version of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: i64,
    pub mod_revision: i64,
    /// 1 for the first write since the key was last deleted.
    pub version: i64,
    /// 0 when no lease is attached.
    pub lease: i64,
}

/// A half-open interval of keys, or one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    One(Bytes),
    /// `start <= key < end`; `end` empty means no upper bound.
    Range(Bytes, Bytes),
}

impl Keys {
    /// All keys that start with `prefix`.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        let end = prefix_end(&start);
        Self::Range(start, end)
    }

    /// Those of these keys that are not below `start`.
    #[must_use]
    pub fn starting_at(self, start: Bytes) -> Self {
        match self {
            Self::One(key) if key >= start => Self::One(key),
            Self::One(_) => Self::Range(start.clone(), start),
            Self::Range(first, end) => Self::Range(first.max(start), end),
        }
    }

    /// An interval that ends before it starts, and so has no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Range(start, end) if !end.is_empty() && end <= start)
    }

    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::One(k) => k == key,
            Self::Range(start, end) => key >= &start[..] && (end.is_empty() || key < &end[..]),
        }
    }
}

/// The smallest key greater than every key with this prefix; empty when there is none.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < 0xff {
            *last += 1;
            return end.into();
        }
        end.pop();
    }
    Bytes::new()
}

/// A read. Results are in key order.
#[derive(Clone, Debug)]
pub struct Range {
    pub keys: Keys,
    /// 0 reads the newest revision.
    pub revision: i64,
    /// 0 means no limit.
    pub limit: usize,
    pub keys_only: bool,
    pub count_only: bool,
    /// Nobody asks how many keys there are beyond the limit: what is read stops there.
    pub uncounted: bool,
}

impl Range {
    #[must_use]
    pub fn new(keys: Keys) -> Self {
        Self {
            keys,
            revision: 0,
            limit: 0,
            keys_only: false,
            count_only: false,
            uncounted: false,
        }
    }
}

/// What a [`Range`] read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResult {
    /// The store's revision when the read was served.
    pub revision: i64,
    pub kvs: Vec<KeyValue>,
    /// Keys in the whole interval, regardless of `limit`; nothing to rely on when the range is `uncounted`.
    pub count: i64,
    pub more: bool,
}

/// A guarded write: if every compare holds `success` runs, else `failure`.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

/// One operation of a transaction.
#[derive(Clone, Debug)]
pub enum Op {
    Range(Range),
    Put(Put),
    Delete(Delete),
    Txn(Txn),
}

#[derive(Clone, Debug)]
pub struct Put {
    pub key: Bytes,
    pub value: Bytes,
    pub lease: i64,
    pub prev_kv: bool,
    /// Keep the key's present value; an error when the key does not exist.
    pub ignore_value: bool,
    /// Keep the key's present lease; an error when the key does not exist.
    pub ignore_lease: bool,
}

impl Put {
    #[must_use]
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Delete {
    pub keys: Keys,
    pub prev_kv: bool,
}

/// A condition on every key of an interval.
#[derive(Clone, Debug)]
pub struct Compare {
    pub keys: Keys,
    pub target: Target,
    pub op: CompareOp,
}

/// What a [`Compare`] looks at. A key that does not exist counts as all zeros.
#[derive(Clone, Debug)]
pub enum Target {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Bytes),
    Lease(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    Equal,
    NotEqual,
    Greater,
    Less,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnResult {
    /// The store's revision after the transaction.
    pub revision: i64,
    pub succeeded: bool,
    pub results: Vec<OpResult>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    Range(RangeResult),
    Put { prev: Option<KeyValue> },
    Delete { deleted: i64, prev: Vec<KeyValue> },
    Txn(TxnResult),
}

/// A subscription to changes.
#[derive(Clone, Debug)]
pub struct Watch {
    pub keys: Keys,
    /// First revision of interest; 0 means from now on.
    pub start_revision: i64,
    pub prev_kv: bool,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// For a deletion: key and mod_revision only.
    pub kv: KeyValue,
    pub deleted: bool,
    pub prev: Option<KeyValue>,
}

/// What a watch delivers.
#[derive(Clone, Debug)]
pub enum WatchUpdate {
    /// All events of one or more whole revisions, in order. `revision` is that of the last one.
    Events { revision: i64, events: Vec<Event> },
    /// Everything up to `revision` has been delivered.
    Progress { revision: i64 },
}

/// A running watch; dropping it cancels.
#[derive(Debug)]
pub struct WatchStream {
    pub(crate) updates: mpsc::Receiver<Result<WatchUpdate, Error>>,
}

impl WatchStream {
    /// The next update, an error after which nothing follows, or `None` when the store shut down.
    pub async fn next(&mut self) -> Option<Result<WatchUpdate, Error>> {
        self.updates.recv().await
    }
}

/// Failures, each with etcd's own meaning.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// `compact_revision` is 0 where a remote cluster does not tell it.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted { compact_revision: i64 },
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: request is too large")]
    TooLarge,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// Stored data turned out to be damaged; nothing is served any more.
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    #[error("etcdserver: server stopped")]
    Stopped,
    /// The disk or the remote cluster failed; the write may or may not have happened.
    #[error("etcdserver: {0}")]
    Unavailable(String),
}

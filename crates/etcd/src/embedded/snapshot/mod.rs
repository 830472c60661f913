//! etcd's snapshot files, both ways: a bbolt database with etcd's buckets, and its SHA-256 behind it.

mod export;
mod restore;

pub use export::Part;
pub use restore::{Status, restore, status};

/// Bytes of the checksum behind the database, by which files that have one are known: databases are of whole sectors.
const TRAILER: u64 = 32;
const SECTOR: u64 = 512;

/// etcd's buckets, in order.
const BUCKETS: [&str; 10] = [
    "alarm",
    "auth",
    "authRoles",
    "authUsers",
    "cluster",
    KEY,
    LEASE,
    "members",
    "members_removed",
    META,
];

/// Every change by its revision.
const KEY: &str = "key";
const LEASE: &str = "lease";
const META: &str = "meta";

/// Entries of the bucket `meta`.
const SCHEDULED_COMPACTION: &str = "scheduledCompactRev";
const FINISHED_COMPACTION: &str = "finishedCompactRev";
const CONSISTENT_INDEX: &str = "consistent_index";

/// etcd's `leasepb.Lease`.
#[derive(Clone, PartialEq, prost::Message)]
struct Lease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
    #[prost(int64, tag = "3")]
    remaining_ttl: i64,
}

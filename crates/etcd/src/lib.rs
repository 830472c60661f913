//! The key-value store under every API server: etcd's data model (revisions, transactions, leases, watches)
//! behind one trait, [`Store`], with two engines: [`embedded`] (MVCC over an LSM tree) and [`external`] (a real etcd
//! cluster). [`grpc`] serves the embedded engine in etcd's v3 wire protocol.

mod auto_compaction;
mod bbolt;
pub mod embedded;
pub mod external;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod fuzz;
pub mod grpc;
mod rebased;
mod serve;
mod types;

pub use rebased::Rebased;
pub use serve::{Args, run};
pub use types::*;

use std::sync::Arc;

/// A store with etcd v3 semantics. Implementations are cheap to share and safe to call from many tasks.
///
/// Every successful write is durable when its future resolves.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads keys at a revision (the newest unless [`Range::revision`] is set).
    async fn range(&self, range: Range) -> Result<RangeResult, Error>;

    /// Evaluates compares and runs one of two branches atomically, as one revision.
    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error>;

    /// Follows changes of keys from a revision on. The stream ends with an error only when the
    /// watcher cannot be served any more (compacted start, shut down).
    async fn watch(&self, watch: Watch) -> Result<WatchStream, Error>;

    /// Forgets history up to and including `revision`.
    async fn compact(&self, revision: i64) -> Result<(), Error>;

    /// Grants a lease of `ttl` seconds; `id` 0 lets the store choose. Returns id and granted ttl.
    async fn lease_grant(&self, id: i64, ttl: i64) -> Result<(i64, i64), Error>;

    /// Revokes a lease and deletes its keys.
    async fn lease_revoke(&self, id: i64) -> Result<(), Error>;

    /// Renews a lease; the remaining seconds, or 0 when the lease is unknown.
    async fn lease_keep_alive(&self, id: i64) -> Result<i64, Error>;

    /// The newest committed revision.
    async fn revision(&self) -> Result<i64, Error>;

    /// The bytes that the store takes on disk.
    async fn size(&self) -> Result<i64, Error>;
}

/// A shared store of either engine.
pub type DynStore = Arc<dyn Store>;

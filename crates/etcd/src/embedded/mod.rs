//! The embedded engine: etcd's multi-version store over LSM trees with a write-ahead log ([`storage`]).
//!
//! It keeps the newest value of every live key, every change in revision order (what watches replay), for each key where
//! in that history its versions are, and the leases with the keys that go with them.

mod codec;
mod compact;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod fuzz;
mod hash;
mod identity;
mod lease;
mod queue;
mod quota;
mod read;
pub mod snapshot;
mod storage;
mod transaction;
mod watch;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{Semaphore, oneshot};

use crate::{Error, Range, RangeResult, Store, Txn, TxnResult, Watch, WatchStream};
pub use hash::Hash;
pub use identity::Identity;
pub use lease::LeaseStatus;
pub use quota::Alarm;
use storage::{Batch, Storage, Threads};
pub use storage::{Damage, OpenError};
pub(crate) use watch::{Follower, Revision};
use writer::{Command, Thread};

/// Requests that may wait for the writer before callers are held back.
const WRITE_QUEUE: usize = 4096;

/// A durable store in one directory.
// Fields are dropped in order: the writer first, then the threads under it.
pub struct Embedded {
    writer: Thread,
    queue: Semaphore,
    /// One compaction at a time removes history.
    compacting: tokio::sync::Mutex<()>,
    identity: Identity,
    shared: Arc<Shared>,
    _threads: Threads,
}

/// What readers, watchers and the writer share.
struct Shared {
    storage: Arc<Storage>,
    hub: watch::Hub,
    alarms: quota::Alarms,
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.hub.stopped.cancel();
    }
}

impl Embedded {
    /// Opens or creates the store in `directory` and starts its threads.
    ///
    /// # Errors
    /// When the directory cannot be used, is in use, damaged, or holds something else.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Self::open_with_quota(directory, 0)
    }

    /// With a limit on the bytes on disk (0: etcd's default; negative: none).
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_quota(directory: &Path, quota: i64) -> Result<Self, OpenError> {
        let (storage, mut writing, threads) = Storage::open(directory)?;
        let fail = |error: Error| match error {
            Error::NoSpace => OpenError::io(directory)(std::io::ErrorKind::StorageFull.into()),
            error => Damage::file(directory, error).into(),
        };
        let shared = Shared {
            storage,
            hub: watch::Hub::default(),
            alarms: quota::Alarms::default(),
        };
        // A fresh store is at revision 1, as etcd's is.
        let revision = shared.storage.snapshot().revision.max(1);
        let number = |name| shared.meta(name).map_err(fail);
        // Never compacted is before revision 0, which may be compacted once.
        let compacted = number("compacted")?.map_or(-1, u64::cast_signed);
        let raised = number("alarm")?.is_some();
        shared.alarms.quota.store(raised, Ordering::Relaxed);
        let mut batch = Batch {
            revision,
            ..Batch::default()
        };
        let identity = Identity::begin(&shared, &mut batch).map_err(fail)?;
        let begun = shared.storage.commit(&mut writing, batch, true);
        begun.map_err(fail)?;
        shared.hub.start(revision, compacted);
        let shared = Arc::new(shared);
        let quota = match u64::try_from(quota) {
            Ok(0) => quota::DEFAULT_QUOTA,
            Ok(quota) => quota,
            Err(_) => u64::MAX,
        };
        let writer = Thread::spawn(shared.clone(), writing, quota).map_err(fail)?;
        Ok(Self {
            writer,
            queue: Semaphore::new(WRITE_QUEUE),
            compacting: tokio::sync::Mutex::default(),
            identity,
            shared,
            _threads: threads,
        })
    }

    /// Who this store is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// What is wrong.
    #[must_use]
    pub fn alarms(&self) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        if self.shared.alarms.no_space() {
            alarms.push(Alarm::NoSpace);
        }
        if self.shared.storage.check().is_err() {
            alarms.push(Alarm::Corrupt);
        }
        alarms
    }

    /// Raises or disarms the alarm of the quota. A full disk's alarm goes by itself.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn set_no_space(&self, raised: bool) -> Result<(), Error> {
        self.command(|reply| Command::Alarm { raised, reply }).await
    }

    /// The state of a lease.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`].
    pub async fn lease_status(&self, id: i64) -> Result<LeaseStatus, Error> {
        self.command(|reply| Command::LeaseTimeToLive { id, reply })
            .await
    }

    /// All leases, the one that expires first at the front.
    ///
    /// # Errors
    /// When the store has stopped.
    pub async fn leases(&self) -> Result<Vec<i64>, Error> {
        self.command(|reply| Command::Leases { reply }).await
    }

    /// The revision up to which history is gone; 0 when none is.
    #[must_use]
    pub fn compacted_revision(&self) -> i64 {
        self.shared.hub.compacted()
    }

    /// The newest revision, without waiting for anything.
    #[must_use]
    pub fn current_revision(&self) -> i64 {
        self.shared.hub.revision()
    }

    /// Bytes on disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.shared.storage.size()
    }

    /// All changes from now on.
    pub(crate) fn follow(&self) -> Follower {
        Follower::new(self.shared.clone())
    }

    /// Number of live keys; reads through all of them.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn keys(&self) -> Result<usize, Error> {
        let all = Range {
            count_only: true,
            ..Range::new(crate::Keys::prefix(""))
        };
        let count = self.range(all).await?.count;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// Rewrites the files so that removed records free their space.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn defragment(&self) -> Result<(), Error> {
        self.command(|reply| Command::Seal { reply }).await?;
        self.blocking(|shared| {
            shared.storage.written()?;
            shared.storage.rewrite()
        })
        .await?;
        // What tables have now is not needed in the log.
        self.write(Batch::default()).await
    }

    /// etcd's hash of all keys and their history up to a revision (0: the newest).
    ///
    /// # Errors
    /// When the revision is compacted or a future one.
    pub async fn hash(&self, revision: i64) -> Result<Hash, Error> {
        self.blocking(move |shared| shared.hash(revision)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || work(&shared))
            .await
            .map_err(failed)?
    }

    async fn command<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        // The queue is bounded; a full one holds back its callers.
        let _place = self.queue.acquire().await.map_err(|_| Error::Stopped)?;
        let (reply, answer) = oneshot::channel();
        self.writer.send(make(reply))?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Writes entries that are not for clients.
    async fn write(&self, batch: Batch) -> Result<(), Error> {
        self.command(|reply| Command::Write { batch, reply }).await
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Unavailable(error.to_string())
}

#[async_trait::async_trait]
impl Store for Embedded {
    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        // Point reads come from memory or one block; only wide ranges are worth another thread.
        if matches!(range.keys, crate::Keys::One(_)) {
            return self.shared.range(&range);
        }
        self.blocking(move |shared| shared.range(&range)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error> {
        transaction::check(&txn)?;
        self.command(|reply| Command::Txn { txn, reply }).await
    }

    async fn watch(&self, watch: Watch) -> Result<WatchStream, Error> {
        Ok(watch::start(self.shared.clone(), watch))
    }

    async fn compact(&self, revision: i64) -> Result<(), Error> {
        self.command(|reply| Command::Compact { revision, reply })
            .await?;
        self.drop_history(revision).await
    }

    async fn lease_grant(&self, id: i64, ttl: i64) -> Result<(i64, i64), Error> {
        self.command(|reply| Command::LeaseGrant { id, ttl, reply })
            .await
    }

    async fn lease_revoke(&self, id: i64) -> Result<(), Error> {
        self.command(|reply| Command::LeaseRevoke { id, reply })
            .await
    }

    async fn lease_keep_alive(&self, id: i64) -> Result<i64, Error> {
        self.command(|reply| Command::LeaseKeepAlive { id, reply })
            .await
    }

    async fn revision(&self) -> Result<i64, Error> {
        Ok(self.shared.hub.revision())
    }

    async fn size(&self) -> Result<i64, Error> {
        Ok(i64::try_from(Self::size(self)).unwrap_or(i64::MAX))
    }
}

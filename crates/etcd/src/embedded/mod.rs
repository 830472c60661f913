//! The embedded engine: etcd's multi-version store over an LSM tree.
//!
//! Four keyspaces, written together in one durable batch per group of transactions:
//! `latest` holds the newest value of every live key, `log` every change in revision order (what watches replay),
//! `versions` finds the log record that was current at an older revision, and `leases` the granted leases.

mod codec;
mod compact;
mod hash;
mod identity;
mod lease;
mod read;
mod watch;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use tokio::sync::oneshot;

use crate::{Error, Range, RangeResult, Store, Txn, TxnResult, Watch, WatchStream};
pub use hash::Hash;
pub use identity::Identity;
pub use lease::LeaseStatus;
use writer::Command;

/// Written into the `meta` keyspace; a directory of another format is refused.
const FORMAT: u64 = 1;

/// Transactions that may wait for the writer before callers are held back.
const WRITE_QUEUE: usize = 4096;

/// The memory that the LSM tree may use: a master must stay small.
const BLOCK_CACHE_BYTES: u64 = 8 << 20;
const MEMTABLE_BYTES: u64 = 4 << 20;

/// A durable store in one directory.
pub struct Embedded {
    shared: Arc<Shared>,
    commands: SyncSender<Command>,
}

/// What readers, watchers and the writer share.
struct Shared {
    database: Database,
    latest: Keyspace,
    log: Keyspace,
    versions: Keyspace,
    leases: Keyspace,
    meta: Keyspace,
    hub: watch::Hub,
}

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path}: {source}")]
    Database { path: String, source: fjall::Error },
    #[error("{path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error(
        "{path} has data of format {found}, this version knows {FORMAT}: run the version that wrote it, or restore a snapshot into an empty directory"
    )]
    Format { path: String, found: u64 },
    #[error("{path} is in use by another process")]
    InUse { path: String },
    #[error("{path} is damaged: {what}; restore a snapshot into an empty directory")]
    Damaged { path: String, what: String },
}

impl Embedded {
    /// Opens or creates the store in `directory` and starts its writer thread.
    ///
    /// # Errors
    /// When the directory cannot be used, is in use, or holds data of another format.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.display().to_string();
        let fail = |source| match source {
            fjall::Error::Locked => OpenError::InUse { path: path.clone() },
            source => OpenError::Database {
                path: path.clone(),
                source,
            },
        };
        std::fs::create_dir_all(directory).map_err(|source| OpenError::Io {
            path: path.clone(),
            source,
        })?;
        let database = Database::builder(directory)
            .cache_size(BLOCK_CACHE_BYTES)
            .worker_threads(1)
            .manual_journal_persist(true)
            .open()
            .map_err(fail)?;
        let keyspace = |name| {
            database
                .keyspace(name, || {
                    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
                })
                .map_err(fail)
        };
        let shared = Shared {
            latest: keyspace("latest")?,
            log: keyspace("log")?,
            versions: keyspace("versions")?,
            leases: keyspace("leases")?,
            meta: keyspace("meta")?,
            hub: watch::Hub::default(),
            database: database.clone(),
        };
        shared.check_format(&path)?;
        let (revision, compacted) = shared.revisions().map_err(|e| OpenError::Damaged {
            path,
            what: e.to_string(),
        })?;
        shared.hub.start(revision, compacted);
        let shared = Arc::new(shared);
        let commands = writer::spawn(shared.clone(), revision).map_err(|source| OpenError::Io {
            path: directory.display().to_string(),
            source,
        })?;
        Ok(Self { shared, commands })
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
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn size(&self) -> Result<u64, Error> {
        self.shared.database.disk_space().map_err(storage)
    }

    /// Number of live keys; reads through all of them.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn keys(&self) -> Result<usize, Error> {
        self.blocking(|shared| shared.latest.len().map_err(storage))
            .await
    }

    /// Rewrites the files so that removed records free their space.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn defragment(&self) -> Result<(), Error> {
        self.blocking(|shared| {
            for keyspace in [&shared.latest, &shared.log, &shared.versions] {
                keyspace.rotate_memtable_and_wait().map_err(storage)?;
                keyspace.major_compact().map_err(storage)?;
            }
            Ok(())
        })
        .await
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
            .map_err(storage)?
    }

    async fn command<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let mut command = make(reply);
        // The queue is bounded; a full one holds back its callers without blocking a runtime thread.
        loop {
            match self.commands.try_send(command) {
                Ok(()) => break,
                Err(std::sync::mpsc::TrySendError::Full(back)) => {
                    command = back;
                    tokio::task::yield_now().await;
                }
                Err(std::sync::mpsc::TrySendError::Disconnected(_)) => return Err(Error::Stopped),
            }
        }
        answer.await.map_err(|_| Error::Stopped)?
    }
}

impl Shared {
    fn check_format(&self, path: &str) -> Result<(), OpenError> {
        let fail = |source| OpenError::Database {
            path: path.to_owned(),
            source,
        };
        match self.meta.get("format").map_err(fail)? {
            Some(bytes) => match codec::read_u64(&bytes) {
                Some(FORMAT) => Ok(()),
                found => Err(OpenError::Format {
                    path: path.to_owned(),
                    found: found.unwrap_or_default(),
                }),
            },
            None => {
                self.meta
                    .insert("format", FORMAT.to_be_bytes())
                    .map_err(fail)?;
                self.database
                    .persist(fjall::PersistMode::SyncAll)
                    .map_err(fail)
            }
        }
    }

    /// The newest and the compacted revision. A fresh store is at revision 1, as etcd's is.
    fn revisions(&self) -> Result<(i64, i64), Error> {
        let read = |name: &str| -> Result<Option<i64>, Error> {
            let bytes = self.meta.get(name).map_err(storage)?;
            Ok(bytes
                .and_then(|b| codec::read_u64(&b))
                .and_then(|n| i64::try_from(n).ok()))
        };
        Ok((
            read("revision")?.unwrap_or(1),
            // Never compacted is before revision 0, which may be compacted once.
            read("compacted")?.unwrap_or(-1),
        ))
    }
}

fn storage(error: impl std::fmt::Display) -> Error {
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
        writer::check(&txn)?;
        self.command(|reply| Command::Txn { txn, reply }).await
    }

    async fn watch(&self, watch: Watch) -> Result<WatchStream, Error> {
        Ok(watch::start(self.shared.clone(), watch))
    }

    async fn compact(&self, revision: i64) -> Result<(), Error> {
        self.command(|reply| Command::Compact { revision, reply })
            .await?;
        self.blocking(move |shared| shared.drop_history(revision))
            .await
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
}

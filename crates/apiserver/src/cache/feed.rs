//! A store, and how far the caches are that it fills.

use std::time::Duration;

use fluyt_api::Error;
use fluyt_etcd::DynStore;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a consistent read waits for the cache to catch up.
const CATCH_UP: Duration = Duration::from_secs(3);

/// What fills the caches of some resources.
pub struct Feed {
    store: DynStore,
    /// The revision up to which every one of them is complete.
    applied: watch::Sender<i64>,
}

impl Feed {
    #[must_use]
    pub(super) fn new(store: DynStore) -> Self {
        Self {
            store,
            applied: watch::Sender::new(0),
        }
    }

    #[must_use]
    pub fn store(&self) -> &DynStore {
        &self.store
    }

    /// The revision up to which every cache is complete; 0 before the first load.
    #[must_use]
    pub fn applied(&self) -> i64 {
        *self.applied.borrow()
    }

    pub(super) fn apply(&self, revision: i64) {
        self.applied.send_replace(revision);
    }

    /// Waits until everything that was committed before this call is in the caches.
    ///
    /// # Errors
    /// When the store cannot tell, or the cache does not catch up in time.
    pub async fn consistent(&self) -> Result<i64, Error> {
        let revision = self.store.revision().await.map_err(Error::internal)?;
        self.wait_for(revision).await?;
        Ok(revision)
    }

    /// Waits until the caches are at least at `revision`.
    ///
    /// # Errors
    /// Timeout with the cause `ResourceVersionTooLarge`.
    pub async fn wait_for(&self, revision: i64) -> Result<(), Error> {
        if self.applied() >= revision {
            return Ok(());
        }
        let mut applied = self.applied.subscribe();
        let deadline = tokio::time::Instant::now() + CATCH_UP;
        while *applied.borrow_and_update() < revision {
            let changed = tokio::time::timeout_at(deadline, applied.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return Err(Error::too_large_resource_version(revision, self.applied()));
            }
        }
        Ok(())
    }

    /// Whether the store answers; and whether the caches keep up with it, once they have been filled.
    pub async fn is_healthy(&self) -> bool {
        if self.applied() == 0 {
            return self.store.revision().await.is_ok();
        }
        self.consistent().await.is_ok()
    }

    /// Waits until the caches have been filled for the first time, as long as that takes.
    ///
    /// # Errors
    /// When the store cannot be asked, or at shutdown.
    pub(super) async fn filled(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        self.store.revision().await.map_err(Error::internal)?;
        let mut applied = self.applied.subscribe();
        let filled = applied.wait_for(|revision| *revision > 0);
        tokio::select! {
            filled = filled => filled.map(drop).map_err(Error::internal),
            () = shutdown.cancelled() => Err(Error::internal("shutting down")),
        }
    }
}

//! Compaction of the store: history is kept for five to ten minutes, as upstream's API server keeps it.

use std::time::Duration;

use fluyt_etcd::{DynStore, Error};
use tokio_util::sync::CancellationToken;

/// Upstream's `--etcd-compaction-interval`.
pub const INTERVAL: Duration = Duration::from_secs(300);

/// Every interval, forgets what was history at the previous one.
pub async fn run(store: DynStore, interval: Duration, shutdown: CancellationToken) {
    if interval.is_zero() {
        return;
    }
    let mut previous = None;
    loop {
        if let Some(revision) = previous {
            match store.compact(revision).await {
                // Another server may have been faster, or nothing has been written meanwhile.
                Ok(()) | Err(Error::Compacted { .. }) => {}
                Err(error) => tracing::warn!(revision, %error, "cannot compact the store"),
            }
        }
        previous = store.revision().await.ok();
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use fluyt_etcd::embedded::Embedded;
    use fluyt_etcd::{Keys, Op, Put, Range, Store as _, Txn};

    #[tokio::test]
    async fn history_is_forgotten_an_interval_late() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(directory.path()).unwrap());
        let put = || Txn {
            success: vec![Op::Put(Put::new("a", "1"))],
            ..Txn::default()
        };
        let first = store.txn(put()).await.unwrap().revision;
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(
            store.clone(),
            Duration::from_millis(20),
            shutdown.clone(),
        ));
        let old = || Range {
            revision: first,
            ..Range::new(Keys::One("a".into()))
        };
        loop {
            store.txn(put()).await.unwrap();
            if matches!(store.range(old()).await, Err(Error::Compacted { .. })) {
                break;
            }
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
        task.await.unwrap();
    }
}

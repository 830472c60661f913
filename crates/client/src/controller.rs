//! The loop of every controller: keys in, `reconcile(key) -> Action`, retries with backoff.

use std::{
    fmt::{Debug, Display},
    hash::Hash,
    panic::AssertUnwindSafe,
    time::Duration,
};

use futures::{FutureExt, future::join_all};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::WorkQueue;

/// What to do with a key after a successful reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing until something changes.
    Await,
    /// Look again after this time at the latest.
    Requeue(Duration),
}

/// Run `workers` concurrent workers over `queue` until `shutdown`.
///
/// An error puts the key back with exponential backoff; a panic counts as an error, so one malformed object
/// can't stop a controller.
pub async fn run<T, F, Fut, E>(
    name: &'static str,
    queue: WorkQueue<T>,
    workers: usize,
    reconcile: F,
    shutdown: CancellationToken,
) where
    T: Eq + Hash + Clone + Debug + Send + Sync + 'static,
    F: Fn(T) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Action, E>> + Send,
    E: Display,
{
    let work = join_all((0..workers.max(1)).map(|_| worker(name, &queue, &reconcile)));
    tokio::select! {
        () = shutdown.cancelled() => queue.shut_down(),
        _ = work => {}
    }
}

async fn worker<T, F, Fut, E>(name: &'static str, queue: &WorkQueue<T>, reconcile: &F)
where
    T: Eq + Hash + Clone + Debug,
    F: Fn(T) -> Fut,
    Fut: Future<Output = Result<Action, E>>,
    E: Display,
{
    while let Some(key) = queue.get().await {
        let call = AssertUnwindSafe(async { reconcile(key.clone()).await });
        match call.catch_unwind().await {
            Ok(Ok(action)) => {
                queue.forget(&key);
                if let Action::Requeue(delay) = action {
                    queue.add_after(key.clone(), delay);
                }
            }
            Ok(Err(error)) => {
                let retries = queue.num_requeues(&key);
                if retries < 3 {
                    // Mostly lost update races, which the next try settles.
                    debug!(controller = name, ?key, retries, %error, "reconcile failed, will retry");
                } else {
                    warn!(controller = name, ?key, retries, %error, "reconcile keeps failing");
                }
                queue.add_rate_limited(key.clone());
            }
            Err(_) => {
                error!(controller = name, ?key, "reconcile panicked");
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    async fn run_until_third_call(outcome: impl Fn(u32) -> Result<Action, String> + Send + Sync) {
        let queue = WorkQueue::new();
        queue.add("key");
        let calls = Arc::new(AtomicU32::new(0));
        let shutdown = CancellationToken::new();
        let reconcile = |_key| {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            if call == 2 {
                shutdown.cancel();
            }
            let result = outcome(call);
            async move { result }
        };
        run("test", queue, 2, reconcile, shutdown.clone()).await;
        assert_eq!(calls.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn errors_are_retried() {
        run_until_third_call(|call| match call {
            0 | 1 => Err("conflict".to_owned()),
            _ => Ok(Action::Await),
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn panics_are_retried() {
        run_until_third_call(|call| match call {
            0 | 1 => panic!("malformed object"),
            _ => Ok(Action::Await),
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn requeue_comes_back() {
        run_until_third_call(|_| Ok(Action::Requeue(Duration::from_secs(60)))).await;
    }
}

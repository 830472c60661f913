//! Components as tasks of one process: each is started again when it ends, and none takes another down.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Restarts;

/// How long components may take to come to rest at shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// The components of a process.
pub struct Components {
    pub shutdown: CancellationToken,
    tasks: TaskTracker,
    running: Mutex<HashMap<&'static str, Arc<AtomicBool>>>,
}

// === impl Components ===

impl Components {
    #[must_use]
    pub fn new(shutdown: CancellationToken) -> Self {
        Self {
            shutdown,
            tasks: TaskTracker::new(),
            running: Mutex::default(),
        }
    }

    /// Set while the component of this name runs.
    pub fn running(&self, name: &'static str) -> Arc<AtomicBool> {
        self.running.lock().entry(name).or_default().clone()
    }

    /// Runs a component until shutdown, starting it again with growing waits when it ends, fails or panics.
    pub fn spawn<F>(
        &self,
        name: &'static str,
        mut run: impl FnMut(CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (shutdown, running) = (self.shutdown.clone(), self.running(name));
        self.tasks.spawn(async move {
            let mut restarts = Restarts::default();
            loop {
                restarts.started();
                // A child token: the tasks that a failed attempt left running end with it.
                let attempt = shutdown.child_token();
                running.store(true, Ordering::Relaxed);
                let ended = AssertUnwindSafe(run(attempt.clone())).catch_unwind().await;
                running.store(false, Ordering::Relaxed);
                attempt.cancel();
                if shutdown.is_cancelled() {
                    return;
                }
                match ended {
                    Ok(Ok(())) => tracing::warn!(component = name, "ended; starting it again"),
                    Ok(Err(error)) => tracing::error!(
                        component = name,
                        error = format!("{error:#}"),
                        "failed; starting it again"
                    ),
                    Err(_) => tracing::error!(component = name, "panicked; starting it again"),
                }
                tokio::select! {
                    () = tokio::time::sleep(restarts.delay()) => {}
                    () = shutdown.cancelled() => return,
                }
            }
        });
    }

    /// Resolves after shutdown, when all have come to rest or their time is up.
    pub async fn finished(&self) {
        self.shutdown.cancelled().await;
        self.tasks.close();
        if tokio::time::timeout(GRACE, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("components are still busy; leaving them");
        }
    }
}

/// Cancelled by SIGTERM or SIGINT.
///
/// # Errors
/// When the signals cannot be caught.
pub fn shutdown_on_signals() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let shutdown = CancellationToken::new();
    let cancel = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(shutdown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[tokio::test]
    async fn what_fails_or_panics_is_started_again() {
        let components = Components::new(CancellationToken::new());
        let starts = Arc::new(AtomicUsize::new(0));
        let (counted, shutdown) = (starts.clone(), components.shutdown.clone());
        let running = components.running("test");
        assert!(!running.load(Ordering::Relaxed));
        let runs = running.clone();
        components.spawn("test", move |_| {
            let start = counted.fetch_add(1, Ordering::SeqCst);
            let (shutdown, runs) = (shutdown.clone(), runs.clone());
            async move {
                assert!(runs.load(Ordering::Relaxed));
                match start {
                    0 => anyhow::bail!("no"),
                    1 => panic!("also no"),
                    _ => shutdown.cancel(),
                }
                Ok(())
            }
        });
        components.finished().await;
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        assert!(!running.load(Ordering::Relaxed));
    }
}

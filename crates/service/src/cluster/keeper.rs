//! Keeping one process running: adopted if it runs already, started if not, and started again when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backoff::Restarts;
use crate::process::Process;

/// What can be kept running.
#[async_trait]
pub trait Kept: Send + Sync + 'static {
    /// For the log.
    fn name(&self) -> String;
    /// Finds it if it runs already.
    async fn adopt(&self) -> anyhow::Result<Option<Process>>;
    /// Starts it; ready to be used when this returns.
    async fn start(&self) -> anyhow::Result<Process>;
    /// Ends it in order.
    async fn stop(&self, running: &Process) -> anyhow::Result<()>;
}

/// How it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    Starting,
    Running,
    /// Could not be started, this many times in a row.
    Failing {
        times: u32,
        error: String,
    },
}

/// Keeps one process running until told otherwise. Dropping it leaves the process as it is.
pub struct Keeper {
    status: watch::Receiver<Status>,
    stop: CancellationToken,
    kill: Arc<AtomicBool>,
    leave: CancellationToken,
    task: JoinHandle<()>,
}

// === impl Keeper ===

impl Keeper {
    #[must_use]
    pub fn start(kept: Arc<dyn Kept>) -> Self {
        let (sender, status) = watch::channel(Status::Starting);
        let (stop, leave) = (CancellationToken::new(), CancellationToken::new());
        let kill = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let (stop, leave, kill) = (stop.clone(), leave.clone(), kill.clone());
            async move {
                tokio::select! {
                    () = keep(kept.as_ref(), &sender, &stop, &kill) => {}
                    () = leave.cancelled() => {}
                }
            }
        });
        Self {
            status,
            stop,
            kill,
            leave,
            task,
        }
    }

    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Ends the process in order, and the keeping. May be called again if it was cut short.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        if !self.task.is_finished() {
            let _ = (&mut self.task).await;
        }
    }

    /// Ends the process at once, and the keeping.
    pub async fn kill(&mut self) {
        self.kill.store(true, Ordering::Release);
        self.stop().await;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.leave.cancel();
    }
}

async fn keep(
    kept: &dyn Kept,
    status: &watch::Sender<Status>,
    stop: &CancellationToken,
    kill: &AtomicBool,
) {
    let name = kept.name();
    let mut restarts = Restarts::default();
    let mut failures = 0;
    loop {
        restarts.started();
        let found = match kept.adopt().await {
            Ok(Some(process)) => {
                tracing::info!(name, pid = process.id().pid, "found it running");
                Ok(process)
            }
            // A start is never cut short: what it has half made would be nobody's.
            Ok(None) if !stop.is_cancelled() => kept.start().await,
            Ok(None) => return,
            Err(error) => Err(error),
        };
        match found {
            Ok(process) => {
                failures = 0;
                status.send_replace(Status::Running);
                tokio::select! {
                    () = process.ended() => tracing::warn!(name, pid = process.id().pid, "ended"),
                    () = stop.cancelled() => {
                        if kill.load(Ordering::Acquire) {
                            process.signal(Signal::KILL);
                            process.ended().await;
                        } else if let Err(error) = kept.stop(&process).await {
                            tracing::error!(name, error = format!("{error:#}"), "could not be stopped");
                        }
                        return;
                    }
                }
                status.send_replace(Status::Starting);
            }
            Err(error) => {
                failures += 1;
                let error = format!("{error:#}");
                tracing::error!(name, error, "could not be started");
                status.send_replace(Status::Failing {
                    times: failures,
                    error,
                });
            }
        }
        tokio::select! {
            () = tokio::time::sleep(restarts.delay()) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::ProcessId;
    use std::sync::Mutex;
    use std::time::Duration;

    struct Sleep(Mutex<Vec<std::process::Child>>);

    #[async_trait]
    impl Kept for Sleep {
        fn name(&self) -> String {
            "sleep".into()
        }
        async fn adopt(&self) -> anyhow::Result<Option<Process>> {
            Ok(None)
        }
        async fn start(&self) -> anyhow::Result<Process> {
            let child = std::process::Command::new("sleep").arg("100").spawn()?;
            let process = ProcessId::of(child.id().cast_signed())?.open()?.unwrap();
            self.0.lock().unwrap().push(child);
            Ok(process)
        }
        async fn stop(&self, running: &Process) -> anyhow::Result<()> {
            running.stop(Duration::from_secs(5)).await;
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_dies_is_started_again_until_stopped() {
        let kept = Arc::new(Sleep(Mutex::default()));
        let mut keeper = Keeper::start(kept.clone());
        let mut status = keeper.status();
        status.wait_for(|s| *s == Status::Running).await.unwrap();
        let first = kept.0.lock().unwrap()[0].id();
        ProcessId::of(first.cast_signed())
            .unwrap()
            .open()
            .unwrap()
            .unwrap()
            .signal(Signal::KILL);
        status.wait_for(|s| *s == Status::Starting).await.unwrap();
        status.wait_for(|s| *s == Status::Running).await.unwrap();
        keeper.stop().await;
        let mut children = kept.0.lock().unwrap();
        assert_eq!(children.len(), 2);
        for child in children.iter_mut() {
            assert!(!child.wait().unwrap().success());
        }
    }
}

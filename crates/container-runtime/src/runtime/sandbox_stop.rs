//! StopPodSandbox.

use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Error, Result, Runtime, Sandbox};
use crate::shim::protocol::Operation;

impl Runtime {
    /// Ends the sandbox's containers, its network and its namespaces. A missing sandbox is fine.
    pub async fn stop_pod_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        let _turn = sandbox.turn.lock().await;
        self.stop(&sandbox).await
    }

    /// As [`Self::stop_pod_sandbox`], with the sandbox's turn.
    pub(super) async fn stop(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<()> {
        for container in self.containers_of(&sandbox.id) {
            // What should have had time to end well was stopped by the kubelet before.
            self.stop_container(&container.id, 0).await?;
        }
        let record = sandbox.record();
        if !record.is_host_network() {
            self.network.remove(&sandbox.id).await?;
        }
        if record.ready {
            sandbox.update(|record| record.ready = false)?;
        }
        self.end_shim(sandbox, record.shim_pid).await
    }

    async fn end_shim(&self, sandbox: &Sandbox, pid: i32) -> Result<()> {
        if let Ok(shim) = sandbox.shim() {
            match shim.call(Operation::Shutdown, &[]).await {
                Ok(_) => {
                    sandbox.set_shim(None);
                    return Ok(());
                }
                Err(error) => tracing::warn!(sandbox = sandbox.id, error, "shutting a shim down"),
            }
        }
        if pid > 0 && is_shim_of(pid, sandbox) {
            kill(Pid::from_raw(pid), Signal::SIGKILL)
                .map_err(|error| Error::internal("killing the sandbox's shim", error))?;
        }
        sandbox.set_shim(None);
        Ok(())
    }
}

/// Whether the process is the sandbox's shim, and not another that got its number after a reboot.
fn is_shim_of(pid: i32, sandbox: &Sandbox) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| String::from_utf8_lossy(&line).contains(sandbox.id.as_str()))
}

//! RemovePodSandbox.

use std::sync::Arc;

use nix::mount::{MntFlags, umount2};

use super::{Error, Result, Runtime};

impl Runtime {
    /// Removes a sandbox with all its containers. A missing one is fine.
    pub async fn remove_pod_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        let _turn = sandbox.turn.lock().await;
        self.stop(&sandbox).await?;
        for container in self.containers_of(&sandbox.id) {
            self.remove_container(&container.id).await?;
        }
        let _ = umount2(&sandbox.files().shm, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(sandbox.socket(&self.options.state));
        match std::fs::remove_dir_all(&sandbox.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::internal("removing the sandbox's files", error));
            }
            _ => {}
        }
        self.sandboxes.lock().remove(&sandbox.id);
        Ok(())
    }
}

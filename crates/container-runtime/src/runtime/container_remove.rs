//! RemoveContainer.

use std::sync::Arc;

use k8s_cri::v1 as cri;

use super::{Result, Runtime};
use crate::shim::protocol::Operation;

impl Runtime {
    /// Removes a container, ending it first if it runs. A missing one is fine.
    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        let _turn = container.turn.lock().await;
        if self.container(&container.id).is_err() {
            return Ok(());
        }
        self.stop_container(&container.id, 0).await?;
        if let Ok(shim) = container.sandbox.shim() {
            let operation = Operation::Delete {
                container: container.id.clone(),
            };
            if let Err(error) = shim.call(operation, &[]).await {
                tracing::warn!(container = container.id, error, "deleting a container");
            }
        }
        // What the shim could not remove while processes were dying, or a shim that is gone left.
        let _ = crate::cgroup::Cgroup::at(&container.record().cgroup).remove();
        self.publish(&container, cri::ContainerEventType::ContainerDeletedEvent);
        self.containers.lock().remove(&container.id);
        self.clean_up(&container.sandbox, &container.id);
        Ok(())
    }
}

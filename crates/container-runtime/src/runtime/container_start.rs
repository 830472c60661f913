//! StartContainer.

use std::sync::Arc;

use k8s_cri::v1 as cri;

use super::container::Phase;
use super::{Error, Result, Runtime, now};
use crate::shim::protocol::{Exit, Operation};

impl Runtime {
    /// Starts a created container. Returns once its program runs.
    pub async fn start_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.container(id)?;
        if container.phase() != Phase::Created {
            return Err(Error::FailedPrecondition(format!(
                "container {} is in {:?} state",
                container.id,
                container.phase()
            )));
        }
        let shim = container.sandbox.shim()?;
        // Before it runs, so that it can't end before it started.
        let started_at = now();
        let operation = Operation::Start {
            container: container.id.clone(),
        };
        match shim.call(operation, &[]).await {
            Ok(_) => {
                container.update(|record| {
                    record.started_at = started_at;
                    if record.phase == Phase::Created {
                        record.phase = Phase::Running;
                    }
                })?;
                self.publish(&container, cri::ContainerEventType::ContainerStartedEvent);
                Ok(())
            }
            Err(error) => {
                let exit = Exit {
                    code: 128,
                    finished_at: now(),
                    out_of_memory: false,
                    start_error: Some(error.clone()),
                };
                container.update(|record| record.started_at = started_at)?;
                if container.set_exited(&exit)? {
                    self.publish(&container, cri::ContainerEventType::ContainerStoppedEvent);
                }
                Err(Error::Internal(format!(
                    "failed to start container: {error}"
                )))
            }
        }
    }
}

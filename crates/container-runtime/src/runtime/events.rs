//! News of containers: from their shims, and to whoever follows GetContainerEvents.

use std::sync::Arc;

use k8s_cri::v1 as cri;
use tokio::sync::{broadcast, mpsc};

use super::container::{Container, Phase};
use super::{Runtime, Sandbox, now};
use crate::shim::client::Event;
use crate::shim::protocol::Exit;

impl Runtime {
    pub fn subscribe(&self) -> broadcast::Receiver<cri::ContainerEventResponse> {
        self.events.subscribe()
    }

    pub(super) fn publish(&self, container: &Container, kind: cri::ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let statuses = self
            .containers_of(&container.sandbox.id)
            .iter()
            .map(|container| container.status())
            .collect();
        // Without a listener there is nobody to miss it.
        let _ = self.events.send(cri::ContainerEventResponse {
            container_id: container.id.clone(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: Some(container.sandbox.status()),
            containers_statuses: statuses,
        });
    }

    /// Takes note of what a shim tells, until it is gone.
    pub(super) async fn follow_shim(
        self: Arc<Self>,
        sandbox: Arc<Sandbox>,
        mut events: mpsc::UnboundedReceiver<Event>,
    ) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Exited { container, exit } => {
                    if let Ok(container) = self.container(&container) {
                        self.exited(&container, &exit);
                    }
                }
                Event::Gone => {
                    sandbox.set_shim(None);
                    self.shim_gone(&sandbox);
                }
            }
        }
    }

    pub(super) fn exited(&self, container: &Container, exit: &Exit) {
        match container.set_exited(exit) {
            Ok(true) => self.publish(container, cri::ContainerEventType::ContainerStoppedEvent),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(container = container.id, %error, "recording a container's exit");
            }
        }
    }

    /// A shim's end, wanted or not, is the end of its sandbox. What it recorded of exits counts; other containers
    /// lost their parent and are ended.
    pub(super) fn shim_gone(&self, sandbox: &Sandbox) {
        for container in self.containers_of(&sandbox.id) {
            if container.phase() == Phase::Exited {
                continue;
            }
            let exit = self.recorded_exit(&container).unwrap_or_else(|| {
                let cgroup = crate::cgroup::Cgroup::at(&container.record().cgroup);
                cgroup.signal(nix::sys::signal::Signal::SIGKILL);
                Exit {
                    code: 255,
                    finished_at: now(),
                    out_of_memory: false,
                    start_error: None,
                }
            });
            self.exited(&container, &exit);
        }
        if sandbox.is_ready()
            && let Err(error) = sandbox.update(|record| record.ready = false)
        {
            tracing::error!(sandbox = sandbox.id, %error, "recording a sandbox's end");
        }
    }

    /// The exit that a container's shim kept on disk.
    pub(super) fn recorded_exit(&self, container: &Container) -> Option<Exit> {
        let path = container.sandbox.exits().join(&container.id);
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }
}

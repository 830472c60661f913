//! Finding again what a former process of the runtime left running.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_cri::v1 as cri;

use super::container::{Container, Phase};
use super::{Result, Runtime, Sandbox, now};
use crate::shim::protocol::{Answer, ContainerState, Operation};

impl Runtime {
    /// Reads all sandboxes and containers, connects to the shims that live, and learns what happened meanwhile.
    pub async fn recover(self: &Arc<Self>) -> Result<()> {
        for directory in directories(&self.options.root.join("sandboxes")) {
            match Sandbox::load(directory.clone()) {
                Ok(sandbox) => self.recover_sandbox(Arc::new(sandbox)).await,
                Err(error) => {
                    // A crash before its record was written: nothing runs in it.
                    tracing::warn!(%error, "removing an incomplete sandbox");
                    let _ = nix::mount::umount2(
                        &directory.join("shm"),
                        nix::mount::MntFlags::MNT_DETACH,
                    );
                    let _ = std::fs::remove_dir_all(&directory);
                }
            }
        }
        let live: HashSet<String> = self
            .sandboxes()
            .iter()
            .filter(|sandbox| sandbox.is_ready())
            .map(|sandbox| sandbox.id.clone())
            .collect();
        self.network.reconcile(&live).await?;
        Ok(())
    }

    async fn recover_sandbox(self: &Arc<Self>, sandbox: Arc<Sandbox>) {
        self.sandboxes
            .lock()
            .insert(sandbox.id.clone(), Arc::clone(&sandbox));
        for directory in directories(&sandbox.directory.join("containers")) {
            match Container::load(Arc::clone(&sandbox), directory.clone()) {
                Ok(container) => {
                    self.containers
                        .lock()
                        .insert(container.id.clone(), Arc::new(container));
                }
                Err(error) => {
                    tracing::warn!(%error, "removing an incomplete container");
                    let _ = std::fs::remove_dir_all(&directory);
                }
            }
        }
        let states = match self.connect_shim(&sandbox) {
            Ok(()) => self.states(&sandbox).await,
            Err(error) => {
                tracing::info!(sandbox = sandbox.id, %error, "the sandbox's shim is gone");
                None
            }
        };
        match states {
            Some(states) => {
                for container in self.containers_of(&sandbox.id) {
                    self.recover_container(&container, &states);
                }
                if !sandbox.is_ready() {
                    // It was being made or removed. Whoever wanted that will ask again; until then it is stopped.
                    if let Err(error) = self.stop_pod_sandbox(&sandbox.id).await {
                        tracing::warn!(sandbox = sandbox.id, %error, "stopping a sandbox");
                    }
                }
            }
            None => self.shim_gone(&sandbox),
        }
    }

    async fn states(&self, sandbox: &Sandbox) -> Option<Vec<ContainerState>> {
        match sandbox.shim().ok()?.call(Operation::State, &[]).await {
            Ok(reply) => match reply.answer {
                Answer::State { containers, .. } => Some(containers),
                _ => None,
            },
            Err(error) => {
                tracing::warn!(sandbox = sandbox.id, error, "asking a shim for its state");
                None
            }
        }
    }

    fn recover_container(&self, container: &Container, states: &[ContainerState]) {
        let state = states.iter().find(|state| state.container == container.id);
        let result = match state {
            Some(state) => match &state.exit {
                Some(exit) => {
                    self.exited(container, exit);
                    Ok(())
                }
                None => container.update(|record| {
                    record.pid = state.pid;
                    if state.started && record.phase == Phase::Created {
                        record.phase = Phase::Running;
                        record.started_at = now();
                    }
                }),
            },
            // Its creation was cut short, or it exited and the shim was told to forget it.
            None if container.phase() != Phase::Exited => {
                let exit = self
                    .recorded_exit(container)
                    .unwrap_or(crate::shim::protocol::Exit {
                        code: 255,
                        finished_at: now(),
                        out_of_memory: false,
                        start_error: Some("the container was not created".to_owned()),
                    });
                self.exited(container, &exit);
                Ok(())
            }
            None => Ok(()),
        };
        if let Err(error) = result {
            tracing::warn!(container = container.id, %error, "recovering a container");
        }
        if container.phase() == Phase::Running {
            self.publish(container, cri::ContainerEventType::ContainerStartedEvent);
        }
    }
}

fn directories(path: &std::path::Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

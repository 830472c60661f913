//! A pod as the runtime has it: its sandboxes and containers, newest first.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_cri::v1 as cri;
use parking_lot::Mutex;

use super::labels;
use crate::cri::{Cri, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

impl State {
    pub fn of(state: cri::ContainerState) -> Self {
        match state {
            cri::ContainerState::ContainerCreated => State::Created,
            cri::ContainerState::ContainerRunning => State::Running,
            cri::ContainerState::ContainerExited => State::Exited,
            cri::ContainerState::ContainerUnknown => State::Unknown,
        }
    }
}

/// One container the runtime knows.
#[derive(Clone, Debug)]
pub struct RuntimeContainer {
    pub id: String,
    pub name: String,
    pub sandbox_id: String,
    pub state: State,
    pub created_at: i64,
    pub status: Arc<cri::ContainerStatus>,
}

/// One sandbox the runtime knows.
#[derive(Clone, Debug)]
pub struct RuntimeSandbox {
    pub id: String,
    pub ready: bool,
    pub attempt: u32,
    pub host_network: bool,
    pub ips: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct RuntimePod {
    /// Newest first.
    pub sandboxes: Vec<RuntimeSandbox>,
    /// Newest first.
    pub containers: Vec<RuntimeContainer>,
}

impl RuntimeContainer {
    pub fn exit_code(&self) -> i32 {
        self.status.exit_code
    }

    pub fn finished_at(&self) -> Timestamp {
        timestamp(self.status.finished_at)
    }

    pub fn hash(&self) -> Option<&str> {
        self.annotation(labels::CONTAINER_HASH)
    }

    pub fn restart_count(&self) -> u32 {
        self.annotation(labels::RESTART_COUNT)
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| self.status.metadata.as_ref().map_or(0, |meta| meta.attempt))
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.status.annotations.get(key).map(String::as_str)
    }
}

impl RuntimePod {
    /// The newest instance of a container.
    pub fn latest(&self, name: &str) -> Option<&RuntimeContainer> {
        self.containers
            .iter()
            .find(|container| container.name == name)
    }

    /// The sandbox its containers run in now, if it is ready.
    pub fn ready_sandbox(&self) -> Option<&RuntimeSandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    pub fn running(&self) -> impl Iterator<Item = &RuntimeContainer> {
        self.containers
            .iter()
            .filter(|container| matches!(container.state, State::Running | State::Unknown))
    }

    pub fn anything_alive(&self) -> bool {
        self.running().next().is_some() || self.sandboxes.iter().any(|sandbox| sandbox.ready)
    }
}

/// A CRI time in nanoseconds.
pub fn timestamp(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Reads pods from the runtime. The status of an exited container never changes, so it is asked for once.
#[derive(Default)]
pub struct Inspector {
    exited: Mutex<HashMap<String, Arc<cri::ContainerStatus>>>,
}

impl Inspector {
    pub async fn inspect(&self, cri: &Cri, uid: &str) -> Result<RuntimePod> {
        let by_uid = HashMap::from([(labels::POD_UID.to_string(), uid.to_string())]);
        let sandboxes = cri.list_pod_sandbox(cri::ListPodSandboxRequest {
            filter: Some(cri::PodSandboxFilter {
                label_selector: by_uid.clone(),
                ..Default::default()
            }),
        });
        let containers = cri.list_containers(cri::ListContainersRequest {
            filter: Some(cri::ContainerFilter {
                label_selector: by_uid,
                ..Default::default()
            }),
        });
        let (sandboxes, containers) = futures::try_join!(sandboxes, containers)?;
        let sandboxes = self.sandboxes(cri, sandboxes.items);
        let containers = try_join_all(
            containers
                .containers
                .into_iter()
                .map(|container| self.container(cri, container)),
        );
        let (mut sandboxes, containers) = futures::try_join!(sandboxes, containers)?;
        sandboxes.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
        let mut containers: Vec<_> = containers.into_iter().flatten().collect();
        containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        Ok(RuntimePod {
            sandboxes: sandboxes.into_iter().map(|(_, sandbox)| sandbox).collect(),
            containers,
        })
    }

    async fn sandboxes(
        &self,
        cri: &Cri,
        listed: Vec<cri::PodSandbox>,
    ) -> Result<Vec<(i64, RuntimeSandbox)>> {
        let mut sandboxes = Vec::with_capacity(listed.len());
        for item in listed {
            let answer = cri
                .pod_sandbox_status(cri::PodSandboxStatusRequest {
                    pod_sandbox_id: item.id.clone(),
                    verbose: false,
                })
                .await;
            let status = match answer {
                Ok(answer) => answer.status.unwrap_or_default(),
                // Removed since it was listed.
                Err(error) if error.code() == tonic::Code::NotFound => continue,
                Err(error) => return Err(error),
            };
            sandboxes.push((item.created_at, sandbox(status)));
        }
        Ok(sandboxes)
    }

    async fn container(
        &self,
        cri: &Cri,
        listed: cri::Container,
    ) -> Result<Option<RuntimeContainer>> {
        let known = self.exited.lock().get(&listed.id).cloned();
        let status = match known {
            Some(status) => status,
            None => {
                let answer = cri
                    .container_status(cri::ContainerStatusRequest {
                        container_id: listed.id.clone(),
                        verbose: false,
                    })
                    .await;
                match answer {
                    Ok(answer) => Arc::new(answer.status.unwrap_or_default()),
                    Err(error) if error.code() == tonic::Code::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
        };
        let state = State::of(status.state());
        if state == State::Exited {
            self.exited.lock().insert(listed.id.clone(), status.clone());
        }
        let name = listed.labels.get(labels::CONTAINER_NAME).cloned();
        let name = name.or_else(|| listed.metadata.map(|meta| meta.name));
        Ok(Some(RuntimeContainer {
            id: listed.id,
            name: name.unwrap_or_default(),
            sandbox_id: listed.pod_sandbox_id,
            state,
            created_at: listed.created_at,
            status,
        }))
    }

    /// A container was removed from the runtime.
    pub fn forget(&self, container_id: &str) {
        self.exited.lock().remove(container_id);
    }
}

fn sandbox(status: cri::PodSandboxStatus) -> RuntimeSandbox {
    let host_network = status
        .linux
        .as_ref()
        .and_then(|linux| linux.namespaces.as_ref())
        .and_then(|namespaces| namespaces.options.as_ref())
        .is_some_and(|options| options.network() == cri::NamespaceMode::Node);
    let ready = status.state() == cri::PodSandboxState::SandboxReady;
    let network = status.network.unwrap_or_default();
    let ips = std::iter::once(network.ip)
        .chain(network.additional_ips.into_iter().map(|ip| ip.ip))
        .filter(|ip| !ip.is_empty())
        .collect();
    RuntimeSandbox {
        id: status.id,
        ready,
        attempt: status.metadata.map_or(0, |meta| meta.attempt),
        host_network,
        ips,
    }
}

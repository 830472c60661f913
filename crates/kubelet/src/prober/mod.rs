//! Startup, liveness and readiness probes: a task per probe of each running container instance, and what they found.

pub mod grpc;
pub mod http;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;

use fluyt_client::Recorder;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::cri::Cri;
use crate::kuberuntime::actions::Probes;
use crate::kuberuntime::runtime_pod::{RuntimePod, State};
use crate::pod::{Kind as ContainerKind, PodExt, is_sidecar};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// What is known of one container instance.
struct Instance {
    pod_uid: String,
    liveness: Option<bool>,
    readiness: Option<bool>,
    startup: watch::Sender<Option<bool>>,
    tasks: Vec<(ProbeKind, JoinHandle<()>)>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        for (_, task) in &self.tasks {
            task.abort();
        }
    }
}

/// All probes of this node. A pod's uid goes to `changed` when one of its probes changes its mind.
pub struct ProbeManager {
    cri: Cri,
    recorder: Recorder,
    changed: mpsc::UnboundedSender<String>,
    instances: Mutex<HashMap<String, Instance>>,
}

impl ProbeManager {
    pub fn new(cri: Cri, recorder: Recorder, changed: mpsc::UnboundedSender<String>) -> Arc<Self> {
        Arc::new(ProbeManager {
            cri,
            recorder,
            changed,
            instances: Mutex::default(),
        })
    }

    /// Probes every running instance of the pod and no other.
    pub fn sync(self: &Arc<Self>, pod: &Pod, runtime: &RuntimePod, ip: Option<&String>) {
        let mut instances = self.instances.lock();
        let alive: Vec<&str> = runtime
            .containers
            .iter()
            .filter(|container| container.state == State::Running)
            .map(|container| container.id.as_str())
            .collect();
        instances
            .retain(|id, instance| instance.pod_uid != pod.uid() || alive.contains(&id.as_str()));
        let probed = pod
            .spec()
            .containers
            .iter()
            .map(|container| (ContainerKind::Main, container))
            .chain(
                pod.init_containers()
                    .iter()
                    .filter(|container| is_sidecar(container))
                    .map(|container| (ContainerKind::Init, container)),
            );
        for (kind, container) in probed {
            let Some(running) = runtime.latest(&container.name) else {
                continue;
            };
            let id = &running.id;
            if running.state != State::Running || instances.contains_key(id) {
                continue;
            }
            // After a restart of the kubelet a container is what it was before.
            let (ready, started) = reported(pod, &container.name, id);
            let mut instance = Instance {
                pod_uid: pod.uid().to_string(),
                liveness: None,
                readiness: container.readiness_probe.as_ref().map(|_| ready),
                startup: watch::Sender::new(
                    (container.startup_probe.is_none() || started).then_some(true),
                ),
                tasks: Vec::new(),
            };
            for probe_kind in [
                ProbeKind::Startup,
                ProbeKind::Liveness,
                ProbeKind::Readiness,
            ] {
                let Some(probe) = probe_kind.of(container) else {
                    continue;
                };
                if probe_kind == ProbeKind::Startup && started {
                    continue;
                }
                let worker = worker::Worker {
                    manager: Arc::downgrade(self),
                    cri: self.cri.clone(),
                    recorder: self.recorder.clone(),
                    reference: pod.container_reference(kind, &container.name),
                    kind: probe_kind,
                    probe: probe.clone(),
                    container: container.clone(),
                    container_id: id.clone(),
                    ip: ip.cloned(),
                    started_at: running.status.started_at,
                    startup: instance.startup.subscribe(),
                };
                instance
                    .tasks
                    .push((probe_kind, tokio::spawn(worker.run())));
            }
            instances.insert(id.clone(), instance);
        }
    }

    /// The pod is on its way out: only its readiness still matters.
    pub fn stop_liveness_and_startup(&self, uid: &str) {
        for instance in self.instances.lock().values_mut() {
            if instance.pod_uid == uid {
                for (kind, task) in &instance.tasks {
                    if *kind != ProbeKind::Readiness {
                        task.abort();
                    }
                }
            }
        }
    }

    /// Ends all probes.
    pub fn stop(&self) {
        self.instances.lock().clear();
    }

    pub fn remove(&self, uid: &str) {
        self.instances
            .lock()
            .retain(|_, instance| instance.pod_uid != uid);
    }

    /// Whether traffic may go to the container: what its probe says, or that it has started.
    pub fn is_ready(&self, container: &Container, id: &str) -> bool {
        let instances = self.instances.lock();
        let Some(instance) = instances.get(id) else {
            return container.readiness_probe.is_none() && container.startup_probe.is_none();
        };
        let started = *instance.startup.borrow() == Some(true);
        started && instance.readiness.unwrap_or(true)
    }

    fn set(&self, container_id: &str, kind: ProbeKind, healthy: bool) {
        let mut instances = self.instances.lock();
        let Some(instance) = instances.get_mut(container_id) else {
            return;
        };
        let before = match kind {
            ProbeKind::Startup => instance.startup.send_replace(Some(healthy)),
            ProbeKind::Liveness => instance.liveness.replace(healthy),
            ProbeKind::Readiness => instance.readiness.replace(healthy),
        };
        if before != Some(healthy) {
            // Nobody listens any more only at shutdown.
            let _ = self.changed.send(instance.pod_uid.clone());
        }
    }
}

impl Probes for ProbeManager {
    fn liveness(&self, container_id: &str) -> Option<bool> {
        self.instances.lock().get(container_id)?.liveness
    }

    fn startup(&self, container_id: &str) -> Option<bool> {
        *self.instances.lock().get(container_id)?.startup.borrow()
    }
}

/// Ready and started, as the API has them for this very instance.
fn reported(pod: &Pod, name: &str, id: &str) -> (bool, bool) {
    let status = pod.status();
    status
        .container_statuses
        .iter()
        .flatten()
        .chain(status.init_container_statuses.iter().flatten())
        .find(|status| {
            status.name == name
                && status
                    .container_id
                    .as_deref()
                    .is_some_and(|known| known.ends_with(id))
        })
        .map_or((false, false), |status| {
            (status.ready, status.started == Some(true))
        })
}

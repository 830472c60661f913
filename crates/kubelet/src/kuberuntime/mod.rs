//! From a pod's spec to sandboxes and containers, through CRI.

pub mod actions;
pub mod container;
pub mod kill;
pub mod labels;
pub mod lifecycle;
pub mod resize;
pub mod restart_all;
pub mod runtime_pod;
pub mod sandbox;
pub mod security_context;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use fluyt_client::EventType;
use fluyt_volumes::Mounted;
use jiff::Timestamp;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::backoff::go_duration;
use crate::kubelet::Kubelet;
use crate::pod::{Kind, PodExt};
use actions::{Actions, Start};
use container::{Place, StartError};
use runtime_pod::{RuntimePod, State};

/// How one attempt to bring a pod up went: what each container that doesn't run is waiting for.
#[derive(Debug, Default)]
pub struct SyncResult {
    pub waiting: HashMap<String, StartError>,
    /// Something else failed; look at the pod again after this long.
    pub retry: Option<Duration>,
    /// The sandbox can't be made.
    pub sandbox_error: Option<String>,
}

impl SyncResult {
    fn retry_in(&mut self, delay: Duration) {
        self.retry = Some(self.retry.map_or(delay, |known| known.min(delay)));
    }

    fn failed(delay: Duration) -> Self {
        SyncResult {
            retry: Some(delay),
            ..SyncResult::default()
        }
    }
}

/// Carries `actions` out.
pub async fn sync(
    kubelet: &Kubelet,
    pod: &Pod,
    runtime: &RuntimePod,
    actions: &Actions,
    volumes: &BTreeMap<String, Mounted>,
) -> SyncResult {
    let mut result = SyncResult::default();
    if actions.kill_pod {
        if runtime.anything_alive()
            && let Err(error) = kill::pod(kubelet, pod, runtime, pod.grace_period()).await
        {
            failed_kill(kubelet, pod, &error);
            return SyncResult::failed(crate::object_cache::RETRY);
        }
        // A sidecar whose main containers have ended, or a pod that is to begin anew.
        if !actions.create_sandbox {
            return result;
        }
    }
    for kill in &actions.kill {
        let grace = kill::grace_for(pod, &kill.name, kill.reason);
        let known = runtime
            .containers
            .iter()
            .find(|container| container.id == kill.id);
        if let Err(error) = kill::container(
            kubelet,
            pod,
            &kill.id,
            &kill.name,
            known,
            &kill.message,
            grace,
        )
        .await
        {
            failed_kill(kubelet, pod, &error);
            return SyncResult::failed(crate::object_cache::RETRY);
        }
    }
    if actions.start.is_empty() && !actions.create_sandbox {
        return result;
    }
    let sandbox = match place(kubelet, pod, runtime, actions).await {
        Ok(sandbox) => sandbox,
        Err(why) => {
            let message = format!("Failed to create pod sandbox: {why}");
            let reference = pod.object_reference();
            kubelet.recorder.event(
                &reference,
                EventType::Warning,
                "FailedCreatePodSandBox",
                message,
            );
            result.sandbox_error = Some(why);
            result.retry_in(Duration::from_secs(1));
            return result;
        }
    };
    for start in &actions.start {
        let container = spec_of(pod, *start);
        let Some(container) = container else { continue };
        match start_one(kubelet, pod, runtime, &container, *start, &sandbox, volumes).await {
            Ok(()) => {}
            Err(error) => {
                if let Some(delay) = error.retry {
                    result.retry_in(delay);
                }
                result.waiting.insert(container.name.clone(), error);
            }
        }
    }
    result
}

struct Sandbox {
    id: String,
    config: cri::PodSandboxConfig,
    ips: Vec<String>,
}

/// The sandbox that containers go into: a new one, or the one that is there.
async fn place(
    kubelet: &Kubelet,
    pod: &Pod,
    runtime: &RuntimePod,
    actions: &Actions,
) -> Result<Sandbox, String> {
    if !actions.create_sandbox {
        let ready = runtime.ready_sandbox().ok_or("the sandbox is gone")?;
        return Ok(Sandbox {
            id: ready.id.clone(),
            config: sandbox::config(kubelet, pod, ready.attempt),
            ips: kubelet.pod_ips(pod, &ready.ips),
        });
    }
    let (id, config) = sandbox::create(kubelet, pod, actions.attempt).await?;
    let answer = kubelet
        .cri
        .pod_sandbox_status(cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.clone(),
            verbose: false,
        })
        .await
        .map_err(|error| error.message().to_string())?;
    let network = answer
        .status
        .and_then(|status| status.network)
        .unwrap_or_default();
    let own: Vec<String> = std::iter::once(network.ip)
        .chain(network.additional_ips.into_iter().map(|ip| ip.ip))
        .filter(|ip| !ip.is_empty())
        .collect();
    let ips = kubelet.pod_ips(pod, &own);
    kubelet.status.sandbox_ready(pod, &ips);
    Ok(Sandbox { id, config, ips })
}

fn spec_of(pod: &Pod, start: Start) -> Option<Container> {
    match start.kind {
        Kind::Main => pod.spec().containers.get(start.index).cloned(),
        Kind::Init => pod.init_containers().get(start.index).cloned(),
        Kind::Ephemeral => pod.ephemeral_containers().into_iter().nth(start.index),
    }
}

async fn start_one(
    kubelet: &Kubelet,
    pod: &Pod,
    runtime: &RuntimePod,
    container: &Container,
    start: Start,
    sandbox: &Sandbox,
    volumes: &BTreeMap<String, Mounted>,
) -> Result<(), StartError> {
    let latest = runtime.latest(&container.name);
    let key = format!("{}_{}", pod.uid(), container.name);
    if let Some(ended) = latest.filter(|container| container.state == State::Exited) {
        let now = Timestamp::now();
        let failed_at = ended.finished_at();
        if let Some(wait) = kubelet.restart_backoff.remaining(&key, failed_at, now) {
            let delay = go_duration(wait.delay);
            let reference = pod.container_reference(start.kind, &container.name);
            let message = format!(
                "Back-off restarting failed container {} in pod {}",
                container.name,
                pod.event_name()
            );
            kubelet
                .recorder
                .event(&reference, EventType::Warning, "BackOff", message);
            return Err(StartError {
                reason: "CrashLoopBackOff".into(),
                message: format!(
                    "back-off {delay} restarting failed container={} pod={}",
                    container.name,
                    pod.event_name()
                ),
                retry: Some(wait.remaining),
            });
        }
        kubelet.restart_backoff.next(&key, failed_at, now);
    }
    let target_id = pod
        .spec()
        .ephemeral_containers
        .iter()
        .flatten()
        .filter(|_| start.kind == Kind::Ephemeral)
        .find(|ephemeral| ephemeral.name == container.name)
        .and_then(|ephemeral| ephemeral.target_container_name.as_deref())
        .and_then(|name| runtime.latest(name))
        .map(|target| target.id.clone());
    let place = Place {
        sandbox_id: &sandbox.id,
        sandbox_config: &sandbox.config,
        ips: &sandbox.ips,
        volumes,
        kind: start.kind,
        restart_count: restart_count(kubelet, pod, runtime, &container.name),
        target_id,
    };
    container::start(kubelet, pod, container, place)
        .await
        .map(drop)
}

/// The number of the next instance: one more than the last one's, wherever that is still known.
fn restart_count(kubelet: &Kubelet, pod: &Pod, runtime: &RuntimePod, name: &str) -> u32 {
    if let Some(latest) = runtime.latest(name) {
        return latest.restart_count() + 1;
    }
    // The runtime lost it, or it was removed: its logs are still numbered, and the status counts.
    let status = kubelet.status.current(pod);
    let init = status.init_container_statuses.iter().flatten();
    let mut all = init.chain(status.container_statuses.iter().flatten());
    let told = all
        .find(|own| own.name == name)
        .map(|own| own.restart_count);
    let told = told.and_then(|count| u32::try_from(count).ok());
    let dir = sandbox::log_directory(kubelet, pod).join(name);
    let logs = std::fs::read_dir(dir).into_iter().flatten().flatten();
    logs.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.split('.').next()?.parse::<u32>().ok()
    })
    .max()
    .map_or(0, |last| last + 1)
    .max(told.unwrap_or(0))
}

/// Tells that a pod's containers do not end.
pub fn failed_kill(kubelet: &Kubelet, pod: &Pod, error: &tonic::Status) {
    let reference = pod.object_reference();
    let message = format!("error killing pod: {}", error.message());
    kubelet
        .recorder
        .event(&reference, EventType::Warning, "FailedKillPod", message);
}

/// The name of the container that `start` means.
pub fn name_of(pod: &Pod, start: Start) -> Option<String> {
    spec_of(pod, start).map(|container| container.name)
}

//! Ending containers and pods: pre-stop hook, stop within the grace period, sidecars after main containers.

use std::time::{Duration, Instant};

use fluyt_client::EventType;
use futures::future::join_all;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use super::actions::KillReason;
use super::runtime_pod::{RuntimeContainer, RuntimePod};
use super::{labels, lifecycle};
use crate::kubelet::Kubelet;
use crate::pod::{Kind, PodExt, is_sidecar};

/// The runtime gets at least this long to stop a container properly, whatever the pre-stop hook took.
const MINIMUM_GRACE: i64 = 2;

/// Stops one container. `grace` counts from now and includes its pre-stop hook.
pub async fn container(
    kubelet: &Kubelet,
    pod: &Pod,
    id: &str,
    name: &str,
    runtime: Option<&RuntimeContainer>,
    message: &str,
    grace: i64,
) -> Result<(), tonic::Status> {
    let (kind, spec) = find(pod, name);
    let reference = pod.container_reference(kind, name);
    kubelet
        .recorder
        .event(&reference, EventType::Normal, "Killing", message);
    let mut left = grace;
    // After a restart the spec may be gone with the pod; the container's annotation has the hook.
    let hook = match &spec {
        Some(spec) => spec.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()),
        None => runtime
            .and_then(|c| c.annotation(labels::PRE_STOP))
            .and_then(|json| serde_json::from_str::<LifecycleHandler>(json).ok()),
    };
    if let Some(hook) = hook
        && grace > 0
    {
        let begun = Instant::now();
        let fallback = Container {
            name: name.into(),
            ..Container::default()
        };
        let container = spec.as_ref().unwrap_or(&fallback);
        let ip = kubelet.status.pod_ip(pod.uid());
        let run = lifecycle::run(kubelet, pod, container, id, ip.as_ref(), &hook);
        let limit = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        match tokio::time::timeout(limit, run).await {
            Ok(Err(why)) => {
                let message = format!("PreStopHook failed: {why}");
                kubelet.recorder.event(
                    &reference,
                    EventType::Warning,
                    "FailedPreStopHook",
                    message,
                );
            }
            Err(_) => {
                let message = "PreStopHook did not complete in grace period";
                kubelet.recorder.event(
                    &reference,
                    EventType::Warning,
                    "FailedPreStopHook",
                    message,
                );
            }
            Ok(Ok(())) => {}
        }
        left -= begun.elapsed().as_secs().cast_signed();
        left = left.max(MINIMUM_GRACE);
    }
    match kubelet.cri.stop_container(id, left).await {
        Err(error) if error.code() != tonic::Code::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn find(pod: &Pod, name: &str) -> (Kind, Option<Container>) {
    let named = |container: &&Container| container.name == name;
    if let Some(container) = pod.spec().containers.iter().find(named) {
        return (Kind::Main, Some(container.clone()));
    }
    if let Some(container) = pod.init_containers().iter().find(named) {
        return (Kind::Init, Some(container.clone()));
    }
    let ephemeral = pod
        .ephemeral_containers()
        .into_iter()
        .find(|c| c.name == name);
    (
        if ephemeral.is_some() {
            Kind::Ephemeral
        } else {
            Kind::Main
        },
        ephemeral,
    )
}

/// How long a probe's kill lets the container take.
pub fn grace_for(pod: &Pod, name: &str, reason: KillReason) -> i64 {
    let (_, spec) = find(pod, name);
    let of = |probe: &Option<k8s_openapi::api::core::v1::Probe>| {
        probe
            .as_ref()
            .and_then(|probe| probe.termination_grace_period_seconds)
    };
    let own = match reason {
        KillReason::Stopping => None,
        KillReason::LivenessProbe => spec.as_ref().and_then(|c| of(&c.liveness_probe)),
        KillReason::StartupProbe => spec.as_ref().and_then(|c| of(&c.startup_probe)),
    };
    own.unwrap_or_else(|| pod.grace_period())
}

/// Stops all of a pod within `grace` seconds: main containers together, then sidecars in reverse order, then the
/// sandboxes.
pub async fn pod(
    kubelet: &Kubelet,
    pod: &Pod,
    runtime: &RuntimePod,
    grace: i64,
) -> Result<(), tonic::Status> {
    let begun = Instant::now();
    let left = || (grace - begun.elapsed().as_secs().cast_signed()).max(grace.min(MINIMUM_GRACE));
    let sidecars: Vec<&str> = pod
        .init_containers()
        .iter()
        .filter(|container| is_sidecar(container))
        .map(|container| container.name.as_str())
        .collect();
    let (side, main): (Vec<_>, Vec<_>) = runtime
        .running()
        .partition(|container| sidecars.contains(&container.name.as_str()));
    let stop = |running: &RuntimeContainer, grace: i64| {
        let running = running.clone();
        async move {
            let message = format!("Stopping container {}", running.name);
            container(
                kubelet,
                pod,
                &running.id,
                &running.name,
                Some(&running),
                &message,
                grace,
            )
            .await
        }
    };
    let stopped = join_all(main.into_iter().map(|container| stop(container, grace))).await;
    stopped.into_iter().collect::<Result<(), _>>()?;
    for name in sidecars.iter().rev() {
        let same = side.iter().filter(|container| container.name == *name);
        let stopped = join_all(same.map(|container| stop(container, left()))).await;
        stopped.into_iter().collect::<Result<(), _>>()?;
    }
    for sandbox in runtime.sandboxes.iter().filter(|sandbox| sandbox.ready) {
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: sandbox.id.clone(),
        };
        match kubelet.cri.stop_pod_sandbox(request).await {
            Err(error) if error.code() != tonic::Code::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Removes everything the runtime still has of a pod that has ended.
pub async fn remove(kubelet: &Kubelet, runtime: &RuntimePod) -> Result<(), tonic::Status> {
    for container in &runtime.containers {
        remove_container(kubelet, &container.id).await?;
    }
    for sandbox in &runtime.sandboxes {
        let stop = cri::StopPodSandboxRequest {
            pod_sandbox_id: sandbox.id.clone(),
        };
        let remove = cri::RemovePodSandboxRequest {
            pod_sandbox_id: sandbox.id.clone(),
        };
        // Stopping again releases what a stop that was cut short left behind (the network).
        for answer in [
            kubelet.cri.stop_pod_sandbox(stop).await.map(drop),
            kubelet.cri.remove_pod_sandbox(remove).await.map(drop),
        ] {
            match answer {
                Err(error) if error.code() != tonic::Code::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

pub async fn remove_container(kubelet: &Kubelet, id: &str) -> Result<(), tonic::Status> {
    let request = cri::RemoveContainerRequest {
        container_id: id.to_string(),
    };
    kubelet.inspector.forget(id);
    match kubelet.cri.remove_container(request).await {
        Err(error) if error.code() != tonic::Code::NotFound => Err(error),
        _ => Ok(()),
    }
}

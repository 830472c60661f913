//! Eviction: when the node runs out of memory or disk, the pod that uses most beyond what it asked for goes.

use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use tracing::warn;

use crate::kubelet::Kubelet;
use crate::machine::threshold;
use crate::pod::PodExt;
use crate::pod_workers::Termination;
use crate::qos::{Amounts, QosClass};
use crate::stats;

/// Upstream's monitoring interval: memory has no event that works in every cgroup version.
const EVERY: Duration = Duration::from_secs(10);
const MIN_FREE_PIDS: i64 = 64;

/// Which thresholds are met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

impl Pressure {
    pub fn read(kubelet: &Kubelet) -> Self {
        let settings = &kubelet.settings;
        let below = |signal: &str, available: i64, whole: i64| {
            settings
                .eviction_hard
                .get(signal)
                .and_then(|text| threshold(text, whole))
                .is_some_and(|limit| available < limit)
        };
        let memory = stats::node_memory(kubelet);
        let disk = stats::filesystem(&settings.root_dir);
        Pressure {
            memory: below("memory.available", memory.available, kubelet.machine.memory),
            disk: disk.is_some_and(|disk| {
                below("nodefs.available", disk.available, disk.capacity)
                    || disk.inodes > 0 && below("nodefs.inodesFree", disk.inodes_free, disk.inodes)
            }),
            pids: free_pids().is_some_and(|free| free < MIN_FREE_PIDS),
        }
    }
}

fn free_pids() -> Option<i64> {
    let number = |path: &str| {
        std::fs::read_to_string(path)
            .ok()?
            .trim()
            .parse::<i64>()
            .ok()
    };
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let running: i64 = load.split(' ').nth(3)?.split_once('/')?.1.parse().ok()?;
    let most = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    Some(most - running)
}

pub async fn run(kubelet: Arc<Kubelet>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = kubelet.shutdown.cancelled() => return,
        }
        let pressure = Pressure::read(&kubelet);
        if pressure.disk {
            crate::image_gc::free_space(&kubelet).await;
        }
        if pressure.memory || Pressure::read(&kubelet).disk {
            evict_one(&kubelet, pressure.memory).await;
        }
    }
}

async fn evict_one(kubelet: &Kubelet, memory: bool) {
    let answer = kubelet
        .cri
        .list_container_stats(cri::ListContainerStatsRequest::default())
        .await;
    let stats = answer.map(|answer| answer.stats).unwrap_or_default();
    let usage = |pod: &Pod| -> i64 {
        let own = stats
            .iter()
            .filter(|s| stats::pod_uid(s) == Some(pod.uid()));
        let used = own.map(|s| {
            if memory {
                stats::working_set(s)
            } else {
                stats::layer_bytes(s)
            }
        });
        i64::try_from(used.sum::<u64>()).unwrap_or(i64::MAX)
    };
    let pods = kubelet.workers.active();
    let victim = pods
        .iter()
        .filter(|pod| !pod.is_static() && !pod.is_being_deleted())
        .filter(|pod| QosClass::of(pod) != QosClass::Guaranteed || !memory)
        .max_by_key(|pod| rank(pod, usage(pod)));
    let Some(pod) = victim else { return };
    let resource = if memory {
        "memory"
    } else {
        "ephemeral-storage"
    };
    let message = format!("The node was low on resource: {resource}. ");
    warn!(pod = pod.name(), resource, "evicting");
    let reference = pod.object_reference();
    let kind = fluyt_client::EventType::Warning;
    kubelet
        .recorder
        .event(&reference, kind, "Evicted", message.clone());
    kubelet.workers.terminate(
        pod.uid(),
        Termination {
            grace: Some(0),
            verdict: Some(("Evicted".into(), message)),
        },
    );
}

/// Those above their request first, then the less important, then by how much they are above.
fn rank(pod: &Pod, usage: i64) -> (bool, i64, i64) {
    let request = Amounts::of_pod(pod).memory_request.unwrap_or(0);
    let priority = i64::from(pod.spec().priority.unwrap_or(0));
    (usage > request, -priority, usage - request)
}

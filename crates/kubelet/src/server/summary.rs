//! `/stats/summary`: use of CPU, memory and disk by node, pod and container, as upstream's `stats/v1alpha1`.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_cri::v1 as cri;
use serde_json::{Value, json};

use super::{Answer, json};
use crate::kubelet::Kubelet;
use crate::kuberuntime::labels;
use crate::pod::PodExt;
use crate::stats;

pub async fn answer(kubelet: &Arc<Kubelet>) -> Answer {
    let now = Timestamp::now().to_string();
    let containers = kubelet
        .cri
        .list_container_stats(cri::ListContainerStatsRequest::default())
        .await;
    let containers = containers.map(|answer| answer.stats).unwrap_or_default();
    let sandboxes = kubelet
        .cri
        .list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default())
        .await;
    let sandboxes = sandboxes.map(|answer| answer.stats).unwrap_or_default();
    let memory = stats::node_memory(kubelet);
    let disk = stats::filesystem(&kubelet.settings.root_dir).map(|disk| filesystem(&disk, &now));
    let pods: Vec<Value> = kubelet
        .pods()
        .iter()
        .filter_map(|pod| {
            let own: Vec<_> = containers
                .iter()
                .filter(|stats| stats::pod_uid(stats) == Some(pod.uid()))
                .collect();
            if own.is_empty() {
                return None;
            }
            let sandbox = sandboxes.iter().find(|sandbox| {
                let labels = sandbox.attributes.as_ref().map(|attributes| &attributes.labels);
                labels.and_then(|labels| labels.get(labels::POD_UID)).is_some_and(|uid| uid == pod.uid())
            });
            let sum = |read: fn(&cri::ContainerStats) -> u64| own.iter().map(|s| read(s)).sum::<u64>();
            let cpu = sum(|s| stats::cpu_nanos(s).unwrap_or(0));
            Some(json!({
                "podRef": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()},
                "startTime": kubelet.status.current(pod).start_time,
                "containers": own.iter().map(|stats| container(stats, &now)).collect::<Vec<_>>(),
                "cpu": {"time": now, "usageNanoCores": sum(nano_cores), "usageCoreNanoSeconds": cpu},
                "memory": {"time": now, "workingSetBytes": sum(stats::working_set), "usageBytes": sum(usage), "rssBytes": sum(rss)},
                "network": sandbox.and_then(|sandbox| network(sandbox, &now)),
                "ephemeral-storage": {"time": now, "usedBytes": sum(stats::layer_bytes)},
                "process_stats": {"process_count": sandbox.and_then(processes)},
            }))
        })
        .collect();
    json(&json!({
        "node": {
            "nodeName": kubelet.settings.node_name,
            "cpu": {"time": now, "usageCoreNanoSeconds": stats::node_cpu(kubelet)},
            "memory": {"time": now, "availableBytes": memory.available, "usageBytes": memory.usage,
                "workingSetBytes": memory.working_set},
            "fs": disk,
            "runtime": {"imageFs": disk, "containerFs": disk},
        },
        "pods": pods,
    }))
}

fn container(stats: &cri::ContainerStats, now: &str) -> Value {
    let memory = stats.memory.unwrap_or_default();
    let value = |v: &Option<cri::UInt64Value>| v.as_ref().map(|v| v.value);
    json!({
        "name": stats::label(stats, labels::CONTAINER_NAME),
        "cpu": {"time": now, "usageNanoCores": nano_cores(stats), "usageCoreNanoSeconds": stats::cpu_nanos(stats)},
        "memory": {"time": now, "workingSetBytes": stats::working_set(stats), "usageBytes": usage(stats),
            "rssBytes": rss(stats), "availableBytes": value(&memory.available_bytes),
            "pageFaults": value(&memory.page_faults), "majorPageFaults": value(&memory.major_page_faults)},
        "rootfs": {"time": now, "usedBytes": stats::layer_bytes(stats)},
    })
}

fn nano_cores(stats: &cri::ContainerStats) -> u64 {
    let cpu = stats.cpu.as_ref();
    cpu.and_then(|cpu| cpu.usage_nano_cores.as_ref())
        .map_or(0, |v| v.value)
}

fn usage(stats: &cri::ContainerStats) -> u64 {
    let memory = stats.memory.as_ref();
    memory
        .and_then(|m| m.usage_bytes.as_ref())
        .map_or(0, |v| v.value)
}

fn rss(stats: &cri::ContainerStats) -> u64 {
    let memory = stats.memory.as_ref();
    memory
        .and_then(|m| m.rss_bytes.as_ref())
        .map_or(0, |v| v.value)
}

fn network(sandbox: &cri::PodSandboxStats, now: &str) -> Option<Value> {
    let interface = sandbox
        .linux
        .as_ref()?
        .network
        .as_ref()?
        .default_interface
        .as_ref()?;
    let value = |v: &Option<cri::UInt64Value>| v.as_ref().map(|v| v.value);
    Some(json!({
        "time": now, "name": interface.name, "rxBytes": value(&interface.rx_bytes),
        "rxErrors": value(&interface.rx_errors), "txBytes": value(&interface.tx_bytes),
        "txErrors": value(&interface.tx_errors)}))
}

fn processes(sandbox: &cri::PodSandboxStats) -> Option<u64> {
    Some(
        sandbox
            .linux
            .as_ref()?
            .process
            .as_ref()?
            .process_count
            .as_ref()?
            .value,
    )
}

fn filesystem(disk: &stats::Filesystem, now: &str) -> Value {
    json!({
        "time": now, "availableBytes": disk.available, "capacityBytes": disk.capacity,
        "usedBytes": disk.capacity - disk.available, "inodesFree": disk.inodes_free, "inodes": disk.inodes,
        "inodesUsed": disk.inodes - disk.inodes_free})
}

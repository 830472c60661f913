//! Prometheus metrics: the kubelet's own, the resource metrics that metrics-server scrapes, and the part of cAdvisor's
//! that dashboards use.

use std::fmt::Write;

use http::StatusCode;
use jiff::Timestamp;
use k8s_cri::v1 as cri;

use super::{Answer, with_type};
use crate::kubelet::Kubelet;
use crate::kuberuntime::labels;
use crate::stats;

const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample; `at` is in milliseconds.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64, at: Option<i64>) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{value}\""))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        let at = at.map(|at| format!(" {at}")).unwrap_or_default();
        let _ = writeln!(self.0, "{name}{labels} {value}{at}");
    }

    fn answer(self) -> Answer {
        with_type(StatusCode::OK, TYPE, self.0)
    }
}

pub fn kubelet(kubelet: &Kubelet) -> Answer {
    let mut page = Page(String::new());
    let active = kubelet.workers.active();
    page.family(
        "kubelet_node_name",
        "gauge",
        "The node's name. The count is always 1.",
    );
    page.sample(
        "kubelet_node_name",
        &[("node", &kubelet.settings.node_name)],
        1.0,
        None,
    );
    page.family(
        "kubelet_running_pods",
        "gauge",
        "Number of pods that have a running pod sandbox",
    );
    let running = active
        .iter()
        .filter(|pod| kubelet.status.current(pod).phase.as_deref() == Some("Running"));
    page.sample("kubelet_running_pods", &[], running.count() as f64, None);
    page.family(
        "kubelet_desired_pods",
        "gauge",
        "The number of pods the kubelet is being instructed to run",
    );
    page.sample(
        "kubelet_desired_pods",
        &[("static", "")],
        active.len() as f64,
        None,
    );
    page.family(
        "kubernetes_build_info",
        "gauge",
        "A metric with a constant '1' value labeled by version.",
    );
    let version = kubelet.settings.kubelet_version.as_str();
    page.sample(
        "kubernetes_build_info",
        &[("git_version", version)],
        1.0,
        None,
    );
    let own = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    if let Some(pages) = own
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<f64>().ok())
    {
        page.family(
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory size in bytes.",
        );
        page.sample("process_resident_memory_bytes", &[], pages * 4096.0, None);
    }
    page.answer()
}

async fn containers(kubelet: &Kubelet) -> Option<Vec<cri::ContainerStats>> {
    let answer = kubelet
        .cri
        .list_container_stats(cri::ListContainerStatsRequest::default())
        .await;
    answer.ok().map(|answer| answer.stats)
}

#[expect(clippy::cast_precision_loss)]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[expect(clippy::cast_precision_loss)]
fn number(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss)]
pub async fn resource(kubelet: &Kubelet) -> Answer {
    let mut page = Page(String::new());
    let now = Timestamp::now().as_millisecond();
    let stats = containers(kubelet).await;
    page.family(
        "node_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
    );
    page.sample(
        "node_cpu_usage_seconds_total",
        &[],
        seconds(stats::node_cpu(kubelet)),
        Some(now),
    );
    page.family(
        "node_memory_working_set_bytes",
        "gauge",
        "[STABLE] Current working set of the node in bytes",
    );
    page.sample(
        "node_memory_working_set_bytes",
        &[],
        stats::node_memory(kubelet).working_set as f64,
        Some(now),
    );
    let failed = f64::from(u8::from(stats.is_none()));
    let stats = stats.unwrap_or_default();
    let label = |s: &cri::ContainerStats, key| stats::label(s, key).unwrap_or_default().to_string();
    let at = |s: &cri::ContainerStats| {
        let stamp = s.cpu.as_ref().map_or(0, |cpu| cpu.timestamp) / 1_000_000;
        Some(if stamp > 0 { stamp } else { now })
    };
    let mut per_pod: std::collections::BTreeMap<(String, String), (u64, u64)> = Default::default();
    let families: [(&str, &str, &str); 2] = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        ),
        (
            "container_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the container in bytes",
        ),
    ];
    for (index, (name, kind, help)) in families.into_iter().enumerate() {
        page.family(name, kind, help);
        for s in stats.iter().filter(|s| stats::cpu_nanos(s).is_some()) {
            let (container, namespace, pod) = (
                label(s, labels::CONTAINER_NAME),
                label(s, labels::POD_NAMESPACE),
                label(s, labels::POD_NAME),
            );
            let labels = [
                ("container", container.as_str()),
                ("namespace", &namespace),
                ("pod", &pod),
            ];
            let (cpu, memory) = (stats::cpu_nanos(s).unwrap_or(0), stats::working_set(s));
            if index == 0 {
                page.sample(name, &labels, seconds(cpu), at(s));
                let sum = per_pod.entry((namespace, pod)).or_default();
                sum.0 += cpu;
                sum.1 += memory;
            } else {
                page.sample(name, &labels, number(memory), at(s));
            }
        }
    }
    page.family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
    );
    for ((namespace, pod), (cpu, _)) in &per_pod {
        page.sample(
            "pod_cpu_usage_seconds_total",
            &[("namespace", namespace), ("pod", pod)],
            seconds(*cpu),
            Some(now),
        );
    }
    page.family(
        "pod_memory_working_set_bytes",
        "gauge",
        "[STABLE] Current working set of the pod in bytes",
    );
    for ((namespace, pod), (_, memory)) in &per_pod {
        page.sample(
            "pod_memory_working_set_bytes",
            &[("namespace", namespace), ("pod", pod)],
            number(*memory),
            Some(now),
        );
    }
    page.family(
        "resource_scrape_error",
        "gauge",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
    );
    page.sample("resource_scrape_error", &[], failed, None);
    page.answer()
}

/// Reads one number off a container's stats.
type Read = fn(&cri::ContainerStats) -> f64;

pub async fn cadvisor(kubelet: &Kubelet) -> Answer {
    let mut page = Page(String::new());
    let stats = containers(kubelet).await.unwrap_or_default();
    let families: [(&str, &str, Read); 3] = [
        ("container_cpu_usage_seconds_total", "counter", |s| {
            seconds(stats::cpu_nanos(s).unwrap_or(0))
        }),
        ("container_memory_working_set_bytes", "gauge", |s| {
            number(stats::working_set(s))
        }),
        ("container_fs_usage_bytes", "gauge", |s| {
            number(stats::layer_bytes(s))
        }),
    ];
    for (name, kind, value) in families {
        page.family(name, kind, "Of the container, from the container runtime.");
        for s in &stats {
            let label = |key| stats::label(s, key).unwrap_or_default();
            let id = s
                .attributes
                .as_ref()
                .map_or("", |attributes| attributes.id.as_str());
            let labels = [
                ("container", label(labels::CONTAINER_NAME)),
                ("id", id),
                ("namespace", label(labels::POD_NAMESPACE)),
                ("pod", label(labels::POD_NAME)),
            ];
            page.sample(name, &labels, value(s), None);
        }
    }
    page.family(
        "machine_memory_bytes",
        "gauge",
        "Amount of memory installed on the machine.",
    );
    #[expect(clippy::cast_precision_loss)]
    page.sample(
        "machine_memory_bytes",
        &[],
        kubelet.machine.memory as f64,
        None,
    );
    page.answer()
}

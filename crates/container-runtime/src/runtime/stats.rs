//! ContainerStats, PodSandboxStats and their lists.

use k8s_cri::v1 as cri;

use super::container::{Container, CpuSample};
use super::sandbox_list::matches;
use super::{Phase, Result, Runtime, Sandbox, blocking, now};
use crate::cgroup::{Cgroup, Stats};

/// Nanoseconds over which a CPU rate is told at least.
const MIN_INTERVAL: i64 = 1_000_000_000;

impl Runtime {
    pub async fn container_stats(&self, id: &str) -> Result<cri::ContainerStats> {
        let container = self.container(id)?;
        blocking(move || Ok(container.stats())).await
    }

    pub async fn list_container_stats(
        &self,
        filter: &cri::ContainerStatsFilter,
    ) -> Result<Vec<cri::ContainerStats>> {
        let containers: Vec<_> = self
            .containers()
            .into_iter()
            .filter(|container| {
                container.phase() == Phase::Running
                    && (filter.id.is_empty() || container.id.starts_with(&filter.id))
                    && (filter.pod_sandbox_id.is_empty()
                        || container.sandbox.id.starts_with(&filter.pod_sandbox_id))
                    && matches(&filter.label_selector, &container.record().config.labels)
            })
            .collect();
        blocking(move || {
            Ok(containers
                .iter()
                .map(|container| container.stats())
                .collect())
        })
        .await
    }

    pub async fn pod_sandbox_stats(&self, id: &str) -> Result<cri::PodSandboxStats> {
        let sandbox = self.sandbox(id)?;
        let containers = self.running(&sandbox);
        blocking(move || Ok(sandbox.stats(&containers))).await
    }

    pub async fn list_pod_sandbox_stats(
        &self,
        filter: &cri::PodSandboxStatsFilter,
    ) -> Result<Vec<cri::PodSandboxStats>> {
        let sandboxes: Vec<_> = self
            .sandboxes()
            .into_iter()
            .filter(|sandbox| {
                sandbox.is_ready()
                    && (filter.id.is_empty() || sandbox.id.starts_with(&filter.id))
                    && matches(&filter.label_selector, &sandbox.record().config.labels)
            })
            .map(|sandbox| {
                let containers = self.running(&sandbox);
                (sandbox, containers)
            })
            .collect();
        blocking(move || {
            Ok(sandboxes
                .iter()
                .map(|(sandbox, containers)| sandbox.stats(containers))
                .collect())
        })
        .await
    }

    fn running(&self, sandbox: &Sandbox) -> Vec<std::sync::Arc<Container>> {
        self.containers_of(&sandbox.id)
            .into_iter()
            .filter(|container| container.phase() == Phase::Running)
            .collect()
    }
}

impl Container {
    fn stats(&self) -> cri::ContainerStats {
        let record = self.record();
        let at = now();
        let stats = Cgroup::at(&record.cgroup).stats();
        let (bytes, inodes) = disk_usage(&self.upper());
        cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: self.id.clone(),
                metadata: record.config.metadata,
                labels: record.config.labels,
                annotations: record.config.annotations,
            }),
            cpu: Some(cri::CpuUsage {
                timestamp: at,
                usage_core_nano_seconds: value(stats.cpu_nanoseconds),
                usage_nano_cores: self.cpu_rate(at, stats.cpu_nanoseconds).and_then(value),
            }),
            memory: Some(memory(at, &stats)),
            writable_layer: Some(cri::FilesystemUsage {
                timestamp: at,
                fs_id: Some(cri::FilesystemIdentifier {
                    mountpoint: self.directory.display().to_string(),
                }),
                used_bytes: value(bytes),
                inodes_used: value(inodes),
            }),
            swap: Some(cri::SwapUsage {
                timestamp: at,
                swap_available_bytes: None,
                swap_usage_bytes: value(stats.swap_usage),
            }),
        }
    }

    /// The rate since the last sample that is old enough to tell one.
    fn cpu_rate(&self, at: i64, nanoseconds: u64) -> Option<u64> {
        let mut sample = self.cpu_sample.lock();
        match *sample {
            Some(last) if at - last.at < MIN_INTERVAL => last.rate,
            last => {
                let rate = last.and_then(|last| rate(&last, at, nanoseconds));
                *sample = Some(CpuSample {
                    at,
                    nanoseconds,
                    rate,
                });
                rate
            }
        }
    }
}

impl Sandbox {
    fn stats(&self, containers: &[std::sync::Arc<Container>]) -> cri::PodSandboxStats {
        let record = self.record();
        let at = now();
        let pod = Cgroup::at(record.cgroup_parent()).stats();
        let containers: Vec<cri::ContainerStats> = containers
            .iter()
            .map(|container| container.stats())
            .collect();
        let rates: Vec<u64> = containers
            .iter()
            .filter_map(|container| Some(container.cpu.as_ref()?.usage_nano_cores.as_ref()?.value))
            .collect();
        let network = (!record.is_host_network()).then(|| network(at, record.shim_pid));
        cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                id: self.id.clone(),
                metadata: record.config.metadata,
                labels: record.config.labels,
                annotations: record.config.annotations,
            }),
            linux: Some(cri::LinuxPodSandboxStats {
                cpu: Some(cri::CpuUsage {
                    timestamp: at,
                    usage_core_nano_seconds: value(pod.cpu_nanoseconds),
                    usage_nano_cores: (!rates.is_empty())
                        .then(|| rates.iter().sum())
                        .and_then(value),
                }),
                memory: Some(memory(at, &pod)),
                network,
                process: Some(cri::ProcessUsage {
                    timestamp: at,
                    process_count: value(pod.processes),
                }),
                containers,
            }),
            windows: None,
        }
    }
}

fn rate(last: &CpuSample, at: i64, nanoseconds: u64) -> Option<u64> {
    let elapsed = u128::try_from(at - last.at)
        .ok()
        .filter(|elapsed| *elapsed > 0)?;
    let used = u128::from(nanoseconds.checked_sub(last.nanoseconds)?);
    u64::try_from(used * 1_000_000_000 / elapsed).ok()
}

fn memory(at: i64, stats: &Stats) -> cri::MemoryUsage {
    cri::MemoryUsage {
        timestamp: at,
        working_set_bytes: value(stats.memory_working_set),
        available_bytes: stats
            .memory_limit
            .and_then(|limit| value(limit.saturating_sub(stats.memory_working_set))),
        usage_bytes: value(stats.memory_usage),
        rss_bytes: value(stats.memory_rss),
        page_faults: value(stats.page_faults),
        major_page_faults: value(stats.major_page_faults),
    }
}

/// The interfaces of the shim's network namespace, which is the pod's.
fn network(at: i64, shim: i32) -> cri::NetworkUsage {
    let text = std::fs::read_to_string(format!("/proc/{shim}/net/dev")).unwrap_or_default();
    let interfaces: Vec<cri::NetworkInterfaceUsage> = text
        .lines()
        .filter_map(parse_interface)
        .filter(|interface| interface.name != "lo")
        .collect();
    cri::NetworkUsage {
        timestamp: at,
        default_interface: interfaces
            .iter()
            .find(|interface| interface.name == fluyt_network::pod::POD_INTERFACE)
            .cloned(),
        interfaces,
    }
}

fn parse_interface(line: &str) -> Option<cri::NetworkInterfaceUsage> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> = numbers
        .split_whitespace()
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    Some(cri::NetworkInterfaceUsage {
        name: name.trim().to_owned(),
        rx_bytes: value(*numbers.first()?),
        rx_errors: value(*numbers.get(2)?),
        tx_bytes: value(*numbers.get(8)?),
        tx_errors: value(*numbers.get(10)?),
    })
}

/// Bytes and inodes of a directory tree.
fn disk_usage(directory: &std::path::Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;

    let (mut bytes, mut inodes) = (0, 0);
    let Ok(entries) = std::fs::read_dir(directory) else {
        return (0, 0);
    };
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        bytes += metadata.blocks() * 512;
        inodes += 1;
        if metadata.is_dir() {
            let (below_bytes, below_inodes) = disk_usage(&entry.path());
            bytes += below_bytes;
            inodes += below_inodes;
        }
    }
    (bytes, inodes)
}

#[allow(clippy::unnecessary_wraps)] // CRI's fields are optional messages.
fn value(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_cpu_time_per_second() {
        let last = CpuSample {
            at: 0,
            nanoseconds: 1_000_000_000,
            rate: None,
        };
        assert_eq!(rate(&last, 2_000_000_000, 2_000_000_000), Some(500_000_000));
        assert_eq!(rate(&last, 2_000_000_000, 0), None);
    }

    #[test]
    fn interfaces_are_parsed_from_proc() {
        let interface = parse_interface("  eth0: 10 1 2 0 0 0 0 0 20 3 4 0 0 0 0 0").unwrap();
        assert_eq!(interface.name, "eth0");
        assert_eq!(interface.rx_errors.unwrap().value, 2);
        assert_eq!(interface.tx_bytes.unwrap().value, 20);
        assert_eq!(interface.tx_errors.unwrap().value, 4);
    }
}

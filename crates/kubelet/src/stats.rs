//! Use of CPU, memory and disk: of the node from its cgroup and file systems, of containers from CRI.

use std::path::Path;

use k8s_cri::v1 as cri;

use crate::kubelet::Kubelet;
use crate::kuberuntime::labels;

pub struct Memory {
    pub working_set: i64,
    pub usage: i64,
    pub available: i64,
}

pub struct Filesystem {
    pub capacity: i64,
    pub available: i64,
    pub inodes: i64,
    pub inodes_free: i64,
}

const MOUNT: &str = "/sys/fs/cgroup";

fn cgroup_dir(kubelet: &Kubelet, controller: &str) -> std::path::PathBuf {
    let root = kubelet.settings.cgroup_root.trim_start_matches('/');
    let unified = Path::new(MOUNT).join(root);
    if Path::new(MOUNT).join("cgroup.controllers").exists() {
        unified
    } else {
        Path::new(MOUNT).join(controller).join(root)
    }
}

/// Memory that everything on the node uses; file cache that can be dropped at once is not counted as working set.
pub fn node_memory(kubelet: &Kubelet) -> Memory {
    let dir = cgroup_dir(kubelet, "memory");
    let number = |file: &str| {
        std::fs::read_to_string(dir.join(file))
            .ok()?
            .trim()
            .parse::<i64>()
            .ok()
    };
    let usage = number("memory.current").or_else(|| number("memory.usage_in_bytes"));
    let stat = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let field = |name: &str| {
        stat.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse::<i64>().ok())
    };
    let inactive = field("total_inactive_file ")
        .or_else(|| field("inactive_file "))
        .unwrap_or(0);
    let (usage, working_set) = match usage {
        Some(usage) => (usage, (usage - inactive).max(0)),
        None => {
            let used = kubelet.machine.memory - meminfo("MemAvailable:");
            (used, used)
        }
    };
    Memory {
        working_set,
        usage,
        available: (kubelet.machine.memory - working_set).max(0),
    }
}

fn meminfo(name: &str) -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// CPU time of everything on the node, in nanoseconds.
pub fn node_cpu(kubelet: &Kubelet) -> u64 {
    let v2 =
        std::fs::read_to_string(cgroup_dir(kubelet, "cpu").join("cpu.stat")).unwrap_or_default();
    if let Some(micros) = v2
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec ")?.parse::<u64>().ok())
    {
        return micros * 1000;
    }
    std::fs::read_to_string(cgroup_dir(kubelet, "cpuacct").join("cpuacct.usage"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

pub fn filesystem(path: &Path) -> Option<Filesystem> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let block = stat.fragment_size();
    Some(Filesystem {
        capacity: (stat.blocks() * block).cast_signed(),
        available: (stat.blocks_available() * block).cast_signed(),
        inodes: stat.files().cast_signed(),
        inodes_free: stat.files_available().cast_signed(),
    })
}

pub fn label<'a>(stats: &'a cri::ContainerStats, key: &str) -> Option<&'a str> {
    stats
        .attributes
        .as_ref()?
        .labels
        .get(key)
        .map(String::as_str)
}

pub fn pod_uid(stats: &cri::ContainerStats) -> Option<&str> {
    label(stats, labels::POD_UID)
}

pub fn working_set(stats: &cri::ContainerStats) -> u64 {
    let memory = stats.memory.as_ref();
    memory
        .and_then(|m| m.working_set_bytes.as_ref())
        .map_or(0, |v| v.value)
}

pub fn cpu_nanos(stats: &cri::ContainerStats) -> Option<u64> {
    Some(stats.cpu.as_ref()?.usage_core_nano_seconds.as_ref()?.value)
}

pub fn layer_bytes(stats: &cri::ContainerStats) -> u64 {
    let layer = stats.writable_layer.as_ref();
    layer
        .and_then(|layer| layer.used_bytes.as_ref())
        .map_or(0, |v| v.value)
}

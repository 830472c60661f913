//! What this node has to give: the machine, or the part of it that our cgroup limits us to (a node of provider
//! `sandbox` is a cgroup with the VM size's CPU and memory).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::config::args::Settings;
use fluyt_volumes::quantity;

const MOUNT: &str = "/sys/fs/cgroup";

#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub milli_cpu: i64,
    pub memory: i64,
    /// Size of the file system below `--root-dir`.
    pub disk: i64,
    pub max_pods: u32,
}

impl Machine {
    pub fn read(settings: &Settings) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let machine_cpu = i64::try_from(cpus).unwrap_or(1) * 1000;
        let machine_memory = memory_total();
        let dirs = own_cgroups(&settings.cgroup_root);
        let cpu_limit = dirs.iter().filter_map(|dir| cpu_limit(dir)).min();
        let memory_limit = dirs.iter().filter_map(|dir| memory_limit(dir)).min();
        let disk = nix::sys::statvfs::statvfs(&settings.root_dir).map_or(0, |stat| {
            (stat.blocks() * stat.fragment_size()).cast_signed()
        });
        Machine {
            milli_cpu: cpu_limit.map_or(machine_cpu, |limit| limit.min(machine_cpu)),
            memory: memory_limit.map_or(machine_memory, |limit| limit.min(machine_memory)),
            disk,
            max_pods: settings.max_pods,
        }
    }

    pub fn capacity(&self) -> BTreeMap<String, Quantity> {
        self.amounts(self.milli_cpu, self.memory, self.disk)
    }

    /// Capacity less what is reserved and what eviction keeps free.
    pub fn allocatable(&self, settings: &Settings) -> BTreeMap<String, Quantity> {
        let reserved = |name: &str, read: fn(&Quantity) -> Option<i64>| -> i64 {
            [&settings.reserved, &settings.kube_reserved]
                .iter()
                .filter_map(|amounts| read(&Quantity(amounts.get(name)?.clone())))
                .sum()
        };
        let evict = |signal: &str, whole: i64| {
            settings
                .eviction_hard
                .get(signal)
                .and_then(|text| threshold(text, whole))
                .unwrap_or(0)
        };
        self.amounts(
            (self.milli_cpu - reserved("cpu", quantity::milli_value)).max(0),
            (self.memory
                - reserved("memory", quantity::value)
                - evict("memory.available", self.memory))
            .max(0),
            (self.disk
                - reserved("ephemeral-storage", quantity::value)
                - evict("nodefs.available", self.disk))
            .max(0),
        )
    }

    fn amounts(&self, milli_cpu: i64, memory: i64, disk: i64) -> BTreeMap<String, Quantity> {
        let cpu = if milli_cpu % 1000 == 0 {
            (milli_cpu / 1000).to_string()
        } else {
            format!("{milli_cpu}m")
        };
        let kibi = |bytes: i64| format!("{}Ki", bytes / 1024);
        [
            ("cpu", cpu),
            ("memory", kibi(memory)),
            ("ephemeral-storage", kibi(disk)),
            ("hugepages-1Gi", "0".into()),
            ("hugepages-2Mi", "0".into()),
            ("pods", self.max_pods.to_string()),
        ]
        .map(|(name, amount)| (name.to_string(), Quantity(amount)))
        .into()
    }
}

/// An eviction threshold in bytes: `100Mi`, or `10%` of the whole.
pub fn threshold(text: &str, whole: i64) -> Option<i64> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent.parse().ok()?;
            #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
            Some((whole as f64 * percent / 100.0) as i64)
        }
        None => quantity::value(&Quantity(text.to_string())),
    }
}

fn memory_total() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<i64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// Directories whose limits hold for us: `--cgroup-root`, our own cgroup and all above it, in every hierarchy.
fn own_cgroups(cgroup_root: &str) -> Vec<PathBuf> {
    let mount = Path::new(MOUNT);
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut dirs = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let hierarchy = match controllers.split(',').next() {
            Some("") | None => mount.to_path_buf(),
            Some(first) => mount.join(first.strip_prefix("name=").unwrap_or(first)),
        };
        for name in [path, cgroup_root] {
            let dir = hierarchy.join(name.trim_start_matches('/'));
            dirs.extend(
                dir.ancestors()
                    .take_while(|above| above.starts_with(&hierarchy))
                    .map(Path::to_path_buf),
            );
        }
    }
    dirs.sort();
    dirs.dedup();
    dirs
}

fn cpu_limit(dir: &Path) -> Option<i64> {
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).ok();
    let (quota, period) = match read("cpu.max") {
        Some(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse::<i64>().ok()?, period.parse::<i64>().ok()?)
        }
        None => (
            read("cpu.cfs_quota_us")?.trim().parse().ok()?,
            read("cpu.cfs_period_us")?.trim().parse().ok()?,
        ),
    };
    (quota > 0 && period > 0).then(|| quota * 1000 / period)
}

fn memory_limit(dir: &Path) -> Option<i64> {
    let text = std::fs::read_to_string(dir.join("memory.max"))
        .or_else(|_| std::fs::read_to_string(dir.join("memory.limit_in_bytes")))
        .ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        write("cpu.cfs_quota_us", "-1\n");
        write("cpu.cfs_period_us", "100000\n");
        write("memory.limit_in_bytes", "8589934592\n");
        assert_eq!(cpu_limit(dir.path()), None);
        assert_eq!(memory_limit(dir.path()), Some(8 << 30));
        write("cpu.cfs_quota_us", "150000\n");
        assert_eq!(cpu_limit(dir.path()), Some(1500));
        write("cpu.max", "max 100000\n");
        write("memory.max", "max\n");
        assert_eq!(cpu_limit(dir.path()), None);
        assert_eq!(memory_limit(dir.path()), None);
        write("cpu.max", "200000 100000\n");
        assert_eq!(cpu_limit(dir.path()), Some(2000));
    }

    #[test]
    fn thresholds() {
        assert_eq!(threshold("100Mi", 0), Some(100 << 20));
        assert_eq!(threshold("10%", 1000), Some(100));
        assert_eq!(threshold("lots", 1000), None);
    }
}

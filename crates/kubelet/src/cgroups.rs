//! The pods' cgroups: `kubepods`, below it `burstable` and `besteffort`, below those one per pod. The runtime puts the
//! containers' own below the pod's. Works on cgroup v1 and v2.

use std::path::{Path, PathBuf};

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use tracing::warn;

use crate::machine::Machine;
use crate::pod::PodExt;
use crate::qos::{Amounts, QosClass};

const MOUNT: &str = "/sys/fs/cgroup";
/// The controllers of v1 that pods need; others stay as the system has them.
const V1_CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "cpuset", "freezer"];
const PERIOD: i64 = 100_000;
/// Limits of memory are rounded down to pages.
const LARGEST_PAGE: i64 = 64 << 10;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// The tree below one root.
pub struct Cgroups {
    mount: PathBuf,
    version: Version,
    root: String,
}

/// `cpu.shares` of v1 for a request in thousandths of a CPU.
pub fn shares(milli_cpu: i64) -> i64 {
    (milli_cpu * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// `cpu.cfs_quota_us` for a limit in thousandths of a CPU and the usual period of 100 ms.
pub fn quota(milli_cpu: i64) -> i64 {
    (milli_cpu * PERIOD / 1000).max(1000)
}

/// The request that these `cpu.shares` stand for.
pub fn milli_of_shares(shares: i64) -> i64 {
    (shares * 1000 + 1023) / 1024
}

/// The limit that a quota stands for.
pub fn milli_of_quota(quota: i64, period: i64) -> i64 {
    quota * 1000 / period
}

pub const fn period() -> i64 {
    PERIOD
}

/// `cpu.weight` of v2 that stands for v1's `cpu.shares`, as the runtimes convert it.
pub fn weight(shares: i64) -> i64 {
    1 + ((shares - MIN_SHARES) * 9999) / (MAX_SHARES - MIN_SHARES)
}

/// `cpu.shares` of v1 that a `cpu.weight` of v2 stands for.
fn shares_of_weight(weight: i64) -> i64 {
    MIN_SHARES + ((weight - 1) * (MAX_SHARES - MIN_SHARES) + 9998) / 9999
}

impl Cgroups {
    /// Makes the tree's upper part below `root` (`/` for that of the process's own cgroup namespace).
    pub fn new(root: &str, machine: &Machine) -> anyhow::Result<Self> {
        let version = if Path::new(MOUNT).join("cgroup.controllers").exists() {
            Version::V2
        } else {
            Version::V1
        };
        let cgroups = Cgroups {
            mount: PathBuf::from(MOUNT),
            version,
            root: format!("/{}", root.trim_matches('/')),
        };
        if version == Version::V2 {
            cgroups.leave_root()?;
        }
        let whole = Amounts {
            milli_cpu_request: Some(machine.milli_cpu),
            ..Amounts::default()
        };
        cgroups.create(&cgroups.kubepods(), &whole)?;
        // Besteffort gets what is left; burstable's own share grows with its pods' below it.
        cgroups.create(&cgroups.class(QosClass::Burstable), &Amounts::default())?;
        cgroups.create(&cgroups.class(QosClass::BestEffort), &Amounts::default())?;
        Ok(cgroups)
    }

    /// The cgroup of a pod, as CRI's `cgroup_parent` names it.
    pub fn pod(&self, pod: &Pod) -> String {
        format!("{}/pod{}", self.class(QosClass::of(pod)), pod.uid())
    }

    fn kubepods(&self) -> String {
        format!("{}/kubepods", self.root.trim_end_matches('/'))
    }

    fn class(&self, class: QosClass) -> String {
        match class {
            QosClass::Guaranteed => self.kubepods(),
            QosClass::Burstable => format!("{}/burstable", self.kubepods()),
            QosClass::BestEffort => format!("{}/besteffort", self.kubepods()),
        }
    }

    /// Makes or updates the pod's cgroup with its limits.
    pub fn ensure_pod(&self, pod: &Pod) -> anyhow::Result<()> {
        self.create(&self.pod(pod), &wanted(pod))
    }

    /// Bytes that the processes of a pod use.
    pub fn memory_in_use(&self, pod: &Pod) -> Option<i64> {
        let file = match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        };
        self.number(pod, "memory", file)
    }

    /// The content of a file of a pod's cgroup.
    fn read(&self, pod: &Pod, controller: &str, file: &str) -> Option<String> {
        let name = self.pod(pod);
        let relative = name.trim_start_matches('/');
        let dir = match self.version {
            Version::V1 => self.mount.join(controller).join(relative),
            Version::V2 => self.mount.join(relative),
        };
        std::fs::read_to_string(dir.join(file)).ok()
    }

    fn number(&self, pod: &Pod, controller: &str, file: &str) -> Option<i64> {
        self.read(pod, controller, file)?.trim().parse().ok()
    }

    /// What the pod's cgroup gives it, in the pod's own words where it is that. What is not limited is `None`, and so is a
    /// request that is no more than everybody gets.
    pub fn given(&self, pod: &Pod) -> Amounts {
        let number = |controller: &str, file: &str| self.number(pod, controller, file);
        let wants = wanted(pod);
        let wanted_shares = shares(wants.milli_cpu_request.unwrap_or(0));
        let (shares, quota_and_period, memory) = match self.version {
            Version::V1 => {
                let period = number("cpu", "cpu.cfs_period_us");
                let quota = number("cpu", "cpu.cfs_quota_us").zip(period);
                let shares = number("cpu", "cpu.shares");
                (shares, quota, number("memory", "memory.limit_in_bytes"))
            }
            Version::V2 => {
                let max = self.read(pod, "cpu", "cpu.max").unwrap_or_default();
                let quota = max
                    .trim()
                    .split_once(' ')
                    .and_then(|(quota, period)| Some((quota.parse().ok()?, period.parse().ok()?)));
                let has = number("cpu", "cpu.weight");
                // Weights are coarser.
                let shares = has.map(|has| match has == self::weight(wanted_shares) {
                    true => wanted_shares,
                    false => shares_of_weight(has),
                });
                (shares, quota, number("memory", "memory.max"))
            }
        };
        let wanted_quota = wants.milli_cpu_limit.map(quota);
        Amounts {
            milli_cpu_request: match shares {
                Some(shares) if shares == wanted_shares => wants.milli_cpu_request,
                shares => shares.filter(|s| *s > MIN_SHARES).map(milli_of_shares),
            },
            milli_cpu_limit: quota_and_period
                .filter(|(quota, period)| *quota > 0 && *period > 0)
                .and_then(|(quota, period)| match Some(quota) == wanted_quota {
                    true => wants.milli_cpu_limit,
                    false => Some(milli_of_quota(quota, period)),
                }),
            memory_request: wants.memory_request,
            // v1 writes no limit as the largest number of pages.
            memory_limit: memory
                .filter(|limit| *limit > 0 && *limit < i64::MAX / 2)
                .map(|has| match wants.memory_limit {
                    Some(wants) if (0..LARGEST_PAGE).contains(&(wants - has)) => wants,
                    _ => has,
                }),
        }
    }

    /// Takes the pod's limits away while those of its containers change: at no time may one of these be above its pod's.
    pub fn lift_limits(&self, pod: &Pod) -> anyhow::Result<()> {
        let amounts = Amounts {
            milli_cpu_request: Amounts::of_pod(pod).milli_cpu_request,
            ..Amounts::default()
        };
        self.apply(&self.pod(pod), &amounts)
    }

    /// Removes a pod's cgroup, whichever class it was in, with what is left below it.
    pub fn remove_pod(&self, uid: &str) {
        for class in [
            QosClass::Guaranteed,
            QosClass::Burstable,
            QosClass::BestEffort,
        ] {
            let name = format!("{}/pod{uid}", self.class(class));
            for dir in self.all_dirs(&name) {
                remove_tree(&dir);
            }
        }
    }

    /// A cgroup in every hierarchy there is: runtimes use also those that we don't.
    fn all_dirs(&self, name: &str) -> Vec<PathBuf> {
        if self.version == Version::V2 {
            return self.dirs(name);
        }
        let hierarchies = std::fs::read_dir(&self.mount)
            .into_iter()
            .flatten()
            .flatten();
        hierarchies
            .map(|hierarchy| hierarchy.path().join(name.trim_start_matches('/')))
            .filter(|dir| dir.is_dir())
            .collect()
    }

    /// Uids of the pods that have a cgroup.
    pub fn pods(&self) -> Vec<String> {
        let mut found = Vec::new();
        for class in [
            QosClass::Guaranteed,
            QosClass::Burstable,
            QosClass::BestEffort,
        ] {
            for dir in self.dirs(&self.class(class)) {
                let Ok(entries) = std::fs::read_dir(dir) else {
                    continue;
                };
                for entry in entries.flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    if let Some(uid) = name.strip_prefix("pod")
                        && !found.iter().any(|known| known == uid)
                    {
                        found.push(uid.to_string());
                    }
                }
            }
        }
        found
    }

    /// Directories of a cgroup: one on v2, one per controller on v1.
    fn dirs(&self, name: &str) -> Vec<PathBuf> {
        let relative = name.trim_start_matches('/');
        match self.version {
            Version::V2 => vec![self.mount.join(relative)],
            Version::V1 => V1_CONTROLLERS
                .iter()
                .map(|controller| self.mount.join(controller))
                .filter(|hierarchy| hierarchy.is_dir())
                .map(|hierarchy| hierarchy.join(relative))
                .collect(),
        }
    }

    fn create(&self, name: &str, amounts: &Amounts) -> anyhow::Result<()> {
        for dir in self.dirs(name) {
            if self.version == Version::V2 {
                self.delegate(&dir)?;
            }
            std::fs::create_dir_all(&dir).with_context(|| format!("cgroup {}", dir.display()))?;
            if self.version == Version::V1 && dir.starts_with(self.mount.join("cpuset")) {
                self.inherit_cpuset(&dir)?;
            }
        }
        self.apply(name, amounts)
    }

    fn apply(&self, name: &str, amounts: &Amounts) -> anyhow::Result<()> {
        let relative = name.trim_start_matches('/');
        let shares = shares(amounts.milli_cpu_request.unwrap_or(0));
        match self.version {
            Version::V1 => {
                let cpu = self.mount.join("cpu").join(relative);
                set(&cpu.join("cpu.shares"), &shares.to_string())?;
                let quota = amounts.milli_cpu_limit.map_or(-1, quota);
                set(&cpu.join("cpu.cfs_quota_us"), &quota.to_string())?;
                let memory = self.mount.join("memory").join(relative);
                let limit = amounts.memory_limit.unwrap_or(-1);
                set(&memory.join("memory.limit_in_bytes"), &limit.to_string())?;
            }
            Version::V2 => {
                let dir = self.mount.join(relative);
                set(&dir.join("cpu.weight"), &weight(shares).to_string())?;
                let max = |value: Option<String>| value.unwrap_or_else(|| "max".into());
                let cpu = max(amounts
                    .milli_cpu_limit
                    .map(|milli| quota(milli).to_string()));
                set(&dir.join("cpu.max"), &format!("{cpu} {PERIOD}"))?;
                let memory = max(amounts.memory_limit.map(|bytes| bytes.to_string()));
                set(&dir.join("memory.max"), &memory)?;
            }
        }
        Ok(())
    }

    /// A new cpuset of v1 is empty and takes no process until it is filled in.
    fn inherit_cpuset(&self, dir: &Path) -> anyhow::Result<()> {
        let root = self.mount.join("cpuset");
        let mut chain: Vec<&Path> = dir.ancestors().take_while(|path| *path != root).collect();
        chain.reverse();
        for step in chain {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let own = std::fs::read_to_string(step.join(file)).unwrap_or_default();
                if own.trim().is_empty()
                    && let Some(parent) = step.parent()
                {
                    let inherited = std::fs::read_to_string(parent.join(file)).unwrap_or_default();
                    set(&step.join(file), inherited.trim())?;
                }
            }
        }
        Ok(())
    }

    /// v2: each level above hands its controllers down.
    fn delegate(&self, dir: &Path) -> anyhow::Result<()> {
        let mut above: Vec<&Path> = dir
            .ancestors()
            .skip(1)
            .take_while(|path| path.starts_with(&self.mount))
            .collect();
        above.reverse();
        for step in above {
            std::fs::create_dir_all(step).with_context(|| format!("cgroup {}", step.display()))?;
            let offered =
                std::fs::read_to_string(step.join("cgroup.controllers")).unwrap_or_default();
            let wanted: Vec<String> = offered
                .split_whitespace()
                .filter(|name| ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"].contains(name))
                .map(|name| format!("+{name}"))
                .collect();
            set(&step.join("cgroup.subtree_control"), &wanted.join(" "))?;
        }
        Ok(())
    }

    /// v2 lets a cgroup have processes or children with controllers, not both: when this process lives in the root
    /// of a cgroup namespace, it and its neighbours move to a leaf of their own.
    fn leave_root(&self) -> anyhow::Result<()> {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let at_root = own.lines().any(|line| {
            line.strip_prefix("0::")
                .is_some_and(|path| path == self.root)
        });
        // The machine's real root has no such rule (and no cgroup.type file).
        if !at_root
            || !self
                .mount
                .join(self.root.trim_start_matches('/'))
                .join("cgroup.type")
                .exists()
        {
            return Ok(());
        }
        let root = self.mount.join(self.root.trim_start_matches('/'));
        let leaf = root.join("node-agent");
        std::fs::create_dir_all(&leaf)?;
        let processes = std::fs::read_to_string(root.join("cgroup.procs"))?;
        for process in processes.lines() {
            // One that ended meanwhile is no loss.
            let _ = std::fs::write(leaf.join("cgroup.procs"), process);
        }
        Ok(())
    }
}

/// What a pod's cgroup is to give it.
fn wanted(pod: &Pod) -> Amounts {
    match QosClass::of(pod) {
        QosClass::BestEffort => Amounts::default(),
        _ => Amounts::of_pod(pod),
    }
}

fn set(path: &Path, value: &str) -> anyhow::Result<()> {
    // A controller that the system doesn't have has no files; there is nothing to limit with.
    if !path.exists() {
        return Ok(());
    }
    std::fs::write(path, value).with_context(|| format!("writing {value:?} to {}", path.display()))
}

/// Only empty cgroups can be removed, the deepest first; the kernel keeps no files in the way.
fn remove_tree(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    if let Err(error) = std::fs::remove_dir(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        warn!(dir = %dir.display(), %error, "cgroup stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions() {
        for (milli, expected) in [
            (0, 2),
            (1, 2),
            (100, 102),
            (1000, 1024),
            (1_000_000, 262_144),
        ] {
            assert_eq!(shares(milli), expected, "{milli}");
        }
        for (milli, expected) in [(1, 1000), (100, 10_000), (1500, 150_000)] {
            assert_eq!(quota(milli), expected, "{milli}");
        }
        for (shares, expected) in [(2, 1), (1024, 39), (262_144, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
            assert_eq!(weight(shares_of_weight(expected)), expected, "{shares}");
        }
        assert_eq!(milli_of_shares(shares(100)), 100);
        assert_eq!(milli_of_quota(quota(1500), PERIOD), 1500);
    }

    #[test]
    fn pod_tree_comes_and_goes() {
        let machine = Machine {
            milli_cpu: 2000,
            ..Machine::default()
        };
        let root = format!("fluyt-test-{}", std::process::id());
        let cgroups = Cgroups::new(&root, &machine).unwrap();
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"uid": "u1"},
            "spec": {"containers": [{"name": "c", "resources":
                {"requests": {"cpu": "500m"}, "limits": {"memory": "64Mi", "cpu": "1"}}}]}
        }))
        .unwrap();
        cgroups.ensure_pod(&pod).unwrap();
        assert_eq!(
            cgroups.pod(&pod),
            format!("/{root}/kubepods/burstable/podu1")
        );
        if cgroups.version == Version::V1 {
            let read = |file: &str| {
                std::fs::read_to_string(
                    Path::new(MOUNT).join(file.replace('@', &cgroups.pod(&pod)[1..])),
                )
                .unwrap()
            };
            assert_eq!(read("cpu/@/cpu.shares").trim(), "512");
            assert_eq!(read("cpu/@/cpu.cfs_quota_us").trim(), "100000");
            assert_eq!(
                read("memory/@/memory.limit_in_bytes").trim(),
                (64 << 20).to_string()
            );
            assert!(!read("cpuset/@/cpuset.cpus").trim().is_empty());
        }
        let given = cgroups.given(&pod);
        assert_eq!(given.milli_cpu_request, Some(500));
        assert_eq!(given.milli_cpu_limit, Some(1000));
        assert_eq!(given.memory_limit, Some(64 << 20));
        cgroups.lift_limits(&pod).unwrap();
        let given = cgroups.given(&pod);
        assert_eq!((given.milli_cpu_limit, given.memory_limit), (None, None));
        // Another pod of the same name asks for something else.
        cgroups.ensure_pod(&pod).unwrap();
        let mut other = pod;
        let resources = serde_json::json!({"requests": {"cpu": "2"}});
        other.spec.as_mut().unwrap().resources = serde_json::from_value(resources).unwrap();
        let given = cgroups.given(&other);
        assert!(
            given
                .milli_cpu_request
                .is_some_and(|milli| (450..=500).contains(&milli))
        );
        assert_eq!(given.milli_cpu_limit, Some(1000));
        assert_eq!(cgroups.pods(), ["u1"]);
        cgroups.remove_pod("u1");
        assert!(cgroups.pods().is_empty());
        for dir in cgroups.dirs(&format!("/{root}")) {
            remove_tree(&dir);
        }
    }
}

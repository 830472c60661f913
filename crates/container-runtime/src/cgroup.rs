//! A container's or pod's control group, on cgroup v1 (one hierarchy per controller) or v2.
//!
//! libcontainer makes the groups and applies limits when it makes a container; everything after that is here. Paths
//! are relative to the mounts that this process sees, so it works inside a cgroup namespace.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use k8s_cri::v1::LinuxContainerResources;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The mounted hierarchies.
#[derive(Debug)]
pub enum Hierarchies {
    /// Mount point and controllers of each.
    V1(Vec<(PathBuf, Vec<String>)>),
    V2(PathBuf),
}

/// One group: the same path in every hierarchy.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

/// A group's place in one hierarchy.
#[derive(Debug)]
pub struct Directory {
    /// Its controllers: `cpu,cpuacct`.
    pub hierarchy: String,
    pub path: PathBuf,
}

/// Usage of a group, in the units of CRI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu_nanoseconds: u64,
    pub memory_usage: u64,
    pub memory_working_set: u64,
    pub memory_rss: u64,
    pub memory_limit: Option<u64>,
    pub swap_usage: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub processes: u64,
}

/// The v1 controllers that libcontainer makes groups for.
const MANAGED: [&str; 12] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

/// A v1 limit above this means "none" (the kernel rounds its maximum down to pages).
const UNLIMITED: u64 = i64::MAX as u64 / 2;

// === impl Hierarchies ===

impl Hierarchies {
    /// What this process sees. Read once: hierarchies don't change under a running node.
    pub fn here() -> &'static Self {
        static HERE: OnceLock<Hierarchies> = OnceLock::new();
        HERE.get_or_init(|| {
            Self::parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
        })
    }

    fn parse(mountinfo: &str) -> Self {
        let mut v1 = Vec::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(mount_point) = left.split(' ').nth(4) else {
                continue;
            };
            let mut fields = right.split(' ');
            match fields.next() {
                Some("cgroup") => {
                    let options = fields.nth(1).unwrap_or_default();
                    let controllers = options
                        .split(',')
                        .filter(|option| !matches!(*option, "rw" | "ro"))
                        .map(str::to_owned)
                        .collect();
                    v1.push((PathBuf::from(mount_point), controllers));
                }
                Some("cgroup2") => v2 = Some(PathBuf::from(mount_point)),
                _ => {}
            }
        }
        let has_memory = v1
            .iter()
            .any(|(_, controllers): &(_, Vec<String>)| controllers.iter().any(|c| c == "memory"));
        match v2 {
            Some(mount) if !has_memory => Self::V2(mount),
            _ => Self::V1(v1),
        }
    }

    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2(_))
    }

    fn mounts(&self) -> Vec<&Path> {
        match self {
            Self::V1(mounts) => mounts.iter().map(|(mount, _)| mount.as_path()).collect(),
            Self::V2(mount) => vec![mount],
        }
    }
}

// === impl Cgroup ===

impl Cgroup {
    /// The group at `path`, as an OCI spec's `cgroupsPath` names it.
    pub fn at(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        Self {
            path: path.strip_prefix("/").unwrap_or(path).to_owned(),
        }
    }

    /// The group's directory in every hierarchy that has it.
    pub fn directories(&self) -> Vec<PathBuf> {
        Hierarchies::here()
            .mounts()
            .into_iter()
            .map(|mount| mount.join(&self.path))
            .filter(|path| path.is_dir())
            .collect()
    }

    /// Where libcontainer will make the group, in every v1 hierarchy that it manages.
    pub fn future_directories(&self) -> Vec<Directory> {
        match Hierarchies::here() {
            Hierarchies::V1(mounts) => mounts
                .iter()
                .filter(|(_, controllers)| {
                    controllers
                        .iter()
                        .any(|name| MANAGED.contains(&name.as_str()))
                })
                .map(|(mount, controllers)| Directory {
                    hierarchy: controllers.join(","),
                    path: mount.join(&self.path),
                })
                .collect(),
            Hierarchies::V2(_) => Vec::new(),
        }
    }

    /// The v1 directory of one controller, or the group's directory in v2.
    fn directory(&self, controller: &str) -> Option<PathBuf> {
        match Hierarchies::here() {
            Hierarchies::V1(mounts) => mounts
                .iter()
                .find(|(_, controllers)| controllers.iter().any(|name| name == controller))
                .map(|(mount, _)| mount.join(&self.path)),
            Hierarchies::V2(mount) => Some(mount.join(&self.path)),
        }
    }

    /// `cgroup.procs` of every hierarchy; writing "0" to each joins the group.
    pub fn open_procs(&self) -> io::Result<Vec<File>> {
        self.directories()
            .into_iter()
            .map(|directory| {
                File::options()
                    .write(true)
                    .open(directory.join("cgroup.procs"))
            })
            .collect()
    }

    /// The processes in the group and below it.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for directory in self.directories() {
            collect_processes(&directory, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        // 0 is a process outside our pid namespace.
        found.retain(|pid| *pid != 0);
        found
    }

    /// Sends a signal to every process.
    pub fn signal(&self, signal: Signal) {
        if signal == Signal::SIGKILL
            && let Hierarchies::V2(mount) = Hierarchies::here()
            && fs::write(mount.join(&self.path).join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Removes the group and what is below it. Fails with `ResourceBusy` while a process is in it.
    pub fn remove(&self) -> io::Result<()> {
        let mut result = Ok(());
        for directory in self.directories() {
            if let Err(error) = remove_tree(&directory) {
                result = Err(error);
            }
        }
        result
    }

    /// How many of its processes the kernel killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let Some(directory) = self.directory("memory") else {
            return 0;
        };
        let file = if Hierarchies::here().is_v2() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        keyed(&directory.join(file), "oom_kill").unwrap_or(0)
    }

    pub fn stats(&self) -> Stats {
        match Hierarchies::here() {
            Hierarchies::V1(_) => self.stats_v1(),
            Hierarchies::V2(mount) => stats_v2(&mount.join(&self.path)),
        }
    }

    fn stats_v1(&self) -> Stats {
        let file = |controller: &str, name: &str| {
            self.directory(controller)
                .map(|directory| directory.join(name))
                .unwrap_or_default()
        };
        let memory = fs::read_to_string(file("memory", "memory.stat")).unwrap_or_default();
        let value = |key: &str| keyed_in(&memory, key).unwrap_or(0);
        let usage = number(&file("memory", "memory.usage_in_bytes")).unwrap_or(0);
        Stats {
            cpu_nanoseconds: number(&file("cpuacct", "cpuacct.usage")).unwrap_or(0),
            memory_usage: usage,
            memory_working_set: usage.saturating_sub(value("total_inactive_file")),
            memory_rss: value("total_rss"),
            memory_limit: number(&file("memory", "memory.limit_in_bytes"))
                .filter(|limit| *limit < UNLIMITED),
            swap_usage: value("total_swap"),
            page_faults: value("total_pgfault"),
            major_page_faults: value("total_pgmajfault"),
            processes: number(&file("pids", "pids.current")).unwrap_or(0),
        }
    }

    /// Applies new limits to a running container; zero and empty values mean "leave as it is".
    pub fn update(&self, resources: &LinuxContainerResources) -> io::Result<()> {
        let writes = match Hierarchies::here() {
            Hierarchies::V1(_) => self.updates_v1(resources),
            Hierarchies::V2(_) => self.updates_v2(resources),
        };
        for (path, value) in writes {
            fs::write(&path, &value).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("writing {value} to {}: {error}", path.display()),
                )
            })?;
        }
        Ok(())
    }

    fn updates_v1(&self, resources: &LinuxContainerResources) -> Vec<(PathBuf, String)> {
        let mut writes = Vec::new();
        let mut write = |controller: &str, file: &str, value: String| {
            if let Some(directory) = self.directory(controller) {
                writes.push((directory.join(file), value));
            }
        };
        if resources.cpu_shares > 0 {
            write("cpu", "cpu.shares", resources.cpu_shares.to_string());
        }
        if resources.cpu_period > 0 {
            write("cpu", "cpu.cfs_period_us", resources.cpu_period.to_string());
        }
        if resources.cpu_quota != 0 {
            write("cpu", "cpu.cfs_quota_us", resources.cpu_quota.to_string());
        }
        if resources.memory_limit_in_bytes != 0 {
            write(
                "memory",
                "memory.limit_in_bytes",
                resources.memory_limit_in_bytes.to_string(),
            );
        }
        if !resources.cpuset_cpus.is_empty() {
            write("cpuset", "cpuset.cpus", resources.cpuset_cpus.clone());
        }
        if !resources.cpuset_mems.is_empty() {
            write("cpuset", "cpuset.mems", resources.cpuset_mems.clone());
        }
        writes
    }

    fn updates_v2(&self, resources: &LinuxContainerResources) -> Vec<(PathBuf, String)> {
        let mut writes = Vec::new();
        let mut write = |file: &str, value: String| {
            if let Some(directory) = self.directory("") {
                writes.push((directory.join(file), value));
            }
        };
        if resources.cpu_shares > 0 {
            write("cpu.weight", cpu_weight(resources.cpu_shares).to_string());
        }
        if resources.cpu_quota != 0 || resources.cpu_period > 0 {
            let quota = match resources.cpu_quota {
                quota if quota > 0 => quota.to_string(),
                _ => "max".to_owned(),
            };
            let period = match resources.cpu_period {
                0 => 100_000,
                period => period,
            };
            write("cpu.max", format!("{quota} {period}"));
        }
        if resources.memory_limit_in_bytes != 0 {
            let limit = match resources.memory_limit_in_bytes {
                limit if limit > 0 => limit.to_string(),
                _ => "max".to_owned(),
            };
            write("memory.max", limit);
        }
        if !resources.cpuset_cpus.is_empty() {
            write("cpuset.cpus", resources.cpuset_cpus.clone());
        }
        if !resources.cpuset_mems.is_empty() {
            write("cpuset.mems", resources.cpuset_mems.clone());
        }
        for (file, value) in &resources.unified {
            // The keys are file names; one with a slash would reach another group.
            if !file.contains('/') {
                write(file, value.clone());
            }
        }
        writes
    }
}

/// cgroup v2's weight (1..10000) for v1's shares (2..262144), as runc converts it.
fn cpu_weight(shares: i64) -> i64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9999) / 262_142
}

fn stats_v2(directory: &Path) -> Stats {
    let memory = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let value = |key: &str| keyed_in(&memory, key).unwrap_or(0);
    let usage = number(&directory.join("memory.current")).unwrap_or(0);
    Stats {
        cpu_nanoseconds: keyed(&directory.join("cpu.stat"), "usage_usec").unwrap_or(0) * 1000,
        memory_usage: usage,
        memory_working_set: usage.saturating_sub(value("inactive_file")),
        memory_rss: value("anon"),
        memory_limit: number(&directory.join("memory.max")),
        swap_usage: number(&directory.join("memory.swap.current")).unwrap_or(0),
        page_faults: value("pgfault"),
        major_page_faults: value("pgmajfault"),
        processes: number(&directory.join("pids.current")).unwrap_or(0),
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn keyed(path: &Path, key: &str) -> Option<u64> {
    keyed_in(&fs::read_to_string(path).ok()?, key)
}

fn keyed_in(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

fn collect_processes(directory: &Path, found: &mut Vec<i32>) {
    if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    for child in subdirectories(directory) {
        collect_processes(&child, found);
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in subdirectories(directory) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_apart() {
        let hybrid = "30 1 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 1 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
32 1 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let Hierarchies::V1(mounts) = Hierarchies::parse(hybrid) else {
            panic!("v1 has the memory controller");
        };
        assert_eq!(mounts[1].0, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(mounts[1].1, ["cpu", "cpuacct"]);
        let unified = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        assert!(Hierarchies::parse(unified).is_v2());
    }

    #[test]
    fn weights_cover_the_range_of_shares() {
        assert_eq!(cpu_weight(2), 1);
        assert_eq!(cpu_weight(1024), 39);
        assert_eq!(cpu_weight(262_144), 10_000);
    }

    #[test]
    fn keyed_values_match_whole_keys() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(keyed_in(text, "oom_kill"), Some(3));
        assert_eq!(keyed_in(text, "oom"), None);
    }
}

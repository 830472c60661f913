//! The control group of a machine: the CPU and memory of its size. Version 1, with a hierarchy per controller, or 2.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount_point: PathBuf,
    /// `cpu`, `name=systemd`, …; empty in version 2.
    pub options: Vec<String>,
    pub is_v2: bool,
}

/// Period of CPU limits, in microseconds; the kernel's default.
const PERIOD: u64 = 100_000;

/// Where a version 2 machine's own processes are, as a group with children may hold none itself.
pub const INIT_SCOPE: &str = "init.scope";

/// The hierarchies that this process sees.
///
/// # Errors
/// Without `/proc`.
pub fn hierarchies() -> anyhow::Result<Vec<Hierarchy>> {
    let text = crate::files::read(Path::new("/proc/self/mountinfo"))?;
    let found = parse(&text);
    anyhow::ensure!(
        !found.is_empty(),
        "no control groups are mounted at /sys/fs/cgroup"
    );
    Ok(found)
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let parse_line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mount_point = PathBuf::from(left.split(' ').nth(4)?);
        let mut fields = right.split(' ');
        let is_v2 = match fields.next()? {
            "cgroup" => false,
            "cgroup2" => true,
            _ => return None,
        };
        let options = fields
            .nth(1)?
            .split(',')
            .filter(|o| !is_v2 && !matches!(*o, "rw" | "ro"))
            .map(str::to_owned)
            .collect();
        Some(Hierarchy {
            mount_point,
            options,
            is_v2,
        })
    };
    mountinfo.lines().filter_map(parse_line).collect()
}

/// Whether all controllers are in version 2.
#[must_use]
pub fn is_unified(hierarchies: &[Hierarchy]) -> bool {
    hierarchies.iter().all(|h| h.is_v2)
}

/// Makes the group at `path` (such as `fluyt/<cluster>/<node>`) in every hierarchy, with its limits.
///
/// # Errors
/// When the kernel refuses a group or a limit.
pub fn create(path: &str, milli_cpu: u64, memory_bytes: u64) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.mount_point.join(path);
        make(&hierarchy, path)
            .with_context(|| format!("making control group {}", group.display()))?;
        let quota = milli_cpu * PERIOD / 1000;
        // A limit file is there exactly if its controller is in this hierarchy.
        let limits = [
            ("cpu.cfs_period_us", PERIOD.to_string()),
            ("cpu.cfs_quota_us", quota.to_string()),
            ("cpu.max", format!("{quota} {PERIOD}")),
            ("memory.limit_in_bytes", memory_bytes.to_string()),
            ("memory.max", memory_bytes.to_string()),
            // A machine that runs out of memory kills what used it, not its first process.
            ("memory.use_hierarchy", "1".to_owned()),
        ];
        for (file, value) in limits {
            let file = group.join(file);
            if file.exists() {
                let written = fs::write(&file, value);
                // Not to be changed on kernels where there is no other way.
                if !file.ends_with("memory.use_hierarchy") {
                    written.with_context(|| format!("limiting {}", file.display()))?;
                }
            }
        }
    }
    Ok(())
}

fn make(hierarchy: &Hierarchy, path: &str) -> io::Result<()> {
    let mut group = hierarchy.mount_point.clone();
    for part in path.split('/') {
        if hierarchy.is_v2 {
            delegate(&group);
        }
        let parent = group.clone();
        group.push(part);
        match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // A new cpuset is empty, and takes no process until it is not.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if !hierarchy.is_v2 && group.join(file).exists() {
                fs::write(
                    group.join(file),
                    fs::read_to_string(parent.join(file))?.trim(),
                )?;
            }
        }
    }
    Ok(())
}

/// Lets the children of a version 2 group have all controllers that it has itself.
pub fn delegate(group: &Path) {
    let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        // One by one: one that can't be delegated does not stop the others.
        let _ = fs::write(
            group.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
}

/// Moves this process into the group.
///
/// # Errors
/// When the kernel refuses.
pub fn enter(path: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let procs = hierarchy.mount_point.join(path).join("cgroup.procs");
        fs::write(&procs, std::process::id().to_string())
            .with_context(|| format!("joining {}", procs.display()))?;
    }
    Ok(())
}

/// Kills what is in the group and removes it with all below it. None there is fine.
///
/// # Errors
/// When a group stays busy.
pub fn remove(path: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.mount_point.join(path);
        remove_tree(&group)
            .with_context(|| format!("removing control group {}", group.display()))?;
    }
    Ok(())
}

/// Removes the group unless something is still below it.
pub fn remove_if_empty(path: &str) {
    for hierarchy in hierarchies().unwrap_or_default() {
        let _ = fs::remove_dir(hierarchy.mount_point.join(path));
    }
}

fn remove_tree(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    for pid in fs::read_to_string(group.join("cgroup.procs"))?.lines() {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    // The dying leave their group a moment after they are gone.
    let mut tries = 200;
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) && tries > 0 => {
                tries -= 1;
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_read() {
        let found = parse(
            "30 29 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:1 - cgroup cgroup rw,cpu\n\
             31 29 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             32 29 0:28 / /tmp rw - tmpfs tmpfs rw",
        );
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].options, ["cpu"]);
        assert!(!is_unified(&found) && is_unified(&found[1..]));
    }

    #[test]
    fn a_group_has_its_limits_and_goes() {
        let path = format!("fluyt-test-{}/a", std::process::id());
        create(&path, 500, 64 << 20).unwrap();
        let limits: Vec<String> = hierarchies()
            .unwrap()
            .iter()
            .flat_map(|h| {
                ["memory.limit_in_bytes", "memory.max"].map(|f| h.mount_point.join(&path).join(f))
            })
            .filter_map(|f| fs::read_to_string(f).ok())
            .collect();
        assert_eq!(limits, ["67108864\n"]);
        remove(&path).unwrap();
        remove(path.trim_end_matches("/a")).unwrap();
        remove(&path).unwrap();
    }
}

//! What a container's mount namespace has besides its root.

use std::path::{Path, PathBuf};

use k8s_cri::v1::{LinuxContainerSecurityContext, MountPropagation, NamespaceMode};
use serde_json::{Value, json};

use super::{Input, is_v2};
use crate::cgroup::Cgroup;

/// A file or directory of the node.
#[derive(Clone, Debug)]
pub struct HostMount {
    pub source: PathBuf,
    pub target: String,
    pub readonly: bool,
    pub recursive_read_only: bool,
    pub propagation: MountPropagation,
}

/// An image as a volume, read-only.
#[derive(Clone, Debug)]
pub struct ImageMount {
    /// Topmost first.
    pub lower: Vec<PathBuf>,
    pub target: String,
}

pub fn mounts(input: &Input<'_>, security: &LinuxContainerSecurityContext) -> Vec<Value> {
    let host_ipc = security
        .namespace_options
        .as_ref()
        .is_some_and(|options| options.ipc() == NamespaceMode::Node);
    let mut list = vec![
        mount("proc", "proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "tmpfs",
            "tmpfs",
            "/dev",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
    ];
    if host_ipc {
        list.push(bind(Path::new("/dev/mqueue"), "/dev/mqueue", &["rw"]));
        list.push(bind(Path::new("/dev/shm"), "/dev/shm", &["rw"]));
        list.retain(|mount| {
            mount["type"] != "bind"
                || mount["source"]
                    .as_str()
                    .is_some_and(|source| Path::new(source).exists())
        });
    } else {
        list.push(mount(
            "mqueue",
            "mqueue",
            "/dev/mqueue",
            &["nosuid", "noexec", "nodev"],
        ));
        list.push(bind(&input.sandbox_files.shm, "/dev/shm", &["rw"]));
    }
    let writable = if security.privileged { "rw" } else { "ro" };
    list.push(mount(
        "sysfs",
        "sysfs",
        "/sys",
        &["nosuid", "noexec", "nodev", writable],
    ));
    add_cgroups(input.cgroup, writable, &mut list);

    let readonly = if security.readonly_rootfs { "ro" } else { "rw" };
    list.push(bind(
        &input.sandbox_files.resolv_conf,
        "/etc/resolv.conf",
        &[readonly],
    ));
    list.push(bind(
        &input.sandbox_files.hostname,
        "/etc/hostname",
        &[readonly],
    ));
    // The request's mounts come after ours, parents first, and replace what has the same target.
    let mut requested: Vec<Value> = input.mounts.iter().map(host_mount).collect();
    requested.extend(input.image_mounts.iter().map(image_mount));
    requested.sort_by_key(|mount| {
        Path::new(mount["destination"].as_str().unwrap_or_default())
            .components()
            .count()
    });
    list.retain(|default| {
        !requested
            .iter()
            .any(|mount| mount["destination"] == default["destination"])
    });
    list.extend(requested);
    list
}

/// Whether the node is to see mounts that the container makes.
pub fn shares_mounts(mounts: &[HostMount]) -> bool {
    mounts
        .iter()
        .any(|mount| mount.propagation == MountPropagation::PropagationBidirectional)
}

/// The propagation of the container's root: what the most demanding mount needs.
pub fn propagation(mounts: &[HostMount]) -> &'static str {
    let from_host =
        |mount: &HostMount| mount.propagation == MountPropagation::PropagationHostToContainer;
    if shares_mounts(mounts) {
        "shared"
    } else if mounts.iter().any(from_host) {
        "slave"
    } else {
        "private"
    }
}

fn add_cgroups(cgroup: &Path, writable: &str, list: &mut Vec<Value>) {
    let options = ["nosuid", "noexec", "nodev", writable];
    if is_v2() {
        list.push(mount("cgroup", "cgroup", "/sys/fs/cgroup", &options));
        return;
    }
    list.push(mount(
        "tmpfs",
        "tmpfs",
        "/sys/fs/cgroup",
        &["nosuid", "noexec", "nodev", "mode=755", "size=64k"],
    ));
    // libcontainer's own cgroup v1 mount is writable; these are the container's groups and no more. They exist
    // when they are mounted: the container's process is put into them first.
    for directory in Cgroup::at(cgroup).future_directories() {
        list.push(bind(
            &directory.path,
            &format!("/sys/fs/cgroup/{}", directory.hierarchy),
            &options,
        ));
    }
}

fn host_mount(host: &HostMount) -> Value {
    let mut options = vec![match host.propagation {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    }];
    if host.readonly && host.recursive_read_only {
        options.push("rro");
    } else if host.readonly {
        options.push("ro");
    } else {
        options.push("rw");
    }
    bind(&host.source, &host.target, &options)
}

fn image_mount(image: &ImageMount) -> Value {
    match &image.lower[..] {
        [only] => bind(only, &image.target, &["ro"]),
        layers => {
            let lower = layers
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
                .join(":");
            mount(
                "overlay",
                "overlay",
                &image.target,
                &[&format!("lowerdir={lower}"), "ro"],
            )
        }
    }
}

fn mount(kind: &str, source: &str, target: &str, options: &[&str]) -> Value {
    json!({ "type": kind, "source": source, "destination": target, "options": options })
}

fn bind(source: &Path, target: &str, options: &[&str]) -> Value {
    let mut all = vec!["rbind"];
    all.extend(options);
    json!({ "type": "bind", "source": source, "destination": target, "options": all })
}

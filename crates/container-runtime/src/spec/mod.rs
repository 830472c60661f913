//! The OCI runtime spec of a container, made from what CRI asks for and what the image says.

pub mod capabilities;
mod devices;
mod environment;
mod mounts;
mod namespaces;
mod resources;
mod seccomp;
pub mod user;

use std::path::{Path, PathBuf};

use k8s_cri::v1::{ContainerConfig, LinuxContainerSecurityContext, PodSandboxConfig};
use serde_json::{Value, json};

use crate::cgroup::Hierarchies;
use crate::image::Image;

pub use mounts::{HostMount, ImageMount, shares_mounts};
pub use user::User;

/// What a spec is made of.
#[derive(Debug)]
pub struct Input<'a> {
    pub sandbox: &'a PodSandboxConfig,
    pub container: &'a ContainerConfig,
    pub image: &'a Image,
    pub user: &'a User,
    /// The container's mounts with resolved sources.
    pub mounts: &'a [HostMount],
    pub image_mounts: &'a [ImageMount],
    pub cgroup: &'a Path,
    pub shim_pid: i32,
    /// The init of the pod's shared pid namespace, or the process whose namespace to join.
    pub pid_namespace: Option<i32>,
    /// The sandbox's `/dev/shm`, `resolv.conf` and `hostname`.
    pub sandbox_files: &'a SandboxFiles,
}

/// Files of a sandbox that its containers see.
#[derive(Clone, Debug)]
pub struct SandboxFiles {
    pub shm: PathBuf,
    pub resolv_conf: PathBuf,
    pub hostname: PathBuf,
}

/// A request that can't be satisfied.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

pub type Result<T> = std::result::Result<T, Invalid>;

/// The spec, as the JSON of `config.json`.
pub fn generate(input: &Input<'_>) -> Result<Value> {
    let linux = input.container.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    let resources = linux.resources.unwrap_or_default();
    let devices = devices::devices(input.container, security.privileged)?;

    let mut process = json!({
        "terminal": input.container.tty,
        "user": {
            "uid": input.user.uid,
            "gid": input.user.gid,
            "additionalGids": input.user.additional_gids,
        },
        "args": environment::args(input.container, input.image)?,
        "env": environment::env(input),
        "cwd": working_directory(input.container, input.image),
        "capabilities": capabilities::capabilities(&security)?,
        "oomScoreAdj": possible_oom_score(resources.oom_score_adj),
    });
    // An explicit false would make libcontainer load the seccomp filter when it no longer may.
    if security.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }

    let mut spec_linux = json!({
        "cgroupsPath": input.cgroup,
        "namespaces": namespaces::namespaces(input, &security),
        "resources": resources::resources(&resources, &devices, security.privileged),
        "devices": devices.nodes,
        "rootfsPropagation": mounts::propagation(input.mounts),
    });
    if !security.privileged {
        spec_linux["maskedPaths"] = json!(security.masked_paths);
        spec_linux["readonlyPaths"] = json!(security.readonly_paths);
    }
    if let Some(profile) = seccomp::profile(&security)? {
        spec_linux["seccomp"] = profile;
    }

    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
        "mounts": mounts::mounts(input, &security),
        "linux": spec_linux,
    }))
}

/// Where the container's program starts.
pub fn working_directory(container: &ContainerConfig, image: &Image) -> String {
    if !container.working_dir.is_empty() {
        return container.working_dir.clone();
    }
    image
        .config
        .config
        .as_ref()
        .and_then(|config| config.working_dir.clone())
        .filter(|directory| directory.starts_with('/'))
        .unwrap_or_else(|| "/".to_owned())
}

/// Whether the container has a pid namespace of its own.
pub fn owns_pid_namespace(security: &LinuxContainerSecurityContext) -> bool {
    use k8s_cri::v1::NamespaceMode;
    security
        .namespace_options
        .as_ref()
        .is_some_and(|options| options.pid() == NamespaceMode::Container)
}

fn is_v2() -> bool {
    Hierarchies::here().is_v2()
}
/// The score itself where we may set any, else not below our own: a host may withhold `CAP_SYS_RESOURCE` even from root.
fn possible_oom_score(wanted: i64) -> i64 {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    if effective.is_none_or(|set| set & CAP_SYS_RESOURCE != 0) {
        return wanted;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").ok();
    wanted.max(own.and_then(|text| text.trim().parse().ok()).unwrap_or(0))
}

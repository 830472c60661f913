//! Seccomp filters: the runtime's default, or a profile of the node.

use k8s_cri::v1::LinuxContainerSecurityContext;
use k8s_cri::v1::security_profile::ProfileType;
use serde_json::{Value, json};

use super::{Invalid, Result, capabilities};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// System calls that the default filter refuses, by the capability that makes up for it (if one does). Each either
/// changes the whole machine or has no use in a container but attacking its kernel.
const REFUSED: &[(Option<&str>, &[&str])] = &[
    (
        Some("SYS_ADMIN"),
        &[
            "bpf",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "pivot_root",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (
        Some("SYS_BOOT"),
        &["reboot", "kexec_load", "kexec_file_load"],
    ),
    (
        Some("SYS_MODULE"),
        &[
            "create_module",
            "delete_module",
            "finit_module",
            "init_module",
            "query_module",
        ],
    ),
    (Some("SYS_PACCT"), &["acct"]),
    (
        Some("SYS_PTRACE"),
        &["kcmp", "pidfd_getfd", "process_madvise"],
    ),
    (Some("SYS_RAWIO"), &["ioperm", "iopl"]),
    (
        Some("SYS_TIME"),
        &["clock_adjtime", "clock_settime", "settimeofday", "stime"],
    ),
    (
        Some("SYS_NICE"),
        &[
            "mbind",
            "move_pages",
            "migrate_pages",
            "set_mempolicy",
            "set_mempolicy_home_node",
        ],
    ),
    (Some("SYSLOG"), &["syslog"]),
    (Some("DAC_READ_SEARCH"), &["open_by_handle_at"]),
    (
        None,
        &[
            "add_key",
            "get_kernel_syms",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "keyctl",
            "nfsservctl",
            "request_key",
            "swapoff",
            "swapon",
            "sysfs",
            "_sysctl",
            "uselib",
            "userfaultfd",
            "ustat",
            "vm86",
            "vm86old",
        ],
    ),
];

/// Flags of `clone` that make namespaces.
const NAMESPACE_FLAGS: [u64; 7] = [
    nix::libc::CLONE_NEWNS as u64,
    nix::libc::CLONE_NEWUTS as u64,
    nix::libc::CLONE_NEWIPC as u64,
    nix::libc::CLONE_NEWUSER as u64,
    nix::libc::CLONE_NEWPID as u64,
    nix::libc::CLONE_NEWNET as u64,
    nix::libc::CLONE_NEWCGROUP as u64,
];

/// The `linux.seccomp` of a container; `None` is no filter.
pub fn profile(security: &LinuxContainerSecurityContext) -> Result<Option<Value>> {
    if security.privileged {
        return Ok(None);
    }
    let Some(profile) = &security.seccomp else {
        return Ok(None);
    };
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => Ok(Some(default_profile(security))),
        ProfileType::Localhost => {
            let path = profile
                .localhost_ref
                .strip_prefix("localhost/")
                .unwrap_or(&profile.localhost_ref);
            let invalid =
                |error: &dyn std::fmt::Display| Invalid(format!("seccomp profile {path}: {error}"));
            let text = std::fs::read(path).map_err(|error| invalid(&error))?;
            let parsed: oci_spec::runtime::LinuxSeccomp =
                serde_json::from_slice(&text).map_err(|error| invalid(&error))?;
            serde_json::to_value(parsed)
                .map(Some)
                .map_err(|error| invalid(&error))
        }
    }
}

fn default_profile(security: &LinuxContainerSecurityContext) -> Value {
    let refused: Vec<&str> = REFUSED
        .iter()
        .filter(|(capability, _)| match capability {
            Some(capability) => !capabilities::has(security, capability),
            None => true,
        })
        .flat_map(|(_, names)| names.iter().copied())
        .collect();
    let mut rules = vec![json!({
        "names": refused,
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": EPERM,
    })];
    if !capabilities::has(security, "SYS_ADMIN") {
        for flag in NAMESPACE_FLAGS {
            rules.push(json!({
                "names": ["clone"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": EPERM,
                "args": [{ "index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ" }],
            }));
        }
        // Its flags are in memory, out of a filter's sight; without it C libraries fall back to clone.
        rules.push(json!({
            "names": ["clone3"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": ENOSYS,
        }));
    }
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures(),
        "syscalls": rules,
    })
}

fn architectures() -> Value {
    match std::env::consts::ARCH {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        _ => json!([]),
    }
}

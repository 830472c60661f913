//! Linux capabilities of a container.

use std::sync::OnceLock;

use k8s_cri::v1::LinuxContainerSecurityContext;
use serde_json::{Value, json};

use super::{Invalid, Result, is_v2};

/// What a container has unless asked otherwise: the set that Docker and containerd agree on.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// All that Linux knows, by their numbers.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// All that there are to give: nobody has what root on this machine has not.
fn all() -> Vec<String> {
    static HELD: OnceLock<u64> = OnceLock::new();
    let held = *HELD.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        bounding(&status).unwrap_or(u64::MAX)
    });
    of_set(held)
}

/// The bounding set in a process's `status`.
fn bounding(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn of_set(set: u64) -> Vec<String> {
    let held = ALL
        .iter()
        .enumerate()
        .filter(|(number, _)| set >> number & 1 == 1);
    held.map(|(_, name)| (*name).to_owned()).collect()
}

/// The `capabilities` of the spec's process.
pub fn capabilities(security: &LinuxContainerSecurityContext) -> Result<Value> {
    let granted = names(&granted(security)?);
    let ambient = match &security.capabilities {
        Some(capabilities) => normalized(&capabilities.add_ambient_capabilities)?,
        None => Vec::new(),
    };
    Ok(json!({
        "bounding": granted,
        "effective": granted,
        "permitted": granted,
        "inheritable": names(&ambient),
        "ambient": names(&ambient),
    }))
}

/// Whether the container may do what `capability` (without `CAP_`) allows.
pub fn has(security: &LinuxContainerSecurityContext, capability: &str) -> bool {
    granted(security).is_ok_and(|granted| granted.iter().any(|name| name == capability))
}

fn granted(security: &LinuxContainerSecurityContext) -> Result<Vec<String>> {
    if security.privileged {
        return Ok(all());
    }
    let mut granted: Vec<String> = DEFAULT
        .into_iter()
        // Without a device controller, which libcontainer has for v1 only, a device node is access to the device.
        .filter(|name| !(*name == "MKNOD" && is_v2()))
        .map(str::to_owned)
        .collect();
    let Some(change) = &security.capabilities else {
        return Ok(granted);
    };
    let add = normalized(&change.add_capabilities)?;
    let drop = normalized(&change.drop_capabilities)?;
    if add.iter().any(|name| name == "ALL") {
        granted = all();
    }
    if drop.iter().any(|name| name == "ALL") {
        granted.clear();
    }
    for name in add.into_iter().filter(|name| name != "ALL") {
        if !granted.contains(&name) {
            granted.push(name);
        }
    }
    granted.retain(|name| !drop.contains(name));
    Ok(granted)
}

fn normalized(names: &[String]) -> Result<Vec<String>> {
    names
        .iter()
        .map(|name| {
            let upper = name.to_ascii_uppercase();
            let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if short == "ALL" || ALL.contains(&short) {
                Ok(short.to_owned())
            } else {
                Err(Invalid(format!("unknown capability {name:?}")))
            }
        })
        .collect()
}

fn names(short: &[String]) -> Vec<String> {
    short.iter().map(|name| format!("CAP_{name}")).collect()
}

#[cfg(test)]
mod tests {
    use k8s_cri::v1::Capability;

    use super::*;

    fn with(add: &[&str], drop: &[&str]) -> LinuxContainerSecurityContext {
        let strings = |list: &[&str]| list.iter().map(|&item| item.to_owned()).collect();
        LinuxContainerSecurityContext {
            capabilities: Some(Capability {
                add_capabilities: strings(add),
                drop_capabilities: strings(drop),
                ..Capability::default()
            }),
            ..LinuxContainerSecurityContext::default()
        }
    }

    #[test]
    fn drop_all_then_add_leaves_just_that() {
        let granted = granted(&with(&["NET_BIND_SERVICE"], &["ALL"])).unwrap();
        assert_eq!(granted, ["NET_BIND_SERVICE"]);
    }

    #[test]
    fn nobody_is_given_what_the_machine_has_not() {
        let status = "CapEff:\t0000000000000001\nCapBnd:\t000001fffeffffff\nCapAmb:\t0\n";
        let held = of_set(bounding(status).unwrap());
        assert_eq!(held.len(), ALL.len() - 1);
        assert!(!held.iter().any(|name| name == "SYS_RESOURCE"));
        assert_eq!(bounding("CapEff: 1"), None);
        let privileged = LinuxContainerSecurityContext {
            privileged: true,
            ..LinuxContainerSecurityContext::default()
        };
        assert_eq!(
            granted(&privileged).unwrap(),
            granted(&with(&["ALL"], &[])).unwrap()
        );
    }

    #[test]
    fn names_may_have_the_prefix() {
        assert!(has(&with(&["cap_sys_admin"], &[]), "SYS_ADMIN"));
        assert!(!has(&with(&[], &["CAP_KILL"]), "KILL"));
        assert!(super::granted(&with(&["NO_SUCH"], &[])).is_err());
    }
}

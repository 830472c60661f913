//! Limits, as control groups understand them.

use k8s_cri::v1::LinuxContainerResources;
use serde_json::{Map, Value, json};

use super::devices::Devices;
use super::is_v2;

pub fn resources(
    resources: &LinuxContainerResources,
    devices: &Devices,
    privileged: bool,
) -> Value {
    let mut cpu = Map::new();
    let mut set_number = |key: &str, value: i64| {
        if value != 0 {
            cpu.insert(key.to_owned(), json!(value));
        }
    };
    set_number("shares", resources.cpu_shares);
    set_number("quota", resources.cpu_quota);
    set_number("period", resources.cpu_period);
    for (key, value) in [
        ("cpus", &resources.cpuset_cpus),
        ("mems", &resources.cpuset_mems),
    ] {
        if !value.is_empty() {
            cpu.insert(key.to_owned(), json!(value));
        }
    }

    let mut result = json!({ "devices": device_rules(devices, privileged) });
    if !cpu.is_empty() {
        result["cpu"] = Value::Object(cpu);
    }
    if resources.memory_limit_in_bytes != 0 {
        result["memory"] = json!({ "limit": resources.memory_limit_in_bytes });
        // Kernels without swap accounting have no file to write it to.
        if resources.memory_swap_limit_in_bytes != 0 && has_swap_accounting() {
            result["memory"]["swap"] = json!(resources.memory_swap_limit_in_bytes);
        }
    }
    if !resources.hugepage_limits.is_empty() && has_hugepages() {
        result["hugepageLimits"] = resources
            .hugepage_limits
            .iter()
            .map(|limit| json!({ "pageSize": limit.page_size, "limit": limit.limit }))
            .collect();
    }
    if !resources.unified.is_empty() && is_v2() {
        result["unified"] = json!(resources.unified);
    }
    result
}

fn device_rules(devices: &Devices, privileged: bool) -> Vec<Value> {
    if privileged {
        return vec![json!({ "allow": true, "access": "rwm" })];
    }
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    rules.extend(devices.rules.iter().cloned());
    rules
}

fn has_swap_accounting() -> bool {
    if is_v2() {
        return true;
    }
    std::path::Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
}

/// The kubelet sends limits of zero for every page size whether or not the controller is there.
fn has_hugepages() -> bool {
    is_v2() || std::path::Path::new("/sys/fs/cgroup/hugetlb").exists()
}

//! The namespaces of a container: of its pod, of its own, or of the node.

use k8s_cri::v1::{LinuxContainerSecurityContext, NamespaceMode, NamespaceOption};
use serde_json::{Value, json};

use super::{Input, is_v2};

pub fn namespaces(input: &Input<'_>, security: &LinuxContainerSecurityContext) -> Vec<Value> {
    let options: NamespaceOption = security.namespace_options.clone().unwrap_or_default();
    let of_shim = |kind: &str| {
        let file = match kind {
            "network" => "net",
            other => other,
        };
        json!({ "type": kind, "path": format!("/proc/{}/ns/{file}", input.shim_pid) })
    };
    let mut list = vec![json!({ "type": "mount" })];
    if options.network() != NamespaceMode::Node {
        list.push(of_shim("network"));
        // A pod on the node's network has the node's hostname, too.
        list.push(of_shim("uts"));
    }
    if options.ipc() != NamespaceMode::Node {
        list.push(of_shim("ipc"));
    }
    match (options.pid(), input.pid_namespace) {
        (NamespaceMode::Node, _) => {}
        (NamespaceMode::Pod | NamespaceMode::Target, Some(pid)) => {
            list.push(json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") }));
        }
        _ => list.push(json!({ "type": "pid" })),
    }
    if is_v2() {
        list.push(json!({ "type": "cgroup" }));
    }
    list
}

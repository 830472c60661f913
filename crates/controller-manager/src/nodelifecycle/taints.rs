//! The taints that a node's conditions call for.

use k8s_openapi::{
    api::core::v1::{Node, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::health::condition;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that, when true, keep new pods away.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];

/// Whether the node says that it is ready.
pub fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Key and effect of the taints that the node should have. `evict` allows those that remove pods.
fn called_for(node: &Node, evict: bool) -> Vec<(&'static str, &'static str)> {
    let mut taints = Vec::new();
    let readiness = match condition(node, "Ready").map(|ready| ready.status.as_str()) {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        // Also while the kubelet has not reported: pods would go to a node that may never come up.
        Some(_) | None => Some(NOT_READY),
    };
    if let Some(key) = readiness {
        taints.push((key, "NoSchedule"));
        if evict && condition(node, "Ready").is_some() {
            taints.push((key, "NoExecute"));
        }
    }
    for (type_, key) in PRESSURES {
        if condition(node, type_).is_some_and(|condition| condition.status == "True") {
            taints.push((key, "NoSchedule"));
        }
    }
    if node
        .spec
        .as_ref()
        .and_then(|spec| spec.unschedulable)
        .unwrap_or(false)
    {
        taints.push((UNSCHEDULABLE, "NoSchedule"));
    }
    taints
}

fn is_ours(taint: &Taint) -> bool {
    let key = taint.key.as_str();
    let by_condition = key == NOT_READY || key == UNREACHABLE;
    match taint.effect.as_str() {
        "NoSchedule" => {
            by_condition || key == UNSCHEDULABLE || PRESSURES.iter().any(|(_, known)| *known == key)
        }
        "NoExecute" => by_condition,
        _ => false,
    }
}

/// `current` with our taints brought up to date; foreign ones stay.
pub fn desired(node: &Node, current: &[Taint], evict: bool, at: &Time) -> Vec<Taint> {
    let wanted = called_for(node, evict);
    let is_wanted = |taint: &Taint| {
        wanted
            .iter()
            .any(|(key, effect)| taint.key == *key && taint.effect == *effect)
    };
    // When eviction is not allowed, it is not undone either.
    let silent = condition(node, "Ready").is_some_and(|ready| ready.status != "True");
    let stays = |taint: &&Taint| {
        let frozen = !evict && silent && taint.effect == "NoExecute";
        !is_ours(taint) || is_wanted(taint) || frozen
    };
    let mut taints: Vec<Taint> = current.iter().filter(stays).cloned().collect();
    for (key, effect) in wanted {
        if !taints
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(at.clone()),
            });
        }
    }
    taints
}

//! Rolling a new template out over the nodes.

use std::{collections::HashSet, sync::Arc};

use fluyt_client::helpers::pods;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Node, Pod},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    Changes, PodsByNode,
    placement::{is_available, verdict},
};
use crate::common::{name, revisions::REVISION_HASH, scaled_value};

/// The hash of the revision that the pod was made from.
pub fn hash_of_pod(pod: &Pod) -> Option<&str> {
    pod.metadata
        .labels
        .as_ref()?
        .get(REVISION_HASH)
        .map(String::as_str)
}

/// Whether all pods are of one revision.
pub fn same_revision(pods: &[Arc<Pod>]) -> bool {
    pods.iter()
        .map(|pod| hash_of_pod(pod))
        .collect::<HashSet<_>>()
        .len()
        == 1
}

fn rolling(set: &DaemonSet) -> Option<k8s_openapi::api::apps::v1::RollingUpdateDaemonSet> {
    let strategy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.update_strategy.as_ref());
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return None;
    }
    Some(
        strategy
            .and_then(|strategy| strategy.rolling_update.clone())
            .unwrap_or_default(),
    )
}

fn scaled(value: Option<&IntOrString>, default: i32, nodes: usize) -> usize {
    let nodes = i32::try_from(nodes).unwrap_or(i32::MAX);
    let value = value.map_or(default, |value| scaled_value(value, nodes, true));
    usize::try_from(value).unwrap_or(0)
}

/// On how many nodes a second pod may start beside the old one.
pub fn max_surge(set: &DaemonSet, nodes: usize) -> usize {
    rolling(set).map_or(0, |rolling| scaled(rolling.max_surge.as_ref(), 0, nodes))
}

fn max_unavailable(set: &DaemonSet, nodes: usize) -> usize {
    let surge = max_surge(set, nodes);
    let unavailable = rolling(set).map_or(0, |rolling| {
        scaled(rolling.max_unavailable.as_ref(), 1, nodes)
    });
    // One of the two has to allow something.
    if surge == 0 {
        unavailable.max(1)
    } else {
        unavailable
    }
}

/// The next step of the rollout.
pub fn step(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    by_node: &PodsByNode,
    hash: &str,
    at: Timestamp,
) -> Changes {
    let mut changes = Changes::default();
    if rolling(set).is_none() {
        return changes;
    }
    let eligible: Vec<&Arc<Node>> = nodes
        .iter()
        .filter(|node| verdict(set, node).should_run)
        .collect();
    let surge = max_surge(set, eligible.len());
    let none = Vec::new();
    // Working pods of the old template, by node, and nodes where a new one starts beside it.
    let mut replaceable: Vec<(&str, Arc<Pod>)> = Vec::new();
    let (mut unavailable, mut surging) = (0, 0);
    for node in &eligible {
        let node_name = name(&node.metadata);
        let here = by_node.get(node_name).unwrap_or(&none);
        let alive = here.iter().filter(|pod| !pods::is_terminating(pod));
        let (new, old): (Vec<_>, Vec<_>) = alive
            .cloned()
            .partition(|pod| hash_of_pod(pod) == Some(hash));
        let new_works = new.iter().any(|pod| is_available(set, pod, at));
        let old_works = old.iter().any(|pod| is_available(set, pod, at));
        if !new_works && !old_works {
            unavailable += 1;
        }
        if !new.is_empty() && !old.is_empty() {
            surging += 1;
        }
        for pod in old {
            if new_works || !is_available(set, &pod, at) {
                // Nothing is lost.
                changes.delete.push(pod);
            } else if new.is_empty() {
                replaceable.push((node_name, pod));
            }
        }
    }
    if surge > 0 {
        let free = surge.saturating_sub(surging);
        let nodes = replaceable
            .iter()
            .take(free)
            .map(|(node, _)| (*node).to_owned());
        changes.create_on.extend(nodes);
    } else {
        let budget = max_unavailable(set, eligible.len()).saturating_sub(unavailable);
        changes
            .delete
            .extend(replaceable.into_iter().take(budget).map(|(_, pod)| pod));
    }
    changes
}

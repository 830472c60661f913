//! Which nodes have a daemon pod, and what is wrong on them.

use std::sync::Arc;

use fluyt_client::helpers::{
    pods,
    scheduling::{required_node_affinity_matches, taints, untolerated_taint},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, DaemonSetStatus},
    core::v1::{
        Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
    },
};

use super::{Changes, PodsByNode, rollout};
use crate::common::name;

/// What a node is to a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// A pod is to be started here.
    pub should_run: bool,
    /// One that runs here may go on.
    pub may_continue: bool,
}

/// Judge the node by its labels, name and taints. Resources are the scheduler's business.
pub fn verdict(set: &DaemonSet, node: &Node) -> Verdict {
    let mut spec = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.clone())
        .unwrap_or_default();
    let named = spec
        .node_name
        .as_deref()
        .filter(|wanted| !wanted.is_empty());
    if named.is_some_and(|wanted| wanted != name(&node.metadata))
        || !required_node_affinity_matches(&spec, node)
    {
        return Verdict {
            should_run: false,
            may_continue: false,
        };
    }
    add_tolerations(&mut spec);
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let untolerated = |effects: &[&str]| {
        untolerated_taint(taints(node), tolerations, |taint| {
            effects.contains(&taint.effect.as_str())
        })
        .is_some()
    };
    Verdict {
        should_run: !untolerated(&["NoSchedule", "NoExecute"]),
        may_continue: !untolerated(&["NoExecute"]),
    }
}

/// Daemons run on nodes that are in trouble: they may be what gets them out.
pub fn add_tolerations(spec: &mut PodSpec) {
    let mut tolerated = vec![
        ("node.kubernetes.io/not-ready", "NoExecute"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/disk-pressure", "NoSchedule"),
        ("node.kubernetes.io/memory-pressure", "NoSchedule"),
        ("node.kubernetes.io/pid-pressure", "NoSchedule"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ];
    if spec.host_network == Some(true) {
        tolerated.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in tolerated {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

/// Let the scheduler bind the pod to this node only. Replaces the required node affinity, which the node satisfies.
pub fn pin(spec: &mut PodSpec, node: &str) {
    let requirement = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm {
        match_expressions: None,
        match_fields: Some(vec![requirement]),
    };
    let affinity = spec
        .affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![term],
    });
}

/// The node a daemon pod is on, or is pinned to.
pub fn target_node(pod: &Pod) -> Option<String> {
    if let Some(node) = pods::node_name(pod) {
        return Some(node.to_owned());
    }
    let affinity = pod
        .spec
        .as_ref()?
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?;
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let mut fields = required
        .node_selector_terms
        .iter()
        .flat_map(|term| term.match_fields.iter().flatten());
    let pinned = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
    pinned.values.as_ref()?.first().cloned()
}

/// Pods to create and to delete so that every node has what it should, whatever the revision.
pub fn manage(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    by_node: &PodsByNode,
    at: Timestamp,
) -> Changes {
    let mut changes = Changes::default();
    let none = Vec::new();
    for node in nodes {
        let node_name = name(&node.metadata);
        let here = by_node.get(node_name).unwrap_or(&none);
        let verdict = verdict(set, node);
        if !verdict.may_continue {
            changes.delete.extend(
                here.iter()
                    .filter(|pod| !pods::is_terminating(pod))
                    .cloned(),
            );
            continue;
        }
        // Ended ones make room for others, on nodes that should have one.
        let (ended, mut running): (Vec<_>, Vec<_>) = here
            .iter()
            .filter(|pod| !pods::is_terminating(pod))
            .cloned()
            .partition(|pod| pods::is_terminated(pod));
        changes.delete.extend(ended);
        if verdict.should_run && here.is_empty() {
            changes.create_on.push(node_name.to_owned());
        }
        let allowed = if rollout::max_surge(set, nodes.len()) > 0 {
            2
        } else {
            1
        };
        if running.len() > allowed
            || (allowed == 2 && running.len() == 2 && rollout::same_revision(&running))
        {
            // The oldest that works stays.
            running.sort_by_key(|pod| {
                (
                    !is_available(set, pod, at),
                    pod.metadata.creation_timestamp.clone(),
                )
            });
            changes.delete.extend(running.into_iter().skip(1));
        }
    }
    let known = super::by_name(nodes);
    for (node, here) in by_node {
        // The pod garbage collector looks after pods that were bound; these never will be.
        if !known.contains_key(node.as_str()) {
            let stranded = here
                .iter()
                .filter(|pod| pods::node_name(pod).is_none() && !pods::is_terminating(pod));
            changes.delete.extend(stranded.cloned());
        }
    }
    changes
}

pub fn is_available(set: &DaemonSet, pod: &Pod, at: Timestamp) -> bool {
    let min_ready = set
        .spec
        .as_ref()
        .and_then(|spec| spec.min_ready_seconds)
        .unwrap_or(0);
    pods::is_available(pod, min_ready, at)
}

/// The set's status.
pub fn status(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    by_node: &PodsByNode,
    hash: &str,
    at: Timestamp,
) -> DaemonSetStatus {
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        conditions: set
            .status
            .as_ref()
            .and_then(|status| status.conditions.clone()),
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    let none = Vec::new();
    for node in nodes {
        let here = by_node.get(name(&node.metadata)).unwrap_or(&none);
        if !verdict(set, node).should_run {
            status.number_misscheduled += i32::from(!here.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        if here.is_empty() {
            continue;
        }
        status.current_number_scheduled += 1;
        // The one that counts is the newest of the working ones.
        let best = here.iter().max_by_key(|pod| {
            (
                is_available(set, pod, at),
                pods::is_ready(pod),
                pod.metadata.creation_timestamp.clone(),
            )
        });
        let Some(pod) = best else { continue };
        if pods::is_ready(pod) {
            status.number_ready += 1;
            available += i32::from(is_available(set, pod, at));
        }
        updated += i32::from(
            here.iter()
                .any(|pod| rollout::hash_of_pod(pod) == Some(hash)),
        );
    }
    // Absent rather than 0, as the API server's encoding omits zeros.
    let non_zero = |count: i32| (count != 0).then_some(count);
    status.updated_number_scheduled = non_zero(updated);
    status.number_available = non_zero(available);
    status.number_unavailable = non_zero(status.desired_number_scheduled - available);
    status
}

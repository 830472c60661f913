//! Which pods to delete when there are too many: those whose loss hurts least.

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use fluyt_client::helpers::pods;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::common::annotation;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// A pod and what decides about it.
struct Ranked<'a> {
    pod: &'a Arc<Pod>,
    /// How many pods of the same controller share its node: doubled-up pods go first.
    crowd: usize,
}

/// The `count` pods to delete of `candidates`. `related` are the pods of all revisions of the same workload.
pub fn first_to_delete<'a>(
    candidates: &'a [Arc<Pod>],
    related: &[Arc<Pod>],
    count: usize,
) -> Vec<&'a Arc<Pod>> {
    let mut per_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pods::is_active(pod)) {
        if let Some(node) = pods::node_name(pod) {
            *per_node.entry(node).or_default() += 1;
        }
    }
    let mut ranked: Vec<Ranked<'_>> = candidates
        .iter()
        .map(|pod| {
            let crowd = pods::node_name(pod)
                .and_then(|node| per_node.get(node))
                .copied();
            let crowd = crowd.unwrap_or(0);
            Ranked { pod, crowd }
        })
        .collect();
    let now = Timestamp::now();
    ranked.sort_by(|a, b| compare(a, b, now));
    ranked
        .into_iter()
        .take(count)
        .map(|ranked| ranked.pod)
        .collect()
}

fn compare(a: &Ranked<'_>, b: &Ranked<'_>, now: Timestamp) -> Ordering {
    let (pod_a, pod_b) = (&**a.pod, &**b.pod);
    let assigned = |pod: &Pod| pods::node_name(pod).is_some();
    let phase_rank = |pod: &Pod| match pods::phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    assigned(pod_a)
        .cmp(&assigned(pod_b))
        .then_with(|| phase_rank(pod_a).cmp(&phase_rank(pod_b)))
        .then_with(|| pods::is_ready(pod_a).cmp(&pods::is_ready(pod_b)))
        .then_with(|| deletion_cost(pod_a).cmp(&deletion_cost(pod_b)))
        .then_with(|| b.crowd.cmp(&a.crowd))
        .then_with(|| magnitude(ready_since(pod_a), now).cmp(&magnitude(ready_since(pod_b), now)))
        .then_with(|| pods::restarts(pod_b).cmp(&pods::restarts(pod_a)))
        .then_with(|| magnitude(created(pod_a), now).cmp(&magnitude(created(pod_b), now)))
        .then_with(|| pod_a.metadata.uid.cmp(&pod_b.metadata.uid))
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = annotation(&pod.metadata, DELETION_COST);
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = pods::condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// The order of magnitude of an age: pods of similar age are equal, so that not always the newest (which may all
/// be in one zone) goes. The youngest sort first.
fn magnitude(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let Some(since) = since else {
        return 0;
    };
    let seconds = now.duration_since(since).as_secs().max(0).unsigned_abs();
    u64::BITS - seconds.leading_zeros()
}

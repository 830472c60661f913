//! What to do next for a StatefulSet: pure, from the set and its pods.

use std::sync::Arc;

use fluyt_client::helpers::pods;
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetStatus},
    core::v1::{Pod, PodTemplateSpec},
};

use super::identity::{self, ordinal_of, revision_of};

/// Where the set's pods come from and where they go to.
pub struct Revisions {
    pub current: String,
    pub current_template: PodTemplateSpec,
    pub update: String,
    pub update_template: PodTemplateSpec,
}

/// One write.
#[derive(Debug, PartialEq)]
pub enum Step {
    Create(Box<Pod>),
    /// Create the pod's claims if they are missing.
    Claims(Arc<Pod>),
    Delete(Arc<Pod>),
}

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub steps: Vec<Step>,
}

fn replicas(set: &StatefulSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

fn first_ordinal(set: &StatefulSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.ordinals.as_ref()?.start)
        .unwrap_or(0)
}

fn ordinal(pod: &Pod) -> i32 {
    ordinal_of(pod).map_or(-1, |(_, ordinal)| ordinal)
}

fn is_parallel(set: &StatefulSet) -> bool {
    let policy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.pod_management_policy.as_deref());
    policy == Some("Parallel")
}

fn strategy(set: &StatefulSet) -> (bool, i32) {
    let strategy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.update_strategy.as_ref());
    let on_delete = strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete");
    let partition = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.partition);
    (on_delete, partition.unwrap_or(0))
}

/// Whether the pod is beyond the set's size.
pub fn is_condemned(set: &StatefulSet, pod: &Pod) -> bool {
    let first = first_ordinal(set);
    !(first..first + replicas(set)).contains(&ordinal(pod))
}

fn is_available(set: &StatefulSet, pod: &Pod, at: Timestamp) -> bool {
    let min_ready = set
        .spec
        .as_ref()
        .and_then(|spec| spec.min_ready_seconds)
        .unwrap_or(0);
    pods::phase(pod) == "Running" && pods::is_available(pod, min_ready, at)
}

/// The revision a new pod of this ordinal is made from.
fn new_pod(set: &StatefulSet, revisions: &Revisions, ordinal: i32) -> Pod {
    let (on_delete, partition) = strategy(set);
    let status = set.status.as_ref();
    let current_replicas = status
        .and_then(|status| status.current_replicas)
        .unwrap_or(0);
    let has_partition = set
        .spec
        .as_ref()
        .and_then(|spec| {
            spec.update_strategy
                .as_ref()?
                .rolling_update
                .as_ref()?
                .partition
        })
        .is_some();
    let border = first_ordinal(set)
        + if has_partition {
            partition
        } else {
            current_replicas
        };
    if !on_delete && ordinal < border {
        identity::pod(
            set,
            &revisions.current_template,
            &revisions.current,
            ordinal,
        )
    } else {
        identity::pod(set, &revisions.update_template, &revisions.update, ordinal)
    }
}

/// The next writes. An ordered set makes one at a time and waits for its effect.
pub fn make(set: &StatefulSet, pods: &[Arc<Pod>], revisions: &Revisions, at: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let ordered = !is_parallel(set);
    let mut healthy = true;
    for ordinal in first_ordinal(set)..first_ordinal(set) + replicas(set) {
        let pod = pods.iter().find(|pod| self::ordinal(pod) == ordinal);
        match pod {
            None => plan
                .steps
                .push(Step::Create(Box::new(new_pod(set, revisions, ordinal)))),
            Some(pod) if pods::is_terminated(pod) && !pods::is_terminating(pod) => {
                // Of this name there can be only one, so it has to go before its successor comes.
                plan.steps.push(Step::Delete(Arc::clone(pod)));
            }
            Some(pod) => {
                if pods::phase(pod) == "Pending" && !pods::is_terminating(pod) {
                    plan.steps.push(Step::Claims(Arc::clone(pod)));
                }
                if !pods::is_terminating(pod) && is_available(set, pod, at) {
                    continue;
                }
            }
        }
        healthy = false;
        if ordered {
            return plan;
        }
    }
    scale_down(set, pods, ordered, at, &mut plan);
    if plan
        .steps
        .iter()
        .any(|step| !matches!(step, Step::Claims(_)))
    {
        return plan;
    }
    let leaving = pods.iter().any(|pod| is_condemned(set, pod));
    if !(ordered && leaving) {
        roll(set, pods, revisions, at, healthy, &mut plan);
    }
    plan
}

/// From the highest ordinal down, each after the one before is gone.
fn scale_down(set: &StatefulSet, pods: &[Arc<Pod>], ordered: bool, at: Timestamp, plan: &mut Plan) {
    let mut condemned: Vec<&Arc<Pod>> = pods.iter().filter(|pod| is_condemned(set, pod)).collect();
    condemned.sort_by_key(|pod| std::cmp::Reverse(ordinal(pod)));
    let unhealthy = |pod: &Arc<Pod>| pods::is_terminating(pod) || !is_available(set, pod, at);
    let first_unhealthy = condemned
        .iter()
        .rev()
        .find(|pod| unhealthy(pod))
        .map(|pod| ordinal(pod));
    for pod in condemned {
        if pods::is_terminating(pod) {
            if ordered {
                return;
            }
            continue;
        }
        // While another one is unhealthy, a healthy one must not be taken away as well.
        if ordered && unhealthy(pod) && first_unhealthy != Some(ordinal(pod)) {
            return;
        }
        plan.steps.push(Step::Delete(Arc::clone(pod)));
        if ordered {
            return;
        }
    }
}

/// Replace the pods of old revisions, the highest ordinal first, each after the one before is available again.
fn roll(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    revisions: &Revisions,
    at: Timestamp,
    healthy: bool,
    plan: &mut Plan,
) {
    let (on_delete, partition) = strategy(set);
    if on_delete {
        return;
    }
    let mut targets: Vec<&Arc<Pod>> = pods
        .iter()
        .filter(|pod| !is_condemned(set, pod) && ordinal(pod) >= first_ordinal(set) + partition)
        .collect();
    targets.sort_by_key(|pod| std::cmp::Reverse(ordinal(pod)));
    for pod in targets {
        let outdated = revision_of(pod) != Some(revisions.update.as_str());
        if outdated && !pods::is_terminating(pod) {
            plan.steps.push(Step::Delete(Arc::clone(pod)));
            return;
        }
        if pods::is_terminating(pod) || (!healthy && !is_available(set, pod, at)) {
            return;
        }
    }
}

/// The set's status. `before` carries what is not calculated.
pub fn status(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    plan: &Plan,
    revisions: &Revisions,
    before: StatefulSetStatus,
    at: Timestamp,
) -> StatefulSetStatus {
    let created: Vec<&Arc<Pod>> = pods
        .iter()
        .filter(|pod| !pods::is_terminated(pod))
        .collect();
    let leaves = |pod: &Arc<Pod>| {
        pods::is_terminating(pod)
            || plan
                .steps
                .iter()
                .any(|step| matches!(step, Step::Delete(victim) if victim == pod))
    };
    let count = |counts: &dyn Fn(&&&Arc<Pod>) -> bool| {
        i32::try_from(created.iter().filter(counts).count()).unwrap_or(i32::MAX)
    };
    let of = |revision: &str| count(&|pod| !leaves(pod) && revision_of(pod) == Some(revision));
    let ready = count(&|pod| pods::phase(pod) == "Running" && pods::is_ready(pod));
    let updated = of(&revisions.update);
    let (on_delete, _) = strategy(set);
    let total = count(&|_| true);
    let complete =
        !on_delete && updated == replicas(set) && ready == replicas(set) && total == replicas(set);
    let current = if complete {
        &revisions.update
    } else {
        &revisions.current
    };
    // Absent rather than 0, as the API server's encoding omits zeros.
    let non_zero = |count: i32| (count != 0).then_some(count);
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: total,
        ready_replicas: non_zero(ready),
        available_replicas: Some(count(&|pod| is_available(set, pod, at))),
        current_replicas: non_zero(of(current)),
        updated_replicas: non_zero(updated),
        current_revision: Some(current.clone()),
        update_revision: Some(revisions.update.clone()),
        collision_count: Some(before.collision_count.unwrap_or(0)),
        conditions: before.conditions,
    }
}

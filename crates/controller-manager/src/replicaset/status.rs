//! The status of a ReplicaSet, calculated from its pods.

use std::sync::Arc;

use fluyt_client::helpers::{labels, pods};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSetCondition, ReplicaSetStatus},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::View;
use crate::common::{now, pod_control::message_of};

/// Fields are absent rather than 0, as the API server's encoding omits zeros.
fn non_zero(count: usize) -> Option<i32> {
    i32::try_from(count).ok().filter(|count| *count != 0)
}

/// The status that `active` (and `terminating` more) pods and the last attempt to scale add up to.
pub fn calculate(
    view: &View,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&kube::Error>,
    at: Timestamp,
) -> ReplicaSetStatus {
    let template_labels = LabelSelector {
        match_labels: view
            .template
            .metadata
            .as_ref()
            .and_then(|meta| meta.labels.clone()),
        match_expressions: None,
    };
    let count = |counts: &dyn Fn(&Pod) -> bool| active.iter().filter(|pod| counts(pod)).count();
    ReplicaSetStatus {
        replicas: i32::try_from(active.len()).unwrap_or(i32::MAX),
        fully_labeled_replicas: non_zero(count(&|pod| {
            labels::matches(&template_labels, labels::labels_of(&pod.metadata))
        })),
        ready_replicas: non_zero(count(&pods::is_ready)),
        available_replicas: non_zero(count(&|pod| {
            pods::is_available(pod, view.min_ready_seconds, at)
        })),
        terminating_replicas: Some(i32::try_from(terminating).unwrap_or(i32::MAX)),
        observed_generation: Some(view.generation),
        conditions: conditions(view, active.len(), failure),
    }
}

fn conditions(
    view: &View,
    active: usize,
    failure: Option<&kube::Error>,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = view.status.conditions.clone().unwrap_or_default();
    let known = conditions
        .iter()
        .position(|condition| condition.type_ == "ReplicaFailure");
    match (failure, known) {
        (Some(error), None) => {
            let missing = active < usize::try_from(view.replicas).unwrap_or(0);
            conditions.push(ReplicaSetCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some(
                    if missing {
                        "FailedCreate"
                    } else {
                        "FailedDelete"
                    }
                    .to_owned(),
                ),
                message: Some(message_of(error)),
                last_transition_time: Some(now()),
            });
        }
        (None, Some(index)) => {
            conditions.remove(index);
        }
        _ => {}
    }
    (!conditions.is_empty()).then_some(conditions)
}

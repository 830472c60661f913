//! The conditions of a Deployment: Available, Progressing, ReplicaFailure.

use std::time::Duration;

use fluyt_client::Action;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::{Rollout, is_paused, status};
use crate::common::{name, now, to_wait};

const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// A condition that begins now.
pub fn new(
    type_: &str,
    status: &str,
    reason: &str,
    message: impl Into<String>,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_update_time: Some(now()),
        last_transition_time: Some(now()),
    }
}

/// The condition of this type.
pub fn get<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|condition| condition.type_ == type_)
}

/// Set a condition, unless one of the same status and reason is there: its time tells when it began.
pub fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(current) = get(status, &condition.type_) {
        if current.status == condition.status && current.reason == condition.reason {
            return;
        }
        if current.status == condition.status {
            condition.last_transition_time = current.last_transition_time.clone();
        }
    }
    remove(status, &condition.type_);
    status.conditions.get_or_insert_default().push(condition);
}

fn remove(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
    }
    status.conditions = status
        .conditions
        .take()
        .filter(|conditions| !conditions.is_empty());
}

fn progress_deadline(deployment: &Deployment) -> Option<i32> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    // The largest value stands for "none".
    (seconds != i32::MAX).then_some(seconds)
}

pub fn has_progress_deadline(deployment: &Deployment) -> bool {
    progress_deadline(deployment).is_some()
}

/// The progress clock stands still while the Deployment is paused, and starts anew when it is resumed.
pub fn note_pause(deployment: &mut Deployment) {
    if !has_progress_deadline(deployment) {
        return;
    }
    let paused = is_paused(deployment);
    let status = deployment.status.get_or_insert_default();
    let reason = get(status, "Progressing").and_then(|condition| condition.reason.clone());
    match reason.as_deref() {
        // Its pods may have gone unavailable since, but it did time out.
        Some(TIMED_OUT) => {}
        Some(PAUSED) if !paused => {
            set(
                status,
                new(
                    "Progressing",
                    "Unknown",
                    "DeploymentResumed",
                    "Deployment is resumed",
                ),
            );
        }
        Some(PAUSED) => {}
        _ if paused => set(
            status,
            new("Progressing", "Unknown", PAUSED, "Deployment is paused"),
        ),
        _ => {}
    }
}

/// The rollout has its new ReplicaSet. `created` counts as progress; one that was there only if nothing else is known.
pub fn note_replica_set(deployment: &mut Deployment, created: bool, reason: &str, message: String) {
    if !has_progress_deadline(deployment) {
        return;
    }
    let status = deployment.status.get_or_insert_default();
    if created || get(status, "Progressing").is_none() {
        set(status, new("Progressing", "True", reason, message));
    }
}

/// Update `Progressing` and `ReplicaFailure` of `fresh`.
pub fn judge_progress(rollout: &Rollout, fresh: &mut DeploymentStatus, at: Timestamp) {
    let deployment = &rollout.deployment;
    let before = deployment.status.clone().unwrap_or_default();
    if !has_progress_deadline(deployment) {
        remove(fresh, "Progressing");
    }
    let current = get(&before, "Progressing").cloned();
    let was_complete = fresh.replicas == fresh.updated_replicas
        && current
            .as_ref()
            .and_then(|current| current.reason.as_deref())
            == Some(NEW_AVAILABLE);
    if has_progress_deadline(deployment) && !was_complete {
        let subject = match &rollout.new {
            Some(new) => format!("ReplicaSet {:?}", name(&new.metadata)),
            None => format!("Deployment {:?}", name(&deployment.metadata)),
        };
        if status::is_complete(deployment, fresh) {
            let message = format!("{subject} has successfully progressed.");
            set(fresh, new("Progressing", "True", NEW_AVAILABLE, message));
        } else if status::has_progressed(&before, fresh) {
            let message = format!("{subject} is progressing.");
            let mut condition = new("Progressing", "True", "ReplicaSetUpdated", message);
            if let Some(current) = current.filter(|current| current.status == "True") {
                condition.last_transition_time = current.last_transition_time;
            }
            // Unlike elsewhere the update time must move: the deadline counts from it.
            remove(fresh, "Progressing");
            set(fresh, condition);
        } else if has_timed_out(deployment, current.as_ref(), at) {
            let message = format!("{subject} has timed out progressing.");
            set(fresh, new("Progressing", "False", TIMED_OUT, message));
        }
    }
    match failure(rollout) {
        Some(condition) => set(fresh, condition),
        None => remove(fresh, "ReplicaFailure"),
    }
}

fn has_timed_out(
    deployment: &Deployment,
    current: Option<&DeploymentCondition>,
    at: Timestamp,
) -> bool {
    let Some(current) = current else {
        return false;
    };
    match current.reason.as_deref() {
        Some(NEW_AVAILABLE | PAUSED) => false,
        Some(TIMED_OUT) => true,
        _ => deadline(deployment, current).is_some_and(|deadline| at > deadline),
    }
}

fn deadline(deployment: &Deployment, current: &DeploymentCondition) -> Option<Timestamp> {
    let seconds = progress_deadline(deployment)?;
    let since = current.last_update_time.as_ref()?.0;
    since
        .checked_add(SignedDuration::from_secs(i64::from(seconds)))
        .ok()
}

/// When to look again so that a rollout that stands still is found to have timed out.
pub fn deadline_check(deployment: &Deployment, status: &DeploymentStatus, at: Timestamp) -> Action {
    let Some(current) = get(status, "Progressing") else {
        return Action::Await;
    };
    if status::is_complete(deployment, status) || current.reason.as_deref() == Some(TIMED_OUT) {
        return Action::Await;
    }
    match deadline(deployment, current) {
        Some(deadline) => {
            Action::Requeue(to_wait(deadline.duration_since(at)) + Duration::from_secs(1))
        }
        None => Action::Await,
    }
}

/// Why the ReplicaSets can't scale: the new one's reason first.
fn failure(rollout: &Rollout) -> Option<DeploymentCondition> {
    let of_set = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        let failed = conditions
            .iter()
            .find(|condition| condition.type_ == "ReplicaFailure")?;
        Some(DeploymentCondition {
            type_: failed.type_.clone(),
            status: failed.status.clone(),
            reason: failed.reason.clone(),
            message: failed.message.clone(),
            last_transition_time: failed.last_transition_time.clone(),
            last_update_time: failed.last_transition_time.clone(),
        })
    };
    rollout.new.iter().chain(&rollout.old).find_map(of_set)
}

//! The numbers of a Deployment's status.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus};

use super::{Rollout, actual_size, available, conditions, desired_replicas, max_unavailable, size};

/// The status that the ReplicaSets add up to, with the conditions collected so far and `Available`.
pub fn calculate(rollout: &Rollout) -> DeploymentStatus {
    let deployment = &rollout.deployment;
    let before = deployment.status.clone().unwrap_or_default();
    let total: i32 = rollout.all().map(size).sum();
    let available_total: i32 = rollout.all().map(available).sum();
    let ready = |set: &k8s_openapi::api::apps::v1::ReplicaSet| {
        set.status
            .as_ref()
            .and_then(|status| status.ready_replicas)
            .unwrap_or(0)
    };
    let terminating = |set: &k8s_openapi::api::apps::v1::ReplicaSet| {
        set.status
            .as_ref()
            .and_then(|status| status.terminating_replicas)
            .unwrap_or(0)
    };
    // Absent rather than 0, as the API server's encoding omits zeros.
    let non_zero = |count: i32| (count != 0).then_some(count);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: non_zero(rollout.all().map(actual_size).sum()),
        updated_replicas: non_zero(rollout.new.as_ref().map_or(0, actual_size)),
        ready_replicas: non_zero(rollout.all().map(ready).sum()),
        available_replicas: non_zero(available_total),
        unavailable_replicas: non_zero((total - available_total).max(0)),
        terminating_replicas: Some(rollout.all().map(terminating).sum()),
        collision_count: before.collision_count,
        conditions: before.conditions,
    };
    let enough = available_total >= desired_replicas(deployment) - max_unavailable(deployment);
    let condition = if enough {
        let message = "Deployment has minimum availability.";
        conditions::new("Available", "True", "MinimumReplicasAvailable", message)
    } else {
        let message = "Deployment does not have minimum availability.";
        conditions::new("Available", "False", "MinimumReplicasUnavailable", message)
    };
    conditions::set(&mut status, condition);
    status
}

/// Whether all pods are of the new template and available, and no old ones run.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let desired = Some(desired_replicas(deployment));
    let count = |count: Option<i32>| Some(count.unwrap_or(0));
    count(status.updated_replicas) == desired
        && count(status.replicas) == desired
        && count(status.available_replicas) == desired
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether `after` is closer to completion than `before`.
pub fn has_progressed(before: &DeploymentStatus, after: &DeploymentStatus) -> bool {
    let n = |count: Option<i32>| count.unwrap_or(0);
    let old_pods = |status: &DeploymentStatus| n(status.replicas) - n(status.updated_replicas);
    n(after.updated_replicas) > n(before.updated_replicas)
        || old_pods(after) < old_pods(before)
        || n(after.ready_replicas) > n(before.ready_replicas)
        || n(after.available_replicas) > n(before.available_replicas)
}

//! The arithmetic of a rolling update: how far to scale the new ReplicaSet up and the old ones down.

use k8s_openapi::{
    api::apps::v1::{Deployment, ReplicaSet},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{available, desired_replicas, is_recreate, size};
use crate::common::{name, scaled_value};

/// `maxSurge` and `maxUnavailable` in pods. They are never both 0: the rollout could not move.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let strategy = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy
        .and_then(|strategy| strategy.rolling_update.clone())
        .unwrap_or_default();
    let default = || IntOrString::String("25%".to_owned());
    let desired = desired_replicas(deployment);
    let surge = scaled_value(&rolling.max_surge.unwrap_or_else(default), desired, true);
    let unavailable = scaled_value(
        &rolling.max_unavailable.unwrap_or_else(default),
        desired,
        false,
    );
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

/// How many pods there may be beyond the desired number.
pub fn max_surge(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) {
        0
    } else {
        fenceposts(deployment).0
    }
}

/// How many of the desired pods may be unavailable.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) {
        return 0;
    }
    fenceposts(deployment).1.min(desired_replicas(deployment))
}

/// The size the new ReplicaSet, now of `current`, should have. `all` are all ReplicaSets including the new one.
pub fn new_replica_set_size(deployment: &Deployment, all: &[ReplicaSet], current: i32) -> i32 {
    let desired = desired_replicas(deployment);
    if is_recreate(deployment) || current >= desired {
        return desired;
    }
    let total: i32 = all.iter().map(size).sum();
    let allowed = desired + max_surge(deployment);
    let room = (allowed - total).max(0);
    current + room.min(desired - current)
}

/// Which old ReplicaSets to scale down to what, so that at least `desired - maxUnavailable` pods stay available.
pub fn scale_down_old(
    deployment: &Deployment,
    old: &[ReplicaSet],
    new: &ReplicaSet,
) -> Vec<(String, i32)> {
    let old_total: i32 = old.iter().map(size).sum();
    if old_total == 0 {
        return Vec::new();
    }
    let min_available = desired_replicas(deployment) - max_unavailable(deployment);
    let new_unavailable = size(new) - available(new);
    let removable = old_total + size(new) - min_available - new_unavailable;
    if removable <= 0 {
        return Vec::new();
    }
    let mut by_age: Vec<(&ReplicaSet, i32)> = old.iter().map(|set| (set, size(set))).collect();
    by_age.sort_by_key(|(set, _)| {
        (
            set.metadata.creation_timestamp.clone(),
            set.metadata.name.clone(),
        )
    });
    // First what does not work anyway: it can't make the service less available.
    let mut unhealthy_budget = removable;
    for (set, target) in &mut by_age {
        let unhealthy = (*target - available(set)).clamp(0, unhealthy_budget);
        *target -= unhealthy;
        unhealthy_budget -= unhealthy;
    }
    let total_available: i32 = old.iter().map(available).sum::<i32>() + available(new);
    let mut budget = (total_available - min_available).max(0);
    for (_, target) in &mut by_age {
        let step = (*target).min(budget);
        *target -= step;
        budget -= step;
    }
    by_age
        .into_iter()
        .filter(|(set, target)| *target != size(set))
        .map(|(set, target)| (name(&set.metadata).to_owned(), target))
        .collect()
}

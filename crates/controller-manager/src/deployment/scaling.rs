//! Resizing a Deployment that may be in the middle of a rollout.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::{Rollout, actual_size, available, desired_replicas, is_recreate, max_surge, size};
use crate::common::{annotation, name};

/// The Deployment's size when the ReplicaSet was last scaled for it.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The same with the surge.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// Note the Deployment's size on the ReplicaSet; says whether that changed anything.
pub fn annotate_sizes(set: &mut ReplicaSet, deployment: &Deployment) -> bool {
    let desired = desired_replicas(deployment);
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, value) in [
        (DESIRED_REPLICAS, desired),
        (MAX_REPLICAS, desired + max_surge(deployment)),
    ] {
        let value = value.to_string();
        changed |= annotations.insert(key.to_owned(), value.clone()) != Some(value);
    }
    changed
}

/// Whether the Deployment was resized since its ReplicaSets were last scaled.
pub fn is_scaling_event(deployment: &Deployment, sets: &[ReplicaSet]) -> bool {
    let desired = desired_replicas(deployment);
    sets.iter().filter(|set| size(set) > 0).any(|set| {
        let noted =
            annotation(&set.metadata, DESIRED_REPLICAS).and_then(|noted| noted.parse::<i32>().ok());
        noted.is_some_and(|noted| noted != desired)
    })
}

/// The sizes the ReplicaSets should have when the Deployment's size is spread over them in proportion.
pub fn proportional(rollout: &Rollout) -> Vec<(String, i32)> {
    let deployment = &rollout.deployment;
    let desired = desired_replicas(deployment);
    if let Some(only) = active_or_latest(rollout) {
        let target = (name(&only.metadata).to_owned(), desired);
        return if size(only) == desired {
            Vec::new()
        } else {
            vec![target]
        };
    }
    let active_old = rollout.old.iter().filter(|set| size(set) > 0);
    if rollout
        .new
        .as_ref()
        .is_some_and(|new| is_saturated(new, desired))
    {
        return active_old
            .map(|set| (name(&set.metadata).to_owned(), 0))
            .collect();
    }
    if is_recreate(deployment) {
        return Vec::new();
    }
    let mut active: Vec<&ReplicaSet> = rollout.all().filter(|set| size(set) > 0).collect();
    let total: i32 = active.iter().map(|set| size(set)).sum();
    let allowed = if desired > 0 {
        desired + max_surge(deployment)
    } else {
        0
    };
    let to_add = allowed - total;
    // The largest gets the rounding error: growing prefers the newer of equals, shrinking the older.
    active.sort_by(|a, b| {
        let by_age = a
            .metadata
            .creation_timestamp
            .cmp(&b.metadata.creation_timestamp);
        let by_age = if to_add > 0 { by_age.reverse() } else { by_age };
        size(b).cmp(&size(a)).then(by_age)
    });
    let mut added = 0;
    let mut targets: Vec<(String, i32)> = active
        .iter()
        .map(|set| {
            let share = share(set, deployment, to_add, added);
            added += share;
            (name(&set.metadata).to_owned(), size(set) + share)
        })
        .collect();
    if let Some((_, largest)) = targets.first_mut() {
        *largest = (*largest + to_add - added).max(0);
    }
    targets
}

/// The only ReplicaSet with pods, or if none has any, the newest; `None` in the middle of a rollout.
fn active_or_latest(rollout: &Rollout) -> Option<&ReplicaSet> {
    let mut active = rollout.all().filter(|set| size(set) > 0);
    match (active.next(), active.next()) {
        (Some(only), None) => Some(only),
        (Some(_), Some(_)) => None,
        (None, _) => rollout.new.as_ref().or_else(|| {
            rollout
                .old
                .iter()
                .max_by_key(|set| set.metadata.creation_timestamp.clone())
        }),
    }
}

fn is_saturated(set: &ReplicaSet, desired: i32) -> bool {
    let noted = annotation(&set.metadata, DESIRED_REPLICAS).and_then(|noted| noted.parse().ok());
    size(set) == desired && noted == Some(desired) && available(set) == desired
}

/// The part of `to_add` that falls to `set`, when `added` of it were given away already.
fn share(set: &ReplicaSet, deployment: &Deployment, to_add: i32, added: i32) -> i32 {
    if size(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(set, deployment);
    let left = to_add - added;
    if to_add > 0 {
        fraction.min(left)
    } else {
        fraction.max(left)
    }
}

fn fraction(set: &ReplicaSet, deployment: &Deployment) -> i32 {
    let desired = desired_replicas(deployment);
    if desired == 0 {
        return -size(set);
    }
    let noted = annotation(&set.metadata, MAX_REPLICAS).and_then(|noted| noted.parse::<i32>().ok());
    let before = noted.filter(|before| *before > 0).unwrap_or_else(|| {
        deployment
            .status
            .as_ref()
            .and_then(|status| status.replicas)
            .unwrap_or(actual_size(set))
    });
    if before == 0 {
        return 0;
    }
    let max = f64::from(desired + max_surge(deployment));
    let scaled = (f64::from(size(set)) * max / f64::from(before)).round();
    // Both factors are counts of pods, far from the limits of i32.
    #[allow(clippy::cast_possible_truncation)]
    let scaled = scaled as i32;
    scaled - size(set)
}

//! The state of a pod, as controllers see it.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// `status.phase`, `Pending` while nothing is reported.
pub fn phase(pod: &Pod) -> &str {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    phase.unwrap_or("Pending")
}

/// Whether all containers have ended for good.
pub fn is_terminated(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether deletion was requested.
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Neither ended nor being deleted: counts as a replica.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminated(pod) && !is_terminating(pod)
}

/// The condition of this type.
pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition `Ready` is true.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Whether the pod has been ready for `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_in(pod, min_ready_seconds, now) == Some(SignedDuration::ZERO)
}

/// How long until the pod is available if it stays ready; `None` if it is not ready.
pub fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<SignedDuration> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    if min_ready_seconds <= 0 {
        return Some(SignedDuration::ZERO);
    }
    let since = ready.last_transition_time.as_ref()?.0;
    let wait = SignedDuration::from_secs(i64::from(min_ready_seconds)) - now.duration_since(since);
    Some(wait.max(SignedDuration::ZERO))
}

/// The node the pod is bound to.
pub fn node_name(pod: &Pod) -> Option<&str> {
    let name = pod.spec.as_ref()?.node_name.as_deref()?;
    (!name.is_empty()).then_some(name)
}

/// How often the containers were restarted, and when the last time was.
pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    statuses
        .into_iter()
        .flatten()
        .map(|status| status.restart_count)
        .max()
        .unwrap_or(0)
}

/// The pod's scheduling priority.
pub fn priority(pod: &Pod) -> i32 {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.priority)
        .unwrap_or(0)
}

/// Set a condition; `lastTransitionTime` moves only with the status. Says whether anything changed.
pub fn set_condition(conditions: &mut Vec<PodCondition>, mut new: PodCondition) -> bool {
    let Some(old) = conditions.iter_mut().find(|old| old.type_ == new.type_) else {
        conditions.push(new);
        return true;
    };
    if old.status == new.status {
        new.last_transition_time = old.last_transition_time.clone();
    }
    let changed = *old != new;
    *old = new;
    changed
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::core::v1::PodStatus, apimachinery::pkg::apis::meta::v1::Time};

    use super::*;

    fn ready_since(second: i64) -> Pod {
        let condition = PodCondition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Timestamp::from_second(second).ok().map(Time),
            ..PodCondition::default()
        };
        let status = PodStatus {
            conditions: Some(vec![condition]),
            ..PodStatus::default()
        };
        Pod {
            status: Some(status),
            ..Pod::default()
        }
    }

    #[test]
    fn available_after_min_ready_seconds() {
        let now = Timestamp::from_second(110).unwrap();
        assert!(is_available(&ready_since(100), 0, now));
        assert!(is_available(&ready_since(100), 10, now));
        assert!(!is_available(&ready_since(100), 11, now));
        let wait = available_in(&ready_since(100), 11, now);
        assert_eq!(wait, Some(SignedDuration::from_secs(1)));
        assert_eq!(available_in(&Pod::default(), 0, now), None);
    }

    #[test]
    fn transition_time_moves_with_the_status_only() {
        let mut conditions = ready_since(1).status.unwrap().conditions.unwrap();
        let mut same = conditions[0].clone();
        same.last_transition_time = Timestamp::from_second(9).ok().map(Time);
        assert!(!set_condition(&mut conditions, same.clone()));
        same.status = "False".to_owned();
        assert!(set_condition(&mut conditions, same.clone()));
        assert_eq!(conditions, [same]);
    }
}

//! How long to wait before a failed pod is replaced: 10 s after the first failure, doubling, at most 10 minutes.

use std::sync::Arc;

use fluyt_client::helpers::pods as pod_state;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

const FIRST: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_secs(600);

/// When the pod ended.
fn end(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let containers = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .flatten();
    let ends = containers.filter_map(|container| {
        let terminated = container.state.as_ref()?.terminated.as_ref()?;
        terminated.finished_at.as_ref().map(|time| time.0)
    });
    let deleted = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    let ready_changed = pod_state::condition(pod, "Ready")
        .and_then(|condition| condition.last_transition_time.as_ref())
        .map(|time| time.0);
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    ends.max().or(ready_changed).or(deleted).or(created)
}

/// How long to wait until a pod may be created, for the failures since the last success.
pub fn remaining(pods: &[Arc<Pod>], at: Timestamp) -> SignedDuration {
    let last_success = pods
        .iter()
        .filter(|pod| pod_state::phase(pod) == "Succeeded")
        .filter_map(|pod| end(pod))
        .max();
    let failures: Vec<Timestamp> = pods
        .iter()
        .filter(|pod| pod_state::phase(pod) == "Failed")
        .filter_map(|pod| end(pod))
        .filter(|end| last_success.is_none_or(|success| *end > success))
        .collect();
    let Some(last) = failures.iter().max() else {
        return SignedDuration::ZERO;
    };
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(6);
    let wait = FIRST.saturating_mul(2i32.pow(doublings)).min(LONGEST);
    (wait - at.duration_since(*last)).max(SignedDuration::ZERO)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{
        ContainerState, ContainerStateTerminated, ContainerStatus, PodStatus,
    };

    use super::*;

    fn ended(phase: &str, second: i64) -> Arc<Pod> {
        let terminated = ContainerStateTerminated {
            finished_at: Timestamp::from_second(second).ok().map(Into::into),
            ..ContainerStateTerminated::default()
        };
        let container = ContainerStatus {
            state: Some(ContainerState {
                terminated: Some(terminated),
                ..ContainerState::default()
            }),
            ..ContainerStatus::default()
        };
        Arc::new(Pod {
            status: Some(PodStatus {
                phase: Some(phase.to_owned()),
                container_statuses: Some(vec![container]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        })
    }

    #[test]
    fn doubles_with_every_failure_and_forgets_after_a_success() {
        let seconds = |pods: &[Arc<Pod>], at: i64| {
            remaining(pods, Timestamp::from_second(at).unwrap()).as_secs()
        };
        let failed = |second| ended("Failed", second);
        assert_eq!(seconds(&[], 100), 0);
        assert_eq!(seconds(&[failed(100)], 103), 7);
        assert_eq!(seconds(&[failed(100)], 200), 0);
        assert_eq!(seconds(&[failed(50), failed(100)], 100), 20);
        assert_eq!(
            seconds(&[failed(50), ended("Succeeded", 60), failed(100)], 100),
            10
        );
        let many: Vec<_> = (0..20).map(failed).collect();
        assert_eq!(seconds(&many, 19), 600);
    }
}

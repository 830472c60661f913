//! RestartAllContainers (KEP-5532): a container that ends with a code that its rules name has all containers of its pod
//! start anew, init containers first, in the sandbox that is there. All of them are removed for that.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStateWaiting, Pod, PodStatus,
};

use super::actions::matching_rule;
use super::kill;
use super::runtime_pod::{RuntimeContainer, RuntimePod, State};
use crate::kubelet::Kubelet;
use crate::pod::PodExt;

/// The condition that is true until all containers are removed.
pub const CONDITION: &str = "AllContainersRestarting";
/// Why a removed container waits, and how it has ended.
pub const REASON: &str = "RestartingAllContainers";
const MESSAGE: &str = "The container is removed because RestartAllContainers in place";
const ACTION: &str = "RestartAllContainers";

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.init_containers().iter().chain(&pod.spec().containers)
}

/// Whether a container's end may restart all of them.
pub fn is_possible(pod: &Pod) -> bool {
    let mut rules = containers(pod).flat_map(|c| c.restart_policy_rules.iter().flatten());
    rules.any(|rule| rule.action == ACTION)
}

/// Whether this instance has ended in a way that restarts all.
fn is_cause(container: &Container, instance: &RuntimeContainer) -> bool {
    instance.state == State::Exited
        && matching_rule(container, instance.exit_code()).is_some_and(|rule| rule.action == ACTION)
}

/// Whether the status says that all containers are to be removed.
pub fn is_under_way(status: &PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|c| c.type_ == CONDITION && c.status == "True")
}

/// Whether all containers are restarted, be it that they are all removed already. `old` is the status before.
pub fn is_due(pod: &Pod, runtime: &RuntimePod, old: &PodStatus) -> bool {
    let has_caused = |container: &Container| {
        let latest = runtime.latest(&container.name);
        latest.is_some_and(|instance| is_cause(container, instance))
    };
    is_under_way(old) || containers(pod).any(has_caused)
}

/// Whether nothing is left to be removed.
pub fn is_cleaned_up(pod: &Pod, runtime: &RuntimePod) -> bool {
    containers(pod).all(|container| runtime.latest(&container.name).is_none())
}

/// What a removed container waits for, and how it ended.
pub fn removed() -> (ContainerState, ContainerState) {
    let waiting = ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(REASON.into()),
            message: Some(MESSAGE.into()),
        }),
        ..ContainerState::default()
    };
    let ended = ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some(REASON.into()),
            message: Some(MESSAGE.into()),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    };
    (waiting, ended)
}

/// The instances in the order in which they go: main containers before init containers, and those last that have caused
/// it, so that what is left after a failure still says that the others have to go.
fn order<'a>(pod: &Pod, runtime: &'a RuntimePod) -> Vec<&'a RuntimeContainer> {
    let (mut causes, mut others) = (Vec::new(), Vec::new());
    for list in [&pod.spec().containers[..], pod.init_containers()] {
        for container in list {
            let named = |instance: &&RuntimeContainer| instance.name == container.name;
            for instance in runtime.containers.iter().filter(named) {
                match is_cause(container, instance) {
                    true => causes.push(instance),
                    false => others.push(instance),
                }
            }
        }
    }
    others.extend(causes);
    others
}

/// Removes all containers, those that run without any grace.
///
/// # Errors
/// When the runtime can't do it.
pub async fn remove_all(
    kubelet: &Kubelet,
    pod: &Pod,
    runtime: &RuntimePod,
) -> Result<(), tonic::Status> {
    let running: BTreeSet<&str> = runtime.running().map(|c| c.id.as_str()).collect();
    for instance in order(pod, runtime) {
        let id = instance.id.as_str();
        if running.contains(id) {
            let name = &instance.name;
            kill::container(kubelet, pod, id, name, Some(instance), "killing", 0).await?;
        }
        kill::remove_container(kubelet, id).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_cri::v1 as cri;
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        let rules = json!([
            {"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}},
            {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1, 7]}},
        ]);
        serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "i"}, {"name": "j", "restartPolicyRules": rules}],
            "containers": [{"name": "a", "restartPolicyRules": rules}, {"name": "b"}],
        }}))
        .unwrap()
    }

    fn runtime(containers: &[(&str, Option<i32>)]) -> RuntimePod {
        let containers = containers.iter().map(|(name, code)| RuntimeContainer {
            id: (*name).into(),
            name: (*name).into(),
            sandbox_id: "s".into(),
            state: code.map_or(State::Running, |_| State::Exited),
            created_at: 0,
            status: Arc::new(cri::ContainerStatus {
                exit_code: code.unwrap_or(0),
                ..Default::default()
            }),
        });
        RuntimePod {
            sandboxes: Vec::new(),
            containers: containers.collect(),
        }
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let none = PodStatus::default();
        let due = |containers: &[(&str, Option<i32>)]| is_due(&pod(), &runtime(containers), &none);
        assert!(!due(&[("a", None), ("b", None)]));
        assert!(!due(&[("a", Some(1))]), "it is restarted alone");
        assert!(!due(&[("b", Some(7))]), "it has no rules");
        assert!(due(&[("b", None), ("a", Some(7))]));
        assert!(due(&[("j", Some(7))]));
        assert!(!due(&[("a", None), ("a", Some(7))]), "it runs again");
        let plain: Pod =
            serde_json::from_value(json!({"spec": {"containers": [{"name": "a"}]}})).unwrap();
        assert!(is_possible(&pod()) && !is_possible(&plain));
    }

    #[test]
    fn what_was_begun_goes_on() {
        let condition = |status: &str| -> PodStatus {
            let condition = json!({"type": CONDITION, "status": status});
            serde_json::from_value(json!({"conditions": [condition]})).unwrap()
        };
        let rest = runtime(&[("b", None)]);
        assert!(is_due(&pod(), &rest, &condition("True")));
        assert!(!is_due(&pod(), &rest, &condition("False")));
        assert!(!is_cleaned_up(&pod(), &rest));
        assert!(is_cleaned_up(&pod(), &runtime(&[("debugger", None)])));
    }

    #[test]
    fn what_caused_it_goes_last() {
        let all = [
            ("a", Some(7)),
            ("j", Some(7)),
            ("i", Some(0)),
            ("b", None),
            ("a", Some(2)),
            ("debugger", None),
        ];
        let runtime = runtime(&all);
        let order: Vec<(&str, i32)> = order(&pod(), &runtime)
            .iter()
            .map(|c| (c.name.as_str(), c.exit_code()))
            .collect();
        assert_eq!(order, [("a", 2), ("b", 0), ("i", 0), ("a", 7), ("j", 7)]);
    }
}

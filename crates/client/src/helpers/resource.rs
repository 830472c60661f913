//! What pods take and need of their nodes, read from typed pods; the rules are `fluyt_api::component_helpers`.

use std::collections::BTreeMap;

use fluyt_api::component_helpers::{
    nodedeclaredfeatures::PodInfo,
    resource::{self, Amounts, Held, PodResources, Requirements},
};
use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};

/// Amounts of a list. The API server has validated them; what is none is left out.
pub fn amounts(list: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    let list = list.into_iter().flatten();
    list.filter_map(|(name, amount)| Some((name.clone(), amount.0.parse().ok()?)))
        .collect()
}

/// The list of amounts, as objects have it.
pub fn list(amounts: &Amounts) -> BTreeMap<String, Quantity> {
    let amounts = amounts.iter();
    amounts
        .map(|(name, amount)| (name.clone(), Quantity(amount.to_string())))
        .collect()
}

fn requirements(resources: &ResourceRequirements) -> Requirements {
    Requirements {
        requests: amounts(resources.requests.as_ref()),
        limits: amounts(resources.limits.as_ref()),
    }
}

fn held(
    resources: Option<&ResourceRequirements>,
    allocated: Option<&BTreeMap<String, Quantity>>,
) -> Option<Held> {
    resources.map(|resources| Held {
        actual: requirements(resources),
        allocated: amounts(allocated),
    })
}

fn container(container: &Container, is_init: bool, status: &PodStatus) -> resource::Container {
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let mut statuses = lists.into_iter().flatten().flatten();
    let own = statuses.find(|status| status.name == container.name);
    let of_status =
        |own: &ContainerStatus| held(own.resources.as_ref(), own.allocated_resources.as_ref());
    resource::Container {
        name: container.name.clone(),
        is_sidecar: is_init && container.restart_policy.as_deref() == Some("Always"),
        stated: container
            .resources
            .as_ref()
            .map(requirements)
            .unwrap_or_default(),
        held: own.and_then(of_status),
    }
}

/// The part of the pod that is about resources.
pub fn pod_resources(pod: &Pod) -> PodResources {
    let (no_spec, no_status) = (PodSpec::default(), PodStatus::default());
    let spec = pod.spec.as_ref().unwrap_or(&no_spec);
    let status = pod.status.as_ref().unwrap_or(&no_status);
    let read = |list: &[Container], is_init: bool| {
        let list = list.iter();
        list.map(|c| container(c, is_init, status)).collect()
    };
    let pending = super::pods::condition(pod, "PodResizePending");
    PodResources {
        containers: read(&spec.containers, false),
        init_containers: read(spec.init_containers.as_deref().unwrap_or_default(), true),
        stated: spec.resources.as_ref().map(requirements),
        held: held(
            status.resources.as_ref(),
            status.allocated_resources.as_ref(),
        ),
        overhead: amounts(spec.overhead.as_ref()),
        is_infeasible: pending.is_some_and(|c| c.reason.as_deref() == Some("Infeasible")),
    }
}

/// What says which features of its node a pod needs.
pub fn pod_info(spec: &PodSpec) -> PodInfo {
    let init = spec.init_containers.iter().flatten();
    let mut rules = spec
        .containers
        .iter()
        .chain(init)
        .flat_map(|container| container.restart_policy_rules.iter().flatten());
    PodInfo {
        host_network: spec.host_network.unwrap_or(false),
        host_users: spec.host_users,
        restarts_all: rules.any(|rule| rule.action == "RestartAllContainers"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Typed and untyped pods are read the same.
    #[test]
    fn as_the_api_server_reads_it() {
        let resources = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"memory": cpu}});
        let status = |name: &str, cpu: &str| {
            json!({"name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "resources": resources(cpu), "allocatedResources": {"cpu": cpu}})
        };
        let pod = json!({
            "metadata": {"name": "p"},
            "spec": {
                "overhead": {"cpu": "1"},
                "resources": resources("20"),
                "initContainers": [
                    {"name": "i", "resources": resources("1")},
                    {"name": "s", "restartPolicy": "Always", "resources": resources("2")},
                ],
                "containers": [{"name": "c", "resources": resources("3")}, {"name": "d"}],
            },
            "status": {
                "conditions": [{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}],
                "resources": resources("21"),
                "allocatedResources": {"cpu": "22"},
                "initContainerStatuses": [status("s", "4")],
                "containerStatuses": [status("c", "5")],
            },
        });
        for pod in [pod, json!({"spec": {"containers": []}})] {
            let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
            assert_eq!(pod_resources(&typed), PodResources::of(&pod), "{pod}");
        }
    }

    #[test]
    fn rules_of_all_containers_count() {
        let info = |spec: Value| pod_info(&serde_json::from_value(spec).unwrap());
        let rules =
            |action: &str| json!([{"name": "c", "restartPolicyRules": [{"action": action}]}]);
        assert!(!info(json!({"containers": rules("Restart")})).restarts_all);
        assert!(info(json!({"containers": rules("RestartAllContainers")})).restarts_all);
        let init = json!({"containers": [], "initContainers": rules("RestartAllContainers"),
            "hostNetwork": true, "hostUsers": false});
        let expected = PodInfo {
            host_network: true,
            host_users: Some(false),
            restarts_all: true,
        };
        assert_eq!(info(init), expected);
    }
}

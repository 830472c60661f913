//! The resources of the pod as a whole: what it was allocated, and what it has.

use std::collections::BTreeMap;

use fluyt_api::component_helpers::resource::Options;
use fluyt_client::helpers::resource::{list, pod_resources};
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::Inputs;
use crate::pod::PodExt;

type List = BTreeMap<String, Quantity>;

/// `status.allocatedResources`.
pub fn allocated(pod: &Pod) -> Option<List> {
    some(list(&pod_resources(pod).requests(Options::default())))
}

fn some(list: List) -> Option<List> {
    (!list.is_empty()).then_some(list)
}

/// `status.resources`: what its cgroup says once the pod runs, until then what it was allocated.
pub fn actual(inputs: &Inputs<'_>) -> ResourceRequirements {
    let pod = inputs.pod;
    let resources = pod_resources(pod);
    let stated = pod.spec().resources.clone().unwrap_or_default();
    let running = inputs.old.phase.as_deref() == Some("Running");
    let Some(given) = inputs.given.as_ref().filter(|_| running) else {
        return ResourceRequirements {
            requests: some(list(&resources.requests(Options::default()))),
            limits: some(list(&resources.limits(Options::default()))),
            ..stated
        };
    };
    let mut requests = stated.requests.unwrap_or_default();
    let mut limits = stated.limits.unwrap_or_default();
    let before = inputs.old.resources.as_ref();
    // What is not there now, as a limit that is lifted during a resize, is as it was.
    let put = |list: &mut List, name: &str, has: Option<Quantity>, before: Option<&List>| {
        if let Some(amount) = has.or_else(|| before?.get(name).cloned()) {
            list.insert(name.into(), amount);
        }
    };
    let milli =
        |amount: i64| Quantity(fluyt_api::quantity::Quantity::from_millis(amount).to_string());
    let bytes =
        |amount: i64| Quantity(fluyt_api::quantity::Quantity::from_bytes(amount).to_string());
    let old_requests = before.and_then(|before| before.requests.as_ref());
    put(
        &mut requests,
        "cpu",
        given.milli_cpu_request.map(milli),
        old_requests,
    );
    // No cgroup tells of this.
    let mut total = list(&resources.requests(Options::default()));
    if let Some(memory) = total.remove("memory") {
        requests.entry("memory".into()).or_insert(memory);
    }
    let old_limits = before.and_then(|before| before.limits.as_ref());
    put(
        &mut limits,
        "cpu",
        given.milli_cpu_limit.map(milli),
        old_limits,
    );
    put(
        &mut limits,
        "memory",
        given.memory_limit.map(bytes),
        old_limits,
    );
    ResourceRequirements {
        requests: some(requests),
        limits: some(limits),
        claims: stated.claims,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::qos::Amounts;
    use crate::status::tests::with_inputs;

    fn pod() -> Pod {
        serde_json::from_value(json!({"spec": {
            "resources": {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "4"}},
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "2Gi"}}}],
        }}))
        .unwrap()
    }

    fn told(old: Value, given: Option<Amounts>) -> Value {
        let (pod, old) = (pod(), serde_json::from_value(old).unwrap());
        with_inputs(&pod, &old, &[], |inputs| {
            serde_json::to_value(actual(&Inputs { given, ..inputs })).unwrap()
        })
    }

    #[test]
    fn what_is_allocated_and_what_there_is() {
        assert_eq!(
            serde_json::to_value(allocated(&pod())).unwrap(),
            json!({"cpu": "2", "memory": "1Gi"})
        );
        let asked = json!({"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "4", "memory": "2Gi"}});
        assert_eq!(told(json!({"phase": "Pending"}), None), asked);
        let given = Amounts {
            milli_cpu_request: Some(500),
            milli_cpu_limit: Some(1000),
            memory_request: None,
            memory_limit: None,
        };
        assert_eq!(told(json!({"phase": "Pending"}), Some(given)), asked);
        let has = json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1"}});
        assert_eq!(told(json!({"phase": "Running"}), Some(given)), has);
        // A limit that is lifted for a moment.
        let old =
            json!({"phase": "Running", "resources": {"limits": {"cpu": "3", "memory": "3Gi"}}});
        let lifted = Amounts {
            milli_cpu_limit: None,
            ..given
        };
        let has = json!({"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "3", "memory": "3Gi"}});
        assert_eq!(told(old, Some(lifted)), has);
    }
}

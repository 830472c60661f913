//! Quality of service of a pod, and what it means to the kernel.

use fluyt_api::component_helpers::qos;
use fluyt_api::component_helpers::resource::{self, Options};
use fluyt_client::helpers::resource::pod_resources;
use fluyt_volumes::quantity::{milli_value, value};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::PodExt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// Request or limit amounts of a container or pod, `None` where nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub milli_cpu_request: Option<i64>,
    pub milli_cpu_limit: Option<i64>,
    pub memory_request: Option<i64>,
    pub memory_limit: Option<i64>,
}

impl Amounts {
    pub fn of(container: &Container) -> Self {
        Self::of_requirements(container.resources.as_ref())
    }

    fn of_requirements(
        resources: Option<&k8s_openapi::api::core::v1::ResourceRequirements>,
    ) -> Self {
        let get = |limits: bool, name: &str, read: fn(&Quantity) -> Option<i64>| {
            let resources = resources?;
            let amounts = if limits {
                &resources.limits
            } else {
                &resources.requests
            };
            amounts
                .as_ref()?
                .get(name)
                .and_then(read)
                .filter(|amount| *amount > 0)
        };
        Amounts {
            milli_cpu_request: get(false, "cpu", milli_value).or(get(true, "cpu", milli_value)),
            milli_cpu_limit: get(true, "cpu", milli_value),
            memory_request: get(false, "memory", value).or(get(true, "memory", value)),
            memory_limit: get(true, "memory", value),
        }
    }

    /// What the whole pod may use. A limit holds only if every container has one, or the pod states it itself.
    pub fn of_pod(pod: &Pod) -> Self {
        let resources = pod_resources(pod);
        let requests = resources.requests(Options::default());
        let limits = resources.limits(Options::default());
        let own = Self::of_requirements(pod.spec().resources.as_ref());
        let all = || pod.spec().containers.iter().chain(pod.init_containers());
        let is_limited = |of: fn(&Amounts) -> Option<i64>| {
            of(&own).is_some() || all().all(|container| of(&Amounts::of(container)).is_some())
        };
        let positive = |amount: i64| (amount > 0).then_some(amount);
        let milli_cpu = |from: &resource::Amounts| positive(from.get("cpu")?.millis());
        let memory = |from: &resource::Amounts| positive(from.get("memory")?.value());
        Amounts {
            milli_cpu_request: milli_cpu(&requests).or(own.milli_cpu_request),
            milli_cpu_limit: milli_cpu(&limits).filter(|_| is_limited(|a| a.milli_cpu_limit)),
            memory_request: memory(&requests).or(own.memory_request),
            memory_limit: memory(&limits).filter(|_| is_limited(|a| a.memory_limit)),
        }
    }
}

impl QosClass {
    /// What the API server wrote, or what it would for a static pod.
    pub fn of(pod: &Pod) -> Self {
        match pod.status().qos_class.as_deref() {
            Some("Guaranteed") => QosClass::Guaranteed,
            Some("Burstable") => QosClass::Burstable,
            Some("BestEffort") => QosClass::BestEffort,
            _ => match qos::class(&pod_resources(pod)) {
                "Guaranteed" => QosClass::Guaranteed,
                "Burstable" => QosClass::Burstable,
                _ => QosClass::BestEffort,
            },
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }

    /// How readily the kernel kills a container's processes when memory runs out (-1000 never, 1000 first): a
    /// burstable container the more the smaller its share of the machine it asked for.
    pub fn oom_score_adj(self, pod: &Pod, memory_request: i64, machine_memory: i64) -> i64 {
        const CRITICAL_PRIORITY: i32 = 2_000_000_000;
        if pod
            .spec()
            .priority
            .is_some_and(|priority| priority >= CRITICAL_PRIORITY)
        {
            return -997;
        }
        match self {
            QosClass::Guaranteed => -997,
            QosClass::BestEffort => 1000,
            QosClass::Burstable => {
                (1000 - 1000 * memory_request / machine_memory.max(1)).clamp(3, 999)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn classes() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let full = json!({"limits": both, "requests": both});
        for (resources, expected) in [
            (vec![json!({})], QosClass::BestEffort),
            (vec![full.clone()], QosClass::Guaranteed),
            (vec![full, json!({})], QosClass::Burstable),
            (vec![json!({"requests": {"cpu": "1"}})], QosClass::Burstable),
            (
                vec![json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})],
                QosClass::Burstable,
            ),
        ] {
            let containers: Vec<_> = resources
                .iter()
                .map(|resources| json!({"name": "c", "resources": resources}))
                .collect();
            assert_eq!(
                QosClass::of(&pod(json!(containers))),
                expected,
                "{resources:?}"
            );
        }
    }

    #[test]
    fn oom_scores() {
        let pod = pod(json!([]));
        let machine = 8 << 30;
        assert_eq!(QosClass::Guaranteed.oom_score_adj(&pod, 0, machine), -997);
        assert_eq!(QosClass::BestEffort.oom_score_adj(&pod, 0, machine), 1000);
        assert_eq!(
            QosClass::Burstable.oom_score_adj(&pod, 4 << 30, machine),
            500
        );
        assert_eq!(QosClass::Burstable.oom_score_adj(&pod, 0, machine), 999);
        assert_eq!(QosClass::Burstable.oom_score_adj(&pod, machine, machine), 3);
    }

    #[test]
    fn pod_totals() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "big", "resources": {"requests": {"cpu": "2", "memory": "1Mi"}}}],
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}},
                {"name": "b", "resources": {"requests": {"cpu": "250m"}}}]
        }}))
        .unwrap();
        let amounts = Amounts::of_pod(&pod);
        assert_eq!(amounts.milli_cpu_request, Some(2100));
        assert_eq!(amounts.memory_request, Some(1 << 30));
        assert_eq!(amounts.memory_limit, None);
        let mut whole = pod;
        let spec = whole.spec.as_mut().unwrap();
        let resources = json!({"requests": {"cpu": "5"}, "limits": {"memory": "8Gi"}});
        spec.resources = serde_json::from_value(resources).unwrap();
        let overhead = json!({"cpu": "1", "memory": "1Gi"});
        spec.overhead = serde_json::from_value(overhead).unwrap();
        let amounts = Amounts::of_pod(&whole);
        assert_eq!(amounts.milli_cpu_request, Some(6000));
        assert_eq!(amounts.milli_cpu_limit, None);
        assert_eq!(amounts.memory_limit, Some(9 << 30));
    }
}

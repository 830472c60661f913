//! Quality of service of a pod, and what it means to the kernel.

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::{PodExt, is_sidecar};
use fluyt_volumes::quantity::{milli_value, value};

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

    /// What the whole pod may use: all main containers and sidecars together, or the hungriest init container.
    /// A limit holds only if every container has one. Pod-level resources win.
    pub fn of_pod(pod: &Pod) -> Self {
        let spec = pod.spec();
        let mut sum: Option<Amounts> = None;
        let mut peak: Option<Amounts> = None;
        for container in pod.init_containers() {
            let own = Amounts::of(container);
            if is_sidecar(container) {
                sum = Some(sum.map_or(own, |sum| sum.plus(own)));
            } else {
                let with_sidecars = sum.map_or(own, |sum| sum.plus(own));
                peak = Some(peak.map_or(with_sidecars, |peak| peak.max(with_sidecars)));
            }
        }
        for container in &spec.containers {
            let own = Amounts::of(container);
            sum = Some(sum.map_or(own, |sum| sum.plus(own)));
        }
        let sum = sum.unwrap_or_default();
        let total = peak.map_or(sum, |peak| sum.max(peak));
        let own = Amounts::of_requirements(spec.resources.as_ref());
        Amounts {
            milli_cpu_request: own.milli_cpu_request.or(total.milli_cpu_request),
            milli_cpu_limit: own.milli_cpu_limit.or(total.milli_cpu_limit),
            memory_request: own.memory_request.or(total.memory_request),
            memory_limit: own.memory_limit.or(total.memory_limit),
        }
    }

    fn plus(self, other: Self) -> Self {
        self.combine(other, |a, b| a + b)
    }

    fn max(self, other: Self) -> Self {
        self.combine(other, i64::max)
    }

    fn combine(self, other: Self, f: fn(i64, i64) -> i64) -> Self {
        let request = |a: Option<i64>, b: Option<i64>| match (a, b) {
            (Some(a), Some(b)) => Some(f(a, b)),
            (one, other) => one.or(other),
        };
        // An unlimited part makes the whole unlimited.
        let limit = |a: Option<i64>, b: Option<i64>| Some(f(a?, b?));
        Amounts {
            milli_cpu_request: request(self.milli_cpu_request, other.milli_cpu_request),
            milli_cpu_limit: limit(self.milli_cpu_limit, other.milli_cpu_limit),
            memory_request: request(self.memory_request, other.memory_request),
            memory_limit: limit(self.memory_limit, other.memory_limit),
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
            _ => Self::compute(pod),
        }
    }

    fn compute(pod: &Pod) -> Self {
        let own = Amounts::of_requirements(pod.spec().resources.as_ref());
        let containers = pod.spec().containers.iter().chain(pod.init_containers());
        let all: Vec<Amounts> = if own == Amounts::default() {
            containers.map(Amounts::of).collect()
        } else {
            vec![own]
        };
        if all.iter().all(|amounts| *amounts == Amounts::default()) {
            return QosClass::BestEffort;
        }
        let guaranteed = all.iter().all(|amounts| {
            amounts.milli_cpu_limit.is_some()
                && amounts.memory_limit.is_some()
                && amounts.milli_cpu_request == amounts.milli_cpu_limit
                && amounts.memory_request == amounts.memory_limit
        });
        if guaranteed {
            QosClass::Guaranteed
        } else {
            QosClass::Burstable
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
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
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
                {"name": "a", "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}}},
                {"name": "b", "resources": {"requests": {"cpu": "250m"}}}]
        }}))
        .unwrap();
        let amounts = Amounts::of_pod(&pod);
        assert_eq!(amounts.milli_cpu_request, Some(2100));
        assert_eq!(amounts.memory_request, Some(1 << 30));
        assert_eq!(amounts.memory_limit, None);
    }
}

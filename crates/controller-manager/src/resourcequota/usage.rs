//! What objects use of each resource that a quota can name.

use fluyt_api::{
    component_helpers::{
        qos,
        resource::{self, Amounts},
    },
    quantity::Quantity,
    quota::{self, Life},
};
use fluyt_client::helpers::resource::{amounts, pod_resources};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};

/// Sums by the names of quotas.
#[derive(Debug, Default)]
pub struct Usage {
    sums: Amounts,
}

fn add(sums: &mut Amounts, name: &str, amount: Quantity) {
    let sum = sums.entry(name.to_owned()).or_insert(Quantity::ZERO);
    *sum = sum.plus(amount);
}

fn life(pod: &Pod) -> Life<'_> {
    let status = pod.status.as_ref();
    Life {
        phase: status.and_then(|status| status.phase.as_deref()),
        deletion_timestamp: pod.metadata.deletion_timestamp.as_ref().map(|at| at.0),
        deletion_grace_period_seconds: pod.metadata.deletion_grace_period_seconds,
    }
}

/// What a pod is charged.
pub fn of_pod(pod: &Pod, now: Timestamp) -> Amounts {
    quota::pod_usage(&pod_resources(pod), life(pod), now)
}

impl Usage {
    /// What is used of the resource of this quota name.
    pub fn of(&self, name: &str) -> Quantity {
        self.sums.get(name).copied().unwrap_or(Quantity::ZERO)
    }

    pub fn set_count(&mut self, name: &str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.sums
            .insert(name.to_owned(), Quantity::from_units(count));
    }

    fn count(&mut self, name: &str, number: i64) {
        add(&mut self.sums, name, Quantity::from_units(number));
    }

    pub fn add_pod(&mut self, pod: &Pod, now: Timestamp) {
        resource::add(&mut self.sums, &of_pod(pod, now));
    }

    pub fn add_service(&mut self, service: &Service) {
        self.count("services", 1);
        self.count("count/services", 1);
        let Some(spec) = &service.spec else {
            return;
        };
        let ports = i64::try_from(spec.ports.as_ref().map_or(0, Vec::len)).unwrap_or(0);
        match spec.type_.as_deref() {
            Some("NodePort") => self.count("services.nodeports", ports),
            Some("LoadBalancer") => {
                self.count("services.loadbalancers", 1);
                if spec.allocate_load_balancer_node_ports != Some(false) {
                    self.count("services.nodeports", ports);
                }
            }
            _ => {}
        }
    }

    pub fn add_claim(&mut self, claim: &PersistentVolumeClaim) {
        let spec = claim.spec.clone().unwrap_or_default();
        let requests = spec.resources.and_then(|resources| resources.requests);
        let storage = amounts(requests.as_ref())
            .get("storage")
            .copied()
            .unwrap_or(Quantity::ZERO);
        let class = spec.storage_class_name.filter(|class| !class.is_empty());
        let of_class = class.map(|class| format!("{class}.storageclass.storage.k8s.io/"));
        for prefix in [Some(String::new()), of_class].into_iter().flatten() {
            self.count(&format!("{prefix}persistentvolumeclaims"), 1);
            add(
                &mut self.sums,
                &format!("{prefix}requests.storage"),
                storage,
            );
        }
        self.count("count/persistentvolumeclaims", 1);
    }
}

/// Whether the quota is restricted to some pods.
pub fn has_scopes(quota: &ResourceQuota) -> bool {
    let spec = quota.spec.clone().unwrap_or_default();
    spec.scopes.is_some_and(|scopes| !scopes.is_empty())
        || spec
            .scope_selector
            .and_then(|selector| selector.match_expressions)
            .is_some_and(|terms| !terms.is_empty())
}

/// Whether the quota counts the pod.
pub fn matches_scopes(quota: &ResourceQuota, pod: &Pod) -> bool {
    let Some(spec) = &quota.spec else {
        return true;
    };
    let listed = spec
        .scopes
        .iter()
        .flatten()
        .all(|scope| in_scope(scope, pod));
    let terms = spec
        .scope_selector
        .iter()
        .flat_map(|selector| selector.match_expressions.iter().flatten());
    listed
        && terms
            .into_iter()
            .all(|term| match term.scope_name.as_str() {
                "PriorityClass" => {
                    let class = pod
                        .spec
                        .as_ref()
                        .and_then(|spec| spec.priority_class_name.as_deref());
                    let listed = || {
                        class.is_some_and(|class| {
                            term.values.iter().flatten().any(|value| value == class)
                        })
                    };
                    match term.operator.as_str() {
                        "In" => listed(),
                        "NotIn" => !listed(),
                        "Exists" => class.is_some_and(|class| !class.is_empty()),
                        "DoesNotExist" => class.is_none_or(str::is_empty),
                        _ => false,
                    }
                }
                scope => in_scope(scope, pod),
            })
}

fn in_scope(scope: &str, pod: &Pod) -> bool {
    let terminating = || {
        pod.spec
            .as_ref()
            .is_some_and(|spec| spec.active_deadline_seconds.is_some())
    };
    match scope {
        "Terminating" => terminating(),
        "NotTerminating" => !terminating(),
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        "PriorityClass" => pod
            .spec
            .as_ref()
            .is_some_and(|spec| spec.priority_class_name.is_some()),
        _ => false,
    }
}

fn is_best_effort(pod: &Pod) -> bool {
    let class = pod.status.as_ref().and_then(|s| s.qos_class.as_deref());
    class.unwrap_or_else(|| qos::class(&pod_resources(pod))) == "BestEffort"
}

fn crosses_namespaces(pod: &Pod) -> bool {
    let Some(affinity) = pod.spec.as_ref().and_then(|spec| spec.affinity.clone()) else {
        return false;
    };
    let (near, far) = (
        affinity.pod_affinity.unwrap_or_default(),
        affinity.pod_anti_affinity.unwrap_or_default(),
    );
    let required = near
        .required_during_scheduling_ignored_during_execution
        .into_iter()
        .chain(far.required_during_scheduling_ignored_during_execution)
        .flatten();
    let preferred = near
        .preferred_during_scheduling_ignored_during_execution
        .into_iter()
        .chain(far.preferred_during_scheduling_ignored_during_execution)
        .flatten()
        .map(|weighted| weighted.pod_affinity_term);
    let mut terms = required.chain(preferred);
    terms.any(|term| {
        term.namespace_selector.is_some() || term.namespaces.is_some_and(|list| !list.is_empty())
    })
}

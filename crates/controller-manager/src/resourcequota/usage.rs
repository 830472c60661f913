//! What objects use of each resource that a quota can name.

use std::collections::BTreeMap;

use fluyt_api::quantity::Quantity;
use fluyt_client::helpers::pods;
use k8s_openapi::{
    api::core::v1::{Container, PersistentVolumeClaim, Pod, PodSpec, ResourceQuota, Service},
    apimachinery::pkg::api::resource::Quantity as Text,
};

type Amounts = BTreeMap<String, Quantity>;

/// Sums by the names of quotas.
#[derive(Debug, Default)]
pub struct Usage {
    sums: Amounts,
}

fn amounts(list: Option<&BTreeMap<String, Text>>) -> Amounts {
    let list = list.into_iter().flatten();
    list.filter_map(|(name, text)| Some((name.clone(), text.0.parse().ok()?)))
        .collect()
}

fn add(sums: &mut Amounts, name: &str, amount: Quantity) {
    let sum = sums.entry(name.to_owned()).or_insert(Quantity::ZERO);
    *sum = sum.plus(amount);
}

fn at_least(sums: &mut Amounts, name: &str, amount: Quantity) {
    let known = sums.entry(name.to_owned()).or_insert(Quantity::ZERO);
    *known = (*known).max(amount);
}

/// What the pod counts for: its containers together, or more if an init container needs more.
fn pod_amounts(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            own.iter()
                .for_each(|(name, amount)| add(&mut sidecars, name, *amount));
            sidecars
                .iter()
                .for_each(|(name, amount)| at_least(&mut peak, name, *amount));
        } else {
            for (name, amount) in own {
                let beside = sidecars.get(&name).copied().unwrap_or(Quantity::ZERO);
                at_least(&mut peak, &name, amount.plus(beside));
            }
        }
    }
    let mut total = sidecars;
    for container in &spec.containers {
        of(container)
            .iter()
            .for_each(|(name, amount)| add(&mut total, name, *amount));
    }
    peak.iter()
        .for_each(|(name, amount)| at_least(&mut total, name, *amount));
    amounts(spec.overhead.as_ref())
        .iter()
        .for_each(|(name, amount)| add(&mut total, name, *amount));
    total
}

fn requests(container: &Container) -> Amounts {
    amounts(
        container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref()),
    )
}

fn limits(container: &Container) -> Amounts {
    amounts(
        container
            .resources
            .as_ref()
            .and_then(|resources| resources.limits.as_ref()),
    )
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

    pub fn add_pod(&mut self, pod: &Pod) {
        // The object exists, whatever state it is in.
        self.count("count/pods", 1);
        if pods::is_terminated(pod) {
            return;
        }
        self.count("pods", 1);
        let Some(spec) = &pod.spec else {
            return;
        };
        for (name, amount) in pod_amounts(spec, requests) {
            let plain = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
            if plain || name.starts_with("hugepages-") {
                add(&mut self.sums, &name, amount);
            }
            add(&mut self.sums, &format!("requests.{name}"), amount);
        }
        for (name, amount) in pod_amounts(spec, limits) {
            add(&mut self.sums, &format!("limits.{name}"), amount);
        }
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
    let containers = pod.spec.iter().flat_map(|spec| {
        spec.init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
    });
    let mut amounts =
        containers.flat_map(|container| requests(container).into_iter().chain(limits(container)));
    !amounts.any(|(name, amount)| (name == "cpu" || name == "memory") && !amount.is_zero())
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

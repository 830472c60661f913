//! Pods and nodes as the scheduler sees them: parsed once, summed up per node.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use fluyt_api::quantity::Quantity;
use fluyt_client::ObjectKey;
use k8s_openapi::{
    api::core::v1::{Container, Node, Pod, PodAffinityTerm, PodSpec},
    apimachinery::pkg::api::resource::Quantity as QuantityText,
};

/// What a container counts for in scores if it requests nothing.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of resources; CPU in thousandths, memory and storage in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    /// Number of pods; only of nodes.
    pub pods: i64,
    pub scalars: BTreeMap<String, i64>,
}

/// A used host port: protocol, address, port.
type HostPort = (String, String, i32);

/// A pod with what the plugins need of it.
#[derive(Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub request: Resource,
    /// As `request`, but with something for containers that request nothing.
    pub scored_milli_cpu: i64,
    pub scored_memory: i64,
    pub host_ports: Vec<HostPort>,
    pub required_affinity: Vec<PodAffinityTerm>,
    pub required_anti_affinity: Vec<PodAffinityTerm>,
    pub preferred_affinity: Vec<(i32, PodAffinityTerm)>,
    pub preferred_anti_affinity: Vec<(i32, PodAffinityTerm)>,
}

/// A node with the pods that are (or are assumed to be) on it.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    pub node: Arc<Node>,
    pub pods: Vec<Arc<PodInfo>>,
    pub requested: Resource,
    pub scored_milli_cpu: i64,
    pub scored_memory: i64,
    pub allocatable: Resource,
    pub used_ports: HashSet<HostPort>,
    /// Size of each present image by name.
    pub images: Arc<HashMap<String, i64>>,
}

/// The cluster at one moment.
#[derive(Debug, Default, Clone)]
pub struct Snapshot {
    /// In turns of the zones, so that a prefix of the list covers all zones.
    pub nodes: Vec<Arc<NodeInfo>>,
    pub by_name: HashMap<String, usize>,
    /// How many nodes have pods with required anti-affinity: usually none, which saves looking.
    pub with_anti_affinity: usize,
    /// Labels of the namespaces, for namespace selectors.
    pub namespaces: Arc<HashMap<String, BTreeMap<String, String>>>,
}

fn parse(quantity: &QuantityText) -> Quantity {
    // The API server has validated it.
    quantity.0.parse().unwrap_or(Quantity::ZERO)
}

impl Resource {
    pub fn of(list: Option<&BTreeMap<String, QuantityText>>) -> Self {
        let mut resource = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            let quantity = parse(quantity);
            match name.as_str() {
                "cpu" => resource.milli_cpu = quantity.millis(),
                "memory" => resource.memory = quantity.value(),
                "ephemeral-storage" => resource.ephemeral_storage = quantity.value(),
                "pods" => resource.pods = quantity.value(),
                _ => {
                    resource.scalars.insert(name.clone(), quantity.value());
                }
            }
        }
        resource
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, |a, b| a + b);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, |a, b| a - b);
    }

    pub fn at_least(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, combine: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = combine(self.milli_cpu, other.milli_cpu);
        self.memory = combine(self.memory, other.memory);
        self.ephemeral_storage = combine(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.scalars {
            let own = self.scalars.entry(name.clone()).or_insert(0);
            *own = combine(*own, *amount);
        }
    }
}

/// What the pod takes from a node: its containers together, or more if an init container needs more.
pub fn pod_request(spec: &PodSpec, request_of: impl Fn(&Container) -> Resource) -> Resource {
    let mut sidecars = Resource::default();
    let mut init_peak = Resource::default();
    for container in spec.init_containers.iter().flatten() {
        let mut request = request_of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&request);
            init_peak.at_least(&sidecars);
        } else {
            request.add(&sidecars);
            init_peak.at_least(&request);
        }
    }
    let mut total = sidecars;
    for container in &spec.containers {
        total.add(&request_of(container));
    }
    total.at_least(&init_peak);
    // Requests of the pod as a whole replace the sums.
    let whole = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref());
    let whole_request = Resource::of(whole);
    for name in whole.into_iter().flatten().map(|(name, _)| name.as_str()) {
        match name {
            "cpu" => total.milli_cpu = whole_request.milli_cpu,
            "memory" => total.memory = whole_request.memory,
            _ => {}
        }
    }
    total.add(&Resource::of(spec.overhead.as_ref()));
    total
}

fn container_request(container: &Container) -> Resource {
    Resource::of(
        container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref()),
    )
}

/// What a container takes while it is resized: the most of what it asks for (unless its node can never give that), what
/// its node has promised and what it has (KEP-1287).
fn resized_request(pod: &Pod, container: &Container) -> Resource {
    let wanted = container_request(container);
    let Some(status) = &pod.status else {
        return wanted;
    };
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let mut statuses = lists.into_iter().flatten().flatten();
    let Some(own) = statuses.find(|own| own.name == container.name) else {
        return wanted;
    };
    let mut request = Resource::of(own.allocated_resources.as_ref());
    let actual = own.resources.as_ref();
    request.at_least(&Resource::of(actual.and_then(|r| r.requests.as_ref())));
    let is_infeasible = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "PodResizePending" && condition.reason.as_deref() == Some("Infeasible")
    });
    if !is_infeasible || request == Resource::default() {
        request.at_least(&wanted);
    }
    request
}

fn scored_request(pod: &Pod, container: &Container) -> Resource {
    let mut request = resized_request(pod, container);
    if request.milli_cpu == 0 {
        request.milli_cpu = DEFAULT_MILLI_CPU;
    }
    if request.memory == 0 {
        request.memory = DEFAULT_MEMORY;
    }
    request
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let scored = pod_request(spec, |container| scored_request(&pod, container));
        let affinity = spec.affinity.clone().unwrap_or_default();
        let together = affinity.pod_affinity.unwrap_or_default();
        let apart = affinity.pod_anti_affinity.unwrap_or_default();
        let weighted = |terms: Option<Vec<k8s_openapi::api::core::v1::WeightedPodAffinityTerm>>| {
            let terms = terms.unwrap_or_default().into_iter();
            terms
                .map(|term| (term.weight, with_label_keys(&pod, term.pod_affinity_term)))
                .collect()
        };
        let required = |terms: Option<Vec<PodAffinityTerm>>| {
            terms
                .unwrap_or_default()
                .into_iter()
                .map(|term| with_label_keys(&pod, term))
                .collect()
        };
        Self {
            request: pod_request(spec, |container| resized_request(&pod, container)),
            scored_milli_cpu: scored.milli_cpu,
            scored_memory: scored.memory,
            host_ports: host_ports(spec),
            required_affinity: required(
                together.required_during_scheduling_ignored_during_execution,
            ),
            required_anti_affinity: required(
                apart.required_during_scheduling_ignored_during_execution,
            ),
            preferred_affinity: weighted(
                together.preferred_during_scheduling_ignored_during_execution,
            ),
            preferred_anti_affinity: weighted(
                apart.preferred_during_scheduling_ignored_during_execution,
            ),
            pod,
        }
    }

    pub fn key(&self) -> ObjectKey {
        ObjectKey::of(&*self.pod)
    }

    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub fn spec(&self) -> &PodSpec {
        // A pod without a spec does not pass validation.
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }
}

/// The API server resolves `matchLabelKeys` into the selector on creation; older ones leave that to us.
fn with_label_keys(pod: &Pod, mut term: PodAffinityTerm) -> PodAffinityTerm {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
    let Some(selector) = &mut term.label_selector else {
        return term;
    };
    let labels = fluyt_client::helpers::labels::labels_of(&pod.metadata);
    let keys = [
        ("In", &term.match_label_keys),
        ("NotIn", &term.mismatch_label_keys),
    ];
    for (operator, keys) in keys {
        for key in keys.iter().flatten() {
            let Some(value) = labels.get(key) else {
                continue;
            };
            let requirement = LabelSelectorRequirement {
                key: key.clone(),
                operator: operator.to_owned(),
                values: Some(vec![value.clone()]),
            };
            let expressions = selector.match_expressions.get_or_insert_default();
            if !expressions.contains(&requirement) {
                expressions.push(requirement);
            }
        }
    }
    term
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let address = port.host_ip.clone().filter(|ip| !ip.is_empty());
            Some((
                protocol,
                address.unwrap_or_else(|| "0.0.0.0".to_owned()),
                number,
            ))
        })
        .collect()
}

impl NodeInfo {
    pub fn new(node: Arc<Node>) -> Self {
        let mut info = Self {
            node: Arc::clone(&node),
            pods: Vec::new(),
            requested: Resource::default(),
            scored_milli_cpu: 0,
            scored_memory: 0,
            allocatable: Resource::default(),
            used_ports: HashSet::new(),
            images: Arc::default(),
        };
        info.set_node(node);
        info
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        self.allocatable = Resource::of(status.and_then(|status| status.allocatable.as_ref()));
        let images = status
            .and_then(|status| status.images.as_ref())
            .into_iter()
            .flatten();
        let sizes = images.flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image
                .names
                .iter()
                .flatten()
                .map(move |name| (name.clone(), size))
        });
        self.images = Arc::new(sizes.collect());
        self.node = node;
    }

    pub fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.node
            .metadata
            .labels
            .as_ref()?
            .get(key)
            .map(String::as_str)
    }

    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.request);
        self.scored_milli_cpu += pod.scored_milli_cpu;
        self.scored_memory += pod.scored_memory;
        self.used_ports.extend(pod.host_ports.iter().cloned());
        self.pods.push(pod);
    }

    /// Remove the pod of this uid; says whether it was there.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(index) = self.pods.iter().position(|pod| pod.uid() == uid) else {
            return false;
        };
        let pod = self.pods.swap_remove(index);
        self.requested.subtract(&pod.request);
        self.scored_milli_cpu -= pod.scored_milli_cpu;
        self.scored_memory -= pod.scored_memory;
        for port in &pod.host_ports {
            self.used_ports.remove(port);
        }
        true
    }
}

impl Snapshot {
    /// A snapshot of these nodes, in zone turns.
    pub fn new(
        nodes: Vec<Arc<NodeInfo>>,
        namespaces: Arc<HashMap<String, BTreeMap<String, String>>>,
    ) -> Self {
        let nodes = in_zone_turns(nodes);
        let by_name = nodes
            .iter()
            .enumerate()
            .map(|(index, node)| (node.name().to_owned(), index))
            .collect();
        let has_anti_affinity = |node: &&Arc<NodeInfo>| {
            node.pods
                .iter()
                .any(|pod| !pod.required_anti_affinity.is_empty())
        };
        let with_anti_affinity = nodes.iter().filter(has_anti_affinity).count();
        Self {
            nodes,
            by_name,
            with_anti_affinity,
            namespaces,
        }
    }

    pub fn get(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        self.nodes.get(*self.by_name.get(name)?)
    }

    /// The same cluster with one node replaced.
    pub fn with(&self, node: Arc<NodeInfo>) -> Self {
        let mut changed = self.clone();
        if let Some(index) = self.by_name.get(node.name()) {
            changed.nodes[*index] = node;
        }
        changed
    }
}

fn in_zone_turns(mut nodes: Vec<Arc<NodeInfo>>) -> Vec<Arc<NodeInfo>> {
    nodes.sort_by(|a, b| a.name().cmp(b.name()));
    let mut zones: BTreeMap<String, std::collections::VecDeque<Arc<NodeInfo>>> = BTreeMap::new();
    for node in nodes {
        let part = |key| node.label(key).unwrap_or_default();
        let zone = format!(
            "{}:{}",
            part("topology.kubernetes.io/region"),
            part("topology.kubernetes.io/zone")
        );
        zones.entry(zone).or_default().push_back(node);
    }
    let mut ordered = Vec::new();
    while !zones.is_empty() {
        for zone in zones.values_mut() {
            ordered.extend(zone.pop_front());
        }
        zones.retain(|_, zone| !zone.is_empty());
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};

    #[test]
    fn a_pod_takes_what_it_has_until_a_resize_is_done() {
        let requested = |spec: &str, allocated: &str, reason: &str| {
            let pod = serde_json::json!({
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": spec}}}]},
                "status": {
                    "conditions": [{"type": "PodResizePending", "status": "True", "reason": reason}],
                    "containerStatuses": [{
                        "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                        "allocatedResources": {"cpu": allocated},
                        "resources": {"requests": {"cpu": allocated}}
                    }]
                }
            });
            let pod: Pod = serde_json::from_value(pod).unwrap();
            PodInfo::new(Arc::new(pod)).request.milli_cpu
        };
        assert_eq!(requested("2", "1", "Deferred"), 2000);
        assert_eq!(requested("1", "2", "Deferred"), 2000);
        assert_eq!(requested("100", "1", "Infeasible"), 1000);
    }

    #[test]
    fn requests_of_init_containers_and_sidecars() {
        let container = |milli: i64, sidecar: bool| {
            let mut container = Container::default();
            let requests = [("cpu".to_owned(), QuantityText(format!("{milli}m")))].into();
            container.resources.get_or_insert_default().requests = Some(requests);
            container.restart_policy = sidecar.then(|| "Always".to_owned());
            container
        };
        let cpu = |init: Vec<Container>, containers: Vec<Container>| {
            let spec = PodSpec {
                init_containers: Some(init),
                containers,
                ..PodSpec::default()
            };
            pod_request(&spec, container_request).milli_cpu
        };
        assert_eq!(
            cpu(vec![], vec![container(100, false), container(50, false)]),
            150
        );
        assert_eq!(
            cpu(vec![container(500, false)], vec![container(100, false)]),
            500
        );
        assert_eq!(
            cpu(vec![container(30, true)], vec![container(100, false)]),
            130
        );
        // An init container after a sidecar runs beside it.
        assert_eq!(
            cpu(
                vec![container(30, true), container(500, false)],
                vec![container(100, false)]
            ),
            530
        );
        assert_eq!(
            cpu(
                vec![container(500, false), container(30, true)],
                vec![container(100, false)]
            ),
            500
        );
    }

    #[test]
    fn node_sums_follow_the_pods() {
        let mut info = NodeInfo::new(Arc::new(node("n").cpu("4").build()));
        let before = info.requested.clone();
        let added = Arc::new(PodInfo::new(Arc::new(
            pod("p").cpu("1500m").host_port(80).build(),
        )));
        info.add_pod(Arc::clone(&added));
        assert_eq!(info.requested.milli_cpu, 1500);
        assert_eq!(info.scored_memory, DEFAULT_MEMORY);
        assert_eq!(info.used_ports.len(), 1);
        assert!(info.remove_pod(added.uid()));
        assert!(!info.remove_pod(added.uid()));
        assert_eq!(info.requested, before);
        assert!(info.used_ports.is_empty());
    }

    #[test]
    fn nodes_take_turns_by_zone() {
        let nodes = [("a", "1"), ("b", "1"), ("c", "2"), ("d", "1"), ("e", "2")];
        let build = |(name, zone): (&str, &str)| {
            let built = node(name)
                .label("topology.kubernetes.io/zone", zone)
                .build();
            Arc::new(NodeInfo::new(Arc::new(built)))
        };
        let snapshot = Snapshot::new(nodes.into_iter().map(build).collect(), Arc::default());
        let order: Vec<&str> = snapshot.nodes.iter().map(|node| node.name()).collect();
        assert_eq!(order, ["a", "c", "b", "e", "d"]);
        assert_eq!(snapshot.get("e").map(|node| node.name()), Some("e"));
    }
}

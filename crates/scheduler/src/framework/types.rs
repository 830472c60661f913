//! Pods and nodes as the scheduler sees them: parsed once, summed up per node.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use fluyt_api::component_helpers::{
    nodedeclaredfeatures::FeatureSet,
    resource::{Amounts, Options},
};
use fluyt_api::quantity::Quantity;
use fluyt_client::ObjectKey;
use fluyt_client::helpers::resource::{amounts, pod_resources};
use k8s_openapi::api::core::v1::{Node, Pod, PodAffinityTerm, PodSpec};

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
    pub declared_features: FeatureSet,
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

impl Resource {
    pub fn of(amounts: &Amounts) -> Self {
        let mut resource = Self::default();
        for (name, quantity) in amounts {
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

/// What a pod takes of its node, and what it counts for in scores: as much, but something for containers that request
/// nothing. Where the pod states what all of its containers take, that is something already.
fn requests(pod: &Pod) -> (Amounts, Amounts) {
    let resources = pod_resources(pod);
    let options = Options {
        use_status: true,
        use_pod_status: true,
        ..Options::default()
    };
    let requested = resources.requests(options);
    let mut least = Amounts::from([
        ("cpu".to_owned(), Quantity::from_millis(DEFAULT_MILLI_CPU)),
        ("memory".to_owned(), Quantity::from_bytes(DEFAULT_MEMORY)),
    ]);
    if resources.states_requests() {
        least.retain(|name, _| !requested.contains_key(name));
    }
    let scored = resources.requests(Options {
        instead_of_missing: Some(&least),
        ..options
    });
    (requested, scored)
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let empty = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&empty);
        let (requested, scored) = requests(&pod);
        let scored = Resource::of(&scored);
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
            request: Resource::of(&requested),
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

/// What the node declares, in its order.
pub fn declared_features(node: &Node) -> &[String] {
    let status = node.status.as_ref();
    let declared = status.and_then(|status| status.declared_features.as_deref());
    declared.unwrap_or_default()
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
            declared_features: FeatureSet::default(),
        };
        info.set_node(node);
        info
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        self.allocatable = Resource::of(&amounts(allocatable));
        let declared = declared_features(&node).iter().map(String::as_str);
        self.declared_features = FeatureSet::named(declared);
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
    fn containers_that_request_nothing_count_in_scores() {
        let scored = |resources: serde_json::Value, container: serde_json::Value| {
            let pod = serde_json::json!({
                "spec": {"resources": resources, "containers": [{"name": "c", "resources": container}]},
            });
            let info = PodInfo::new(Arc::new(serde_json::from_value(pod).unwrap()));
            (info.scored_milli_cpu, info.scored_memory)
        };
        let cpu = |amount: &str| serde_json::json!({"requests": {"cpu": amount}});
        let nothing = serde_json::Value::Null;
        let is_stated = (50, DEFAULT_MEMORY);
        assert_eq!(
            scored(nothing.clone(), nothing.clone()),
            (DEFAULT_MILLI_CPU, DEFAULT_MEMORY)
        );
        assert_eq!(scored(nothing.clone(), cpu("50m")), is_stated);
        assert_eq!(scored(cpu("50m"), nothing.clone()), is_stated);
        // Nothing is what it asks for.
        assert_eq!(scored(nothing, cpu("0")), (0, DEFAULT_MEMORY));
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

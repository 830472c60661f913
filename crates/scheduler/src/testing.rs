//! Builders of pods and nodes for the scheduler's tests.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, Node, NodeStatus, Pod, PodSpec, Taint, Toleration},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use crate::framework::{CycleState, NodeInfo, Plugin, PodInfo, PreFilter, Snapshot, Verdict};

pub struct NodeBuilder(Node);

pub fn node(name: &str) -> NodeBuilder {
    let allocatable = [
        ("cpu", "4"),
        ("memory", "8Gi"),
        ("pods", "110"),
        ("ephemeral-storage", "100Gi"),
    ];
    let allocatable =
        allocatable.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())));
    NodeBuilder(Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([("kubernetes.io/hostname".to_owned(), name.to_owned())].into()),
            ..ObjectMeta::default()
        },
        status: Some(NodeStatus {
            allocatable: Some(allocatable.into()),
            ..NodeStatus::default()
        }),
        ..Node::default()
    })
}

impl NodeBuilder {
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0
            .metadata
            .labels
            .get_or_insert_default()
            .insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn allocatable(mut self, name: &str, amount: &str) -> Self {
        let status = self.0.status.get_or_insert_default();
        let allocatable = status.allocatable.get_or_insert_default();
        allocatable.insert(name.to_owned(), Quantity(amount.to_owned()));
        self
    }

    pub fn cpu(self, amount: &str) -> Self {
        self.allocatable("cpu", amount)
    }

    pub fn taint(mut self, key: &str, effect: &str) -> Self {
        let taint = Taint {
            key: key.to_owned(),
            effect: effect.to_owned(),
            ..Taint::default()
        };
        self.0
            .spec
            .get_or_insert_default()
            .taints
            .get_or_insert_default()
            .push(taint);
        self
    }

    pub fn edit(mut self, edit: impl FnOnce(&mut Node)) -> Self {
        edit(&mut self.0);
        self
    }

    pub fn build(self) -> Node {
        self.0
    }

    /// The node with these pods on it.
    pub fn with(self, pods: impl IntoIterator<Item = PodBuilder>) -> Arc<NodeInfo> {
        let name = self.0.metadata.name.clone().unwrap();
        let mut info = NodeInfo::new(Arc::new(self.0));
        for pod in pods {
            info.add_pod(Arc::new(pod.on(&name).info()));
        }
        Arc::new(info)
    }
}

#[derive(Clone)]
pub struct PodBuilder(Pod);

pub fn pod(name: &str) -> PodBuilder {
    PodBuilder(Pod {
        metadata: ObjectMeta {
            namespace: Some("ns".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(format!("uid-{name}")),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: vec![Container::default()],
            scheduler_name: Some("default-scheduler".to_owned()),
            ..PodSpec::default()
        }),
        status: None,
    })
}

impl PodBuilder {
    pub fn edit(mut self, edit: impl FnOnce(&mut PodSpec)) -> Self {
        edit(self.0.spec.get_or_insert_default());
        self
    }

    pub fn edit_pod(mut self, edit: impl FnOnce(&mut Pod)) -> Self {
        edit(&mut self.0);
        self
    }

    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0
            .metadata
            .labels
            .get_or_insert_default()
            .insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn request(self, name: &str, amount: &str) -> Self {
        self.edit(|spec| {
            let resources = spec.containers[0].resources.get_or_insert_default();
            let requests: &mut BTreeMap<_, _> = resources.requests.get_or_insert_default();
            requests.insert(name.to_owned(), Quantity(amount.to_owned()));
        })
    }

    pub fn cpu(self, amount: &str) -> Self {
        self.request("cpu", amount)
    }

    pub fn priority(self, priority: i32) -> Self {
        self.edit(|spec| spec.priority = Some(priority))
    }

    pub fn host_port(self, port: i32) -> Self {
        self.edit(|spec| {
            let port = ContainerPort {
                host_port: Some(port),
                container_port: port,
                ..ContainerPort::default()
            };
            spec.containers[0].ports.get_or_insert_default().push(port);
        })
    }

    pub fn tolerate(self, key: &str, effect: &str) -> Self {
        self.edit(|spec| {
            spec.tolerations.get_or_insert_default().push(Toleration {
                key: Some(key.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some(effect.to_owned()),
                ..Toleration::default()
            });
        })
    }

    pub fn on(self, node: &str) -> Self {
        self.edit(|spec| spec.node_name = Some(node.to_owned()))
    }

    pub fn build(self) -> Pod {
        self.0
    }

    pub fn info(self) -> PodInfo {
        PodInfo::new(Arc::new(self.0))
    }
}

pub fn snapshot(nodes: impl IntoIterator<Item = Arc<NodeInfo>>) -> Snapshot {
    Snapshot::new(nodes.into_iter().collect(), Arc::default())
}

/// The verdict of one plugin about each node, in the order of their names.
pub fn filter(plugin: &dyn Plugin, pod: &PodInfo, snapshot: &Snapshot) -> Vec<Verdict> {
    let mut state = CycleState::default();
    let mut nodes = snapshot.nodes.clone();
    nodes.sort_by(|a, b| a.name().cmp(b.name()));
    match plugin.pre_filter(&mut state, pod, snapshot) {
        PreFilter::Skip => nodes.iter().map(|_| Ok(())).collect(),
        PreFilter::Reject(rejection) => nodes.iter().map(|_| Err(rejection.clone())).collect(),
        PreFilter::Continue | PreFilter::Only(_) => nodes
            .iter()
            .map(|node| plugin.filter(&state, pod, node))
            .collect(),
    }
}

/// Whether each node passes.
pub fn passes(plugin: &dyn Plugin, pod: &PodInfo, snapshot: &Snapshot) -> Vec<bool> {
    filter(plugin, pod, snapshot)
        .iter()
        .map(Result::is_ok)
        .collect()
}

/// The normalized scores of each node, in the order of their names.
pub fn scores(plugin: &dyn Plugin, pod: &PodInfo, snapshot: &Snapshot) -> Vec<i64> {
    let mut state = CycleState::default();
    let mut nodes = snapshot.nodes.clone();
    nodes.sort_by(|a, b| a.name().cmp(b.name()));
    if !plugin.pre_score(&mut state, pod, snapshot, &nodes) {
        return vec![0; nodes.len()];
    }
    let mut scores: Vec<i64> = nodes
        .iter()
        .map(|node| plugin.score(&state, pod, node))
        .collect();
    plugin.normalize(&state, &nodes, &mut scores);
    scores
}

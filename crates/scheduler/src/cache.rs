//! The scheduler's picture of the cluster: nodes with their pods, including pods that are assumed to be on a node
//! while their binding is on its way.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::framework::{NodeInfo, PodInfo, Snapshot};

/// Keeps [`NodeInfo`]s current; gives out cheap snapshots.
#[derive(Default)]
pub struct Cache {
    nodes: HashMap<String, Arc<NodeInfo>>,
    /// Pods of nodes we have not heard of (yet).
    homeless: HashMap<String, Vec<Arc<PodInfo>>>,
    /// The node of every known pod, by pod uid.
    pods: HashMap<String, Placed>,
    namespaces: Arc<HashMap<String, BTreeMap<String, String>>>,
    snapshot: Option<Arc<Snapshot>>,
}

struct Placed {
    node: String,
    assumed: bool,
}

impl Cache {
    /// The cluster as it is now. Nothing is copied unless something changed since the last time, and then only
    /// the nodes that changed.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        if let Some(snapshot) = &self.snapshot {
            return Arc::clone(snapshot);
        }
        let nodes = self.nodes.values().cloned().collect();
        let snapshot = Arc::new(Snapshot::new(nodes, Arc::clone(&self.namespaces)));
        self.snapshot = Some(Arc::clone(&snapshot));
        snapshot
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        self.snapshot = None;
        let name = node.metadata.name.clone().unwrap_or_default();
        if let Some(info) = self.nodes.get_mut(&name) {
            Arc::make_mut(info).set_node(node);
            return;
        }
        let mut info = NodeInfo::new(node);
        for pod in self.homeless.remove(&name).unwrap_or_default() {
            info.add_pod(pod);
        }
        self.nodes.insert(name, Arc::new(info));
    }

    pub fn remove_node(&mut self, name: &str) {
        self.snapshot = None;
        if let Some(info) = self.nodes.remove(name) {
            // Their own deletions come separately.
            self.homeless.insert(name.to_owned(), info.pods.clone());
        }
    }

    pub fn set_namespaces(&mut self, namespaces: HashMap<String, BTreeMap<String, String>>) {
        self.snapshot = None;
        self.namespaces = Arc::new(namespaces);
    }

    /// Count the pod on the node although the API server does not know yet.
    pub fn assume(&mut self, pod: &PodInfo, node: &str) {
        let mut assumed = (*pod.pod).clone();
        assumed.spec.get_or_insert_default().node_name = Some(node.to_owned());
        self.place(Arc::new(PodInfo::new(Arc::new(assumed))), node, true);
    }

    /// The binding failed.
    pub fn forget(&mut self, uid: &str) {
        if self.pods.get(uid).is_some_and(|placed| placed.assumed) {
            self.remove_pod(uid);
        }
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|placed| placed.assumed)
    }

    /// An assigned pod appeared or changed.
    pub fn set_pod(&mut self, pod: Arc<Pod>) {
        let node = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default();
        self.place(Arc::new(PodInfo::new(pod)), &node, false);
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        self.remove_pod(pod.uid());
        self.snapshot = None;
        let placed = Placed {
            node: node.to_owned(),
            assumed,
        };
        self.pods.insert(pod.uid().to_owned(), placed);
        match self.nodes.get_mut(node) {
            Some(info) => Arc::make_mut(info).add_pod(pod),
            None => self.homeless.entry(node.to_owned()).or_default().push(pod),
        }
    }

    pub fn remove_pod(&mut self, uid: &str) {
        let Some(placed) = self.pods.remove(uid) else {
            return;
        };
        self.snapshot = None;
        if let Some(info) = self.nodes.get_mut(&placed.node) {
            Arc::make_mut(info).remove_pod(uid);
        }
        if let Some(pods) = self.homeless.get_mut(&placed.node) {
            pods.retain(|pod| pod.uid() != uid);
            if pods.is_empty() {
                self.homeless.remove(&placed.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, pod};

    fn used(cache: &mut Cache, node: &str) -> i64 {
        cache
            .snapshot()
            .get(node)
            .map_or(-1, |node| node.requested.milli_cpu)
    }

    #[test]
    fn assumed_pods_count_until_confirmed_or_forgotten() {
        let mut cache = Cache::default();
        cache.set_node(Arc::new(node("a").build()));
        let info = pod("p").cpu("1").info();
        cache.assume(&info, "a");
        assert!(cache.is_assumed("uid-p"));
        assert_eq!(used(&mut cache, "a"), 1000);
        cache.set_pod(Arc::new(pod("p").cpu("1").on("a").build()));
        assert!(!cache.is_assumed("uid-p"));
        assert_eq!(used(&mut cache, "a"), 1000, "counted once");
        cache.forget("uid-p");
        assert_eq!(used(&mut cache, "a"), 1000, "it is not assumed any more");
        cache.remove_pod("uid-p");
        assert_eq!(used(&mut cache, "a"), 0);
        cache.assume(&info, "a");
        cache.forget("uid-p");
        assert_eq!(used(&mut cache, "a"), 0);
    }

    #[test]
    fn pods_may_come_before_their_node() {
        let mut cache = Cache::default();
        cache.set_pod(Arc::new(pod("p").cpu("1").on("a").build()));
        cache.set_pod(Arc::new(pod("q").cpu("1").on("a").build()));
        cache.remove_pod("uid-q");
        cache.set_node(Arc::new(node("a").build()));
        assert_eq!(used(&mut cache, "a"), 1000);
        cache.remove_node("a");
        assert_eq!(used(&mut cache, "a"), -1);
        cache.set_node(Arc::new(node("a").build()));
        assert_eq!(used(&mut cache, "a"), 1000);
    }

    #[test]
    fn a_snapshot_does_not_change_and_is_shared_until_something_does() {
        let mut cache = Cache::default();
        cache.set_node(Arc::new(node("a").build()));
        let before = cache.snapshot();
        assert!(Arc::ptr_eq(&before, &cache.snapshot()));
        cache.set_pod(Arc::new(pod("p").cpu("1").on("a").build()));
        assert_eq!(before.get("a").unwrap().requested.milli_cpu, 0);
        assert_eq!(used(&mut cache, "a"), 1000);
    }
}

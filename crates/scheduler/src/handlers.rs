//! From informers to the cache and the queue.

use std::{collections::HashMap, sync::Arc};

use fluyt_client::{Change, Informer, Informers, helpers::pods};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};

use crate::{
    framework::{Event, PodInfo, declared_features},
    scheduler::Scheduler,
};

/// Feed `scheduler` from now on. The informers should have synced: pods that come before the nodes would be tried
/// in vain.
pub fn attach(scheduler: &Arc<Scheduler>, informers: &Informers) {
    let this = Arc::clone(scheduler);
    informers
        .get::<Node>()
        .on_change(move |change| this.on_node(change));
    let this = Arc::clone(scheduler);
    let namespaces = informers.get::<Namespace>();
    let all = namespaces.clone();
    namespaces.on_change(move |change| this.on_namespace(&change, &all));
    let this = Arc::clone(scheduler);
    informers
        .get::<PersistentVolumeClaim>()
        .on_change(move |change| match change {
            Change::Added(claim) | Change::Updated { new: claim, .. } => {
                this.notify(&Event::ClaimChanged(claim))
            }
            Change::Deleted(_) => {}
        });
    let this = Arc::clone(scheduler);
    informers
        .get::<PersistentVolume>()
        .on_change(move |change| match change {
            Change::Added(volume) | Change::Updated { new: volume, .. } => {
                this.notify(&Event::VolumeChanged(volume))
            }
            Change::Deleted(_) => {}
        });
    let this = Arc::clone(scheduler);
    informers
        .get::<StorageClass>()
        .on_change(move |_| this.notify(&Event::StorageClassChanged));
    let this = Arc::clone(scheduler);
    scheduler.pods.on_change(move |change| this.on_pod(change));
}

/// Bound to a node and not ended: takes resources there.
fn occupies(pod: &Pod) -> bool {
    pods::node_name(pod).is_some() && !pods::is_terminated(pod)
}

/// To be scheduled.
fn waits(pod: &Pod) -> bool {
    pods::node_name(pod).is_none() && pods::is_active(pod)
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

impl Scheduler {
    fn on_node(&self, change: Change<Node>) {
        match change {
            Change::Added(node) => {
                self.state.lock().cache.set_node(Arc::clone(&node));
                self.notify(&Event::NodeAdded(node));
            }
            Change::Updated { old, new } => {
                let matters = matters_for_scheduling(&old, &new);
                self.state.lock().cache.set_node(Arc::clone(&new));
                // Heartbeats are most of a node's updates.
                if matters {
                    self.notify(&Event::NodeUpdated { old, new });
                }
            }
            Change::Deleted(node) => {
                let name = node.metadata.name.clone().unwrap_or_default();
                self.state.lock().cache.remove_node(&name);
                self.notify(&Event::NodeRemoved(node));
            }
        }
    }

    fn on_namespace(&self, change: &Change<Namespace>, all: &Informer<Namespace>) {
        if let Change::Updated { old, new } = change
            && old.metadata.labels == new.metadata.labels
        {
            return;
        }
        let labels = all.list().into_iter().map(|namespace| {
            let meta = &namespace.metadata;
            (
                meta.name.clone().unwrap_or_default(),
                meta.labels.clone().unwrap_or_default(),
            )
        });
        let labels: HashMap<_, _> = labels.collect();
        self.state.lock().cache.set_namespaces(labels);
        if matches!(change, Change::Updated { .. }) {
            self.notify(&Event::Unknown);
        }
    }

    fn on_pod(&self, change: Change<Pod>) {
        match change {
            Change::Added(pod) => self.pod_is(None, pod),
            Change::Updated { old, new } => self.pod_is(Some(old), new),
            Change::Deleted(pod) => {
                {
                    let mut state = self.state.lock();
                    state.queue.remove(uid(&pod));
                    state.nominated.remove(uid(&pod));
                    state.cache.remove_pod(uid(&pod));
                }
                if pods::node_name(&pod).is_some() {
                    self.notify(&Event::PodRemoved(pod));
                }
            }
        }
    }

    fn pod_is(&self, old: Option<Arc<Pod>>, pod: Arc<Pod>) {
        if occupies(&pod) {
            {
                let mut state = self.state.lock();
                state.cache.set_pod(Arc::clone(&pod));
                state.nominated.remove(uid(&pod));
                state.queue.remove(uid(&pod));
            }
            let before = old.filter(|old| occupies(old));
            let changed = before.as_ref().is_none_or(|before| {
                before.metadata.labels != pod.metadata.labels || before.spec != pod.spec
            });
            if changed {
                self.notify(&Event::PodAssigned {
                    old: before,
                    new: pod,
                });
            }
        } else if waits(&pod) && self.is_ours(&pod) {
            self.pod_waits(old.as_deref(), pod);
        } else {
            let was_there = {
                let mut state = self.state.lock();
                state.queue.remove(uid(&pod));
                state.nominated.remove(uid(&pod));
                state.cache.remove_pod(uid(&pod));
                old.is_none_or(|old| occupies(&old))
            };
            if was_there && pods::node_name(&pod).is_some() {
                self.notify(&Event::PodRemoved(pod));
            }
        }
    }

    fn pod_waits(&self, old: Option<&Pod>, pod: Arc<Pod>) {
        let gated = self.is_gated(&pod);
        let unchanged = old
            .is_some_and(|old| old.spec == pod.spec && old.metadata.labels == pod.metadata.labels);
        {
            let mut state = self.state.lock();
            let nominated = pod
                .status
                .as_ref()
                .and_then(|status| status.nominated_node_name.clone());
            if let Some(node) = nominated.filter(|node| !node.is_empty()) {
                let info = Arc::new(PodInfo::new(Arc::clone(&pod)));
                state
                    .nominated
                    .entry(uid(&pod).to_owned())
                    .or_insert((node, info));
            }
            if state.cache.is_assumed(uid(&pod)) {
                return;
            }
            // Our own reports in its status are no reason to try again.
            if unchanged && state.queue.contains(uid(&pod)) {
                state.queue.refresh(pod);
                return;
            }
            state.queue.add(pod, gated);
        }
        self.wake.notify_one();
    }
}

fn matters_for_scheduling(old: &Node, new: &Node) -> bool {
    let allocatable = |node: &Node| {
        node.status
            .as_ref()
            .and_then(|status| status.allocatable.clone())
    };
    let conditions = |node: &Node| -> Vec<(String, String)> {
        let conditions = node
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        conditions
            .map(|condition| (condition.type_.clone(), condition.status.clone()))
            .collect()
    };
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || old.metadata.annotations != new.metadata.annotations
        || allocatable(old) != allocatable(new)
        || declared_features(old) != declared_features(new)
        || conditions(old) != conditions(new)
}

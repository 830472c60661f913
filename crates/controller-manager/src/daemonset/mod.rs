//! daemonset-controller: one pod on every node that qualifies.

mod placement;
mod rollout;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use fluyt_client::{
    Action, Change, EventType, Informer, ObjectKey, Recorder, WorkQueue, controller,
    helpers::{labels, pods},
    is_namespace_terminating, is_not_found,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus},
    core::v1::{Node, Pod},
};
use kube::{Api, Resource, api::PostParams};

use crate::{
    Context,
    common::{
        adoption, controller_key, controller_ref, enqueue, enqueue_mapped,
        expectations::Expectations,
        freshness::Freshness,
        is_controlled_by, labels_with, name, namespace,
        pod_control::{Owner, PodControl, pod_from_template},
        revisions::{self, REVISION_HASH, hash_of},
        slow_start::slow_start_batch,
        to_wait, uid,
    },
};

const COMPONENT: &str = "daemonset-controller";
const GENERATION: &str = "pod-template-generation";
const BURST: usize = 250;

type PodsByNode = BTreeMap<String, Vec<Arc<Pod>>>;

struct Controller {
    context: Context,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    expectations: Arc<Expectations>,
    revision_freshness: Freshness,
    pod_control: PodControl,
    recorder: Recorder,
}

/// What to change: on which nodes to create a pod, and which pods to delete.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    create_on: Vec<String>,
    delete: Vec<Arc<Pod>>,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let recorder = context.recorder(COMPONENT);
    let controller = Controller {
        sets: context.informers.get(),
        pods: context.informers.get(),
        nodes: context.informers.get(),
        revisions: context.informers.get(),
        expectations: Arc::default(),
        revision_freshness: Freshness::default(),
        pod_control: PodControl {
            client: context.client.clone(),
            recorder: recorder.clone(),
        },
        recorder,
        context,
    };
    controller.sets.synced().await;
    controller.pods.synced().await;
    controller.nodes.synced().await;
    controller.revisions.synced().await;
    let queue = WorkQueue::new();
    enqueue(&controller.sets, &queue);
    controller.watch_pods(&queue);
    controller.watch_nodes(&queue);
    enqueue_mapped(&controller.revisions, &queue, |revision| {
        controller_key(&revision.metadata, "apps", "DaemonSet")
            .into_iter()
            .collect()
    });
    let workers = controller.context.config.concurrent_daemonset_syncs;
    let shutdown = controller.context.shutdown.clone();
    controller::run(
        COMPONENT,
        queue,
        workers,
        |key| controller.reconcile(key),
        shutdown,
    )
    .await;
}

impl Controller {
    fn watch_pods(&self, queue: &WorkQueue<ObjectKey>) {
        let (queue, expectations, sets) = (
            queue.clone(),
            Arc::clone(&self.expectations),
            self.sets.clone(),
        );
        self.pods.on_change(move |change| {
            let pod = change.object();
            let Some(owner) = controller_key(&pod.metadata, "apps", "DaemonSet") else {
                let labels = labels::labels_of(&pod.metadata);
                let candidates = sets.list_namespace(namespace(&pod.metadata));
                let matching = candidates.iter().filter(|set| {
                    let selector = set.spec.as_ref().map(|spec| &spec.selector);
                    selector.is_some_and(|selector| labels::matches(selector, labels))
                });
                matching.for_each(|set| queue.add(ObjectKey::of(&**set)));
                return;
            };
            match &change {
                Change::Added(_) => expectations.creation_observed(&owner),
                Change::Deleted(_) => {
                    expectations.deletion_observed(&owner, &ObjectKey::of(&**pod))
                }
                Change::Updated { new, .. } if pods::is_terminating(new) => {
                    expectations.deletion_observed(&owner, &ObjectKey::of(&**pod));
                }
                Change::Updated { .. } => {}
            }
            queue.add(owner);
        });
    }

    fn watch_nodes(&self, queue: &WorkQueue<ObjectKey>) {
        let (queue, sets) = (queue.clone(), self.sets.clone());
        self.nodes.on_change(move |change| {
            let before = match &change {
                Change::Updated { old, .. } => Some(Arc::clone(old)),
                _ => None,
            };
            for set in sets.list() {
                // Heartbeats are most of a node's updates.
                let unchanged = before.as_ref().is_some_and(|old| {
                    placement::verdict(&set, old) == placement::verdict(&set, change.object())
                });
                if !unchanged {
                    queue.add(ObjectKey::of(&*set));
                }
            }
        });
    }

    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let Some(set) = self.sets.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(Action::Await);
        };
        let Some(spec) = set.spec.as_ref() else {
            return Ok(Action::Await);
        };
        if labels::is_empty(&spec.selector) {
            let message =
                "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.event(
                &set.object_ref(&()),
                EventType::Warning,
                "SelectingAll",
                message,
            );
            return Ok(Action::Await);
        }
        if set.metadata.deletion_timestamp.is_some()
            || !self.revision_freshness.is_current(&key, &self.revisions)
        {
            return Ok(Action::Await);
        }
        let history = self.history(&set);
        let mut collisions = set
            .status
            .as_ref()
            .and_then(|status| status.collision_count);
        let revision_api =
            Api::<ControllerRevision>::namespaced(self.context.client.clone(), &key.namespace);
        let current = revisions::current(
            &revision_api,
            &*set,
            &spec.template,
            &history,
            &mut collisions,
        )
        .await?;
        self.revision_freshness.wrote(&key, &current);
        let hash = hash_of(&current).to_owned();

        let by_node = self.pods_by_node(&key, &set).await?;
        let now = Timestamp::now();
        let mut outcome = Ok(());
        if self.expectations.satisfied(&key) {
            let nodes = self.nodes.list();
            let mut changes = placement::manage(&set, &nodes, &by_node, now);
            if changes == Changes::default() {
                changes = rollout::step(&set, &nodes, &by_node, &hash, now);
            }
            outcome = self.apply(&key, &set, changes, &hash).await;
        }
        let by_node = self.pods_by_node(&key, &set).await?;
        let mut status = placement::status(&set, &self.nodes.list(), &by_node, &hash, now);
        status.collision_count = collisions;
        self.write_status(&set, status).await?;
        outcome?;
        let limit = spec.revision_history_limit.unwrap_or(10);
        let used: HashSet<&str> = by_node
            .values()
            .flatten()
            .filter_map(|pod| rollout::hash_of_pod(pod))
            .collect();
        let in_use = |revision: &ControllerRevision| {
            hash_of(revision) == hash || used.contains(hash_of(revision))
        };
        revisions::truncate(
            &revision_api,
            &history,
            usize::try_from(limit).unwrap_or(0),
            in_use,
        )
        .await?;
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let waits = by_node
            .values()
            .flatten()
            .filter_map(|pod| pods::available_in(pod, min_ready, now));
        Ok(match waits.filter(|wait| wait.is_positive()).min() {
            Some(wait) => Action::Requeue(to_wait(wait)),
            None => Action::Await,
        })
    }

    fn history(&self, set: &DaemonSet) -> Vec<ControllerRevision> {
        let all = self.revisions.list_namespace(namespace(&set.metadata));
        let owned = all
            .iter()
            .filter(|revision| is_controlled_by(&revision.metadata, uid(&set.metadata)));
        owned.map(|revision| (**revision).clone()).collect()
    }

    async fn pods_by_node(&self, key: &ObjectKey, set: &DaemonSet) -> anyhow::Result<PodsByNode> {
        let owners = Api::<DaemonSet>::namespaced(self.context.client.clone(), &key.namespace);
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &key.namespace);
        let selector = set
            .spec
            .as_ref()
            .map(|spec| spec.selector.clone())
            .unwrap_or_default();
        let candidates = self.pods.list_namespace(&key.namespace);
        let owned = adoption::claim(set, &owners, &api, &selector, candidates, |_| true).await?;
        let mut by_node = PodsByNode::new();
        for pod in owned {
            if let Some(node) = placement::target_node(&pod) {
                by_node.entry(node).or_default().push(pod);
            }
        }
        Ok(by_node)
    }

    async fn apply(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        changes: Changes,
        hash: &str,
    ) -> anyhow::Result<()> {
        let create_on = &changes.create_on[..changes.create_on.len().min(BURST)];
        let delete = &changes.delete[..changes.delete.len().min(BURST)];
        if create_on.is_empty() && delete.is_empty() {
            return Ok(());
        }
        let owner = Owner {
            reference: controller_ref(set),
            object: set.object_ref(&()),
        };
        let deletions = delete.iter().map(|pod| ObjectKey::of(&**pod)).collect();
        self.expectations.expect(key, create_on.len(), deletions);
        let (owner, set_ref) = (&owner, set);
        let (created, error) = slow_start_batch(create_on.len(), |i| async move {
            let pod = daemon_pod(set_ref, owner, &create_on[i], hash);
            match self.pod_control.create(owner, &pod).await {
                Err(error) if is_namespace_terminating(&error) => {
                    self.expectations.creation_observed(key);
                    Ok(())
                }
                result => result.map(drop),
            }
        })
        .await;
        if error.is_some() {
            (created..create_on.len()).for_each(|_| self.expectations.creation_observed(key));
        }
        let mut first_error = error;
        for pod in delete {
            if pods::phase(pod) == "Failed" {
                let node = pods::node_name(pod).unwrap_or_default();
                let message = format!(
                    "Found failed daemon pod {} on node {node}, will try to kill it",
                    ObjectKey::of(&**pod)
                );
                self.recorder.event(
                    &owner.object,
                    EventType::Warning,
                    "FailedDaemonPod",
                    message,
                );
            }
            if let Err(error) = self.pod_control.delete(owner, &pod.metadata).await {
                self.expectations
                    .deletion_observed(key, &ObjectKey::of(&**pod));
                if !is_not_found(&error) {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn write_status(&self, set: &DaemonSet, status: DaemonSetStatus) -> anyhow::Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut updated = set.clone();
        updated.status = Some(status);
        let api =
            Api::<DaemonSet>::namespaced(self.context.client.clone(), namespace(&set.metadata));
        api.replace_status(name(&set.metadata), &PostParams::default(), &updated)
            .await?;
        Ok(())
    }
}

/// The pod of the set for a node: the scheduler binds it, but can only bind it there.
fn daemon_pod(set: &DaemonSet, owner: &Owner, node: &str, hash: &str) -> Pod {
    let template = set
        .spec
        .as_ref()
        .map(|spec| spec.template.clone())
        .unwrap_or_default();
    let mut pod = pod_from_template(&template, owner);
    pod.metadata.labels = labels_with(pod.metadata.labels.take(), REVISION_HASH, hash);
    let generation = set
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get("deprecated.daemonset.template.generation"));
    let generation = generation
        .cloned()
        .unwrap_or_else(|| set.metadata.generation.unwrap_or(1).to_string());
    pod.metadata.labels = labels_with(pod.metadata.labels.take(), GENERATION, &generation);
    let spec = pod.spec.get_or_insert_default();
    placement::pin(spec, node);
    placement::add_tolerations(spec);
    pod
}

/// Index of nodes by name.
fn by_name(nodes: &[Arc<Node>]) -> HashMap<&str, &Arc<Node>> {
    nodes
        .iter()
        .map(|node| (name(&node.metadata), node))
        .collect()
}

#[cfg(test)]
mod tests;

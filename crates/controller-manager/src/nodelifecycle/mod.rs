//! node-lifecycle-controller: notices nodes that have gone silent, and turns node conditions into taints.

mod health;
mod taints;

use std::{collections::HashMap, sync::Arc, time::Duration};

use fluyt_client::{
    Action, Change, EventType, Informer, ObjectKey, Recorder, WorkQueue, controller, helpers::pods,
    is_not_found,
};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod, PodCondition},
};
use kube::{
    Api, Resource,
    api::{Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use serde_json::json;
use tracing::{debug, info, warn};

use self::health::Observed;
pub use self::taints::is_ready;
use crate::{
    Context,
    common::{namespace, now},
};

const COMPONENT: &str = "node-controller";
const LEASES: &str = "kube-node-lease";

struct Controller {
    context: Context,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    recorder: Recorder,
    /// The last sign of life of every node, by our own clock: those of the nodes may be off.
    observed: Mutex<HashMap<String, Observed>>,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let nodes = context.informers.get::<Node>();
    let all_pods = context.informers.get::<Pod>();
    // Only those of nodes: leader elections renew theirs all the time.
    let leases = context.informers.get_namespaced::<Lease>(LEASES);
    nodes.synced().await;
    all_pods.synced().await;
    leases.synced().await;
    let queue = WorkQueue::new();
    let controller = Arc::new(Controller {
        recorder: context.recorder(COMPONENT),
        nodes: nodes.clone(),
        leases: leases.clone(),
        pods: all_pods,
        observed: Mutex::default(),
        context,
    });
    controller.watch_nodes(&queue);
    let (known, feed) = (nodes, queue.clone());
    leases.on_change(move |change| {
        let lease = change.object();
        // A node that was given up reports again; a healthy one is not worth a reconcile every ten seconds.
        let node = known.get(None, crate::common::name(&lease.metadata));
        if node.is_some_and(|node| !is_ready(&node)) {
            feed.add(ObjectKey::cluster(crate::common::name(&lease.metadata)));
        }
    });
    let shutdown = controller.context.shutdown.clone();
    let reconcile = |key| controller.reconcile(key);
    controller::run("node-lifecycle-controller", queue, 4, reconcile, shutdown).await;
}

impl Controller {
    fn watch_nodes(self: &Arc<Self>, queue: &WorkQueue<ObjectKey>) {
        let (this, queue) = (Arc::clone(self), queue.clone());
        self.nodes.on_change(move |change| {
            let node = change.object();
            let name = crate::common::name(&node.metadata);
            match &change {
                Change::Added(_) => {
                    let message =
                        format!("Node {name} event: Registered Node {name} in Controller");
                    this.recorder.event(
                        &node.object_ref(&()),
                        EventType::Normal,
                        "RegisteredNode",
                        message,
                    );
                }
                Change::Deleted(_) => {
                    let message =
                        format!("Node {name} event: Removing Node {name} from Controller");
                    this.recorder.event(
                        &node.object_ref(&()),
                        EventType::Normal,
                        "RemovingNode",
                        message,
                    );
                }
                Change::Updated { old, new } => {
                    // Whether all nodes are silent decides about the others' taints.
                    if is_ready(old) != is_ready(new) {
                        this.nodes
                            .list()
                            .iter()
                            .for_each(|node| queue.add(ObjectKey::of(&**node)));
                    }
                }
            }
            queue.add(ObjectKey::of(&**node));
        });
    }

    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let Some(node) = self.nodes.get_key(&key) else {
            self.observed.lock().remove(&key.name);
            return Ok(Action::Await);
        };
        let silent_in = self.silent_in(&node);
        if silent_in.is_zero() && health::is_reporting(&node) {
            self.give_up(&node).await?;
            // The change of the status brings it back.
            return Ok(Action::Await);
        }
        self.update_taints(&node).await?;
        if !is_ready(&node) {
            self.mark_pods_not_ready(&node).await?;
        }
        Ok(if silent_in.is_zero() {
            Action::Await
        } else {
            Action::Requeue(silent_in)
        })
    }

    /// Time until the node counts as silent if no sign of life comes.
    fn silent_in(&self, node: &Node) -> Duration {
        let name = crate::common::name(&node.metadata);
        let lease = self.leases.get(Some(LEASES), name);
        let sign = health::sign_of_life(node, lease.as_deref());
        let mut observed = self.observed.lock();
        let seen = observed
            .entry(name.to_owned())
            .or_insert_with(|| Observed::new(sign.clone()));
        seen.update(sign);
        let config = &self.context.config;
        let grace = match health::has_ever_reported(node) {
            true => config.node_monitor_grace_period,
            false => config.node_startup_grace_period,
        };
        grace.saturating_sub(seen.at.elapsed())
    }

    /// The kubelet is silent: its conditions are not known any more.
    async fn give_up(&self, node: &Node) -> anyhow::Result<()> {
        let name = crate::common::name(&node.metadata);
        warn!(node = name, "the node stopped posting its status");
        let mut silent = node.clone();
        health::set_unknown(&mut silent);
        let api = Api::<Node>::all(self.context.client.clone());
        match api
            .replace_status(name, &PostParams::default(), &silent)
            .await
        {
            Err(error) if is_not_found(&error) => return Ok(()),
            result => drop(result?),
        }
        let message = format!("Node {name} status is now: NodeNotReady");
        self.recorder.event(
            &node.object_ref(&()),
            EventType::Normal,
            "NodeNotReady",
            message,
        );
        Ok(())
    }

    async fn update_taints(&self, node: &Node) -> anyhow::Result<()> {
        // If no node reports, more likely we are cut off from all of them: leave their pods alone.
        let all_silent = self.nodes.list().iter().all(|node| !is_ready(node));
        let current = fluyt_client::helpers::scheduling::taints(node);
        let desired = taints::desired(node, current, !all_silent, &now());
        if desired == current {
            return Ok(());
        }
        let name = crate::common::name(&node.metadata);
        info!(node = name, taints = ?desired.iter().map(|taint| &taint.key).collect::<Vec<_>>(), "new taints");
        // Replaces the list, so the version has to be the one it was calculated from.
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": desired},
        });
        let api = Api::<Node>::all(self.context.client.clone());
        match api
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Err(error) if is_not_found(&error) => {}
            result => drop(result?),
        }
        Ok(())
    }

    /// Nobody updates the pods of a silent node, and Services must not use them.
    async fn mark_pods_not_ready(&self, node: &Node) -> anyhow::Result<()> {
        let ready = health::condition(node, "Ready");
        if ready.is_none_or(|ready| ready.status != "Unknown") {
            // The kubelet itself says it is not ready, and looks after its pods.
            return Ok(());
        }
        let name = crate::common::name(&node.metadata);
        let all = self.pods.list();
        let ready_pods = all
            .iter()
            .filter(|pod| pods::node_name(pod) == Some(name) && pods::is_ready(pod));
        for pod in ready_pods {
            debug!(pod = %ObjectKey::of(&**pod), node = name, "marking not ready");
            let condition = PodCondition {
                type_: "Ready".to_owned(),
                status: "False".to_owned(),
                last_transition_time: Some(now()),
                ..PodCondition::default()
            };
            let api = Api::<Pod>::namespaced(self.context.client.clone(), namespace(&pod.metadata));
            let patch = json!({"status": {"conditions": [condition]}});
            let pod_name = crate::common::name(&pod.metadata);
            match api
                .patch_status(pod_name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
            {
                Err(error) if is_not_found(&error) => continue,
                result => drop(result?),
            }
            self.recorder.event(
                &pod.object_ref(&()),
                EventType::Warning,
                "NodeNotReady",
                "Node is not ready",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

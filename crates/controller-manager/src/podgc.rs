//! pod-garbage-collector-controller: deletes pods that nobody else would: of nodes that are gone, terminating ones
//! that never had a node, and the oldest ended ones when there are too many.

use std::{collections::HashMap, sync::Arc, time::Duration};

use fluyt_client::{
    Action, Change, Informer, ObjectKey, WorkQueue, controller,
    helpers::{pods, scheduling::taints},
    is_not_found,
};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tracing::info;

use crate::{
    Context,
    common::{name, namespace, now},
};

/// How long a node has to be gone before its pods are deleted.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

struct Controller {
    client: Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    threshold: usize,
    /// Since when nodes of pods have been missing.
    missing: Mutex<HashMap<String, Instant>>,
}

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Task {
    Pod(ObjectKey),
    /// The pods of this node.
    Node(String),
    /// The number of ended pods.
    Ended,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client.clone(),
        nodes: context.informers.get(),
        pods: context.informers.get(),
        threshold: context.config.terminated_pod_gc_threshold,
        missing: Mutex::default(),
    };
    controller.nodes.synced().await;
    controller.pods.synced().await;
    let queue = WorkQueue::new();
    let (feed, limited) = (queue.clone(), controller.threshold > 0);
    controller.pods.on_change(move |change| {
        let pod = match &change {
            Change::Added(pod) | Change::Updated { new: pod, .. } => pod,
            Change::Deleted(_) => return,
        };
        let ended_now = match &change {
            Change::Updated { old, new } => !pods::is_terminated(old) && pods::is_terminated(new),
            Change::Added(pod) => pods::is_terminated(pod),
            Change::Deleted(_) => false,
        };
        if ended_now && limited {
            feed.add(Task::Ended);
        }
        if pods::is_terminating(pod) || matches!(change, Change::Added(_)) {
            feed.add(Task::Pod(ObjectKey::of(&**pod)));
        }
    });
    let feed = queue.clone();
    controller.nodes.on_change(move |change| match change {
        Change::Deleted(node) => feed.add(Task::Node(name(&node.metadata).to_owned())),
        Change::Updated { new, .. } if is_out_of_service(&new) => {
            feed.add(Task::Node(name(&new.metadata).to_owned()));
        }
        _ => {}
    });
    let reconcile = |task| controller.reconcile(task);
    controller::run(
        "pod-garbage-collector-controller",
        queue,
        2,
        reconcile,
        context.shutdown.clone(),
    )
    .await;
}

fn is_out_of_service(node: &Node) -> bool {
    taints(node).iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

impl Controller {
    async fn reconcile(&self, task: Task) -> anyhow::Result<Action> {
        match task {
            Task::Ended => self.delete_oldest_ended().await,
            Task::Node(node) => self.visit(self.pods_of(&node)).await,
            Task::Pod(key) => {
                self.visit(self.pods.get_key(&key).into_iter().collect())
                    .await
            }
        }
    }

    fn pods_of(&self, node: &str) -> Vec<Arc<Pod>> {
        let mut all = self.pods.list();
        all.retain(|pod| pods::node_name(pod) == Some(node));
        all
    }

    async fn visit(&self, pods: Vec<Arc<Pod>>) -> anyhow::Result<Action> {
        let mut look_again: Option<Duration> = None;
        for pod in pods {
            match self.verdict(&pod).await? {
                Verdict::Keep => {}
                Verdict::Wait(time) => {
                    look_again = Some(look_again.map_or(time, |known| known.min(time)))
                }
                Verdict::Delete(message) => self.delete(&pod, message).await?,
            }
        }
        Ok(look_again.map_or(Action::Await, Action::Requeue))
    }

    async fn verdict(&self, pod: &Pod) -> anyhow::Result<Verdict> {
        let Some(node_name) = pods::node_name(pod) else {
            return Ok(if pods::is_terminating(pod) {
                Verdict::Delete(None)
            } else {
                Verdict::Keep
            });
        };
        if let Some(node) = self.nodes.get(None, node_name) {
            self.missing.lock().remove(node_name);
            let stuck = pods::is_terminating(pod)
                && is_out_of_service(&node)
                && !crate::nodelifecycle::is_ready(&node);
            return Ok(if stuck {
                Verdict::Delete(None)
            } else {
                Verdict::Keep
            });
        }
        let since = *self
            .missing
            .lock()
            .entry(node_name.to_owned())
            .or_insert_with(Instant::now);
        let left = QUARANTINE.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Verdict::Wait(left));
        }
        // Our copy of the nodes may lag; ask before the pods are lost.
        let exists = Api::<Node>::all(self.client.clone())
            .get_opt(node_name)
            .await?
            .is_some();
        Ok(if exists {
            Verdict::Keep
        } else {
            Verdict::Delete(Some("PodGC: node no longer exists"))
        })
    }

    /// Delete without grace: there is no kubelet to confirm. `message` tells of a disruption.
    async fn delete(&self, pod: &Pod, message: Option<&str>) -> anyhow::Result<()> {
        let key = ObjectKey::of(pod);
        info!(pod = %key, "deleting a pod that no kubelet looks after");
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace(&pod.metadata));
        if !pods::is_terminated(pod) {
            let mut status = json!({"phase": "Failed"});
            if let Some(message) = message {
                status["conditions"] = json!([PodCondition {
                    type_: "DisruptionTarget".to_owned(),
                    status: "True".to_owned(),
                    reason: Some("DeletionByPodGC".to_owned()),
                    message: Some(message.to_owned()),
                    last_transition_time: Some(now()),
                    ..PodCondition::default()
                }]);
            }
            let patch = Patch::Strategic(json!({"status": status}));
            match api
                .patch_status(&key.name, &PatchParams::default(), &patch)
                .await
            {
                Err(error) if is_not_found(&error) => return Ok(()),
                result => drop(result?),
            }
        }
        match api
            .delete(&key.name, &DeleteParams::default().grace_period(0))
            .await
        {
            Err(error) if is_not_found(&error) => {}
            result => drop(result?),
        }
        Ok(())
    }

    async fn delete_oldest_ended(&self) -> anyhow::Result<Action> {
        let mut ended = self.pods.list();
        ended.retain(|pod| pods::is_terminated(pod) && !pods::is_terminating(pod));
        let excess = ended.len().saturating_sub(self.threshold);
        let evicted = |pod: &Pod| {
            pod.status
                .as_ref()
                .and_then(|status| status.reason.as_deref())
                == Some("Evicted")
        };
        // Evicted ones first, they are many and say little; then by age.
        ended.sort_by_key(|pod| (!evicted(pod), pod.metadata.creation_timestamp.clone()));
        for pod in ended.iter().take(excess) {
            self.delete(pod, None).await?;
        }
        Ok(Action::Await)
    }
}

enum Verdict {
    Keep,
    Wait(Duration),
    Delete(Option<&'static str>),
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};

    use super::*;
    use crate::common::test_support::{context, named};

    fn pod(name: &str, node: Option<&str>, phase: &str) -> Pod {
        Pod {
            metadata: named("ns", name),
            spec: Some(PodSpec {
                node_name: node.map(str::to_owned),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: Some(phase.to_owned()),
                ..PodStatus::default()
            }),
        }
    }

    #[tokio::test]
    async fn terminating_pods_without_a_node_go_at_once() {
        let (fake, context) = context();
        let mut leaving = pod("leaving", None, "Pending");
        leaving.metadata.deletion_timestamp = Some(now());
        fake.insert(leaving);
        fake.insert(pod("waiting", None, "Pending"));
        tokio::spawn(run(context));
        fake.until("leaving is gone", |fake| {
            fake.get::<Pod>("ns", "leaving").is_none()
        })
        .await;
        assert!(fake.get::<Pod>("ns", "waiting").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn pods_of_lost_nodes_go_after_the_quarantine() {
        let (fake, context) = context();
        fake.insert(Node {
            metadata: named("", "alive"),
            ..Node::default()
        });
        let controller = Controller {
            client: fake.client(),
            nodes: context.informers.get(),
            pods: context.informers.get(),
            threshold: 0,
            missing: Mutex::default(),
        };
        controller.nodes.synced().await;
        let lost = pod("lost", Some("gone"), "Running");
        let Verdict::Wait(wait) = controller.verdict(&lost).await.unwrap() else {
            panic!("the node may come back");
        };
        assert_eq!(wait, QUARANTINE);
        tokio::time::advance(QUARANTINE).await;
        assert!(matches!(
            controller.verdict(&lost).await.unwrap(),
            Verdict::Delete(Some(_))
        ));
        let fine = pod("fine", Some("alive"), "Running");
        assert!(matches!(
            controller.verdict(&fine).await.unwrap(),
            Verdict::Keep
        ));
    }

    #[tokio::test]
    async fn the_oldest_ended_pods_go_when_there_are_too_many() {
        let (fake, mut context) = context();
        Arc::get_mut(&mut context.config)
            .unwrap()
            .terminated_pod_gc_threshold = 2;
        fake.insert(Node {
            metadata: named("", "n"),
            ..Node::default()
        });
        for (i, second) in [30, 10, 20, 40].iter().enumerate() {
            let mut ended = pod(&format!("p{i}"), Some("n"), "Succeeded");
            ended.metadata.creation_timestamp =
                jiff::Timestamp::from_second(*second).ok().map(Into::into);
            fake.insert(ended);
        }
        tokio::spawn(run(context));
        fake.until("two are left", |fake| fake.list::<Pod>().len() == 2)
            .await;
        let left: Vec<String> = fake
            .list::<Pod>()
            .iter()
            .map(|pod| name(&pod.metadata).to_owned())
            .collect();
        assert_eq!(left, ["p0", "p3"]);
    }
}

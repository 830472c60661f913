//! taint-eviction-controller: deletes pods from nodes with NoExecute taints that they don't tolerate (any more).

use std::sync::Arc;

use fluyt_client::{
    Action, Change, EventType, Informer, ObjectKey, Recorder, WorkQueue, controller,
    helpers::{
        pods,
        scheduling::{taints, tolerates},
    },
    is_not_found,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint, Toleration};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;

use crate::{
    Context,
    common::{name, now, to_wait},
};

struct Controller {
    client: Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    recorder: Recorder,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Controller {
        client: context.client.clone(),
        nodes: context.informers.get(),
        pods: context.informers.get(),
        recorder: context.recorder("taint-eviction-controller"),
    };
    controller.nodes.synced().await;
    controller.pods.synced().await;
    let queue = WorkQueue::new();
    let feed = queue.clone();
    controller.pods.on_change(move |change| match change {
        Change::Added(pod) => feed.add(ObjectKey::of(&*pod)),
        Change::Updated { old, new } => {
            let concerns = pods::node_name(&old) != pods::node_name(&new)
                || old.spec.as_ref().map(|spec| &spec.tolerations)
                    != new.spec.as_ref().map(|spec| &spec.tolerations);
            if concerns {
                feed.add(ObjectKey::of(&*new));
            }
        }
        Change::Deleted(_) => {}
    });
    let (feed, all_pods) = (queue.clone(), controller.pods.clone());
    controller.nodes.on_change(move |change| {
        let changed = match &change {
            Change::Added(_) => true,
            Change::Updated { old, new } => no_execute(taints(old)) != no_execute(taints(new)),
            Change::Deleted(_) => false,
        };
        if changed {
            let node = name(&change.object().metadata);
            let all = all_pods.list();
            let on_node = all.iter().filter(|pod| pods::node_name(pod) == Some(node));
            on_node.for_each(|pod| feed.add(ObjectKey::of(&**pod)));
        }
    });
    let reconcile = |key| controller.reconcile(key);
    controller::run(
        "taint-eviction-controller",
        queue,
        8,
        reconcile,
        context.shutdown.clone(),
    )
    .await;
}

fn no_execute(taints: &[Taint]) -> Vec<&Taint> {
    taints
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
        .collect()
}

/// When the pod has to leave a node with these taints; `None` if it may stay.
fn deadline(taints: &[&Taint], tolerations: &[Toleration], at: Timestamp) -> Option<Timestamp> {
    let of_taint = |taint: &&Taint| {
        let mut tolerating = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint))
            .peekable();
        if tolerating.peek().is_none() {
            return Some(at);
        }
        // Of several the shortest; without a limit it is tolerated for ever.
        let seconds = tolerating
            .filter_map(|toleration| toleration.toleration_seconds)
            .min()?;
        let since = taint.time_added.as_ref().map_or(at, |time| time.0);
        since
            .checked_add(SignedDuration::from_secs(seconds.max(0)))
            .ok()
    };
    taints.iter().filter_map(of_taint).min()
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let Some(pod) = self
            .pods
            .get_key(&key)
            .filter(|pod| !pods::is_terminating(pod))
        else {
            return Ok(Action::Await);
        };
        let Some(node) = pods::node_name(&pod).and_then(|node| self.nodes.get(None, node)) else {
            return Ok(Action::Await);
        };
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.tolerations.as_deref())
            .unwrap_or_default();
        let now = Timestamp::now();
        let Some(deadline) = deadline(&no_execute(taints(&node)), tolerations, now) else {
            return Ok(Action::Await);
        };
        let left = deadline.duration_since(now);
        if left.is_positive() {
            return Ok(Action::Requeue(to_wait(left)));
        }
        self.evict(&key, &pod).await?;
        Ok(Action::Await)
    }

    async fn evict(&self, key: &ObjectKey, pod: &Arc<Pod>) -> anyhow::Result<()> {
        let message = format!("Marking for deletion Pod {key}");
        self.recorder.event(
            &pod.object_ref(&()),
            EventType::Normal,
            "TaintManagerEviction",
            message,
        );
        let api = Api::<Pod>::namespaced(self.client.clone(), &key.namespace);
        let condition = PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some("DeletionByTaintManager".to_owned()),
            message: Some("Taint manager: deleting due to NoExecute taint".to_owned()),
            last_transition_time: Some(now()),
            ..PodCondition::default()
        };
        let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
        match api
            .patch_status(&key.name, &PatchParams::default(), &patch)
            .await
        {
            Err(error) if is_not_found(&error) => return Ok(()),
            result => drop(result?),
        }
        let uid = Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        };
        match api
            .delete(&key.name, &DeleteParams::default().preconditions(uid))
            .await
        {
            Err(error) if is_not_found(&error) => {}
            result => drop(result?),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeSpec, PodSpec};

    use super::*;
    use crate::common::test_support::{context, named};

    fn taint(key: &str, added: i64) -> Taint {
        Taint {
            key: key.to_owned(),
            effect: "NoExecute".to_owned(),
            time_added: Timestamp::from_second(added).ok().map(Into::into),
            value: None,
        }
    }

    fn toleration(key: &str, seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            toleration_seconds: seconds,
            ..Toleration::default()
        }
    }

    #[test]
    fn deadlines() {
        let (a, b) = (taint("a", 100), taint("b", 150));
        let at = Timestamp::from_second(200).unwrap();
        let seconds = |taints: &[&Taint], tolerations: &[Toleration]| {
            deadline(taints, tolerations, at).map(Timestamp::as_second)
        };
        assert_eq!(seconds(&[], &[]), None);
        assert_eq!(seconds(&[&a], &[]), Some(200), "at once");
        assert_eq!(seconds(&[&a], &[toleration("a", None)]), None);
        assert_eq!(seconds(&[&a], &[toleration("a", Some(300))]), Some(400));
        assert_eq!(
            seconds(
                &[&a],
                &[toleration("a", Some(300)), toleration("a", Some(5))]
            ),
            Some(105)
        );
        assert_eq!(
            seconds(
                &[&a, &b],
                &[toleration("a", None), toleration("b", Some(10))]
            ),
            Some(160)
        );
        assert_eq!(seconds(&[&a, &b], &[toleration("a", None)]), Some(200));
    }

    #[tokio::test]
    async fn pods_leave_when_their_toleration_is_over() {
        let (fake, context) = context();
        let mut node = fake.insert(Node {
            metadata: named("", "n"),
            ..Node::default()
        });
        let pod = |name: &str, tolerations: Vec<Toleration>| Pod {
            metadata: named("ns", name),
            spec: Some(PodSpec {
                node_name: Some("n".to_owned()),
                tolerations: Some(tolerations),
                ..PodSpec::default()
            }),
            status: None,
        };
        fake.insert(pod("intolerant", vec![]));
        fake.insert(pod("patient", vec![toleration("k", Some(1))]));
        fake.insert(pod("tolerant", vec![toleration("k", None)]));
        tokio::spawn(run(context));
        let start = std::time::Instant::now();
        let added = Timestamp::now().as_second();
        node.spec = Some(NodeSpec {
            taints: Some(vec![taint("k", added)]),
            ..NodeSpec::default()
        });
        fake.update(&node);
        fake.until("intolerant is gone", |fake| {
            fake.get::<Pod>("ns", "intolerant").is_none()
        })
        .await;
        assert!(start.elapsed().as_millis() < 900);
        fake.until("patient is gone", |fake| {
            fake.get::<Pod>("ns", "patient").is_none()
        })
        .await;
        assert!(fake.get::<Pod>("ns", "tolerant").is_some());
    }
}

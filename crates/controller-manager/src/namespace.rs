//! namespace-controller: empties namespaces that are being deleted, then lets them go.

use std::time::Duration;

use fluyt_client::{
    Action, Change, Informer, ObjectKey, WorkQueue, controller, helpers::pods, is_not_found,
    status_code,
};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
    core::{DynamicObject, PartialObjectMeta},
};
use parking_lot::Mutex;
use tracing::{debug, info};

use crate::{
    Context,
    common::{
        discovery::{self, Resource},
        enqueue, name, namespace, now,
        pod_control::message_of,
    },
};

/// The finalizer that stands for us.
const FINALIZER: &str = "kubernetes";
/// First and longest time until we look again whether content with finalizers is gone; pods wake us themselves.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(8);

struct Controller {
    client: Client,
    namespaces: Informer<Namespace>,
    /// How long to wait next, for namespaces that still have content.
    waits: Mutex<std::collections::HashMap<ObjectKey, Duration>>,
}

/// What is left in a namespace after everything was told to go.
#[derive(Debug, Default, PartialEq, Eq)]
struct Remainder {
    /// `<resource> has <n> resource instances`, sorted.
    content: Vec<String>,
    /// `<finalizer> in <n> resource instances`, sorted.
    finalizers: Vec<String>,
    failures: Vec<String>,
    discovery_failures: Vec<String>,
    /// Nothing else was touched yet.
    pods_remain: bool,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let namespaces = context.informers.get::<Namespace>();
    let all_pods = context.informers.get::<Pod>();
    namespaces.synced().await;
    let queue = WorkQueue::new();
    enqueue(&namespaces, &queue);
    let (feed, known) = (queue.clone(), namespaces.clone());
    all_pods.on_change(move |change| {
        if let Change::Deleted(pod) = change
            && known
                .get(None, namespace(&pod.metadata))
                .is_some_and(|found| is_leaving(&found))
        {
            feed.add(ObjectKey::cluster(namespace(&pod.metadata)));
        }
    });
    let controller = Controller {
        client: context.client.clone(),
        namespaces,
        waits: Mutex::default(),
    };
    let workers = context.config.concurrent_namespace_syncs;
    let reconcile = |key| controller.reconcile(key);
    controller::run(
        "namespace-controller",
        queue,
        workers,
        reconcile,
        context.shutdown.clone(),
    )
    .await;
}

fn is_leaving(namespace: &Namespace) -> bool {
    let finalizers = namespace
        .spec
        .as_ref()
        .and_then(|spec| spec.finalizers.as_ref());
    namespace.metadata.deletion_timestamp.is_some()
        && finalizers
            .into_iter()
            .flatten()
            .any(|finalizer| finalizer == FINALIZER)
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let Some(found) = self
            .namespaces
            .get_key(&key)
            .filter(|found| is_leaving(found))
        else {
            self.waits.lock().remove(&key);
            return Ok(Action::Await);
        };
        let api = Api::<Namespace>::all(self.client.clone());
        // Our copy may be older than what the last round wrote.
        let Some(current) = api.get_opt(&key.name).await? else {
            return Ok(Action::Await);
        };
        if current.metadata.uid != found.metadata.uid || !is_leaving(&current) {
            return Ok(Action::Await);
        }
        let remainder = self.empty(&key.name).await?;
        let mut updated = current.clone();
        let status = updated.status.get_or_insert_default();
        status.phase = Some("Terminating".to_owned());
        update_conditions(status.conditions.get_or_insert_default(), &remainder);
        if updated.status != current.status {
            updated = match api
                .replace_status(&key.name, &PostParams::default(), &updated)
                .await
            {
                Err(error) if is_not_found(&error) => return Ok(Action::Await),
                result => result?,
            };
        }
        if !remainder.is_empty() {
            debug!(
                namespace = key.name,
                ?remainder,
                "namespace still has content"
            );
            let mut waits = self.waits.lock();
            let wait = waits.entry(key).or_insert(FIRST_LOOK);
            let this_time = *wait;
            *wait = (this_time * 2).min(LONGEST_WAIT);
            return Ok(Action::Requeue(this_time));
        }
        let spec = updated.spec.get_or_insert_default();
        spec.finalizers
            .get_or_insert_default()
            .retain(|finalizer| finalizer != FINALIZER);
        match api
            .replace_subresource("finalize", &key.name, &PostParams::default(), &updated)
            .await
        {
            Err(error) if is_not_found(&error) => {}
            result => drop(result?),
        }
        info!(namespace = key.name, "namespace is empty and finalized");
        self.waits.lock().remove(&key);
        Ok(Action::Await)
    }

    /// Tell everything in the namespace to go and report what has not gone yet.
    async fn empty(&self, namespace: &str) -> anyhow::Result<Remainder> {
        let discovered = discovery::discover(&self.client).await?;
        let mut remainder = Remainder {
            discovery_failures: discovered.failures,
            ..Remainder::default()
        };
        let mut finalizers = std::collections::BTreeMap::<String, usize>::new();
        let mut deletable: Vec<&Resource> = discovered
            .resources
            .iter()
            .filter(|resource| {
                resource.namespaced && resource.supports("delete") && resource.supports("list")
            })
            .collect();
        // Pods go first, and nothing that they may depend on (a network policy, a secret) before they have gone.
        deletable.sort_by_key(|resource| !is_pods(resource));
        for resource in deletable {
            if remainder.pods_remain {
                break;
            }
            match self.delete_all(namespace, resource).await {
                Ok(left) if left.is_empty() => {}
                Ok(left) => {
                    remainder.pods_remain |= is_pods(resource);
                    let (plural, group) = (&resource.api.plural, &resource.api.group);
                    let dot = if group.is_empty() { "" } else { "." };
                    remainder.content.push(format!(
                        "{plural}{dot}{group} has {} resource instances",
                        left.len()
                    ));
                    for object in left {
                        for finalizer in object.metadata.finalizers.unwrap_or_default() {
                            *finalizers.entry(finalizer).or_default() += 1;
                        }
                    }
                }
                Err(error) => remainder.failures.push(message_of(&error)),
            }
        }
        remainder.content.sort();
        let describe = |(finalizer, count)| format!("{finalizer} in {count} resource instances");
        remainder.finalizers = finalizers.into_iter().map(describe).collect();
        Ok(remainder)
    }

    async fn delete_all(
        &self,
        namespace: &str,
        resource: &Resource,
    ) -> kube::Result<Vec<PartialObjectMeta<DynamicObject>>> {
        let api = Api::<PartialObjectMeta<DynamicObject>>::namespaced_with(
            self.client.clone(),
            namespace,
            &resource.api,
        );
        let list = || async {
            match api.list(&ListParams::default()).await {
                Ok(list) => Ok(list.items),
                // The resource was removed (a CRD) since discovery, or can't be listed at all.
                Err(error) if matches!(status_code(&error), Some(404 | 405)) => Ok(Vec::new()),
                Err(error) => Err(error),
            }
        };
        let present = list().await?;
        if present.is_empty() {
            return Ok(present);
        }
        let whole =
            Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &resource.api);
        let mut deleted_together = false;
        if resource.supports("deletecollection") {
            match whole
                .delete_collection(&DeleteParams::background(), &ListParams::default())
                .await
            {
                Err(error) if matches!(status_code(&error), Some(404 | 405)) => {}
                Err(error) => return Err(error),
                Ok(_) => deleted_together = true,
            }
        }
        if !deleted_together {
            for object in &present {
                match whole
                    .delete(name(&object.metadata), &DeleteParams::background())
                    .await
                {
                    Err(error) if is_not_found(&error) => {}
                    Err(error) => return Err(error),
                    Ok(_) => {}
                }
            }
        }
        let left = list().await?;
        if is_pods(resource) {
            self.delete_ended_pods(namespace).await?;
            return list().await;
        }
        Ok(left)
    }

    /// Pods that have ended, or were never bound, have no kubelet that would confirm their deletion.
    async fn delete_ended_pods(&self, namespace: &str) -> kube::Result<()> {
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        for pod in api.list(&ListParams::default()).await?.items {
            if pods::is_terminating(&pod)
                && (pods::is_terminated(&pod) || pods::node_name(&pod).is_none())
            {
                let now = DeleteParams::default().grace_period(0);
                match api.delete(name(&pod.metadata), &now).await {
                    Err(error) if is_not_found(&error) => {}
                    result => drop(result?),
                }
            }
        }
        Ok(())
    }
}

fn is_pods(resource: &Resource) -> bool {
    resource.api.group.is_empty() && resource.api.kind == "Pod"
}

impl Remainder {
    fn is_empty(&self) -> bool {
        self.content.is_empty() && self.failures.is_empty() && self.discovery_failures.is_empty()
    }
}

fn update_conditions(conditions: &mut Vec<NamespaceCondition>, remainder: &Remainder) {
    let verdicts = [
        (
            "NamespaceDeletionDiscoveryFailure",
            &remainder.discovery_failures,
            ("DiscoveryFailed", "Discovery failed for some groups: "),
            (
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            &Vec::new(),
            ("GroupVersionParsingFailed", ""),
            (
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
        ),
        (
            "NamespaceDeletionContentFailure",
            &remainder.failures,
            (
                "ContentDeletionFailed",
                "Failed to delete all resource types: ",
            ),
            (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        (
            "NamespaceContentRemaining",
            &remainder.content,
            ("SomeResourcesRemain", "Some resources are remaining: "),
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            &remainder.finalizers,
            (
                "SomeFinalizersRemain",
                "Some content in the namespace has finalizers remaining: ",
            ),
            (
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ),
    ];
    for (type_, findings, (bad, prefix), (good, fine)) in verdicts {
        let (status, reason, message) = if findings.is_empty() {
            ("False", good, fine.to_owned())
        } else {
            ("True", bad, format!("{prefix}{}", findings.join(", ")))
        };
        let known = conditions
            .iter_mut()
            .find(|condition| condition.type_ == type_);
        let unchanged = known.as_ref().is_some_and(|known| known.status == status);
        let condition = NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: match &known {
                Some(known) if unchanged => known.last_transition_time.clone(),
                _ => Some(now()),
            },
        };
        match known {
            Some(known) => *known = condition,
            None => conditions.push(condition),
        }
    }
}

#[cfg(test)]
mod tests {
    use fluyt_client::fake::FakeApi;
    use k8s_openapi::api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, NamespaceSpec},
    };

    use super::*;
    use crate::common::test_support::{context, named};

    async fn delete_namespace(fake: &FakeApi) {
        fake.insert(Namespace {
            metadata: named("", "ns"),
            spec: Some(NamespaceSpec {
                finalizers: Some(vec![FINALIZER.to_owned()]),
            }),
            status: None,
        });
        let api = Api::<Namespace>::all(fake.client());
        api.delete("ns", &DeleteParams::default()).await.unwrap();
    }

    #[tokio::test]
    async fn everything_in_it_goes_then_the_namespace() {
        let (fake, context) = context();
        fake.insert(ConfigMap {
            metadata: named("ns", "a"),
            ..ConfigMap::default()
        });
        fake.insert(ConfigMap {
            metadata: named("other", "a"),
            ..ConfigMap::default()
        });
        fake.insert(Deployment {
            metadata: named("ns", "web"),
            ..Deployment::default()
        });
        delete_namespace(&fake).await;
        tokio::spawn(run(context));
        fake.until("namespace is gone", |fake| {
            fake.get::<Namespace>("", "ns").is_none()
        })
        .await;
        assert!(fake.list::<Deployment>().is_empty());
        assert_eq!(
            fake.list::<ConfigMap>().len(),
            1,
            "the other namespace is untouched"
        );
    }

    #[tokio::test]
    async fn pods_go_before_what_they_may_need() {
        let (fake, context) = context();
        let mut held = Pod {
            metadata: named("ns", "held"),
            ..Pod::default()
        };
        held.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
        fake.insert(held);
        fake.insert(ConfigMap {
            metadata: named("ns", "needed"),
            ..ConfigMap::default()
        });
        delete_namespace(&fake).await;
        tokio::spawn(run(context));
        fake.until("the pod is told to go", |fake| {
            fake.get::<Pod>("ns", "held")
                .is_some_and(|pod| pod.metadata.deletion_timestamp.is_some())
        })
        .await;
        fake.until("the namespace says what remains", |fake| {
            let status = fake.get::<Namespace>("", "ns").and_then(|n| n.status);
            status.is_some_and(|s| s.conditions.is_some())
        })
        .await;
        assert_eq!(fake.list::<ConfigMap>().len(), 1);
        let mut held = fake.get::<Pod>("ns", "held").unwrap();
        held.metadata.finalizers = None;
        fake.update(&held);
        fake.until("all is gone", |fake| {
            fake.list::<ConfigMap>().is_empty() && fake.get::<Namespace>("", "ns").is_none()
        })
        .await;
    }

    #[tokio::test]
    async fn waits_for_finalizers_and_says_so() {
        let (fake, context) = context();
        let mut held = ConfigMap {
            metadata: named("ns", "held"),
            ..ConfigMap::default()
        };
        held.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
        fake.insert(held);
        delete_namespace(&fake).await;
        tokio::spawn(run(context));
        let condition = |fake: &FakeApi, type_: &str| {
            let status = fake.get::<Namespace>("", "ns")?.status?;
            status
                .conditions?
                .into_iter()
                .find(|condition| condition.type_ == type_)
        };
        fake.until("condition", |fake| {
            condition(fake, "NamespaceFinalizersRemaining")
                .is_some_and(|condition| condition.status == "True")
        })
        .await;
        let message = condition(&fake, "NamespaceFinalizersRemaining")
            .unwrap()
            .message
            .unwrap();
        assert!(
            message.ends_with("example.com/hold in 1 resource instances"),
            "{message}"
        );
        let message = condition(&fake, "NamespaceContentRemaining")
            .unwrap()
            .message
            .unwrap();
        assert!(
            message.ends_with("configmaps has 1 resource instances"),
            "{message}"
        );

        let mut held = fake.get::<ConfigMap>("ns", "held").unwrap();
        held.metadata.finalizers = None;
        fake.update(&held);
        fake.until("namespace is gone", |fake| {
            fake.get::<Namespace>("", "ns").is_none()
        })
        .await;
    }
}

//! podgroup-protection-controller: a group of pods that is being deleted goes when the last of its pods has ended. The
//! finalizer that keeps it is given by the admission plugin `PodGroupProtection`.

use std::time::Duration;

use fluyt_client::{Action, Informer, ObjectKey, WorkQueue, controller, helpers::pods};
use k8s_openapi::api::{core::v1::Pod, scheduling::v1alpha2::PodGroup};
use kube::Api;

use crate::{
    Context,
    common::{enqueue, enqueue_mapped, namespace, replace},
};

const NAME: &str = "podgroup-protection-controller";

const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

/// Run the controller until shutdown, if the API server has groups of pods: they belong to an alpha feature.
pub async fn run(context: Context) {
    if is_served(&context).await {
        follow(context).await;
    }
}

async fn is_served(context: &Context) -> bool {
    loop {
        let client = context.informers.client();
        let listed = client.list_api_group_resources("scheduling.k8s.io/v1alpha2");
        match listed.await {
            Ok(list) => return list.resources.iter().any(|r| r.name == "podgroups"),
            Err(kube::Error::Api(status)) if status.code == 404 => return false,
            Err(error) => tracing::debug!(%error, "discovery failed"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn follow(context: Context) {
    let groups = context.informers.get::<PodGroup>();
    let all_pods = context.informers.get::<Pod>();
    groups.synced().await;
    all_pods.synced().await;
    let queue = WorkQueue::new();
    enqueue(&groups, &queue);
    let known = groups.clone();
    enqueue_mapped(&all_pods, &queue, move |pod| {
        let key = group_name(pod).map(|name| ObjectKey::new(namespace(&pod.metadata), name));
        // Only a group that waits for its last pod is interested in pods.
        let leaving = |key: &ObjectKey| known.get_key(key).is_some_and(|group| is_leaving(&group));
        key.filter(leaving).into_iter().collect()
    });
    let reconcile = |key| reconcile(&context, key, &groups, &all_pods);
    let shutdown = context.shutdown.clone();
    controller::run(NAME, queue, 1, reconcile, shutdown).await;
}

fn group_name(pod: &Pod) -> Option<&str> {
    let group = pod.spec.as_ref()?.scheduling_group.as_ref()?;
    group.pod_group_name.as_deref()
}

/// Whether a group is to go and is kept.
fn is_leaving(group: &PodGroup) -> bool {
    let meta = &group.metadata;
    let mut finalizers = meta.finalizers.iter().flatten();
    meta.deletion_timestamp.is_some() && finalizers.any(|known| known == FINALIZER)
}

async fn reconcile(
    context: &Context,
    key: ObjectKey,
    groups: &Informer<PodGroup>,
    all_pods: &Informer<Pod>,
) -> anyhow::Result<Action> {
    let Some(group) = groups.get_key(&key).filter(|group| is_leaving(group)) else {
        return Ok(Action::Await);
    };
    let in_namespace = all_pods.list_namespace(&key.namespace);
    let is_used = in_namespace
        .iter()
        .any(|pod| !pods::is_terminated(pod) && group_name(pod) == Some(&*key.name));
    if is_used {
        return Ok(Action::Await);
    }
    let mut changed = (*group).clone();
    let finalizers = changed.metadata.finalizers.iter_mut();
    finalizers.for_each(|all| all.retain(|known| known != FINALIZER));
    let api = Api::<PodGroup>::namespaced(context.client.clone(), &key.namespace);
    replace(&api, &changed).await?;
    Ok(Action::Await)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodSchedulingGroup, PodSpec, PodStatus};
    use kube::api::DeleteParams;

    use super::*;
    use crate::common::test_support::{context, named};

    fn group(name: &str) -> PodGroup {
        let mut group = PodGroup {
            metadata: named("ns", name),
            ..PodGroup::default()
        };
        group.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        group
    }

    fn pod(name: &str, group: &str, phase: &str) -> Pod {
        let group = PodSchedulingGroup {
            pod_group_name: Some(group.to_owned()),
        };
        Pod {
            metadata: named("ns", name),
            spec: Some(PodSpec {
                scheduling_group: Some(group),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: Some(phase.to_owned()),
                ..PodStatus::default()
            }),
        }
    }

    #[tokio::test]
    async fn a_group_stays_as_long_as_a_pod_of_it_runs() {
        let (fake, context) = context();
        for name in ["first", "last"] {
            fake.insert(group(name));
        }
        let running = fake.insert(pod("running", "first", "Running"));
        fake.insert(pod("done", "last", "Succeeded"));
        tokio::spawn(follow(context));
        let get = |fake: &fluyt_client::fake::FakeApi, name: &str| fake.get::<PodGroup>("ns", name);
        let api = Api::<PodGroup>::namespaced(fake.client(), "ns");
        for name in ["first", "last"] {
            api.delete(name, &DeleteParams::default()).await.unwrap();
        }
        // One after the other is looked at, so the first has been when the second is gone.
        fake.until("gone", |fake| get(fake, "last").is_none()).await;
        assert!(get(&fake, "first").is_some());
        fake.remove(&running);
        fake.until("gone", |fake| get(fake, "first").is_none())
            .await;
    }
}

//! persistentvolumeclaim-protection-controller, persistentvolume-protection-controller and
//! volumeattributesclass-protection-controller: finalizers that keep claims while pods use them, volumes while they are
//! bound, and classes while a volume or a claim has their attributes or is to get them.

use std::fmt::Debug;

use fluyt_client::{Action, Informer, ObjectKey, WorkQueue, controller, helpers::pods};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::{Api, Resource};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Context,
    common::{enqueue, enqueue_mapped, name, namespace, replace},
};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
const CLASS_FINALIZER: &str = "kubernetes.io/vac-protection";

/// Run the controller of claims until shutdown.
pub async fn run_claims(context: Context) {
    let claims = context.informers.get::<PersistentVolumeClaim>();
    let all_pods = context.informers.get::<Pod>();
    claims.synced().await;
    all_pods.synced().await;
    let queue = WorkQueue::new();
    enqueue(&claims, &queue);
    let known = claims.clone();
    enqueue_mapped(&all_pods, &queue, move |pod| {
        let used = claim_names(pod).map(|claim| ObjectKey::new(namespace(&pod.metadata), claim));
        // Only a claim that waits for its last user is interested in pods.
        used.filter(|key| {
            known
                .get_key(key)
                .is_some_and(|claim| claim.metadata.deletion_timestamp.is_some())
        })
        .collect()
    });
    let reconcile = |key| reconcile_claim(&context, key, &claims, &all_pods);
    let shutdown = context.shutdown.clone();
    controller::run(
        "persistentvolumeclaim-protection-controller",
        queue,
        1,
        reconcile,
        shutdown,
    )
    .await;
}

/// Run the controller of volumes until shutdown.
pub async fn run_volumes(context: Context) {
    let volumes = context.informers.get::<PersistentVolume>();
    volumes.synced().await;
    let queue = WorkQueue::new();
    enqueue(&volumes, &queue);
    let reconcile = |key| reconcile_volume(&context, key, &volumes);
    let shutdown = context.shutdown.clone();
    controller::run(
        "persistentvolume-protection-controller",
        queue,
        1,
        reconcile,
        shutdown,
    )
    .await;
}

/// Run the controller of classes of volume attributes until shutdown.
pub async fn run_classes(context: Context) {
    let classes = context.informers.get::<VolumeAttributesClass>();
    let volumes = context.informers.get::<PersistentVolume>();
    let claims = context.informers.get::<PersistentVolumeClaim>();
    classes.synced().await;
    volumes.synced().await;
    claims.synced().await;
    let queue = WorkQueue::new();
    enqueue(&classes, &queue);
    // Whatever changes may have been the last user of any class that is to go; there are few.
    let leaving = |classes: &Informer<VolumeAttributesClass>| -> Vec<ObjectKey> {
        let all = classes.list();
        let leaving = all.iter().map(|class| &class.metadata);
        let leaving = leaving.filter(|meta| meta.deletion_timestamp.is_some());
        leaving.map(|meta| ObjectKey::new("", name(meta))).collect()
    };
    let known = classes.clone();
    enqueue_mapped(&volumes, &queue, move |_| leaving(&known));
    let known = classes.clone();
    enqueue_mapped(&claims, &queue, move |_| leaving(&known));
    let reconcile = |key| reconcile_class(&context, key, &classes, &volumes, &claims);
    let shutdown = context.shutdown.clone();
    controller::run(
        "volumeattributesclass-protection-controller",
        queue,
        1,
        reconcile,
        shutdown,
    )
    .await;
}

/// The classes that a claim has, wants, or is changed to.
fn class_names(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &str> {
    let spec = claim.spec.as_ref();
    let status = claim.status.as_ref();
    let wanted = spec.and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let current = status.and_then(|s| s.current_volume_attributes_class_name.as_deref());
    let target = status
        .and_then(|status| status.modify_volume_status.as_ref())
        .and_then(|modify| modify.target_volume_attributes_class_name.as_deref());
    [wanted, current, target].into_iter().flatten()
}

fn claim_names(pod: &Pod) -> impl Iterator<Item = String> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(
        |volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) => Some(format!("{}-{}", name(&pod.metadata), volume.name)),
            (None, None) => None,
        },
    )
}

/// What a finalizer needs.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    None,
    Add,
    Remove,
}

fn judge(leaving: bool, protected: bool, in_use: impl FnOnce() -> bool) -> Change {
    match (leaving, protected) {
        (false, false) => Change::Add,
        (true, true) if !in_use() => Change::Remove,
        _ => Change::None,
    }
}

async fn reconcile_claim(
    context: &Context,
    key: ObjectKey,
    claims: &Informer<PersistentVolumeClaim>,
    all_pods: &Informer<Pod>,
) -> anyhow::Result<Action> {
    let Some(claim) = claims.get_key(&key) else {
        return Ok(Action::Await);
    };
    let in_use = || {
        let in_namespace = all_pods.list_namespace(&key.namespace);
        // A pod without a node has mounted nothing yet; the scheduler won't send it anywhere now.
        let mut running = in_namespace
            .iter()
            .filter(|pod| !pods::is_terminated(pod) && pods::node_name(pod).is_some());
        running.any(|pod| claim_names(pod).any(|used| used == key.name))
    };
    let api = Api::<PersistentVolumeClaim>::namespaced(context.client.clone(), &key.namespace);
    apply(&api, &*claim, CLAIM_FINALIZER, in_use).await?;
    Ok(Action::Await)
}

async fn reconcile_volume(
    context: &Context,
    key: ObjectKey,
    volumes: &Informer<PersistentVolume>,
) -> anyhow::Result<Action> {
    let Some(volume) = volumes.get_key(&key) else {
        return Ok(Action::Await);
    };
    let bound = || {
        volume
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            == Some("Bound")
    };
    let api = Api::<PersistentVolume>::all(context.client.clone());
    apply(&api, &*volume, VOLUME_FINALIZER, bound).await?;
    Ok(Action::Await)
}

async fn reconcile_class(
    context: &Context,
    key: ObjectKey,
    classes: &Informer<VolumeAttributesClass>,
    volumes: &Informer<PersistentVolume>,
    claims: &Informer<PersistentVolumeClaim>,
) -> anyhow::Result<Action> {
    let Some(class) = classes.get_key(&key) else {
        return Ok(Action::Await);
    };
    let in_use = || {
        let of_volume = |volume: &PersistentVolume| {
            let spec = volume.spec.as_ref();
            let class = spec.and_then(|spec| spec.volume_attributes_class_name.as_deref());
            class == Some(&*key.name)
        };
        volumes.list().iter().any(|volume| of_volume(volume))
            || claims
                .list()
                .iter()
                .any(|claim| class_names(claim).any(|class| class == key.name))
    };
    let api = Api::<VolumeAttributesClass>::all(context.client.clone());
    apply(&api, &*class, CLASS_FINALIZER, in_use).await?;
    Ok(Action::Await)
}

async fn apply<K>(
    api: &Api<K>,
    object: &K,
    finalizer: &str,
    in_use: impl FnOnce() -> bool,
) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let meta = object.meta();
    let protected = meta
        .finalizers
        .iter()
        .flatten()
        .any(|known| known == finalizer);
    let mut changed = object.clone();
    let finalizers = changed.meta_mut().finalizers.get_or_insert_default();
    match judge(meta.deletion_timestamp.is_some(), protected, in_use) {
        Change::None => return Ok(()),
        Change::Add => finalizers.push(finalizer.to_owned()),
        Change::Remove => finalizers.retain(|known| known != finalizer),
    }
    replace(api, &changed).await
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, PodSpec, Volume};

    use super::*;
    use crate::common::test_support::{context, named};

    #[test]
    fn when_finalizers_change() {
        assert_eq!(judge(false, false, || false), Change::Add);
        assert_eq!(judge(false, true, || false), Change::None);
        assert_eq!(judge(true, true, || true), Change::None);
        assert_eq!(judge(true, true, || false), Change::Remove);
        assert_eq!(judge(true, false, || false), Change::None);
    }

    #[tokio::test]
    async fn a_claim_stays_as_long_as_a_pod_uses_it() {
        let (fake, context) = context();
        let claim = PersistentVolumeClaim {
            metadata: named("ns", "data"),
            ..PersistentVolumeClaim::default()
        };
        fake.insert(claim);
        let volume = Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: "data".to_owned(),
                read_only: None,
            }),
            ..Volume::default()
        };
        let pod = fake.insert(Pod {
            metadata: named("ns", "user"),
            spec: Some(PodSpec {
                node_name: Some("n".to_owned()),
                volumes: Some(vec![volume]),
                ..PodSpec::default()
            }),
            status: None,
        });
        tokio::spawn(run_claims(context));
        let get =
            |fake: &fluyt_client::fake::FakeApi| fake.get::<PersistentVolumeClaim>("ns", "data");
        fake.until("protected", |fake| {
            get(fake).is_some_and(|claim| claim.metadata.finalizers.is_some())
        })
        .await;
        let api = Api::<PersistentVolumeClaim>::namespaced(fake.client(), "ns");
        api.delete("data", &kube::api::DeleteParams::default())
            .await
            .unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert!(get(&fake).is_some());
        fake.remove(&pod);
        fake.until("gone", |fake| get(fake).is_none()).await;
    }

    #[tokio::test]
    async fn a_class_stays_as_long_as_a_claim_wants_it() {
        use k8s_openapi::api::core::v1::PersistentVolumeClaimSpec;

        let (fake, context) = context();
        for class in ["fast", "unused"] {
            fake.insert(VolumeAttributesClass {
                metadata: named("", class),
                driver_name: "disk.example.com".to_owned(),
                ..VolumeAttributesClass::default()
            });
        }
        let claim = fake.insert(PersistentVolumeClaim {
            metadata: named("ns", "data"),
            spec: Some(PersistentVolumeClaimSpec {
                volume_attributes_class_name: Some("fast".to_owned()),
                ..PersistentVolumeClaimSpec::default()
            }),
            status: None,
        });
        tokio::spawn(run_classes(context));
        let get = |fake: &fluyt_client::fake::FakeApi, class: &str| {
            fake.get::<VolumeAttributesClass>("", class)
        };
        fake.until("protected", |fake| {
            ["fast", "unused"].iter().all(|class| {
                get(fake, class).is_some_and(|class| class.metadata.finalizers.is_some())
            })
        })
        .await;
        let api = Api::<VolumeAttributesClass>::all(fake.client());
        for class in ["fast", "unused"] {
            api.delete(class, &kube::api::DeleteParams::default())
                .await
                .unwrap();
        }
        // One after the other is looked at, so the first has been when the second is gone.
        fake.until("gone", |fake| get(fake, "unused").is_none())
            .await;
        let fast = get(&fake, "fast").unwrap();
        assert!(fast.metadata.deletion_timestamp.is_some());
        fake.remove(&claim);
        fake.until("gone", |fake| get(fake, "fast").is_none()).await;
    }
}

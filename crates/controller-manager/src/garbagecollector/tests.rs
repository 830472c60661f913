use fluyt_client::fake::FakeApi;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{ConfigMap, Pod},
};

use super::*;
use crate::common::test_support::{context, named, owned_by};

/// A Deployment, its ReplicaSet and that one's pod, and a pod that nobody owns.
fn family(fake: &FakeApi) {
    let deployment = fake.insert(Deployment {
        metadata: named("ns", "web"),
        ..Deployment::default()
    });
    let mut set = ReplicaSet {
        metadata: named("ns", "web-1"),
        ..ReplicaSet::default()
    };
    set.metadata.owner_references =
        owned_by("apps/v1", "Deployment", "web", uid(&deployment.metadata));
    let set = fake.insert(set);
    let mut pod = Pod {
        metadata: named("ns", "web-1-x"),
        ..Pod::default()
    };
    pod.metadata.owner_references = owned_by("apps/v1", "ReplicaSet", "web-1", uid(&set.metadata));
    fake.insert(pod);
    fake.insert(Pod {
        metadata: named("ns", "free"),
        ..Pod::default()
    });
}

async fn delete(fake: &FakeApi, params: DeleteParams) {
    let api = Api::<Deployment>::namespaced(fake.client(), "ns");
    api.delete("web", &params).await.unwrap();
}

fn pods(fake: &FakeApi) -> Vec<String> {
    fake.list::<Pod>()
        .into_iter()
        .filter_map(|pod| pod.metadata.name)
        .collect()
}

#[tokio::test]
async fn background_deletion_takes_the_dependents_afterwards() {
    let (fake, context) = context();
    family(&fake);
    tokio::spawn(run(context));
    delete(&fake, DeleteParams::background()).await;
    assert!(fake.list::<Deployment>().is_empty(), "the owner goes first");
    fake.until("dependents are gone", |fake| {
        fake.list::<ReplicaSet>().is_empty() && pods(fake) == ["free"]
    })
    .await;
}

#[tokio::test]
async fn foreground_deletion_takes_the_dependents_first() {
    let (fake, context) = context();
    family(&fake);
    let mut held = fake.get::<Pod>("ns", "web-1-x").unwrap();
    held.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    fake.update(&held);
    tokio::spawn(run(context));
    delete(&fake, DeleteParams::foreground()).await;
    fake.until("pod is told to go", |fake| {
        fake.get::<Pod>("ns", "web-1-x")
            .is_some_and(|pod| pod.metadata.deletion_timestamp.is_some())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        (
            fake.list::<Deployment>().len(),
            fake.list::<ReplicaSet>().len()
        ),
        (1, 1),
        "they wait"
    );
    let mut released = fake.get::<Pod>("ns", "web-1-x").unwrap();
    released.metadata.finalizers = None;
    fake.update(&released);
    fake.until("all are gone", |fake| {
        fake.list::<Deployment>().is_empty()
            && fake.list::<ReplicaSet>().is_empty()
            && pods(fake) == ["free"]
    })
    .await;
}

#[tokio::test]
async fn orphaning_leaves_the_dependents_without_owner() {
    let (fake, context) = context();
    family(&fake);
    tokio::spawn(run(context));
    delete(&fake, DeleteParams::orphan()).await;
    fake.until("deployment is gone", |fake| {
        fake.list::<Deployment>().is_empty()
    })
    .await;
    let set = fake.get::<ReplicaSet>("ns", "web-1").unwrap();
    assert!(set.metadata.owner_references.unwrap_or_default().is_empty());
    assert_eq!(pods(&fake).len(), 2);
}

#[tokio::test]
async fn owners_that_never_existed_are_absent_and_others_are_kept() {
    let (fake, context) = context();
    let owner = fake.insert(ConfigMap {
        metadata: named("ns", "owner"),
        ..ConfigMap::default()
    });
    let pod = |name: &str, owners: &[(&str, &str)]| {
        let mut pod = Pod {
            metadata: named("ns", name),
            ..Pod::default()
        };
        let references = owners
            .iter()
            .flat_map(|(name, uid)| owned_by("v1", "ConfigMap", name, uid).unwrap());
        pod.metadata.owner_references = Some(references.collect());
        fake.insert(pod);
    };
    pod("dangling", &[("ghost", "no-such-uid")]);
    // Another object has the name of the owner that is gone.
    pod("recreated", &[("owner", "uid-of-the-old-one")]);
    pod(
        "both",
        &[("owner", uid(&owner.metadata)), ("ghost", "no-such-uid")],
    );
    pod("solid", &[("owner", uid(&owner.metadata))]);
    tokio::spawn(run(context));
    fake.until("dangling ones are gone", |fake| {
        pods(fake) == ["both", "solid"]
    })
    .await;
    fake.until("the absent owner is struck out", |fake| {
        let both = fake.get::<Pod>("ns", "both").unwrap();
        both.metadata
            .owner_references
            .is_some_and(|owners| owners.len() == 1 && owners[0].name == "owner")
    })
    .await;
    fake.remove(&owner);
    fake.until("all are gone", |fake| pods(fake).is_empty())
        .await;
}

#[tokio::test]
async fn a_circle_does_not_hold_itself_up() {
    let (fake, context) = context();
    let mut uids = Vec::new();
    for pod in ["a", "b", "c"] {
        let pod = fake.insert(Pod {
            metadata: named("ns", pod),
            ..Pod::default()
        });
        uids.push(uid(&pod.metadata).to_owned());
    }
    for (pod, owner) in [("a", 2), ("b", 0), ("c", 1)] {
        let mut owned = fake.get::<Pod>("ns", pod).unwrap();
        let name = ["a", "b", "c"][owner];
        owned.metadata.owner_references = owned_by("v1", "Pod", name, &uids[owner]);
        fake.update(&owned);
    }
    tokio::spawn(run(context));
    let api = Api::<Pod>::namespaced(fake.client(), "ns");
    api.delete("a", &DeleteParams::foreground()).await.unwrap();
    fake.until("all are gone", |fake| pods(fake).is_empty())
        .await;
}

use fluyt_client::fake::FakeApi;
use k8s_openapi::{
    api::{
        core::v1::{
            Event, Node, PersistentVolumeClaimSpec, PersistentVolumeSpec,
            VolumeResourceRequirements,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{Api, api::DeleteParams};

use super::*;
use crate::common::test_support::{context, labelled, named};

fn class(provisioner: &str) -> StorageClass {
    StorageClass {
        metadata: named("", "default"),
        provisioner: provisioner.to_owned(),
        volume_binding_mode: Some("WaitForFirstConsumer".to_owned()),
        ..StorageClass::default()
    }
}

fn size(amount: &str) -> std::collections::BTreeMap<String, Quantity> {
    [("storage".to_owned(), Quantity(amount.to_owned()))].into()
}

fn claim(claim_name: &str, class: &str, amount: &str) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: named("ns", claim_name),
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: Some(class.to_owned()),
            resources: Some(VolumeResourceRequirements {
                requests: Some(size(amount)),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

fn volume(volume_name: &str, amount: &str, policy: &str) -> PersistentVolume {
    PersistentVolume {
        metadata: named("", volume_name),
        spec: Some(PersistentVolumeSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            capacity: Some(size(amount)),
            persistent_volume_reclaim_policy: Some(policy.to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

fn claim_phase(fake: &FakeApi, claim_name: &str) -> Option<String> {
    fake.get::<PersistentVolumeClaim>("ns", claim_name)?
        .status?
        .phase
}

fn volume_phase(fake: &FakeApi, volume_name: &str) -> Option<String> {
    fake.get::<PersistentVolume>("", volume_name)?.status?.phase
}

async fn delete_claim(fake: &FakeApi, claim_name: &str) {
    let api = Api::<PersistentVolumeClaim>::namespaced(fake.client(), "ns");
    api.delete(claim_name, &DeleteParams::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_volume_is_made_on_the_selected_node_and_goes_with_its_claim() {
    let (fake, context) = context();
    fake.insert(class(provisioner::NAME));
    fake.insert(Node {
        metadata: labelled("", "n", "kubernetes.io/hostname=host-n"),
        ..Node::default()
    });
    fake.insert(claim("data", "default", "1536Mi"));
    tokio::spawn(binder::run(context));
    fake.until("waits for its consumer", |fake| {
        fake.list::<Event>()
            .iter()
            .any(|event| event.reason.as_deref() == Some("WaitForFirstConsumer"))
    })
    .await;
    assert!(fake.list::<PersistentVolume>().is_empty());

    let mut selected = fake.get::<PersistentVolumeClaim>("ns", "data").unwrap();
    let annotation = (SELECTED_NODE.to_owned(), "n".to_owned());
    selected.metadata.annotations = Some([annotation].into());
    fake.update(&selected);
    fake.until("bound", |fake| {
        claim_phase(fake, "data").as_deref() == Some("Bound")
    })
    .await;
    let made = fake.list::<PersistentVolume>().remove(0);
    let spec = made.spec.clone().unwrap();
    let made_name = made.metadata.name.clone().unwrap();
    assert_eq!(
        spec.local.unwrap().path,
        format!("/var/lib/fluyt/volumes/{made_name}")
    );
    assert_eq!(spec.capacity, Some(size("1536Mi")));
    assert_eq!(
        spec.persistent_volume_reclaim_policy.as_deref(),
        Some("Delete")
    );
    let terms = spec
        .node_affinity
        .unwrap()
        .required
        .unwrap()
        .node_selector_terms;
    let requirement = &terms[0].match_expressions.as_ref().unwrap()[0];
    assert_eq!(requirement.values.as_ref().unwrap(), &["host-n"]);
    let bound = fake.get::<PersistentVolumeClaim>("ns", "data").unwrap();
    assert_eq!(volume_name(&bound), Some(made_name.as_str()));
    assert_eq!(bound.status.unwrap().capacity, Some(size("1536Mi")));

    delete_claim(&fake, "data").await;
    fake.until("volume is deleted", |fake| {
        fake.list::<PersistentVolume>().is_empty()
    })
    .await;
}

#[tokio::test]
async fn what_a_local_disk_cannot_do_is_refused() {
    let (fake, context) = context();
    fake.insert(class(provisioner::NAME));
    fake.insert(Node {
        metadata: named("", "n"),
        ..Node::default()
    });
    let mut shared = claim("data", "default", "1Gi");
    shared.spec.as_mut().unwrap().access_modes = Some(vec!["ReadWriteMany".to_owned()]);
    shared.metadata.annotations = Some([(SELECTED_NODE.to_owned(), "n".to_owned())].into());
    fake.insert(shared);
    tokio::spawn(binder::run(context));
    fake.until("event", |fake| {
        fake.list::<Event>()
            .iter()
            .any(|event| event.reason.as_deref() == Some("ProvisioningFailed"))
    })
    .await;
    assert!(fake.list::<PersistentVolume>().is_empty());
}

#[tokio::test]
async fn the_smallest_fitting_volume_is_bound_and_kept_when_released() {
    let (fake, context) = context();
    fake.insert(volume("large", "10Gi", "Retain"));
    fake.insert(volume("right", "2Gi", "Retain"));
    fake.insert(volume("small", "1Gi", "Retain"));
    tokio::spawn(binder::run(context));
    fake.until("available", |fake| {
        ["large", "right", "small"]
            .iter()
            .all(|name| volume_phase(fake, name).as_deref() == Some("Available"))
    })
    .await;
    fake.insert(claim("data", "", "1536Mi"));
    fake.until("bound", |fake| {
        claim_phase(fake, "data").as_deref() == Some("Bound")
    })
    .await;
    assert_eq!(volume_phase(&fake, "right").as_deref(), Some("Bound"));
    fake.insert(claim("too-much", "", "100Gi"));
    fake.until("pending", |fake| {
        claim_phase(fake, "too-much").as_deref() == Some("Pending")
    })
    .await;
    delete_claim(&fake, "data").await;
    fake.until("released", |fake| {
        volume_phase(fake, "right").as_deref() == Some("Released")
    })
    .await;
    // Another claim of the same name does not get the old one's data.
    fake.insert(claim("data", "", "1536Mi"));
    fake.until("bound to another", |fake| {
        volume_phase(fake, "large").as_deref() == Some("Bound")
    })
    .await;
}

#[tokio::test]
async fn a_claim_whose_volume_is_gone_is_lost() {
    let (fake, context) = context();
    fake.insert(volume("v", "1Gi", "Retain"));
    fake.insert(claim("data", "", "1Gi"));
    tokio::spawn(binder::run(context));
    fake.until("bound", |fake| {
        claim_phase(fake, "data").as_deref() == Some("Bound")
    })
    .await;
    fake.remove(&fake.get::<PersistentVolume>("", "v").unwrap());
    fake.until("lost", |fake| {
        claim_phase(fake, "data").as_deref() == Some("Lost")
    })
    .await;
}

use std::time::Duration;

use fluyt_client::{Informers, fake::FakeApi};
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet, ReplicaSetSpec},
        core::v1::{PodCondition, PodSpec, PodStatus, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{Config, common::is_controlled_by};

fn labels(value: &str) -> Option<std::collections::BTreeMap<String, String>> {
    Some([("app".to_owned(), value.to_owned())].into())
}

fn replica_set(replicas: i32) -> ReplicaSet {
    ReplicaSet {
        metadata: ObjectMeta {
            namespace: Some("ns".to_owned()),
            name: Some("web".to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector: LabelSelector {
                match_labels: labels("web"),
                match_expressions: None,
            },
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: labels("web"),
                    ..ObjectMeta::default()
                }),
                spec: Some(PodSpec::default()),
            }),
            ..ReplicaSetSpec::default()
        }),
        status: None,
    }
}

fn pod(name: &str) -> Pod {
    Pod {
        metadata: ObjectMeta {
            namespace: Some("ns".to_owned()),
            name: Some(name.to_owned()),
            labels: labels("web"),
            ..ObjectMeta::default()
        },
        ..Pod::default()
    }
}

fn start(fake: &FakeApi) -> CancellationToken {
    let shutdown = CancellationToken::new();
    let client = fake.client();
    let context = Context {
        informers: Informers::new(client.clone(), shutdown.clone()),
        config: Arc::new(Config::for_client(client.clone())),
        client,
        shutdown: shutdown.clone(),
    };
    tokio::spawn(run::<ReplicaSet>(context));
    shutdown
}

fn status(fake: &FakeApi) -> k8s_openapi::api::apps::v1::ReplicaSetStatus {
    let set = fake.get::<ReplicaSet>("ns", "web").unwrap();
    set.status.unwrap_or_default()
}

#[tokio::test]
async fn creates_missing_and_deletes_excess_pods() {
    let fake = FakeApi::new();
    fake.insert(replica_set(3));
    let _running = start(&fake);
    fake.until("three pods", |fake| {
        fake.list::<Pod>().len() == 3 && status(fake).replicas == 3
    })
    .await;
    let set = fake.get::<ReplicaSet>("ns", "web").unwrap();
    for pod in fake.list::<Pod>() {
        assert!(is_controlled_by(&pod.metadata, uid(&set.metadata)));
        assert_eq!(pod.metadata.labels, labels("web"));
    }
    // A pod that is lost is replaced.
    fake.remove(&fake.list::<Pod>()[0]);
    fake.until("three pods again", |fake| fake.list::<Pod>().len() == 3)
        .await;

    let mut set = fake.get::<ReplicaSet>("ns", "web").unwrap();
    set.spec.as_mut().unwrap().replicas = Some(1);
    fake.update(&set);
    fake.until("one pod", |fake| {
        fake.list::<Pod>().len() == 1 && status(fake).replicas == 1
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(fake.list::<Pod>().len(), 1);
    let creates = fake
        .writes()
        .iter()
        .filter(|write| write.ends_with("POST /api/v1/namespaces/ns/pods"))
        .count();
    assert_eq!(creates, 4, "expectations keep it from creating twice");
}

#[tokio::test]
async fn adopts_orphans_and_releases_relabelled_pods() {
    let fake = FakeApi::new();
    let set = fake.insert(replica_set(1));
    fake.insert(pod("orphan"));
    let _running = start(&fake);
    let owned = |fake: &FakeApi, name: &str| {
        let pod = fake.get::<Pod>("ns", name).unwrap();
        is_controlled_by(&pod.metadata, uid(&set.metadata))
    };
    fake.until("orphan is adopted", |fake| owned(fake, "orphan"))
        .await;
    assert_eq!(fake.list::<Pod>().len(), 1);

    let mut relabelled = fake.get::<Pod>("ns", "orphan").unwrap();
    relabelled.metadata.labels = labels("debug");
    fake.update(&relabelled);
    fake.until("released and replaced", |fake| {
        !owned(fake, "orphan") && fake.list::<Pod>().len() == 2
    })
    .await;
}

#[tokio::test]
async fn a_refused_creation_becomes_a_condition_and_is_retried() {
    let fake = FakeApi::new();
    fake.insert(replica_set(2));
    fake.fail("POST", "/api/v1/namespaces/ns/pods", 403, u32::MAX);
    let _running = start(&fake);
    let failed = |fake: &FakeApi| status(fake).conditions.is_some();
    fake.until("failure is reported", failed).await;
    let condition = status(&fake).conditions.unwrap().remove(0);
    assert_eq!(condition.type_, "ReplicaFailure");
    assert_eq!(condition.reason.as_deref(), Some("FailedCreate"));
    fake.fail("POST", "/api/v1/namespaces/ns/pods", 403, 0);
    fake.until("recovers", |fake| {
        fake.list::<Pod>().len() == 2 && !failed(fake)
    })
    .await;
}

#[test]
fn deletion_order_prefers_the_least_useful() {
    let at = |second: i64| jiff::Timestamp::from_second(second).ok().map(Time);
    let running = |name: &str, node: &str, ready_at: i64, restarts: i32| {
        let mut pod = pod(name);
        pod.metadata.creation_timestamp = at(1_000_000_000);
        pod.spec = Some(PodSpec {
            node_name: Some(node.to_owned()),
            ..PodSpec::default()
        });
        pod.status = Some(PodStatus {
            phase: Some("Running".to_owned()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".to_owned(),
                status: if ready_at > 0 { "True" } else { "False" }.to_owned(),
                last_transition_time: at(ready_at),
                ..PodCondition::default()
            }]),
            container_statuses: Some(vec![k8s_openapi::api::core::v1::ContainerStatus {
                restart_count: restarts,
                ..Default::default()
            }]),
            ..PodStatus::default()
        });
        Arc::new(pod)
    };
    let mut costly = (*running("costly", "b", 1_000_000_000, 0)).clone();
    costly.metadata.annotations = Some(
        [(
            "controller.kubernetes.io/pod-deletion-cost".to_owned(),
            "5".to_owned(),
        )]
        .into(),
    );
    let mut pending = (*running("pending", "a", 0, 0)).clone();
    pending.status.as_mut().unwrap().phase = Some("Pending".to_owned());
    let candidates = vec![
        Arc::new(costly),
        running("alone", "c", 1_000_000_000, 0),
        running("restarted", "d", 1_000_000_000, 3),
        running("crowded", "b", 1_000_000_000, 0),
        running("just-ready", "e", jiff::Timestamp::now().as_second() - 2, 0),
        running("not-ready", "a", 0, 0),
        Arc::new(pending),
        Arc::new(pod("unassigned")),
    ];
    let order = deletion_order::first_to_delete(&candidates, &candidates, 8);
    let names: Vec<_> = order
        .iter()
        .filter_map(|pod| pod.metadata.name.as_deref())
        .collect();
    assert_eq!(
        names,
        [
            "unassigned",
            "pending",
            "not-ready",
            "crowded",
            "just-ready",
            "restarted",
            "alone",
            "costly"
        ]
    );
}

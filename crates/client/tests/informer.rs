//! Informers, events and leader election against the fake API.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use fluyt_client::{
    Change, EventType, Informer, Informers, LeaderElector, Recorder, Selectors, fake::FakeApi,
};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Event, Namespace, ObjectReference},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, ResourceExt};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

fn config_map(name: &str, value: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            namespace: Some("default".to_owned()),
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some([("key".to_owned(), value.to_owned())].into()),
        ..ConfigMap::default()
    }
}

fn start(fake: &FakeApi) -> Informer<ConfigMap> {
    let api = Api::all(fake.client());
    Informer::start(api, Selectors::default(), CancellationToken::new())
}

async fn next(changes: &mut UnboundedReceiver<Change<ConfigMap>>) -> String {
    let change = tokio::time::timeout(Duration::from_secs(10), changes.recv()).await;
    match change.unwrap().unwrap() {
        Change::Added(object) => format!("+{}", object.name_any()),
        Change::Updated { old, new } => {
            assert_ne!(old.resource_version(), new.resource_version());
            format!("~{}", new.name_any())
        }
        Change::Deleted(object) => format!("-{}", object.name_any()),
    }
}

#[tokio::test]
async fn follows_changes_and_replays_for_late_subscribers() {
    let fake = FakeApi::new();
    let mut a = fake.insert(config_map("a", "1"));
    let informer = start(&fake);
    informer.synced().await;
    let mut changes = informer.subscribe();
    assert_eq!(next(&mut changes).await, "+a");

    let b = fake.insert(config_map("b", "1"));
    assert_eq!(next(&mut changes).await, "+b");
    a.data = Some([("key".to_owned(), "2".to_owned())].into());
    fake.update(&a);
    assert_eq!(next(&mut changes).await, "~a");
    let seen = informer.get(Some("default"), "a").unwrap();
    assert_eq!(seen.data.as_ref().unwrap()["key"], "2");
    fake.remove(&b);
    assert_eq!(next(&mut changes).await, "-b");
    assert!(informer.get(Some("default"), "b").is_none());
    assert_eq!(informer.list_namespace("default").len(), 1);
    assert_eq!(next(&mut informer.subscribe()).await, "+a");
}

#[tokio::test]
async fn goes_on_after_a_closed_watch_without_listing_again() {
    let fake = FakeApi::new();
    let informer = start(&fake);
    informer.synced().await;
    let mut changes = informer.subscribe();
    fake.end_watches();
    fake.insert(config_map("a", "1"));
    assert_eq!(next(&mut changes).await, "+a");
    let lists = fake
        .requests()
        .iter()
        .filter(|request| request.contains("limit="))
        .count();
    assert_eq!(lists, 1);
}

#[tokio::test]
async fn reports_what_happened_while_the_watch_was_expired() {
    let fake = FakeApi::new();
    fake.insert(config_map("kept", "1"));
    let deleted = fake.insert(config_map("deleted", "1"));
    let mut changed = fake.insert(config_map("changed", "1"));
    let recreated = fake.insert(config_map("recreated", "1"));
    let informer = start(&fake);
    informer.synced().await;
    let mut changes = informer.subscribe();
    for _ in 0..4 {
        next(&mut changes).await;
    }

    // While expired, nothing of this is ever sent as a watch event.
    fake.fail("GET", "/api/v1/configmaps", 500, 1);
    fake.end_watches();
    fake.remove(&deleted);
    changed.data = None;
    fake.update(&changed);
    fake.remove(&recreated);
    fake.insert(config_map("recreated", "2"));
    fake.insert(config_map("new", "1"));
    fake.expire_watches();

    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(next(&mut changes).await);
    }
    seen.sort();
    assert_eq!(
        seen,
        ["+new", "+recreated", "-deleted", "-recreated", "~changed"]
    );
}

#[tokio::test]
async fn one_informer_per_kind_and_selector() {
    let fake = FakeApi::new();
    let informers = Informers::new(fake.client(), CancellationToken::new());
    let (first, second) = (informers.get::<ConfigMap>(), informers.get::<ConfigMap>());
    let selectors = Selectors {
        fields: Some("metadata.name=a".to_owned()),
        labels: None,
    };
    let selected = informers.get_selected::<ConfigMap>(selectors);
    informers.get::<Namespace>().synced().await;
    for informer in [&first, &second, &selected] {
        informer.synced().await;
    }
    let lists = fake
        .requests()
        .iter()
        .filter(|r| r.contains("configmaps?") && r.contains("limit="))
        .count();
    assert_eq!(lists, 2);
    fake.insert(config_map("b", "1"));
    fake.insert(config_map("a", "1"));
    assert_eq!(next(&mut selected.subscribe()).await, "+a");
}

#[tokio::test]
async fn events_are_created_then_counted() {
    let fake = FakeApi::new();
    let recorder = Recorder::new(fake.client(), "kubelet", "node-0");
    let object = ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: Some("default".to_owned()),
        name: Some("web".to_owned()),
        ..ObjectReference::default()
    };
    for _ in 0..3 {
        recorder.event(
            &object,
            EventType::Warning,
            "BackOff",
            "Back-off restarting",
        );
    }
    fake.until("one event of count 3", |fake| {
        let events = fake.list::<Event>();
        events.len() == 1 && events[0].count == Some(3)
    })
    .await;
    let event = fake.list::<Event>().remove(0);
    assert_eq!(event.type_.as_deref(), Some("Warning"));
    assert_eq!(event.reason.as_deref(), Some("BackOff"));
}

#[tokio::test]
async fn the_second_candidate_leads_when_the_first_resigns() {
    let fake = FakeApi::new();
    let elector = |identity| LeaderElector {
        retry_period: Duration::from_millis(20),
        ..LeaderElector::new(fake.client(), "kube-system", "kube-scheduler", identity)
    };
    let holder = |fake: &FakeApi| {
        let lease = fake.get::<Lease>("kube-system", "kube-scheduler")?;
        lease.spec?.holder_identity
    };
    let (stop_first, stop_second) = (CancellationToken::new(), CancellationToken::new());
    let work = |leading: CancellationToken| async move { leading.cancelled().await };
    let first = tokio::spawn(elector("first").run(stop_first.clone(), work));
    fake.until("first leads", |fake| {
        holder(fake).as_deref() == Some("first")
    })
    .await;
    let second = tokio::spawn(elector("second").run(stop_second.clone(), work));
    stop_first.cancel();
    assert!(first.await.unwrap().is_ok());
    fake.until("second leads", |fake| {
        holder(fake).as_deref() == Some("second")
    })
    .await;
    let lease = fake.get::<Lease>("kube-system", "kube-scheduler").unwrap();
    assert_eq!(lease.spec.unwrap().lease_transitions, Some(1));
    stop_second.cancel();
    assert!(second.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_leader_that_cannot_renew_stops_working() {
    let fake = FakeApi::new();
    let elector = LeaderElector {
        retry_period: Duration::from_millis(10),
        renew_deadline: Duration::from_millis(100),
        ..LeaderElector::new(fake.client(), "kube-system", "office", "only")
    };
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/office";
    let result = elector
        .run(CancellationToken::new(), |leading| {
            fake.fail("GET", path, 500, u32::MAX);
            async move { leading.cancelled().await }
        })
        .await;
    assert!(result.is_err());
}

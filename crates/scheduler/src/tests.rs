//! The whole scheduler against the fake API.

use fluyt_client::{fake::FakeApi, helpers::pods};
use k8s_openapi::api::core::v1::{Event, PodSchedulingGate};

use super::*;
use crate::testing::{PodBuilder, node, pod};

fn start_scheduler(fake: &FakeApi) -> CancellationToken {
    let shutdown = CancellationToken::new();
    tokio::spawn(start(Config::default(), fake.client(), shutdown.clone()));
    shutdown
}

fn node_of(fake: &FakeApi, name: &str) -> Option<String> {
    fake.get::<Pod>("ns", name)
        .and_then(|pod| pods::node_name(&pod).map(str::to_owned))
}

fn message(fake: &FakeApi, name: &str) -> Option<String> {
    let pod = fake.get::<Pod>("ns", name)?;
    let condition = pods::condition(&pod, "PodScheduled")?;
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_deref()),
        ("False", Some("Unschedulable"))
    );
    condition.message.clone()
}

fn insert(fake: &FakeApi, pod: PodBuilder) {
    fake.insert(pod.build());
}

#[tokio::test]
async fn pods_are_bound_where_they_fit() {
    let fake = FakeApi::new();
    fake.insert(node("small").cpu("1").build());
    fake.insert(node("large").cpu("8").build());
    insert(&fake, pod("big").cpu("4"));
    let _running = start_scheduler(&fake);
    fake.until("big is bound", |fake| {
        node_of(fake, "big").as_deref() == Some("large")
    })
    .await;
    for i in 0..5 {
        insert(&fake, pod(&format!("p{i}")).cpu("900m"));
    }
    fake.until("all are bound", |fake| {
        (0..5).all(|i| node_of(fake, &format!("p{i}")).is_some())
    })
    .await;
    let on_small = (0..5).filter(|i| node_of(&fake, &format!("p{i}")).as_deref() == Some("small"));
    assert!(on_small.count() <= 1, "assumed pods count");
    fake.until("event", |fake| {
        let events = fake.list::<Event>();
        events.iter().any(|event| {
            event.reason.as_deref() == Some("Scheduled")
                && event.message.as_deref() == Some("Successfully assigned ns/big to large")
        })
    })
    .await;
}

#[tokio::test]
async fn unschedulable_pods_say_why_and_are_bound_as_soon_as_possible() {
    let fake = FakeApi::new();
    insert(&fake, pod("p").cpu("2"));
    let _running = start_scheduler(&fake);
    fake.until("no nodes", |fake| {
        message(fake, "p").as_deref() == Some("no nodes available to schedule pods")
    })
    .await;
    fake.insert(node("small").cpu("1").build());
    let mut tainted = fake.insert(node("tainted").cpu("4").taint("k", "NoSchedule").build());
    let expected = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s). \
        preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    fake.until("reasons", |fake| {
        message(fake, "p").as_deref() == Some(expected)
    })
    .await;
    let start = std::time::Instant::now();
    tainted.spec.as_mut().unwrap().taints = None;
    fake.update(&tainted);
    fake.until("bound", |fake| {
        node_of(fake, "p").as_deref() == Some("tainted")
    })
    .await;
    assert!(
        start.elapsed().as_millis() < 500,
        "no backoff after an event that helps: {:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_failed_binding_is_retried_and_releases_the_node_meanwhile() {
    let fake = FakeApi::new();
    fake.insert(node("a").cpu("1").build());
    fake.fail("POST", "/api/v1/namespaces/ns/pods/first/binding", 500, 1);
    insert(&fake, pod("first").cpu("1"));
    let _running = start_scheduler(&fake);
    fake.until("failure is reported", |fake| {
        fake.list::<Event>()
            .iter()
            .any(|event| event.reason.as_deref() == Some("FailedScheduling"))
    })
    .await;
    fake.until("bound in the end", |fake| node_of(fake, "first").is_some())
        .await;
}

#[tokio::test]
async fn important_pods_preempt() {
    let fake = FakeApi::new();
    fake.insert(node("a").cpu("2").build());
    insert(&fake, pod("low").cpu("2").priority(1).on("a"));
    let _running = start_scheduler(&fake);
    insert(&fake, pod("high").cpu("1").priority(100));
    fake.until("high runs instead", |fake| {
        node_of(fake, "high").as_deref() == Some("a")
    })
    .await;
    assert!(fake.get::<Pod>("ns", "low").is_none());
    fake.until("event", |fake| {
        fake.list::<Event>()
            .iter()
            .any(|event| event.reason.as_deref() == Some("Preempted"))
    })
    .await;
}

#[tokio::test]
async fn gated_and_foreign_pods_are_left_alone() {
    let fake = FakeApi::new();
    fake.insert(node("a").build());
    let gate = PodSchedulingGate {
        name: "example.com/wait".to_owned(),
    };
    insert(
        &fake,
        pod("gated").edit(|spec| spec.scheduling_gates = Some(vec![gate])),
    );
    insert(
        &fake,
        pod("foreign").edit(|spec| spec.scheduler_name = Some("other".to_owned())),
    );
    insert(&fake, pod("ours"));
    let _running = start_scheduler(&fake);
    fake.until("ours is bound", |fake| node_of(fake, "ours").is_some())
        .await;
    assert_eq!(node_of(&fake, "gated"), None);
    assert_eq!(node_of(&fake, "foreign"), None);
    let mut gated = fake.get::<Pod>("ns", "gated").unwrap();
    gated.spec.as_mut().unwrap().scheduling_gates = None;
    fake.update(&gated);
    fake.until("opened", |fake| node_of(fake, "gated").is_some())
        .await;
}

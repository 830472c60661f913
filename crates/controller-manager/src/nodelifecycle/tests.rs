use fluyt_client::{fake::FakeApi, helpers::scheduling::taints as taints_of};
use k8s_openapi::{
    api::{
        coordination::v1::LeaseSpec,
        core::v1::{NodeCondition, NodeSpec, NodeStatus, PodSpec, PodStatus, Taint},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};

use super::*;
use crate::common::test_support::{context, named};

fn node(name: &str, ready: &str) -> Node {
    let condition = |type_: &str, status: &str| NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        last_heartbeat_time: Some(now()),
        ..NodeCondition::default()
    };
    Node {
        metadata: named("", name),
        status: Some(NodeStatus {
            conditions: Some(vec![
                condition("Ready", ready),
                condition("MemoryPressure", "False"),
            ]),
            ..NodeStatus::default()
        }),
        ..Node::default()
    }
}

fn describe(taints: &[Taint]) -> String {
    let mut all: Vec<String> = taints
        .iter()
        .map(|taint| {
            format!(
                "{}:{}",
                taint.key.trim_start_matches("node.kubernetes.io/"),
                taint.effect
            )
        })
        .collect();
    all.sort();
    all.join(" ")
}

#[test]
fn conditions_call_for_taints() {
    let foreign = || Taint {
        key: "dedicated".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let calculate = |node: &Node, evict: bool| {
        let current = [
            foreign(),
            taint("not-ready", "NoSchedule"),
            taint("memory-pressure", "NoSchedule"),
        ];
        describe(&taints::desired(node, &current, evict, &now()))
    };
    fn taint(key: &str, effect: &str) -> Taint {
        Taint {
            key: format!("node.kubernetes.io/{key}"),
            effect: effect.to_owned(),
            ..Taint::default()
        }
    }
    assert_eq!(calculate(&node("n", "True"), true), "dedicated:NoSchedule");
    assert_eq!(
        calculate(&node("n", "False"), true),
        "dedicated:NoSchedule not-ready:NoExecute not-ready:NoSchedule"
    );
    assert_eq!(
        calculate(&node("n", "Unknown"), true),
        "dedicated:NoSchedule unreachable:NoExecute unreachable:NoSchedule"
    );
    assert_eq!(
        calculate(&node("n", "Unknown"), false),
        "dedicated:NoSchedule unreachable:NoSchedule"
    );
    let mut never = node("n", "True");
    never.status = None;
    assert_eq!(
        calculate(&never, true),
        "dedicated:NoSchedule not-ready:NoSchedule"
    );
    let mut cordoned = node("n", "True");
    cordoned.spec = Some(NodeSpec {
        unschedulable: Some(true),
        ..NodeSpec::default()
    });
    let conditions = cordoned
        .status
        .as_mut()
        .unwrap()
        .conditions
        .as_mut()
        .unwrap();
    conditions[1].status = "True".to_owned();
    assert_eq!(
        calculate(&cordoned, true),
        "dedicated:NoSchedule memory-pressure:NoSchedule unschedulable:NoSchedule"
    );
    let evicting = [taint("unreachable", "NoExecute")];
    let frozen = taints::desired(&node("n", "Unknown"), &evicting, false, &now());
    assert_eq!(
        describe(&frozen),
        "unreachable:NoExecute unreachable:NoSchedule"
    );
}

fn lease(fake: &FakeApi, node: &str) {
    let lease = Lease {
        metadata: named(LEASES, node),
        spec: Some(LeaseSpec {
            renew_time: Some(MicroTime(jiff::Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    match fake.get::<Lease>(LEASES, node) {
        None => drop(fake.insert(lease)),
        Some(_) => fake.update(&lease),
    }
}

#[tokio::test]
async fn a_silent_node_is_given_up_and_comes_back() {
    let (fake, mut context) = context();
    Arc::get_mut(&mut context.config)
        .unwrap()
        .node_monitor_grace_period = Duration::from_millis(300);
    fake.insert(node("alive", "True"));
    let back = fake.insert(node("silent", "True"));
    lease(&fake, "silent");
    fake.insert(Pod {
        metadata: named("ns", "web"),
        spec: Some(PodSpec {
            node_name: Some("silent".to_owned()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            conditions: Some(vec![PodCondition {
                type_: "Ready".to_owned(),
                status: "True".to_owned(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    });
    tokio::spawn(run(context));
    let keep_alive = tokio::spawn({
        let fake = fake.clone();
        async move {
            loop {
                lease(&fake, "alive");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    let taints =
        |fake: &FakeApi, name: &str| describe(taints_of(&fake.get::<Node>("", name).unwrap()));
    fake.until("taints", |fake| {
        taints(fake, "silent") == "unreachable:NoExecute unreachable:NoSchedule"
    })
    .await;
    fake.until("pod is not ready", |fake| {
        !pods::is_ready(&fake.get::<Pod>("ns", "web").unwrap())
    })
    .await;
    assert_eq!(taints(&fake, "alive"), "");

    let mut current = fake.get::<Node>("", "silent").unwrap();
    current.status = back.status;
    fake.update(&current);
    lease(&fake, "silent");
    fake.until("taints are gone", |fake| taints(fake, "silent").is_empty())
        .await;
    keep_alive.abort();
}

#[tokio::test]
async fn when_all_nodes_are_silent_pods_are_left_alone() {
    let (fake, mut context) = context();
    Arc::get_mut(&mut context.config)
        .unwrap()
        .node_monitor_grace_period = Duration::from_millis(100);
    fake.insert(node("a", "True"));
    fake.insert(node("b", "Unknown"));
    tokio::spawn(run(context));
    let taints =
        |fake: &FakeApi, name: &str| describe(taints_of(&fake.get::<Node>("", name).unwrap()));
    fake.until("tainted", |fake| {
        taints(fake, "a") == "unreachable:NoSchedule"
    })
    .await;
}

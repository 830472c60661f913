use fluyt_client::fake::FakeApi;
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet},
        core::v1::{
            Container, NodeSpec, PodCondition, PodSpec, PodStatus, PodTemplateSpec, Taint,
            Toleration,
        },
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::*;
use crate::common::test_support::{context, labelled, named};

fn set() -> DaemonSet {
    DaemonSet {
        metadata: named("ns", "agent"),
        spec: Some(DaemonSetSpec {
            selector: LabelSelector {
                match_labels: Some([("app".to_owned(), "agent".to_owned())].into()),
                match_expressions: None,
            },
            template: PodTemplateSpec {
                metadata: Some(labelled("", "", "app=agent")),
                spec: Some(PodSpec {
                    containers: vec![Container::default()],
                    ..PodSpec::default()
                }),
            },
            ..DaemonSetSpec::default()
        }),
        status: None,
    }
}

fn node(name: &str, taint: Option<(&str, &str)>) -> Node {
    let taint = taint.map(|(key, effect)| Taint {
        key: key.to_owned(),
        effect: effect.to_owned(),
        ..Taint::default()
    });
    Node {
        metadata: labelled("", name, &format!("name={name}")),
        spec: Some(NodeSpec {
            taints: taint.map(|taint| vec![taint]),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

#[test]
fn where_daemons_run() {
    let run = |set: &DaemonSet, node: Node| {
        let verdict = verdict_of(set, &node);
        (verdict.should_run, verdict.may_continue)
    };
    fn verdict_of(set: &DaemonSet, node: &Node) -> placement::Verdict {
        placement::verdict(set, node)
    }
    let plain = set();
    assert_eq!(run(&plain, node("a", None)), (true, true));
    assert_eq!(
        run(&plain, node("a", Some(("k", "NoSchedule")))),
        (false, true)
    );
    assert_eq!(
        run(&plain, node("a", Some(("k", "NoExecute")))),
        (false, false)
    );
    assert_eq!(
        run(
            &plain,
            node("a", Some(("node.kubernetes.io/not-ready", "NoExecute")))
        ),
        (true, true)
    );
    assert_eq!(
        run(
            &plain,
            node(
                "a",
                Some(("node.kubernetes.io/unschedulable", "NoSchedule"))
            )
        ),
        (true, true)
    );
    let edit = |edit: &dyn Fn(&mut PodSpec)| {
        let mut set = set();
        edit(set.spec.as_mut().unwrap().template.spec.as_mut().unwrap());
        set
    };
    let tolerant = edit(&|spec| {
        let toleration = Toleration {
            operator: Some("Exists".to_owned()),
            ..Toleration::default()
        };
        spec.tolerations = Some(vec![toleration]);
    });
    assert_eq!(
        run(&tolerant, node("a", Some(("k", "NoExecute")))),
        (true, true)
    );
    let selecting =
        edit(&|spec| spec.node_selector = Some([("name".to_owned(), "b".to_owned())].into()));
    assert_eq!(run(&selecting, node("a", None)), (false, false));
    assert_eq!(run(&selecting, node("b", None)), (true, true));
}

fn pod_on(fake: &FakeApi, node: &str) -> Option<Pod> {
    fake.list::<Pod>()
        .into_iter()
        .find(|pod| placement::target_node(pod).as_deref() == Some(node))
}

/// A fake scheduler and kubelet.
async fn cluster(fake: FakeApi) {
    loop {
        fake.until("a pod to start", |fake| {
            fake.list::<Pod>().iter().any(|pod| !pods::is_ready(pod))
        })
        .await;
        for mut pod in fake.list::<Pod>() {
            if !pods::is_ready(&pod) {
                pod.spec.as_mut().unwrap().node_name = placement::target_node(&pod);
                pod.status = Some(PodStatus {
                    phase: Some("Running".to_owned()),
                    conditions: Some(vec![PodCondition {
                        type_: "Ready".to_owned(),
                        status: "True".to_owned(),
                        ..PodCondition::default()
                    }]),
                    ..PodStatus::default()
                });
                fake.update(&pod);
            }
        }
    }
}

fn status(fake: &FakeApi) -> DaemonSetStatus {
    fake.get::<DaemonSet>("ns", "agent")
        .and_then(|set| set.status)
        .unwrap_or_default()
}

#[tokio::test]
async fn pods_follow_the_nodes() {
    let (fake, context) = context();
    fake.insert(node("a", None));
    fake.insert(node("tainted", Some(("k", "NoSchedule"))));
    fake.insert(set());
    tokio::spawn(run(context));
    let cluster = tokio::spawn(cluster(fake.clone()));
    fake.until("one", |fake| pod_on(fake, "a").is_some()).await;
    fake.insert(node("b", None));
    fake.until("two", |fake| status(fake).number_available == Some(2))
        .await;
    assert_eq!(status(&fake).desired_number_scheduled, 2);
    assert!(pod_on(&fake, "tainted").is_none());
    fake.update(&node("a", Some(("k", "NoExecute"))));
    fake.until("a's is gone", |fake| pod_on(fake, "a").is_none())
        .await;
    let mut failed = pod_on(&fake, "b").unwrap();
    let uid = failed.metadata.uid.clone();
    failed.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    fake.update(&failed);
    fake.until("replaced", |fake| {
        pod_on(fake, "b").is_some_and(|pod| pod.metadata.uid != uid)
    })
    .await;
    cluster.abort();
}

#[tokio::test]
async fn a_new_template_rolls_over_the_nodes() {
    let (fake, context) = context();
    for name in ["a", "b", "c"] {
        fake.insert(node(name, None));
    }
    fake.insert(set());
    tokio::spawn(run(context));
    let cluster = tokio::spawn(cluster(fake.clone()));
    fake.until("all run", |fake| status(fake).number_available == Some(3))
        .await;
    let mut changed = fake.get::<DaemonSet>("ns", "agent").unwrap();
    let template = &mut changed.spec.as_mut().unwrap().template;
    template.spec.as_mut().unwrap().containers[0].image = Some("v2".to_owned());
    fake.update(&changed);
    fake.until("all are new", |fake| {
        let new =
            |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("v2");
        let pods = fake.list::<Pod>();
        pods.len() == 3 && pods.iter().all(new) && status(fake).updated_number_scheduled == Some(3)
    })
    .await;
    assert_eq!(fake.list::<ControllerRevision>().len(), 2);
    cluster.abort();
}

fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
    Arc::new(Pod {
        metadata: labelled("ns", name, &format!("{REVISION_HASH}={hash}")),
        spec: Some(PodSpec {
            node_name: Some(node.to_owned()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            conditions: Some(vec![PodCondition {
                type_: "Ready".to_owned(),
                status: if ready { "True" } else { "False" }.to_owned(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    })
}

#[test]
fn rollout_steps_respect_the_limits() {
    let nodes: Vec<Arc<Node>> = ["a", "b", "c"]
        .iter()
        .map(|name| Arc::new(node(name, None)))
        .collect();
    let strategy = |surge: i32, unavailable: i32| {
        let mut set = set();
        set.spec.as_mut().unwrap().update_strategy = Some(DaemonSetUpdateStrategy {
            type_: Some("RollingUpdate".to_owned()),
            rolling_update: Some(RollingUpdateDaemonSet {
                max_surge: Some(IntOrString::Int(surge)),
                max_unavailable: Some(IntOrString::Int(unavailable)),
            }),
        });
        set
    };
    let step = |set: &DaemonSet, pods: &[Arc<Pod>]| {
        let mut by_node = PodsByNode::new();
        for pod in pods {
            by_node
                .entry(placement::target_node(pod).unwrap())
                .or_default()
                .push(Arc::clone(pod));
        }
        let changes = rollout::step(set, &nodes, &by_node, "new", Timestamp::now());
        let deleted = changes
            .delete
            .iter()
            .map(|pod| format!("-{}", name(&pod.metadata)));
        let created = changes.create_on.iter().map(|node| format!("+{node}"));
        deleted.chain(created).collect::<Vec<_>>()
    };
    let old = |node: &str, ready: bool| pod(&format!("old-{node}"), node, "old", ready);
    let new = |node: &str, ready: bool| pod(&format!("new-{node}"), node, "new", ready);
    let all_old = [old("a", true), old("b", true), old("c", true)];
    assert_eq!(step(&strategy(0, 1), &all_old), ["-old-a"]);
    assert_eq!(step(&strategy(0, 2), &all_old), ["-old-a", "-old-b"]);
    assert_eq!(
        step(
            &strategy(0, 1),
            &[new("a", false), old("b", true), old("c", true)]
        ),
        [""; 0]
    );
    assert_eq!(
        step(
            &strategy(0, 1),
            &[new("a", true), old("b", false), old("c", true)]
        ),
        ["-old-b"]
    );
    assert_eq!(step(&strategy(1, 0), &all_old), ["+a"]);
    let surging = [
        old("a", true),
        new("a", false),
        old("b", true),
        old("c", true),
    ];
    assert_eq!(step(&strategy(1, 0), &surging), [""; 0]);
    let surged = [
        old("a", true),
        new("a", true),
        old("b", true),
        old("c", true),
    ];
    assert_eq!(step(&strategy(1, 0), &surged), ["-old-a"]);
    let mut on_delete = set();
    on_delete.spec.as_mut().unwrap().update_strategy = Some(DaemonSetUpdateStrategy {
        type_: Some("OnDelete".to_owned()),
        rolling_update: None,
    });
    assert_eq!(step(&on_delete, &all_old), [""; 0]);
}

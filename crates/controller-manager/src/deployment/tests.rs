use fluyt_client::{Informers, fake::FakeApi};
use k8s_openapi::{
    api::{
        apps::v1::{
            DeploymentCondition, DeploymentSpec, DeploymentStrategy, ReplicaSetSpec,
            ReplicaSetStatus, RollingUpdateDeployment,
        },
        core::v1::{Container, PodSpec, PodTemplateSpec},
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{Config, common::annotation};

fn int_or_percent(text: &str) -> IntOrString {
    match text.parse() {
        Ok(number) => IntOrString::Int(number),
        Err(_) => IntOrString::String(text.to_owned()),
    }
}

fn deployment(replicas: i32, surge: &str, unavailable: &str) -> Deployment {
    let labels = Some([("app".to_owned(), "web".to_owned())].into());
    Deployment {
        metadata: ObjectMeta {
            namespace: Some("ns".to_owned()),
            name: Some("web".to_owned()),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            progress_deadline_seconds: Some(600),
            selector: LabelSelector {
                match_labels: labels.clone(),
                match_expressions: None,
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(int_or_percent(surge)),
                    max_unavailable: Some(int_or_percent(unavailable)),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels,
                    ..ObjectMeta::default()
                }),
                spec: Some(PodSpec::default()),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn set_image(deployment: &mut Deployment, image: &str) {
    let container = Container {
        name: "c".to_owned(),
        image: Some(image.to_owned()),
        ..Container::default()
    };
    let spec = deployment.spec.as_mut().unwrap();
    spec.template.spec.as_mut().unwrap().containers = vec![container];
}

fn set(name: &str, size: i32, available: i32) -> ReplicaSet {
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size),
            ..ReplicaSetSpec::default()
        }),
        status: Some(ReplicaSetStatus {
            replicas: size,
            available_replicas: Some(available),
            ..ReplicaSetStatus::default()
        }),
    }
}

#[test]
fn surge_rounds_up_unavailable_rounds_down_and_one_must_move() {
    let cases = [
        ("25%", "25%", 10, 3, 2),
        ("25%", "25%", 1, 1, 0),
        ("0", "0", 5, 0, 1),
        ("0%", "10%", 5, 0, 1),
        ("5", "20", 10, 5, 10),
    ];
    for (surge, unavailable, replicas, expected_surge, expected_unavailable) in cases {
        let deployment = deployment(replicas, surge, unavailable);
        assert_eq!(
            max_surge(&deployment),
            expected_surge,
            "{surge} of {replicas}"
        );
        assert_eq!(
            max_unavailable(&deployment),
            expected_unavailable,
            "{unavailable} of {replicas}"
        );
    }
}

#[test]
fn scaling_down_takes_broken_pods_first() {
    let deployment = deployment(10, "0", "2");
    let old = [set("broken", 3, 0), set("working", 5, 5)];
    // 8 must stay available and only 7 are: of the broken only what the surge limit allows.
    let steps = rolling::scale_down_old(&deployment, &old, &set("new", 2, 2));
    assert_eq!(steps, [("broken".to_owned(), 1)]);
    let nothing = rolling::scale_down_old(&deployment, &[set("old", 8, 8)], &set("new", 0, 0));
    assert!(nothing.is_empty());
}

proptest! {
    /// Simulate rollouts: never more than desired + surge pods, never fewer than desired - unavailable available,
    /// and always an end.
    #[test]
    fn a_rollout_keeps_its_limits_and_ends(
        replicas in 0..40i32, surge in 0..6i32, unavailable in 0..6i32, ready_per_step in 1..5i32,
    ) {
        let deployment = deployment(replicas, &surge.to_string(), &unavailable.to_string());
        let (surge, unavailable) = (max_surge(&deployment), max_unavailable(&deployment));
        let mut old = set("old", replicas, replicas);
        let mut new = set("new", 0, 0);
        let mut steps = 0;
        while size(&old) > 0 || available(&new) < replicas {
            steps += 1;
            prop_assert!(steps < 500, "stuck: old {} new {}/{}", size(&old), available(&new), size(&new));
            let target = rolling::new_replica_set_size(&deployment, &[old.clone(), new.clone()], size(&new));
            if target == size(&new) {
                for (_, target) in rolling::scale_down_old(&deployment, std::slice::from_ref(&old), &new) {
                    old = set("old", target, available(&old).min(target));
                }
            } else {
                new = set("new", target, available(&new));
            }
            prop_assert!(size(&old) + size(&new) <= replicas + surge);
            prop_assert!(available(&old) + available(&new) >= replicas - unavailable);
            new = set("new", size(&new), (available(&new) + ready_per_step).min(size(&new)));
        }
    }

    /// A resize in the middle of a rollout gives every ReplicaSet its share and adds up.
    #[test]
    fn proportional_scaling_adds_up(sizes in proptest::collection::vec(1..30i32, 2..5), wanted in 1..100i32) {
        let total: i32 = sizes.iter().sum();
        let mut rollout = Rollout { deployment: deployment(wanted, "3", "1"), new: None, old: Vec::new() };
        for (i, size) in sizes.iter().enumerate() {
            let mut set = set(&format!("rs-{i}"), *size, *size);
            let max = (scaling::MAX_REPLICAS.to_owned(), total.to_string());
            set.metadata.annotations = Some([max].into());
            rollout.old.push(set);
        }
        rollout.new = rollout.old.pop();
        let targets = scaling::proportional(&rollout);
        let sum: i32 = targets.iter().map(|(_, target)| target).sum();
        prop_assert_eq!(sum, wanted + 3);
        prop_assert!(targets.iter().all(|(_, target)| *target >= 0));
    }
}

#[test]
fn the_new_replica_set_is_found_by_template_not_by_hash() {
    let mut deployment = deployment(1, "1", "0");
    set_image(&mut deployment, "v1");
    let mut of_template = replica_sets::blueprint(&deployment);
    of_template.metadata.name = Some("whatever".to_owned());
    let mut other = of_template.clone();
    let template = other.spec.as_mut().unwrap().template.as_mut().unwrap();
    template.spec.as_mut().unwrap().containers[0].image = Some("v0".to_owned());
    let (new, old) = replica_sets::separate(&deployment, vec![other.clone(), of_template.clone()]);
    assert_eq!(new, Some(of_template));
    assert_eq!(old, [other]);
}

#[test]
fn progress_deadline() {
    let mut rollout = Rollout {
        deployment: deployment(2, "1", "0"),
        new: Some(set("new", 2, 1)),
        old: Vec::new(),
    };
    let second = |second: i64| jiff::Timestamp::from_second(second).unwrap();
    let condition = DeploymentCondition {
        last_update_time: Some(second(1000).into()),
        ..conditions::new("Progressing", "True", "ReplicaSetUpdated", "")
    };
    let judge = |rollout: &Rollout, at: i64| {
        let mut fresh = status::calculate(rollout);
        conditions::judge_progress(rollout, &mut fresh, second(at));
        let condition = conditions::get(&fresh, "Progressing").unwrap().clone();
        (condition.status, condition.reason.unwrap())
    };
    let mut fresh = status::calculate(&rollout);
    conditions::set(&mut fresh, condition);
    rollout.deployment.status = Some(fresh);
    assert_eq!(judge(&rollout, 1599).1, "ReplicaSetUpdated");
    assert_eq!(
        judge(&rollout, 1601),
        ("False".to_owned(), "ProgressDeadlineExceeded".to_owned())
    );
    let check = conditions::deadline_check(
        &rollout.deployment,
        rollout.deployment.status.as_ref().unwrap(),
        second(1590),
    );
    assert_eq!(check, Action::Requeue(std::time::Duration::from_secs(11)));
    rollout.new = Some(set("new", 2, 2));
    assert_eq!(
        judge(&rollout, 1601),
        ("True".to_owned(), "NewReplicaSetAvailable".to_owned())
    );
}

/// A fake replicaset-controller and kubelet: every ReplicaSet at once has as many available pods as it wants.
async fn make_available(fake: FakeApi) {
    loop {
        fake.until("a ReplicaSet to be scaled", |fake| {
            fake.list::<ReplicaSet>()
                .iter()
                .any(|set| size(set) != actual_size(set))
        })
        .await;
        for mut set in fake.list::<ReplicaSet>() {
            let wanted = size(&set);
            set.status = Some(ReplicaSetStatus {
                replicas: wanted,
                ready_replicas: Some(wanted),
                available_replicas: Some(wanted),
                observed_generation: set.metadata.generation,
                ..ReplicaSetStatus::default()
            });
            fake.update(&set);
        }
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
    tokio::spawn(run(context));
    shutdown
}

fn complete(fake: &FakeApi, revision: &str) -> bool {
    let deployment = fake.get::<Deployment>("ns", "web").unwrap();
    let status = deployment.status.clone().unwrap_or_default();
    let reason =
        conditions::get(&status, "Progressing").and_then(|condition| condition.reason.clone());
    status::is_complete(&deployment, &status)
        && annotation(&deployment.metadata, "deployment.kubernetes.io/revision") == Some(revision)
        && reason.as_deref() == Some("NewReplicaSetAvailable")
}

#[tokio::test]
async fn rolls_out_updates_and_rolls_back() {
    let fake = FakeApi::new();
    let mut desired = deployment(3, "1", "1");
    set_image(&mut desired, "v1");
    desired.spec.as_mut().unwrap().revision_history_limit = Some(1);
    fake.insert(desired);
    let _running = start(&fake);
    let cluster = tokio::spawn(make_available(fake.clone()));
    fake.until("first rollout", |fake| complete(fake, "1"))
        .await;
    let first = fake.list::<ReplicaSet>().remove(0);

    let mut last = String::new();
    for (image, revision) in [("v2", "2"), ("v1", "3"), ("v3", "4")] {
        let mut deployment = fake.get::<Deployment>("ns", "web").unwrap();
        set_image(&mut deployment, image);
        deployment.metadata.generation = deployment
            .metadata
            .generation
            .map(|generation| generation + 1);
        fake.update(&deployment);
        fake.until(image, |fake| complete(fake, revision)).await;
        let sets = fake.list::<ReplicaSet>();
        assert_eq!(sets.iter().map(size).sum::<i32>(), 3);
        let active = sets.iter().find(|set| size(set) == 3).unwrap();
        last.clone_from(active.metadata.name.as_ref().unwrap());
        if image == "v1" {
            assert_eq!(
                last,
                *first.metadata.name.as_ref().unwrap(),
                "rolled back to the old ReplicaSet"
            );
            let history = annotation(
                &active.metadata,
                "deployment.kubernetes.io/revision-history",
            );
            assert_eq!(history, Some("1"));
        }
    }
    fake.until("history of one", |fake| {
        fake.list::<ReplicaSet>().len() == 2
    })
    .await;
    cluster.abort();
}

#[tokio::test]
async fn recreate_waits_for_the_last_old_pod() {
    let fake = FakeApi::new();
    let mut desired = deployment(1, "1", "0");
    desired
        .spec
        .as_mut()
        .unwrap()
        .strategy
        .as_mut()
        .unwrap()
        .type_ = Some("Recreate".to_owned());
    set_image(&mut desired, "v1");
    fake.insert(desired);
    let _running = start(&fake);
    let cluster = tokio::spawn(make_available(fake.clone()));
    fake.until("first rollout", |fake| complete(fake, "1"))
        .await;
    let first = fake.list::<ReplicaSet>().remove(0);
    let pod = fake.insert(Pod {
        metadata: ObjectMeta {
            namespace: Some("ns".to_owned()),
            name: Some("old".to_owned()),
            owner_references: Some(vec![crate::common::controller_ref(&first)]),
            ..ObjectMeta::default()
        },
        ..Pod::default()
    });

    let mut deployment = fake.get::<Deployment>("ns", "web").unwrap();
    set_image(&mut deployment, "v2");
    fake.update(&deployment);
    fake.until("old one is scaled to 0", |fake| {
        fake.get::<ReplicaSet>("ns", name(&first.metadata))
            .is_some_and(|set| actual_size(&set) == 0)
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(fake.list::<ReplicaSet>().len(), 1, "the old pod still runs");
    fake.remove(&pod);
    fake.until("new one", |fake| complete(fake, "2")).await;
    cluster.abort();
}

#[tokio::test]
async fn a_paused_deployment_is_scaled_but_not_rolled() {
    let fake = FakeApi::new();
    let mut desired = deployment(2, "1", "1");
    set_image(&mut desired, "v1");
    fake.insert(desired);
    let _running = start(&fake);
    let cluster = tokio::spawn(make_available(fake.clone()));
    fake.until("first rollout", |fake| complete(fake, "1"))
        .await;
    let mut deployment = fake.get::<Deployment>("ns", "web").unwrap();
    set_image(&mut deployment, "v2");
    let spec = deployment.spec.as_mut().unwrap();
    (spec.paused, spec.replicas) = (Some(true), Some(4));
    fake.update(&deployment);
    fake.until("four pods of the old template", |fake| {
        let sets = fake.list::<ReplicaSet>();
        sets.len() == 1 && size(&sets[0]) == 4
    })
    .await;
    cluster.abort();
}

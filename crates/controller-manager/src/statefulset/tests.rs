use fluyt_client::fake::FakeApi;
use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{Container, PodCondition, PodSpec, PodStatus, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::*;
use crate::common::test_support::{context, labelled, named};

fn set(replicas: i32) -> StatefulSet {
    StatefulSet {
        metadata: named("ns", "db"),
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas),
            selector: LabelSelector {
                match_labels: Some([("app".to_owned(), "db".to_owned())].into()),
                match_expressions: None,
            },
            service_name: Some("db".to_owned()),
            template: PodTemplateSpec {
                metadata: Some(labelled("", "", "app=db")),
                spec: Some(PodSpec {
                    containers: vec![Container::default()],
                    ..PodSpec::default()
                }),
            },
            volume_claim_templates: Some(vec![PersistentVolumeClaim {
                metadata: named("", "data"),
                ..PersistentVolumeClaim::default()
            }]),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: None,
            }),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

fn names(fake: &FakeApi) -> Vec<String> {
    fake.list::<Pod>()
        .iter()
        .map(|pod| name(&pod.metadata).to_owned())
        .collect()
}

fn make_ready(fake: &FakeApi, pod_name: &str) {
    let mut pod = fake.get::<Pod>("ns", pod_name).unwrap();
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

/// Starts every pod a moment after it appears.
async fn kubelet(fake: FakeApi) {
    loop {
        fake.until("a pod to start", |fake| {
            fake.list::<Pod>().iter().any(|pod| !pods::is_ready(pod))
        })
        .await;
        for pod in fake.list::<Pod>() {
            if !pods::is_ready(&pod) {
                make_ready(&fake, name(&pod.metadata));
            }
        }
    }
}

#[tokio::test]
async fn pods_come_and_go_in_order() {
    let (fake, context) = context();
    fake.insert(set(2));
    tokio::spawn(run(context));
    fake.until("db-0", |fake| names(fake) == ["db-0"]).await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(names(&fake), ["db-0"], "db-1 waits for db-0");
    let pod = fake.get::<Pod>("ns", "db-0").unwrap();
    let spec = pod.spec.clone().unwrap();
    assert_eq!(
        (spec.hostname.as_deref(), spec.subdomain.as_deref()),
        (Some("db-0"), Some("db"))
    );
    let volume = &spec.volumes.unwrap()[0];
    assert_eq!(
        volume.persistent_volume_claim.as_ref().unwrap().claim_name,
        "data-db-0"
    );
    assert!(
        fake.get::<PersistentVolumeClaim>("ns", "data-db-0")
            .is_some()
    );
    make_ready(&fake, "db-0");
    fake.until("db-1", |fake| names(fake) == ["db-0", "db-1"])
        .await;
    make_ready(&fake, "db-1");
    fake.until("status", |fake| {
        let status = fake
            .get::<StatefulSet>("ns", "db")
            .and_then(|set| set.status)
            .unwrap_or_default();
        status.ready_replicas == Some(2) && status.current_revision == status.update_revision
    })
    .await;

    let mut smaller = fake.get::<StatefulSet>("ns", "db").unwrap();
    smaller.spec.as_mut().unwrap().replicas = Some(1);
    fake.update(&smaller);
    fake.until("db-1 is gone", |fake| names(fake) == ["db-0"])
        .await;
    assert_eq!(
        fake.list::<PersistentVolumeClaim>().len(),
        2,
        "claims are retained"
    );
}

#[tokio::test]
async fn updates_go_from_the_top_and_stop_at_the_partition() {
    let (fake, context) = context();
    fake.insert(set(3));
    tokio::spawn(run(context));
    let cluster = tokio::spawn(kubelet(fake.clone()));
    let complete = |fake: &FakeApi| {
        let status = fake
            .get::<StatefulSet>("ns", "db")
            .and_then(|set| set.status)
            .unwrap_or_default();
        status.updated_replicas == Some(3) && status.current_revision == status.update_revision
    };
    fake.until("first rollout", complete).await;
    let uid_of =
        |fake: &FakeApi, pod: &str| fake.get::<Pod>("ns", pod).and_then(|pod| pod.metadata.uid);
    let before = ["db-0", "db-1", "db-2"].map(|pod| uid_of(&fake, pod));

    let mut changed = fake.get::<StatefulSet>("ns", "db").unwrap();
    let spec = changed.spec.as_mut().unwrap();
    spec.template.spec.as_mut().unwrap().containers[0].image = Some("v2".to_owned());
    let strategy = spec.update_strategy.as_mut().unwrap();
    strategy.rolling_update.get_or_insert_default().partition = Some(2);
    fake.update(&changed);
    let image = |fake: &FakeApi, pod: &str| {
        let pod = fake.get::<Pod>("ns", pod)?;
        pod.spec?.containers[0].image.clone()
    };
    fake.until("db-2 is new", |fake| {
        image(fake, "db-2").as_deref() == Some("v2")
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(uid_of(&fake, "db-0"), before[0]);
    assert_eq!(uid_of(&fake, "db-1"), before[1]);
    // One below the partition that is lost comes back as it was.
    fake.remove(&fake.get::<Pod>("ns", "db-1").unwrap());
    fake.until("db-1 again", |fake| uid_of(fake, "db-1").is_some())
        .await;
    assert_eq!(image(&fake, "db-1"), None);

    let mut rest = fake.get::<StatefulSet>("ns", "db").unwrap();
    rest.spec
        .as_mut()
        .unwrap()
        .update_strategy
        .as_mut()
        .unwrap()
        .rolling_update = None;
    fake.update(&rest);
    fake.until("all are new", |fake| {
        complete(fake) && image(fake, "db-0").as_deref() == Some("v2")
    })
    .await;
    cluster.abort();
}

fn revisions(set: &StatefulSet) -> Revisions {
    let template = set.spec.as_ref().unwrap().template.clone();
    Revisions {
        current: "r1".to_owned(),
        current_template: template.clone(),
        update: "r2".to_owned(),
        update_template: template,
    }
}

fn pod(set: &StatefulSet, ordinal: i32, revision: &str, ready: bool) -> Arc<Pod> {
    let mut pod = identity::pod(set, &set.spec.as_ref().unwrap().template, revision, ordinal);
    pod.status = Some(PodStatus {
        phase: Some("Running".to_owned()),
        conditions: Some(vec![PodCondition {
            type_: "Ready".to_owned(),
            status: if ready { "True" } else { "False" }.to_owned(),
            ..PodCondition::default()
        }]),
        ..PodStatus::default()
    });
    Arc::new(pod)
}

fn steps(set: &StatefulSet, pods: &[Arc<Pod>]) -> Vec<String> {
    let plan = plan::make(set, pods, &revisions(set), Timestamp::now());
    let describe = |step: &Step| match step {
        Step::Create(pod) => format!("+{}", name(&pod.metadata)),
        Step::Claims(pod) => format!("?{}", name(&pod.metadata)),
        Step::Delete(pod) => format!("-{}", name(&pod.metadata)),
    };
    plan.steps.iter().map(describe).collect()
}

#[test]
fn next_steps() {
    let ordered = set(3);
    let mut parallel = set(3);
    parallel.spec.as_mut().unwrap().pod_management_policy = Some("Parallel".to_owned());
    let pods = |list: &[(i32, &str, bool)]| -> Vec<Arc<Pod>> {
        list.iter()
            .map(|(ordinal, revision, ready)| pod(&ordered, *ordinal, revision, *ready))
            .collect()
    };
    assert_eq!(steps(&ordered, &[]), ["+db-0"]);
    assert_eq!(steps(&parallel, &[]), ["+db-0", "+db-1", "+db-2"]);
    assert_eq!(
        steps(&ordered, &pods(&[(0, "r2", false)])),
        [""; 0],
        "waits for db-0"
    );
    let all = pods(&[
        (0, "r2", true),
        (1, "r2", true),
        (2, "r2", true),
        (3, "r2", true),
        (4, "r2", true),
    ]);
    assert_eq!(steps(&ordered, &all), ["-db-4"]);
    assert_eq!(steps(&parallel, &all), ["-db-4", "-db-3"]);
    let old = pods(&[(0, "r1", true), (1, "r1", true), (2, "r2", true)]);
    assert_eq!(steps(&ordered, &old), ["-db-1"]);
    let starting = pods(&[(0, "r1", true), (1, "r1", true), (2, "r2", false)]);
    assert_eq!(
        steps(&ordered, &starting),
        [""; 0],
        "waits for the updated one"
    );
    let mut on_delete = set(3);
    on_delete
        .spec
        .as_mut()
        .unwrap()
        .update_strategy
        .as_mut()
        .unwrap()
        .type_ = Some("OnDelete".to_owned());
    assert_eq!(steps(&on_delete, &old), [""; 0]);
    let mut failed = (*all[1]).clone();
    failed.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    assert_eq!(
        steps(
            &ordered,
            &[all[0].clone(), Arc::new(failed), all[2].clone()]
        ),
        ["-db-1"]
    );
}

#[test]
fn retention_policy_decides_about_the_owners_of_claims() {
    let mut set = set(1);
    set.metadata.uid = Some("set".to_owned());
    let owner = |set: &StatefulSet, ordinal: i32| {
        let mut pod = (*pod(set, ordinal, "r1", true)).clone();
        pod.metadata.uid = Some("pod".to_owned());
        let owners = claims::owners(set, &pod, &PersistentVolumeClaim::default());
        owners.map(|owners| owners[0].uid.clone())
    };
    let policy = |set: &mut StatefulSet, deleted: &str, scaled: &str| {
        set.spec
            .as_mut()
            .unwrap()
            .persistent_volume_claim_retention_policy =
            Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some(deleted.to_owned()),
                when_scaled: Some(scaled.to_owned()),
            });
    };
    assert_eq!((owner(&set, 0), owner(&set, 1)), (None, None));
    policy(&mut set, "Delete", "Retain");
    assert_eq!(
        (owner(&set, 0).as_deref(), owner(&set, 1).as_deref()),
        (Some("set"), Some("set"))
    );
    policy(&mut set, "Retain", "Delete");
    assert_eq!(
        (owner(&set, 0), owner(&set, 1).as_deref()),
        (None, Some("pod"))
    );
    policy(&mut set, "Delete", "Delete");
    assert_eq!(
        (owner(&set, 0).as_deref(), owner(&set, 1).as_deref()),
        (Some("set"), Some("pod"))
    );
}

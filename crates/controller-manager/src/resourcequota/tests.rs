use fluyt_client::fake::FakeApi;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, PersistentVolumeClaimSpec, PodSpec, PodStatus, ResourceQuotaSpec,
    ResourceRequirements, ServicePort, ServiceSpec, VolumeResourceRequirements,
};

use super::*;
use crate::common::test_support::{context, named};

fn list(pairs: &[(&str, &str)]) -> Option<BTreeMap<String, Text>> {
    Some(
        pairs
            .iter()
            .map(|(name, amount)| ((*name).to_owned(), Text((*amount).to_owned())))
            .collect(),
    )
}

fn quota(hard: &[&str], scopes: Option<Vec<&str>>) -> ResourceQuota {
    let hard: Vec<(&str, &str)> = hard.iter().map(|name| (*name, "100")).collect();
    ResourceQuota {
        metadata: named("ns", "quota"),
        spec: Some(ResourceQuotaSpec {
            hard: list(&hard),
            scopes: scopes.map(|scopes| scopes.into_iter().map(str::to_owned).collect()),
            scope_selector: None,
        }),
        status: None,
    }
}

fn pod(pod_name: &str, cpu: &str, phase: &str) -> Pod {
    let resources = ResourceRequirements {
        requests: list(&[("cpu", cpu), ("memory", "1Gi")]),
        limits: list(&[("cpu", "2")]),
        claims: None,
    };
    let container = Container {
        resources: Some(resources),
        ..Container::default()
    };
    Pod {
        metadata: named("ns", pod_name),
        spec: Some(PodSpec {
            containers: vec![container],
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some(phase.to_owned()),
            ..PodStatus::default()
        }),
    }
}

fn used(fake: &FakeApi, name: &str) -> Option<String> {
    let status = fake.get::<ResourceQuota>("ns", "quota")?.status?;
    Some(status.used?.get(name)?.0.clone())
}

#[tokio::test]
async fn usage_falls_when_pods_end_or_go() {
    let (fake, context) = context();
    fake.insert(pod("a", "500m", "Running"));
    fake.insert(pod("b", "1", "Running"));
    fake.insert(ConfigMap {
        metadata: named("ns", "c"),
        ..ConfigMap::default()
    });
    fake.insert(quota(
        &[
            "pods",
            "requests.cpu",
            "cpu",
            "limits.cpu",
            "requests.memory",
            "count/configmaps",
        ],
        None,
    ));
    tokio::spawn(run(context));
    fake.until("both", |fake| used(fake, "pods").as_deref() == Some("2"))
        .await;
    let all = [
        "requests.cpu",
        "cpu",
        "limits.cpu",
        "requests.memory",
        "count/configmaps",
    ];
    let amounts: Vec<Option<String>> = all.iter().map(|name| used(&fake, name)).collect();
    let amounts: Vec<&str> = amounts
        .iter()
        .map(|amount| amount.as_deref().unwrap())
        .collect();
    assert_eq!(amounts, ["1500m", "1500m", "4", "2Gi", "1"]);
    fake.update(&pod("a", "500m", "Succeeded"));
    fake.until("one", |fake| {
        used(fake, "requests.cpu").as_deref() == Some("1")
    })
    .await;
    fake.remove(&pod("b", "1", "Running"));
    fake.until("none", |fake| used(fake, "pods").as_deref() == Some("0"))
        .await;
}

#[tokio::test]
async fn usage_falls_when_a_resize_is_done() {
    let (fake, context) = context();
    let resized = |has: &str| -> Pod {
        let status = serde_json::json!({"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "resources": {"requests": {"cpu": has}}});
        let mut pod = pod("a", "1", "Running");
        pod.spec.as_mut().unwrap().containers[0].name = "c".to_owned();
        pod.status.as_mut().unwrap().container_statuses =
            serde_json::from_value(serde_json::json!([status])).unwrap();
        pod
    };
    fake.insert(resized("3"));
    fake.insert(quota(&["requests.cpu"], None));
    tokio::spawn(run(context));
    for (has, expected) in [("3", "3"), ("1", "1")] {
        fake.update(&resized(has));
        fake.until(expected, |fake| {
            used(fake, "requests.cpu").as_deref() == Some(expected)
        })
        .await;
    }
}

#[tokio::test]
async fn usage_falls_when_something_counted_goes() {
    let (fake, context) = context();
    let maps = ["a", "b"].map(|name| ConfigMap {
        metadata: named("ns", name),
        ..ConfigMap::default()
    });
    for map in &maps {
        fake.insert(map.clone());
    }
    fake.insert(quota(&["configmaps", "count/configmaps"], None));
    tokio::spawn(run(context));
    for (left, map) in [("2", None), ("1", Some(&maps[0])), ("0", Some(&maps[1]))] {
        if let Some(map) = map {
            // Who has not seen it cannot miss it.
            fake.until("followed", |fake| {
                let requests = fake.requests();
                requests
                    .iter()
                    .any(|r| r.contains("configmaps") && r.contains("watch"))
            })
            .await;
            fake.remove(map);
        }
        for name in ["configmaps", "count/configmaps"] {
            fake.until(name, |fake| used(fake, name).as_deref() == Some(left))
                .await;
        }
    }
}

#[test]
fn pods_count_as_admission_charges_them() {
    let mut pod = pod("a", "1", "Running");
    let spec = pod.spec.as_mut().unwrap();
    spec.overhead = list(&[("cpu", "500m"), ("memory", "1Gi")]);
    let count = |pod: &Pod| {
        let mut usage = Usage::default();
        usage.add_pod(pod, Timestamp::UNIX_EPOCH);
        usage
    };
    let usage = count(&pod);
    let expected = [
        ("requests.cpu", "1500m"),
        ("limits.cpu", "2500m"),
        ("requests.memory", "2Gi"),
        // It has no limit.
        ("limits.memory", "0"),
    ];
    for (name, amount) in expected {
        assert_eq!(usage.of(name).to_string(), amount, "{name}");
    }
    pod.spec.as_mut().unwrap().resources = Some(ResourceRequirements {
        requests: list(&[("cpu", "4"), ("hugepages-2Mi", "4Mi")]),
        ..ResourceRequirements::default()
    });
    let usage = count(&pod);
    for (name, amount) in [
        ("cpu", "4500m"),
        ("hugepages-2Mi", "4Mi"),
        ("requests.hugepages-2Mi", "4Mi"),
    ] {
        assert_eq!(usage.of(name).to_string(), amount, "{name}");
    }
    pod.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    let usage = count(&pod);
    assert!(usage.of("requests.cpu").is_zero() && usage.of("pods").is_zero());
    assert_eq!(usage.of("count/pods").to_string(), "1");
}

#[test]
fn scopes() {
    let best_effort = Pod {
        spec: Some(PodSpec::default()),
        ..Pod::default()
    };
    let burstable = pod("p", "1", "Running");
    let mut terminating = burstable.clone();
    terminating.spec.as_mut().unwrap().active_deadline_seconds = Some(10);
    let matches = |scopes: Vec<&str>| {
        let quota = quota(&["pods"], Some(scopes));
        [&best_effort, &burstable, &terminating].map(|pod| usage::matches_scopes(&quota, pod))
    };
    assert_eq!(matches(vec!["BestEffort"]), [true, false, false]);
    assert_eq!(matches(vec!["NotBestEffort"]), [false, true, true]);
    assert_eq!(matches(vec!["Terminating"]), [false, false, true]);
    assert_eq!(
        matches(vec!["NotTerminating", "NotBestEffort"]),
        [false, true, false]
    );
}

#[test]
fn services_and_claims() {
    let mut usage = Usage::default();
    let service = |type_: &str| Service {
        spec: Some(ServiceSpec {
            type_: Some(type_.to_owned()),
            ports: Some(vec![ServicePort::default(), ServicePort::default()]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    for type_ in ["ClusterIP", "NodePort", "LoadBalancer"] {
        usage.add_service(&service(type_));
    }
    usage.add_claim(&PersistentVolumeClaim {
        spec: Some(PersistentVolumeClaimSpec {
            storage_class_name: Some("fast".to_owned()),
            resources: Some(VolumeResourceRequirements {
                requests: list(&[("storage", "5Gi")]),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    });
    let cases = [
        ("services", "3"),
        ("services.nodeports", "4"),
        ("services.loadbalancers", "1"),
        ("persistentvolumeclaims", "1"),
        ("requests.storage", "5Gi"),
        ("fast.storageclass.storage.k8s.io/requests.storage", "5Gi"),
        ("slow.storageclass.storage.k8s.io/requests.storage", "0"),
    ];
    for (name, expected) in cases {
        assert_eq!(usage.of(name).to_string(), expected, "{name}");
    }
}

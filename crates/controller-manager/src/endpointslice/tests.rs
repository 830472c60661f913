use fluyt_client::fake::FakeApi;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, PodCondition, PodSpec, PodStatus, ServicePort, ServiceSpec,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::*;
use crate::common::test_support::{context, labelled, named};

pub fn service(service_name: &str) -> Service {
    Service {
        metadata: named("ns", service_name),
        spec: Some(ServiceSpec {
            cluster_ip: Some("10.0.0.5".to_owned()),
            selector: Some([("app".to_owned(), "web".to_owned())].into()),
            ports: Some(vec![ServicePort {
                port: 80,
                target_port: Some(IntOrString::String("http".to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

pub fn pod(pod_name: &str, ip: &str, ready: bool) -> Pod {
    let container = Container {
        ports: Some(vec![ContainerPort {
            name: Some("http".to_owned()),
            container_port: 8080,
            ..ContainerPort::default()
        }]),
        ..Container::default()
    };
    let mut metadata = labelled("ns", pod_name, "app=web");
    metadata.uid = Some(pod_name.to_owned());
    Pod {
        metadata,
        spec: Some(PodSpec {
            containers: vec![container],
            node_name: Some("node-0".to_owned()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Running".to_owned()),
            pod_ip: Some(ip.to_owned()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".to_owned(),
                status: if ready { "True" } else { "False" }.to_owned(),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    }
}

/// `address/ready/serving/terminating` of all endpoints.
fn endpoints(fake: &FakeApi) -> Vec<String> {
    let slices = fake.list::<EndpointSlice>();
    let all = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten());
    let mut all: Vec<String> = all
        .map(|endpoint| {
            let conditions = endpoint.conditions.clone().unwrap();
            let bit = |value: Option<bool>| u8::from(value.unwrap());
            let (ready, serving) = (bit(conditions.ready), bit(conditions.serving));
            format!(
                "{}/{ready}{serving}{}",
                endpoint.addresses[0],
                bit(conditions.terminating)
            )
        })
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn slices_follow_the_pods() {
    let (fake, context) = context();
    fake.insert(service("web"));
    tokio::spawn(run(context));
    fake.until("placeholder", |fake| {
        fake.list::<EndpointSlice>().len() == 1
    })
    .await;
    let mut node = Node {
        metadata: labelled("", "node-0", "topology.kubernetes.io/zone=1"),
        ..Node::default()
    };
    node = fake.insert(node);
    fake.insert(pod("a", "10.244.0.2", true));
    fake.insert(pod("b", "10.244.0.3", false));
    fake.until("both", |fake| {
        endpoints(fake) == ["10.244.0.2/110", "10.244.0.3/000"]
    })
    .await;
    let mut slices = fake.list::<EndpointSlice>();
    assert_eq!(slices.len(), 1);
    let slice = slices.remove(0);
    assert_eq!(slice.ports.unwrap()[0].port, Some(8080));
    assert_eq!(
        slice.endpoints.unwrap()[0].zone.as_deref(),
        Some("1"),
        "{node:?}"
    );
    assert_eq!(slice.metadata.owner_references.unwrap()[0].name, "web");

    let mut leaving = pod("a", "10.244.0.2", true);
    leaving.metadata.deletion_timestamp = Some(crate::common::now());
    leaving.metadata.finalizers = Some(vec!["hold".to_owned()]);
    fake.update(&leaving);
    fake.until("terminating", |fake| {
        endpoints(fake) == ["10.244.0.2/011", "10.244.0.3/000"]
    })
    .await;
    fake.remove(&leaving);
    fake.until("one", |fake| endpoints(fake) == ["10.244.0.3/000"])
        .await;
}

fn endpoint(i: usize) -> Endpoint {
    Endpoint {
        addresses: vec![format!("10.0.0.{i}")],
        ..Endpoint::default()
    }
}

fn slice(slice_name: &str, port: i32, endpoints: impl IntoIterator<Item = usize>) -> EndpointSlice {
    EndpointSlice {
        metadata: named("ns", slice_name),
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints.into_iter().map(endpoint).collect()),
        ports: Some(ports(port)),
    }
}

fn ports(port: i32) -> Vec<EndpointPort> {
    vec![EndpointPort {
        port: Some(port),
        ..EndpointPort::default()
    }]
}

fn plan(wanted: impl IntoIterator<Item = usize>, port: i32, existing: &[EndpointSlice]) -> Plan {
    let mut plan = Plan::default();
    let endpoints: Vec<_> = wanted.into_iter().map(endpoint).collect();
    let groups = if endpoints.is_empty() {
        Vec::new()
    } else {
        vec![Group {
            ports: ports(port),
            endpoints,
        }]
    };
    plan.add(&EndpointSlice::default(), groups, existing.iter(), 3);
    plan
}

fn counts(plan: &Plan) -> (usize, usize, usize) {
    (plan.create.len(), plan.update.len(), plan.delete.len())
}

#[test]
fn few_writes() {
    let full = || slice("full", 80, 0..3);
    let half = || slice("half", 80, 3..4);
    assert_eq!(
        counts(&plan(0..4, 80, &[full(), half()])),
        (0, 0, 0),
        "nothing changed"
    );
    assert_eq!(
        counts(&plan(0..5, 80, &[full(), half()])),
        (0, 1, 0),
        "one added where there is room"
    );
    assert_eq!(
        counts(&plan(0..8, 80, &[full(), half()])),
        (1, 1, 0),
        "more than there is room for"
    );
    assert_eq!(
        counts(&plan(0..3, 80, &[full(), half()])),
        (0, 0, 1),
        "an empty slice goes"
    );
    assert_eq!(
        counts(&plan(1..6, 80, &[full(), half()])),
        (0, 2, 0),
        "changed slices are filled up first"
    );
    assert_eq!(
        counts(&plan(0..3, 81, &[full(), half()])),
        (0, 1, 1),
        "other ports: slices are reused"
    );
    assert_eq!(
        counts(&plan(0..0, 80, &[full(), half()])),
        (0, 1, 1),
        "a placeholder stays"
    );
    assert_eq!(counts(&plan(0..0, 80, &[])), (1, 0, 0));
    let created: usize = plan(0..8, 80, &[])
        .create
        .iter()
        .map(|slice| slice.endpoints.as_ref().unwrap().len())
        .sum();
    assert_eq!(created, 8);
}

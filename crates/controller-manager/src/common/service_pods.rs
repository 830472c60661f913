//! Which pods serve a Service, and on which ports.

use std::sync::Arc;

use fluyt_client::{Informer, ObjectKey, WorkQueue, helpers::labels};
use k8s_openapi::{
    api::core::v1::{ObjectReference, Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{name, namespace};

pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// Queue a Service when it changes, and when a pod that it selects (or selected) changes.
pub fn enqueue_services(
    services: &Informer<Service>,
    pods: &Informer<Pod>,
    queue: &WorkQueue<ObjectKey>,
) {
    super::enqueue(services, queue);
    let services = services.clone();
    super::enqueue_mapped(pods, queue, move |pod| {
        let labels = labels::labels_of(&pod.metadata);
        let in_namespace = services.list_namespace(namespace(&pod.metadata));
        let selecting = in_namespace
            .iter()
            .filter(|service| selects(service, labels));
        selecting.map(|service| ObjectKey::of(&**service)).collect()
    });
}

fn selects(service: &Service, labels: &labels::Labels) -> bool {
    selector(service).is_some_and(|selector| labels::matches_map(selector, labels))
}

/// The selector of a Service whose endpoints are ours to manage.
pub fn selector(service: &Service) -> Option<&labels::Labels> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector
        .as_ref()
        .filter(|selector| !selector.is_empty())
}

/// The pods that the Service selects.
pub fn selected(service: &Service, pods: &Informer<Pod>) -> Vec<Arc<Pod>> {
    let mut all = pods.list_namespace(namespace(&service.metadata));
    all.retain(|pod| selects(service, labels::labels_of(&pod.metadata)));
    all
}

pub fn is_headless(service: &Service) -> bool {
    let address = service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref());
    matches!(address, Some("None" | ""))
}

pub fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.publish_not_ready_addresses)
        .unwrap_or(false)
}

/// The host name under which DNS knows the pod in this Service.
pub fn host_name(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let in_service = spec.subdomain.as_deref() == Some(name(&service.metadata));
    spec.hostname
        .clone()
        .filter(|host| in_service && !host.is_empty())
}

/// The number of the pod's port that the Service port targets.
pub fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(wanted)) if wanted.is_empty() => Some(port.port),
        Some(IntOrString::String(wanted)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let ports = spec
                .containers
                .iter()
                .chain(sidecars)
                .flat_map(|container| container.ports.iter().flatten());
            let mut matching = ports.filter(|port| {
                port.name.as_ref() == Some(wanted)
                    && port.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            matching.next().map(|port| port.container_port)
        }
    }
}

/// The reference from an endpoint to its pod.
pub fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSpec};

    use super::*;

    #[test]
    fn target_ports() {
        let container = Container {
            ports: Some(vec![ContainerPort {
                name: Some("http".to_owned()),
                container_port: 8080,
                ..ContainerPort::default()
            }]),
            ..Container::default()
        };
        let pod = Pod {
            spec: Some(PodSpec {
                containers: vec![container],
                ..PodSpec::default()
            }),
            ..Pod::default()
        };
        let port = |target: Option<IntOrString>, protocol: &str| ServicePort {
            port: 80,
            target_port: target,
            protocol: Some(protocol.to_owned()),
            ..ServicePort::default()
        };
        let named = |name: &str| Some(IntOrString::String(name.to_owned()));
        assert_eq!(target_port(&pod, &port(None, "TCP")), Some(80));
        assert_eq!(
            target_port(&pod, &port(Some(IntOrString::Int(9)), "TCP")),
            Some(9)
        );
        assert_eq!(target_port(&pod, &port(named("http"), "TCP")), Some(8080));
        assert_eq!(target_port(&pod, &port(named("http"), "UDP")), None);
        assert_eq!(target_port(&pod, &port(named("other"), "TCP")), None);
    }
}

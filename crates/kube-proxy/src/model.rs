//! What should be reachable: the ports of Services with the endpoints behind them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use fluyt_client::Informer;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// One port of one Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// `namespace/name`
    pub service: String,
    /// Name of the port, perhaps empty.
    pub port_name: String,
    /// `tcp`, `udp` or `sctp`
    pub protocol: &'static str,
    pub cluster_ip: Ipv4Addr,
    pub port: u16,
    pub node_port: Option<u16>,
    /// External IPs, and load balancer addresses that this node must capture.
    pub external_ips: BTreeSet<Ipv4Addr>,
    /// Seconds for which a client stays with its endpoint.
    pub affinity: Option<u32>,
    pub internal_local: bool,
    pub external_local: bool,
    /// Endpoints for clients inside the cluster under `internalTrafficPolicy: Cluster`.
    pub endpoints: BTreeSet<Endpoint>,
    pub local_endpoints: BTreeSet<Endpoint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: Ipv4Addr,
    pub port: u16,
}

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Services with this label are another proxy's.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Everything that should be reachable from `node`.
pub fn build(
    services: &Informer<Service>,
    slices: &Informer<EndpointSlice>,
    node: &str,
) -> BTreeSet<ServicePort> {
    let slices = slices.list();
    let mut ports = BTreeSet::new();
    for service in services.list() {
        let (namespace, name) = (
            service.metadata.namespace.as_deref().unwrap_or_default(),
            service.metadata.name.as_deref().unwrap_or_default(),
        );
        let own: Vec<&EndpointSlice> = slices
            .iter()
            .map(AsRef::as_ref)
            .filter(|s| s.metadata.namespace.as_deref() == Some(namespace))
            .filter(|s| label(s.metadata.labels.as_ref(), SERVICE_NAME) == Some(name))
            .collect();
        ports.extend(service_ports(&service, &own, node));
    }
    ports
}

fn label<'a>(
    labels: Option<&'a std::collections::BTreeMap<String, String>>,
    key: &str,
) -> Option<&'a str> {
    labels?.get(key).map(String::as_str)
}

fn service_ports(service: &Service, slices: &[&EndpointSlice], node: &str) -> Vec<ServicePort> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let ignored = label(service.metadata.labels.as_ref(), PROXY_NAME).is_some()
        || spec.type_.as_deref() == Some("ExternalName");
    let cluster_ip = spec
        .cluster_ip
        .as_deref()
        .and_then(|ip| ip.parse::<Ipv4Addr>().ok());
    let (false, Some(cluster_ip)) = (ignored, cluster_ip) else {
        return Vec::new();
    };
    let mut external_ips: BTreeSet<Ipv4Addr> = spec
        .external_ips
        .iter()
        .flatten()
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let ingress = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref())
        .and_then(|l| l.ingress.as_ref());
    // A load balancer of mode Proxy sends to node ports; its address is not ours to capture.
    external_ips.extend(
        ingress
            .into_iter()
            .flatten()
            .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|i| i.ip.as_ref()?.parse::<Ipv4Addr>().ok()),
    );
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let seconds = spec
            .session_affinity_config
            .as_ref()
            .and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
        seconds
            .and_then(|s| u32::try_from(s).ok())
            .unwrap_or(10_800)
    });
    let number = |n: i32| u16::try_from(n).ok();
    spec.ports
        .iter()
        .flatten()
        .filter_map(|port| {
            let port_name = port.name.clone().unwrap_or_default();
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => "udp",
                Some("SCTP") => "sctp",
                _ => "tcp",
            };
            Some(ServicePort {
                service: format!(
                    "{}/{}",
                    service.metadata.namespace.as_deref().unwrap_or_default(),
                    service.metadata.name.as_deref().unwrap_or_default()
                ),
                protocol,
                cluster_ip,
                port: number(port.port)?,
                node_port: port.node_port.and_then(number).filter(|n| *n != 0),
                external_ips: external_ips.clone(),
                affinity,
                internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
                external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
                endpoints: endpoints(slices, &port_name, protocol, None),
                local_endpoints: endpoints(slices, &port_name, protocol, Some(node)),
                port_name,
            })
        })
        .collect()
}

/// Ready endpoints of a port, on one node if given; when there are none, those that still serve while terminating.
fn endpoints(
    slices: &[&EndpointSlice],
    port_name: &str,
    protocol: &str,
    node: Option<&str>,
) -> BTreeSet<Endpoint> {
    let (mut ready, mut serving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let port = slice.ports.iter().flatten().find(|p| {
            p.name.as_deref().unwrap_or_default() == port_name
                && p.protocol
                    .as_deref()
                    .unwrap_or("TCP")
                    .eq_ignore_ascii_case(protocol)
        });
        let Some(port) = port.and_then(|p| u16::try_from(p.port?).ok()) else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            if node.is_some() && endpoint.node_name.as_deref() != node {
                continue;
            }
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let is_serving = conditions.and_then(|c| c.serving).unwrap_or(is_ready);
            for address in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
                let endpoint = Endpoint { address, port };
                if is_ready {
                    ready.insert(endpoint);
                } else if is_serving {
                    serving.insert(endpoint);
                }
            }
        }
    }
    if ready.is_empty() { serving } else { ready }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn slice() -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"namespace": "n", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.0.2"], "nodeName": "a", "conditions": {"ready": true}},
                {"addresses": ["10.244.1.2"], "nodeName": "b", "conditions": {"ready": false, "serving": true, "terminating": true}},
            ],
        }))
        .unwrap()
    }

    fn ports(service: serde_json::Value) -> Vec<ServicePort> {
        let slice = slice();
        let services = Informer::of_objects([serde_json::from_value::<Service>(service).unwrap()]);
        build(&services, &Informer::of_objects([slice]), "b")
            .into_iter()
            .collect()
    }

    #[test]
    fn ready_endpoints_come_before_terminating_ones() {
        let built = ports(
            json!({"metadata": {"namespace": "n", "name": "s"}, "spec": {"clusterIP": "10.0.0.7",
            "type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"name": "http", "port": 80, "nodePort": 30001}]}}),
        );
        let [port] = built.as_slice() else {
            panic!("one port")
        };
        assert_eq!(
            (port.port, port.node_port, port.external_local),
            (80, Some(30001), true)
        );
        assert_eq!(
            port.endpoints
                .iter()
                .map(|e| e.address.to_string())
                .collect::<Vec<_>>(),
            ["10.244.0.2"]
        );
        assert_eq!(
            port.local_endpoints
                .iter()
                .map(|e| e.address.to_string())
                .collect::<Vec<_>>(),
            ["10.244.1.2"]
        );
    }

    #[test]
    fn headless_and_foreign_services_are_left_alone() {
        assert!(ports(json!({"metadata": {"namespace": "n", "name": "s"}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}})).is_empty());
        let labelled = json!({"metadata": {"namespace": "n", "name": "s", "labels": {"service.kubernetes.io/service-proxy-name": "x"}},
            "spec": {"clusterIP": "10.0.0.7", "ports": [{"port": 80}]}});
        assert!(ports(labelled).is_empty());
    }
}

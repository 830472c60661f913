//! The cluster's zone: what a name below the cluster domain stands for.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use fluyt_client::Informer;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The specification's version, published as `dns-version`.
const SPECIFICATION: &str = "1.1.0";

/// Records derived from the API.
pub struct Zone {
    domain: String,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Not ours: somebody else must be asked.
    Foreign,
    /// No such name.
    Missing,
    /// The name exists; these are its records of all types.
    Records(Vec<Record>),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Record {
    Address(Ipv4Addr),
    /// Port and target name.
    Service(u16, String),
    Alias(String),
    Text(String),
    Pointer(String),
}

/// A named port of an endpoint or service.
struct Port {
    name: String,
    protocol: String,
    number: u16,
}

const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Zone {
    pub fn new(
        domain: String,
        services: Informer<Service>,
        slices: Informer<EndpointSlice>,
    ) -> Self {
        Self {
            domain: domain.trim_matches('.').to_lowercase(),
            services,
            slices,
        }
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub async fn synced(&self) {
        self.services.synced().await;
        self.slices.synced().await;
    }

    /// Looks a name up (lower case, no dot at the end).
    pub fn lookup(&self, name: &str) -> Answer {
        if let Some(address) = reverse_address(name) {
            return self.pointer(address);
        }
        let relative = if name == self.domain {
            ""
        } else {
            match name
                .strip_suffix(&self.domain)
                .and_then(|n| n.strip_suffix('.'))
            {
                Some(relative) => relative,
                None => return Answer::Foreign,
            }
        };
        let labels: Vec<&str> = relative.rsplit('.').filter(|l| !l.is_empty()).collect();
        match labels.as_slice() {
            [] | ["svc" | "pod"] => Answer::Records(Vec::new()),
            ["dns-version"] => Answer::Records(vec![Record::Text(SPECIFICATION.into())]),
            ["pod", namespace] | ["svc", namespace] => self.namespace(namespace),
            ["pod", _, address] => pod(address),
            ["svc", namespace, service] => self.service(namespace, service),
            ["svc", namespace, service, host] if !host.starts_with('_') => {
                self.endpoint(namespace, service, host)
            }
            ["svc", namespace, service, protocol, port] => {
                self.port(namespace, service, protocol, port)
            }
            _ => Answer::Missing,
        }
    }

    fn namespace(&self, namespace: &str) -> Answer {
        let known = self
            .services
            .list()
            .iter()
            .any(|s| s.metadata.namespace.as_deref() == Some(namespace));
        if known {
            Answer::Records(Vec::new())
        } else {
            Answer::Missing
        }
    }

    fn service(&self, namespace: &str, name: &str) -> Answer {
        let Some(service) = self.services.get(Some(namespace), name) else {
            return Answer::Missing;
        };
        let Some(spec) = &service.spec else {
            return Answer::Missing;
        };
        if spec.type_.as_deref() == Some("ExternalName") {
            let target = spec.external_name.clone().unwrap_or_default();
            return Answer::Records(vec![Record::Alias(target)]);
        }
        let base = format!("{name}.{namespace}.svc.{}", self.domain);
        if let Some(address) = cluster_ip(&service) {
            let mut records = vec![Record::Address(address)];
            records.extend(
                service_ports(&service)
                    .into_iter()
                    .map(|p| Record::Service(p.number, base.clone())),
            );
            return Answer::Records(records);
        }
        let mut records = Vec::new();
        for (address, host, ports) in self.endpoints(&service, namespace, name) {
            records.push(Record::Address(address));
            records.extend(
                ports
                    .iter()
                    .map(|p| Record::Service(p.number, format!("{host}.{base}"))),
            );
        }
        // A headless service without endpoints has nothing to say, as upstream's server has it.
        if records.is_empty() {
            Answer::Missing
        } else {
            Answer::Records(sorted(records))
        }
    }

    fn endpoint(&self, namespace: &str, service_name: &str, host: &str) -> Answer {
        let Some(service) = self.services.get(Some(namespace), service_name) else {
            return Answer::Missing;
        };
        let addresses: Vec<Record> = self
            .endpoints(&service, namespace, service_name)
            .into_iter()
            .filter(|(_, name, _)| name == host)
            .map(|(address, _, _)| Record::Address(address))
            .collect();
        if addresses.is_empty() {
            Answer::Missing
        } else {
            Answer::Records(sorted(addresses))
        }
    }

    /// `_port._protocol.service.namespace.svc`.
    fn port(&self, namespace: &str, service_name: &str, protocol: &str, port: &str) -> Answer {
        let (Some(protocol), Some(port)) = (protocol.strip_prefix('_'), port.strip_prefix('_'))
        else {
            return Answer::Missing;
        };
        let Some(service) = self.services.get(Some(namespace), service_name) else {
            return Answer::Missing;
        };
        let base = format!("{service_name}.{namespace}.svc.{}", self.domain);
        let matching = |p: &&Port| p.name == port && p.protocol == protocol;
        let mut records = Vec::new();
        if cluster_ip(&service).is_some() {
            let ports = service_ports(&service);
            records.extend(
                ports
                    .iter()
                    .filter(matching)
                    .map(|p| Record::Service(p.number, base.clone())),
            );
        } else {
            for (_, host, ports) in self.endpoints(&service, namespace, service_name) {
                records.extend(
                    ports
                        .iter()
                        .filter(matching)
                        .map(|p| Record::Service(p.number, format!("{host}.{base}"))),
                );
            }
        }
        if records.is_empty() {
            Answer::Missing
        } else {
            Answer::Records(sorted(records))
        }
    }

    /// Address, host name and ports of the endpoints of a service.
    fn endpoints(
        &self,
        service: &Service,
        namespace: &str,
        name: &str,
    ) -> Vec<(Ipv4Addr, String, Arc<Vec<Port>>)> {
        let not_ready_too = service
            .spec
            .as_ref()
            .and_then(|s| s.publish_not_ready_addresses)
            .unwrap_or(false);
        let mut found = Vec::new();
        for slice in self.slices.list_namespace(namespace) {
            let labels = slice.metadata.labels.as_ref();
            if labels.and_then(|l| l.get(SERVICE_NAME)).map(String::as_str) != Some(name) {
                continue;
            }
            let ports: Arc<Vec<Port>> = Arc::new(
                slice
                    .ports
                    .iter()
                    .flatten()
                    .filter_map(|p| {
                        Some(Port {
                            name: p.name.clone().unwrap_or_default(),
                            protocol: p.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                            number: u16::try_from(p.port?).ok()?,
                        })
                    })
                    .collect(),
            );
            for endpoint in slice.endpoints.iter().flatten() {
                let ready = endpoint
                    .conditions
                    .as_ref()
                    .and_then(|c| c.ready)
                    .unwrap_or(true);
                if !ready && !not_ready_too {
                    continue;
                }
                for address in endpoint
                    .addresses
                    .iter()
                    .filter_map(|a| a.parse::<Ipv4Addr>().ok())
                {
                    let host = endpoint
                        .hostname
                        .clone()
                        .unwrap_or_else(|| address.to_string().replace('.', "-"));
                    found.push((address, host, ports.clone()));
                }
            }
        }
        found
    }

    fn pointer(&self, address: Ipv4Addr) -> Answer {
        for service in self.services.list() {
            let (name, namespace) = (
                service.metadata.name.as_deref().unwrap_or_default(),
                service.metadata.namespace.as_deref().unwrap_or_default(),
            );
            let base = format!("{name}.{namespace}.svc.{}", self.domain);
            match cluster_ip(&service) {
                Some(ip) if ip == address => return Answer::Records(vec![Record::Pointer(base)]),
                Some(_) => {}
                None => {
                    let endpoints = self.endpoints(&service, namespace, name);
                    if let Some((_, host, _)) =
                        endpoints.into_iter().find(|(ip, _, _)| *ip == address)
                    {
                        return Answer::Records(vec![Record::Pointer(format!("{host}.{base}"))]);
                    }
                }
            }
        }
        Answer::Foreign
    }
}

fn sorted(mut records: Vec<Record>) -> Vec<Record> {
    records.sort();
    records.dedup();
    records
}

fn cluster_ip(service: &Service) -> Option<Ipv4Addr> {
    service.spec.as_ref()?.cluster_ip.as_deref()?.parse().ok()
}

fn service_ports(service: &Service) -> Vec<Port> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    ports
        .filter_map(|p| {
            Some(Port {
                name: p.name.clone().unwrap_or_default(),
                protocol: p.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                number: u16::try_from(p.port).ok()?,
            })
        })
        .collect()
}

/// `10-244-0-2` is the pod with that address, whether it exists or not.
fn pod(label: &str) -> Answer {
    match label.replace('-', ".").parse::<Ipv4Addr>() {
        Ok(address) => Answer::Records(vec![Record::Address(address)]),
        Err(_) => Answer::Missing,
    }
}

/// `2.0.244.10.in-addr.arpa` -> 10.244.0.2
fn reverse_address(name: &str) -> Option<Ipv4Addr> {
    let octets: Vec<&str> = name.strip_suffix(".in-addr.arpa")?.rsplit('.').collect();
    match octets.join(".").parse::<IpAddr>().ok()? {
        IpAddr::V4(address) if octets.len() == 4 => Some(address),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn zone() -> Zone {
        let service = |name: &str, spec: serde_json::Value| {
            serde_json::from_value::<Service>(
                json!({"metadata": {"name": name, "namespace": "n"}, "spec": spec}),
            )
            .unwrap()
        };
        let services = [
            service(
                "web",
                json!({"clusterIP": "10.0.0.7", "ports": [{"name": "http", "port": 80}]}),
            ),
            service(
                "db",
                json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}),
            ),
            service(
                "out",
                json!({"type": "ExternalName", "externalName": "example.com"}),
            ),
            service("empty", json!({"clusterIP": "None"})),
        ];
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "db-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
            "endpoints": [
                {"addresses": ["10.244.0.2"], "hostname": "db-0"}, {"addresses": ["10.244.0.3"]},
                {"addresses": ["10.244.0.4"], "conditions": {"ready": false}},
            ],
        }))
        .unwrap();
        Zone::new(
            "cluster.local".into(),
            Informer::of_objects(services),
            Informer::of_objects([slice]),
        )
    }

    fn address(text: &str) -> Record {
        Record::Address(text.parse().unwrap())
    }

    #[test]
    fn services_and_endpoints() {
        let zone = zone();
        let lookup = |name: &str| zone.lookup(&format!("{name}.cluster.local"));
        let web = Record::Service(80, "web.n.svc.cluster.local".into());
        assert_eq!(
            lookup("web.n.svc"),
            Answer::Records(vec![address("10.0.0.7"), web.clone()])
        );
        assert_eq!(lookup("_http._tcp.web.n.svc"), Answer::Records(vec![web]));
        let Answer::Records(db) = lookup("db.n.svc") else {
            panic!("no records")
        };
        assert_eq!(db[..2], [address("10.244.0.2"), address("10.244.0.3")]);
        assert!(db.contains(&Record::Service(5432, "db-0.db.n.svc.cluster.local".into())));
        assert_eq!(
            lookup("db-0.db.n.svc"),
            Answer::Records(vec![address("10.244.0.2")])
        );
        assert_eq!(
            lookup("10-244-0-3.db.n.svc"),
            Answer::Records(vec![address("10.244.0.3")])
        );
        assert_eq!(
            lookup("out.n.svc"),
            Answer::Records(vec![Record::Alias("example.com".into())])
        );
        assert_eq!(
            lookup("10-1-2-3.n.pod"),
            Answer::Records(vec![address("10.1.2.3")])
        );
        assert_eq!(
            lookup("dns-version"),
            Answer::Records(vec![Record::Text("1.1.0".into())])
        );
        assert_eq!(lookup("n.svc"), Answer::Records(Vec::new()));
        for missing in [
            "x.n.svc",
            "empty.n.svc",
            "_x._tcp.web.n.svc",
            "db-9.db.n.svc",
            "x.svc",
            "a.b.c",
        ] {
            assert_eq!(lookup(missing), Answer::Missing, "{missing}");
        }
    }

    #[test]
    fn other_names_are_foreign_and_addresses_have_pointers() {
        let zone = zone();
        assert_eq!(zone.lookup("example.com"), Answer::Foreign);
        assert_eq!(zone.lookup("notcluster.local"), Answer::Foreign);
        let pointer = |name: &str| Answer::Records(vec![Record::Pointer(name.into())]);
        assert_eq!(
            zone.lookup("7.0.0.10.in-addr.arpa"),
            pointer("web.n.svc.cluster.local")
        );
        assert_eq!(
            zone.lookup("2.0.244.10.in-addr.arpa"),
            pointer("db-0.db.n.svc.cluster.local")
        );
        assert_eq!(zone.lookup("9.9.9.9.in-addr.arpa"), Answer::Foreign);
    }
}

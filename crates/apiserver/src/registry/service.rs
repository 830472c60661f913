//! Cluster IPs and node ports of services.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use fluyt_api::resources::Resource;
use fluyt_api::validation::Errors;
use fluyt_api::{Error, meta};
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::cache::Caches;

/// The ranges that services draw from.
#[derive(Clone, Debug)]
pub struct ServiceNetwork {
    pub cluster_ips: Ipv4Net,
    /// First and last port, inclusive.
    pub node_ports: (u16, u16),
}

impl Default for ServiceNetwork {
    fn default() -> Self {
        Self {
            cluster_ips: Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16),
            node_ports: (30_000, 32_767),
        }
    }
}

/// Hands out addresses and ports. What is in use is read from the services themselves; the lock is held from the choice
/// until the cache shows it, so no two services choose the same.
pub(super) struct Allocator {
    network: ServiceNetwork,
    lock: std::sync::Arc<Mutex<()>>,
}

/// An assignment in progress, held until the caches show it; nothing for kinds that are not services.
pub(super) struct Assignment(
    #[expect(dead_code, reason = "held, not read")] Option<OwnedMutexGuard<()>>,
);

struct InUse {
    addresses: HashSet<String>,
    /// Port and protocol.
    ports: HashSet<(i64, String)>,
}

impl Allocator {
    pub(super) fn new(network: ServiceNetwork) -> Self {
        Self {
            network,
            lock: std::sync::Arc::default(),
        }
    }

    /// Gives a service what it needs and has not got.
    pub(super) async fn assign(
        &self,
        caches: &Caches,
        resource: &Resource,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Assignment, Error> {
        if !resource.group.is_empty() || resource.kind != "Service" {
            return Ok(Assignment(None));
        }
        let guard = self.lock.clone().lock_owned().await;
        let in_use = InUse::of(caches, resource, service);
        let mut errors = Errors::default();
        self.assign_address(service, old, &in_use, &mut errors);
        self.assign_ports(service, &in_use, &mut errors);
        self.assign_health_check_port(service, old, &in_use)?;
        if errors.is_empty() {
            return Ok(Assignment(Some(guard)));
        }
        Err(Error::invalid("", "Service", meta::name(service), errors.0))
    }

    fn assign_address(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        in_use: &InUse,
        errors: &mut Errors,
    ) {
        if service["spec"]["type"] == "ExternalName" {
            if let Some(spec) = service["spec"].as_object_mut() {
                for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                    spec.remove(field);
                }
            }
            return;
        }
        let wanted = match service["spec"]["clusterIP"].as_str().unwrap_or_default() {
            "" => service["spec"]["clusterIPs"][0]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            address => address.to_owned(),
        };
        let kept = old.is_some_and(|o| o["spec"]["clusterIP"] == wanted.as_str());
        let address = match wanted.as_str() {
            "None" => "None".to_owned(),
            "" => match self.free_address(in_use) {
                Some(address) => address.to_string(),
                None => {
                    errors.invalid(
                        "spec.clusterIPs",
                        &"".into(),
                        "failed to allocate IP: range is full",
                    );
                    return;
                }
            },
            text if kept => text.to_owned(),
            text => {
                let in_range = text
                    .parse::<Ipv4Addr>()
                    .is_ok_and(|ip| self.network.cluster_ips.contains(&ip));
                if !in_range {
                    let detail = format!(
                        "failed to allocate IP {text}: the provided IP ({text}) is not in the valid range. The range of valid IPs is {}",
                        self.network.cluster_ips
                    );
                    errors.invalid("spec.clusterIPs", &json!([text]), &detail);
                } else if in_use.addresses.contains(text) {
                    let detail =
                        format!("failed to allocate IP {text}: provided IP is already allocated");
                    errors.invalid("spec.clusterIPs", &json!([text]), &detail);
                }
                text.to_owned()
            }
        };
        let spec = meta::child(service, "spec");
        spec.insert("clusterIPs".into(), json!([address]));
        spec.insert("clusterIP".into(), address.into());
        spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4"]));
        spec.entry("ipFamilyPolicy")
            .or_insert_with(|| "SingleStack".into());
    }

    /// A free address from the upper part of the range, which is left to automatic choice; the lower when that is full.
    fn free_address(&self, in_use: &InUse) -> Option<Ipv4Addr> {
        let net = &self.network.cluster_ips;
        let first = u32::from(net.network());
        let size = u32::from(net.broadcast()) - first;
        let reserved = (size / 16).clamp(16, 256).min(size);
        let upper = size - reserved;
        let free = |offset: &u32| {
            let address = Ipv4Addr::from(first + offset);
            (!in_use.addresses.contains(&address.to_string())).then_some(address)
        };
        let start = if upper > 0 {
            rand::random_range(0..upper)
        } else {
            0
        };
        (0..upper)
            .map(|i| reserved + (start + i) % upper.max(1))
            .chain(1..reserved)
            .filter(|offset| *offset > 0 && *offset < size)
            .find_map(|offset| free(&offset))
    }

    fn assign_ports(&self, service: &mut Value, in_use: &InUse, errors: &mut Errors) {
        let ty = service["spec"]["type"].as_str().unwrap_or_default();
        let wants = ty == "NodePort"
            || (ty == "LoadBalancer" && service["spec"]["allocateLoadBalancerNodePorts"] != false);
        let (low, high) = self.network.node_ports;
        let mut taken = in_use.ports.clone();
        for (i, port) in service["spec"]["ports"]
            .as_array_mut()
            .into_iter()
            .flatten()
            .enumerate()
        {
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            let Some(map) = port.as_object_mut() else {
                continue;
            };
            if !wants {
                map.remove("nodePort");
                continue;
            }
            match map
                .get("nodePort")
                .and_then(Value::as_i64)
                .filter(|n| *n != 0)
            {
                Some(number) => {
                    let at = format!("spec.ports[{i}].nodePort");
                    if !(i64::from(low)..=i64::from(high)).contains(&number) {
                        let detail = format!(
                            "provided port is not in the valid range. The range of valid ports is {low}-{high}"
                        );
                        errors.invalid(&at, &number.into(), &detail);
                    } else if !taken.insert((number, protocol)) {
                        errors.invalid(&at, &number.into(), "provided port is already allocated");
                    }
                }
                None => {
                    let span = i64::from(high - low) + 1;
                    let start = rand::random_range(0..span);
                    let free = (0..span)
                        .map(|n| i64::from(low) + (start + n) % span)
                        .find(|n| !taken.iter().any(|(used, _)| used == n));
                    match free {
                        Some(number) => {
                            taken.insert((number, protocol));
                            map.insert("nodePort".into(), number.into());
                        }
                        None => errors.invalid(
                            format!("spec.ports[{i}].nodePort"),
                            &0.into(),
                            "no free node port",
                        ),
                    }
                }
            }
        }
    }
}

impl Allocator {
    /// A load balancer that only wants local endpoints asks a port of each node whether there are any.
    fn assign_health_check_port(
        &self,
        service: &mut Value,
        old: Option<&Value>,
        in_use: &InUse,
    ) -> Result<(), Error> {
        let spec = &service["spec"];
        let wanted = spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local";
        let given = spec["healthCheckNodePort"].as_i64().unwrap_or(0);
        if !wanted || (given != 0 && old.is_some_and(|o| o["spec"]["healthCheckNodePort"] == given))
        {
            return Ok(());
        }
        let (low, high) = (
            i64::from(self.network.node_ports.0),
            i64::from(self.network.node_ports.1),
        );
        let own: Vec<i64> = service["spec"]["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| port["nodePort"].as_i64())
            .collect();
        let is_free = |number: i64| {
            !own.contains(&number) && !in_use.ports.iter().any(|(used, _)| *used == number)
        };
        if given != 0 {
            let problem = if !(low..=high).contains(&given) {
                format!(
                    "provided port is not in the valid range. The range of valid ports is {low}-{high}"
                )
            } else if is_free(given) {
                return Ok(());
            } else {
                "provided port is already allocated".to_owned()
            };
            return Err(Error::internal(format!(
                "failed to allocate requested HealthCheck NodePort {given}: {problem}"
            )));
        }
        let span = high - low + 1;
        let start = rand::random_range(0..span);
        let free = (0..span)
            .map(|n| low + (start + n) % span)
            .find(|n| is_free(*n));
        let Some(number) = free else {
            return Err(Error::internal(
                "failed to allocate a HealthCheck NodePort: range is full",
            ));
        };
        meta::child(service, "spec").insert("healthCheckNodePort".into(), number.into());
        Ok(())
    }
}

impl InUse {
    /// What all services but this one hold.
    fn of(caches: &Caches, resource: &Resource, service: &Value) -> Self {
        let own = format!("{}/{}", meta::namespace(service), meta::name(service));
        let mut in_use = Self {
            addresses: HashSet::new(),
            ports: HashSet::new(),
        };
        for (key, entry) in &caches.of(resource).snapshot().entries {
            if **key == *own {
                continue;
            }
            let other = entry.object();
            if let Some(address) = other["spec"]["clusterIP"].as_str() {
                in_use.addresses.insert(address.to_owned());
            }
            if let Some(number) = other["spec"]["healthCheckNodePort"].as_i64() {
                in_use.ports.insert((number, String::new()));
            }
            for port in other["spec"]["ports"].as_array().into_iter().flatten() {
                if let Some(number) = port["nodePort"].as_i64() {
                    in_use.ports.insert((
                        number,
                        port["protocol"].as_str().unwrap_or("TCP").to_owned(),
                    ));
                }
            }
        }
        in_use
    }
}

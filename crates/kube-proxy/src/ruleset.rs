//! The desired contents of our nftables table, as chains, map elements and sets that can be compared one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use ipnet::IpNet;

use crate::model::{Endpoint, ServicePort};

/// What does not depend on Services.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub cluster_cidr: Option<IpNet>,
}

/// Everything in the table that depends on Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Rules by chain.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Elements by map: key to verdict.
    pub maps: BTreeMap<&'static str, BTreeMap<String, String>>,
    /// Affinity sets with their timeout in seconds.
    pub affinity_sets: BTreeMap<String, u32>,
}

/// Mark of packets whose source must become this node's.
pub const MASQUERADE_MARK: &str = "0x4000";

/// Cluster and external addresses.
pub const SERVICE_IPS: &str = "service-ips";
pub const SERVICE_NODE_PORTS: &str = "service-nodeports";
/// Addresses and ports that nobody serves: refused rather than lost.
pub const NO_ENDPOINT_IPS: &str = "no-endpoint-services";
pub const NO_ENDPOINT_NODE_PORTS: &str = "no-endpoint-nodeports";

/// The base of the table: hooks, maps and helpers, in the order of `nft -f`.
#[must_use]
pub fn base() -> String {
    format!(
        "map {SERVICE_IPS} {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         map {SERVICE_NODE_PORTS} {{ type inet_proto . inet_service : verdict; }}\n\
         map {NO_ENDPOINT_IPS} {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
         map {NO_ENDPOINT_NODE_PORTS} {{ type inet_proto . inet_service : verdict; }}\n\
         chain mark-for-masquerade {{ meta mark set meta mark | {MASQUERADE_MARK}; }}\n\
         chain masquerading {{\n\
           meta mark & {MASQUERADE_MARK} == 0 return;\n\
           meta mark set meta mark ^ {MASQUERADE_MARK};\n\
           masquerade fully-random;\n\
         }}\n\
         chain refuse {{ meta l4proto tcp reject with tcp reset; reject; }}\n\
         chain services {{\n\
           ip daddr . meta l4proto . th dport vmap @{SERVICE_IPS};\n\
           fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @{SERVICE_NODE_PORTS};\n\
         }}\n\
         chain endpoints-check {{\n\
           ip daddr . meta l4proto . th dport vmap @{NO_ENDPOINT_IPS};\n\
           fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @{NO_ENDPOINT_NODE_PORTS};\n\
         }}\n\
         chain filter-input {{ type filter hook input priority -110; ct state new jump endpoints-check; }}\n\
         chain filter-forward {{ type filter hook forward priority -110; ct state new jump endpoints-check; }}\n\
         chain filter-output {{ type filter hook output priority -110; ct state new jump endpoints-check; }}\n\
         chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
         chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
         chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}\n"
    )
}

/// A name that is stable, valid for nftables, and says whose chain it is.
fn name(prefix: &str, port: &ServicePort, extra: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (&port.service, &port.port_name, port.protocol, extra).hash(&mut hasher);
    let readable: String = port
        .service
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .take(60)
        .collect();
    format!("{prefix}-{:016x}-{readable}", hasher.finish())
}

impl Ruleset {
    #[must_use]
    pub fn build(ports: &BTreeSet<ServicePort>, settings: &Settings) -> Self {
        let mut ruleset = Self::default();
        for map in [
            SERVICE_IPS,
            SERVICE_NODE_PORTS,
            NO_ENDPOINT_IPS,
            NO_ENDPOINT_NODE_PORTS,
        ] {
            ruleset.maps.insert(map, BTreeMap::new());
        }
        for port in ports {
            ruleset.add(port, settings);
        }
        ruleset
    }

    fn element(&mut self, map: &'static str, key: String, verdict: String) {
        self.maps.entry(map).or_default().insert(key, verdict);
    }

    fn add(&mut self, port: &ServicePort, settings: &Settings) {
        let internal = if port.internal_local {
            &port.local_endpoints
        } else {
            &port.endpoints
        };
        let key = |address: &dyn std::fmt::Display| {
            format!("{address} . {} . {}", port.protocol, port.port)
        };
        let cluster_key = key(&port.cluster_ip);
        if internal.is_empty() {
            // Of endpoints that are all elsewhere, a Local policy drops; of none at all, clients should hear at once.
            let verdict = if port.internal_local && !port.endpoints.is_empty() {
                "drop"
            } else {
                "goto refuse"
            };
            self.element(NO_ENDPOINT_IPS, cluster_key, verdict.into());
        } else {
            let chain = name("service", port, "internal");
            let mut rules = Vec::new();
            if let Some(cidr) = settings.cluster_cidr {
                rules.push(format!(
                    "ip daddr {} ip saddr != {cidr} jump mark-for-masquerade",
                    port.cluster_ip
                ));
            }
            self.balance(port, internal, &mut rules);
            self.chains.insert(chain.clone(), rules);
            self.element(SERVICE_IPS, cluster_key, format!("goto {chain}"));
        }
        if port.node_port.is_some() || !port.external_ips.is_empty() {
            self.add_external(port, &key);
        }
    }

    fn add_external(&mut self, port: &ServicePort, key: &dyn Fn(&dyn std::fmt::Display) -> String) {
        let external = if port.external_local {
            &port.local_endpoints
        } else {
            &port.endpoints
        };
        let node_key = port.node_port.map(|n| format!("{} . {n}", port.protocol));
        if external.is_empty() {
            let verdict = if port.external_local && !port.endpoints.is_empty() {
                "drop"
            } else {
                "goto refuse"
            };
            for address in &port.external_ips {
                self.element(NO_ENDPOINT_IPS, key(address), verdict.into());
            }
            if let Some(node_key) = node_key {
                self.element(NO_ENDPOINT_NODE_PORTS, node_key, verdict.into());
            }
            return;
        }
        let chain = name("external", port, "external");
        let mut rules = Vec::new();
        // Local endpoints see the client's address; others could not answer past this node.
        if !port.external_local {
            rules.push("jump mark-for-masquerade".to_owned());
        }
        self.balance(port, external, &mut rules);
        self.chains.insert(chain.clone(), rules);
        for address in &port.external_ips {
            self.element(SERVICE_IPS, key(address), format!("goto {chain}"));
        }
        if let Some(node_key) = node_key {
            self.element(SERVICE_NODE_PORTS, node_key, format!("goto {chain}"));
        }
    }

    /// Appends the rules that choose an endpoint.
    fn balance(
        &mut self,
        port: &ServicePort,
        endpoints: &BTreeSet<Endpoint>,
        rules: &mut Vec<String>,
    ) {
        let targets: Vec<(String, Option<String>)> =
            endpoints.iter().map(|e| self.endpoint(port, *e)).collect();
        for (chain, set) in &targets {
            if let Some(set) = set {
                rules.push(format!("ip saddr @{set} goto {chain}"));
            }
        }
        match targets.as_slice() {
            [(only, _)] => rules.push(format!("goto {only}")),
            many => {
                let choices: Vec<String> = many
                    .iter()
                    .enumerate()
                    .map(|(i, (chain, _))| format!("{i} : goto {chain}"))
                    .collect();
                rules.push(format!(
                    "numgen random mod {} vmap {{ {} }}",
                    many.len(),
                    choices.join(", ")
                ));
            }
        }
    }

    /// The chain of one endpoint, and the set of the clients that stay with it.
    fn endpoint(&mut self, port: &ServicePort, endpoint: Endpoint) -> (String, Option<String>) {
        let at = format!("{}:{}", endpoint.address, endpoint.port);
        let chain = name("endpoint", port, &at);
        // A pod that reaches itself through its Service would answer itself directly.
        let mut rules = vec![format!(
            "ip saddr {} jump mark-for-masquerade",
            endpoint.address
        )];
        let set = port.affinity.map(|seconds| {
            let set = name("affinity", port, &at);
            rules.push(format!("update @{set} {{ ip saddr }}"));
            self.affinity_sets.insert(set.clone(), seconds);
            set
        });
        rules.push(format!("meta l4proto {} dnat to {at}", port.protocol));
        self.chains.insert(chain.clone(), rules);
        (chain, set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(endpoints: &[&str]) -> ServicePort {
        let endpoints: BTreeSet<Endpoint> = endpoints
            .iter()
            .map(|a| Endpoint {
                address: a.parse().unwrap(),
                port: 8080,
            })
            .collect();
        ServicePort {
            service: "n/s".into(),
            port_name: "http".into(),
            protocol: "tcp",
            cluster_ip: "10.0.0.7".parse().unwrap(),
            port: 80,
            node_port: Some(30_001),
            external_ips: BTreeSet::new(),
            affinity: None,
            internal_local: false,
            external_local: false,
            local_endpoints: BTreeSet::new(),
            endpoints,
        }
    }

    fn build(port: ServicePort) -> Ruleset {
        Ruleset::build(
            &[port].into(),
            &Settings {
                cluster_cidr: Some("10.244.0.0/16".parse().unwrap()),
            },
        )
    }

    #[test]
    fn traffic_is_spread_over_all_endpoints() {
        let ruleset = build(port(&["10.244.0.2", "10.244.1.2"]));
        assert_eq!(ruleset.chains.len(), 4);
        assert!(ruleset.maps[SERVICE_IPS].contains_key("10.0.0.7 . tcp . 80"));
        assert!(ruleset.maps[SERVICE_NODE_PORTS].contains_key("tcp . 30001"));
        assert!(
            ruleset
                .chains
                .values()
                .flatten()
                .any(|r| r.starts_with("numgen random mod 2 vmap"))
        );
    }

    #[test]
    fn without_endpoints_clients_are_refused_and_local_policy_drops() {
        let ruleset = build(port(&[]));
        assert_eq!(
            ruleset.maps[NO_ENDPOINT_IPS]["10.0.0.7 . tcp . 80"],
            "goto refuse"
        );
        let ruleset = build(ServicePort {
            external_local: true,
            ..port(&["10.244.1.2"])
        });
        assert_eq!(ruleset.maps[NO_ENDPOINT_NODE_PORTS]["tcp . 30001"], "drop");
        assert!(ruleset.maps[SERVICE_IPS].contains_key("10.0.0.7 . tcp . 80"));
    }

    #[test]
    fn affinity_has_a_set_per_endpoint() {
        let ruleset = build(ServicePort {
            affinity: Some(60),
            ..port(&["10.244.0.2", "10.244.1.2"])
        });
        assert_eq!(
            ruleset.affinity_sets.values().collect::<Vec<_>>(),
            [&60, &60]
        );
    }
}

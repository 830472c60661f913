//! What is recorded of a cluster, durably: what was asked for, and what was given out for it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use fluyt_network::ClusterNetwork;
use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Subscription, resource group and name of a cluster, in lower case: ARM's names have no case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterKey {
    pub subscription: String,
    pub group: String,
    pub name: String,
}

/// ARM's states of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProvisioningState {
    Creating,
    Updating,
    Scaling,
    Deleting,
    Succeeded,
    Failed,
}

/// A managed cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Unique on this host for ever; names directories, namespaces and control groups.
    pub id: String,
    pub subscription: String,
    pub group: String,
    pub name: String,
    pub location: String,
    pub tags: Option<BTreeMap<String, String>>,
    pub version: String,
    pub dns_prefix: String,
    pub fqdn: String,
    pub node_resource_group: String,
    pub network: Network,
    /// Fields of the request that change nothing here, by name; shown again as they were given.
    pub top: Map<String, Value>,
    pub properties: Map<String, Value>,
    /// The master's port on the host's loopback.
    pub port: u16,
    pub bootstrap_token: String,
    pub created: Timestamp,
    pub changed: Timestamp,
    pub state: ProvisioningState,
    /// The operation under way, or the last one.
    pub operation: String,
    pub pools: Vec<Pool>,
    /// Counts changes, for the eTag.
    pub generation: u64,
}

/// The addresses of a cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    pub nodes: Ipv4Net,
    pub pods: Ipv4Net,
    pub services: Ipv4Net,
    pub dns_service_ip: Ipv4Addr,
    pub outbound: Outbound,
    /// Which part of the host's addresses for load balancers, and which link for egress, is this cluster's.
    pub slice: u8,
    /// Other fields of `networkProfile`, as given.
    pub profile: Map<String, Value>,
}

/// How pods reach what is outside the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outbound {
    None,
    LoadBalancer,
}

/// An agent pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    pub name: String,
    pub mode: String,
    pub count: u32,
    pub vm_size: String,
    pub version: String,
    pub max_pods: u32,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<String>,
    pub tags: Option<BTreeMap<String, String>>,
    /// As [`Cluster::properties`].
    pub properties: Map<String, Value>,
    pub state: ProvisioningState,
    /// The eight digits in its nodes' names.
    pub digits: String,
    pub next_node: u32,
    pub nodes: Vec<Node>,
    /// Goes with all its nodes.
    pub deleting: bool,
    pub generation: u64,
}

/// A node that is, is to be, or is to be no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub name: String,
    pub address: Ipv4Addr,
    pub leaving: bool,
}

// === impl ClusterKey ===

impl ClusterKey {
    #[must_use]
    pub fn new(subscription: &str, group: &str, name: &str) -> Self {
        Self {
            subscription: subscription.to_lowercase(),
            group: group.to_lowercase(),
            name: name.to_lowercase(),
        }
    }
}

// === impl ProvisioningState ===

impl ProvisioningState {
    /// Whether an operation is under way.
    #[must_use]
    pub fn is_busy(self) -> bool {
        !matches!(self, Self::Succeeded | Self::Failed)
    }
}

// === impl Cluster ===

impl Cluster {
    #[must_use]
    pub fn key(&self) -> ClusterKey {
        ClusterKey::new(&self.subscription, &self.group, &self.name)
    }

    #[must_use]
    pub fn directory(&self, data: &Path) -> PathBuf {
        data.join("clusters").join(&self.id)
    }

    /// The resource's ARM id.
    #[must_use]
    pub fn resource_id(&self) -> String {
        format!(
            "/subscriptions/{}/resourcegroups/{}/providers/Microsoft.ContainerService/managedClusters/{}",
            self.subscription, self.group, self.name
        )
    }

    #[must_use]
    pub fn namespace(&self) -> String {
        format!("fluyt-{}", self.id)
    }

    #[must_use]
    pub fn cluster_network(&self) -> ClusterNetwork {
        ClusterNetwork::open(&self.namespace(), self.network.gateway())
    }

    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools
            .iter()
            .find(|p| p.name.eq_ignore_ascii_case(name))
    }

    pub fn pool_mut(&mut self, name: &str) -> Option<&mut Pool> {
        self.pools
            .iter_mut()
            .find(|p| p.name.eq_ignore_ascii_case(name))
    }

    /// Gives each pool as many nodes as it is to have, and marks those that are too many, newest first.
    ///
    /// # Errors
    /// When the nodes' network has no address left.
    pub fn plan_nodes(&mut self) -> Result<(), String> {
        let mut used: Vec<Ipv4Addr> = self
            .pools
            .iter()
            .flat_map(|p| p.nodes.iter().map(|n| n.address))
            .collect();
        let (nodes, deleting) = (
            self.network.nodes,
            self.state == ProvisioningState::Deleting,
        );
        for pool in &mut self.pools {
            let wanted = if deleting || pool.deleting {
                0
            } else {
                pool.count as usize
            };
            let staying = pool.nodes.iter().filter(|n| !n.leaving).count();
            for node in pool
                .nodes
                .iter_mut()
                .rev()
                .filter(|n| !n.leaving)
                .take(staying.saturating_sub(wanted))
            {
                node.leaving = true;
            }
            for _ in staying..wanted {
                // The first addresses are reserved, as in a virtual network of Azure.
                let free = nodes.hosts().skip(3).find(|a| !used.contains(a));
                let address = free.ok_or_else(|| format!("no free address left in {nodes}"))?;
                used.push(address);
                let name = format!(
                    "aks-{}-{}-vmss{}",
                    pool.name,
                    pool.digits,
                    base36(pool.next_node)
                );
                pool.next_node += 1;
                pool.nodes.push(Node {
                    name,
                    address,
                    leaving: false,
                });
            }
        }
        Ok(())
    }
}

// === impl Network ===

impl Network {
    /// The master's address in the nodes' network, with its prefix.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Net {
        let first = Ipv4Addr::from(u32::from(self.nodes.network()) + 1);
        // The prefix is that of a network: it cannot be too long.
        Ipv4Net::new(first, self.nodes.prefix_len()).unwrap_or(self.nodes)
    }

    /// Host addresses for Services of type LoadBalancer.
    #[must_use]
    pub fn load_balancer_pool(&self) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(127, 20, self.slice, 0), 24)
    }

    /// The link to the host, if there is egress.
    #[must_use]
    pub fn egress_link(&self) -> Ipv4Net {
        let offset = u16::from(self.slice) * 4;
        let [high, low] = offset.to_be_bytes();
        Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 72 + high, low), 30)
    }
}

/// Azure numbers the machines of a scale set in six digits of base 36.
fn base36(number: u32) -> String {
    let mut rest = number;
    let mut digits: Vec<char> = Vec::new();
    for _ in 0..6 {
        digits.push(
            char::from_digit(rest % 36, 36)
                .unwrap_or('0')
                .to_ascii_lowercase(),
        );
        rest /= 36;
    }
    digits.iter().rev().collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn cluster(count: u32) -> Cluster {
        let mut cluster = Cluster {
            id: "0123456789ab".into(),
            subscription: "00000000-0000-0000-0000-000000000000".into(),
            group: "rg".into(),
            name: "demo".into(),
            location: "local".into(),
            tags: None,
            version: "1.36.0".into(),
            dns_prefix: "demo".into(),
            fqdn: "demo.local".into(),
            node_resource_group: "MC_rg_demo_local".into(),
            network: Network {
                nodes: "10.224.0.0/16".parse().unwrap(),
                pods: "10.244.0.0/16".parse().unwrap(),
                services: "10.0.0.0/16".parse().unwrap(),
                dns_service_ip: "10.0.0.10".parse().unwrap(),
                outbound: Outbound::None,
                slice: 255,
                profile: Map::new(),
            },
            top: Map::new(),
            properties: Map::new(),
            port: 6443,
            bootstrap_token: "a.b".into(),
            created: Timestamp::UNIX_EPOCH,
            changed: Timestamp::UNIX_EPOCH,
            state: ProvisioningState::Creating,
            operation: "op".into(),
            pools: vec![Pool {
                name: "nodepool1".into(),
                mode: "System".into(),
                count,
                vm_size: "Standard_D2s_v3".into(),
                version: "1.36.0".into(),
                max_pods: 250,
                labels: BTreeMap::new(),
                taints: Vec::new(),
                tags: None,
                properties: Map::new(),
                state: ProvisioningState::Creating,
                digits: "12345678".into(),
                next_node: 0,
                nodes: Vec::new(),
                deleting: false,
                generation: 1,
            }],
            generation: 1,
        };
        cluster.plan_nodes().unwrap();
        cluster
    }

    #[test]
    fn nodes_are_named_and_addressed_as_azure_does() {
        let cluster = cluster(2);
        let nodes = &cluster.pools[0].nodes;
        assert_eq!(nodes[1].name, "aks-nodepool1-12345678-vmss000001");
        assert_eq!(nodes[0].address, Ipv4Addr::new(10, 224, 0, 4));
        assert_eq!(base36(36), "000010");
    }

    #[test]
    fn scaling_in_takes_the_newest_and_never_reuses_a_name() {
        let mut cluster = cluster(3);
        cluster.pools[0].count = 1;
        cluster.plan_nodes().unwrap();
        let leaving: Vec<bool> = cluster.pools[0].nodes.iter().map(|n| n.leaving).collect();
        assert_eq!(leaving, [false, true, true]);
        cluster.pools[0].count = 2;
        cluster.plan_nodes().unwrap();
        assert_eq!(
            cluster.pools[0].nodes[3].name,
            "aks-nodepool1-12345678-vmss000003"
        );
        assert_eq!(
            cluster.pools[0].nodes[3].address,
            Ipv4Addr::new(10, 224, 0, 7)
        );
        cluster.state = ProvisioningState::Deleting;
        cluster.plan_nodes().unwrap();
        assert!(cluster.pools[0].nodes.iter().all(|n| n.leaving));
    }

    #[test]
    fn a_full_network_is_an_error() {
        let mut cluster = cluster(2);
        cluster.network.nodes = "10.224.0.0/29".parse().unwrap();
        cluster.pools[0].count = 9;
        assert!(cluster.plan_nodes().unwrap_err().contains("10.224.0.0/29"));
    }

    #[test]
    fn slices_do_not_overlap() {
        let network = cluster(1).network;
        assert_eq!(network.load_balancer_pool().to_string(), "127.20.255.0/24");
        assert_eq!(network.egress_link().to_string(), "169.254.75.252/30");
        assert_eq!(network.gateway().to_string(), "10.224.0.1/16");
    }
}

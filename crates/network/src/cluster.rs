//! The virtual network of a cluster: a network namespace with a bridge, to which each node's namespace is attached.
//!
//! The host gets no interface, route or rule of it (unless egress is asked for), so clusters may use the same
//! addresses. The service reaches into it with [`crate::netns`].

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

use crate::link::{Netlink, Peer, mac_of};
use crate::{Context, Error, Result, netns, nft};

/// The bridge that nodes are attached to.
pub const BRIDGE: &str = "fluyt0";
/// The interface of a node inside its own namespace.
pub const NODE_INTERFACE: &str = "eth0";
const EGRESS_INTERFACE: &str = "egress0";
const MTU: u32 = 1500;

/// A cluster's network: its namespace and the gateway address with the node subnet's prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNetwork {
    name: String,
    gateway: Ipv4Net,
}

// === impl ClusterNetwork ===

impl ClusterNetwork {
    /// Makes the network, or completes one that a crash left half made. `gateway` is the address of the bridge with
    /// the prefix of the node subnet, such as `10.224.0.1/16`.
    pub async fn create(name: &str, gateway: Ipv4Net) -> Result<Self> {
        let network = Self {
            name: name.to_owned(),
            gateway,
        };
        if !network.exists() {
            // A file without a namespace on it is what a crash between the two steps leaves.
            netns::delete(name)?;
            netns::create(name)?;
        }
        let netlink = Netlink::in_namespace(&network.path())?;
        let loopback = netlink.require("lo").await?;
        netlink.up(loopback).await?;
        netlink.ensure_bridge(BRIDGE, gateway, MTU).await?;
        netns::run_in(&network.path(), || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        })?;
        Ok(network)
    }

    /// The network as [`Self::create`] made it, without touching the kernel.
    pub fn open(name: &str, gateway: Ipv4Net) -> Self {
        Self {
            name: name.to_owned(),
            gateway,
        }
    }

    pub fn exists(&self) -> bool {
        netns::run_in(&self.path(), || Ok(())).is_ok()
    }

    /// The namespace, for [`netns::run_in`] and its friends.
    pub fn path(&self) -> PathBuf {
        netns::path(&self.name)
    }

    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway.addr()
    }

    /// Attaches a node: a veth from the bridge to `eth0` in the node's namespace, with its address, its route to the
    /// gateway, loopback and forwarding. `node` names the port on the bridge and must be unique in the cluster.
    pub async fn attach_node(&self, node: &str, namespace: &Path, address: Ipv4Addr) -> Result<()> {
        let with_prefix = Ipv4Net::new(address, self.gateway.prefix_len())
            .map_err(|error| Error::Invalid(error.to_string()))?;
        if !self.gateway.contains(&address) {
            return Err(Error::Invalid(format!(
                "node address {address} is not in {}",
                self.gateway.trunc()
            )));
        }
        let cluster = Netlink::in_namespace(&self.path())?;
        let bridge = cluster.require(BRIDGE).await?;
        let port = port_name(node);
        cluster.delete(&port).await?;
        cluster
            .add_veth(
                &port,
                bridge,
                MTU,
                &Peer {
                    name: NODE_INTERFACE,
                    namespace,
                    mac: mac_of(address),
                    mtu: MTU,
                },
            )
            .await?;
        let inside = Netlink::in_namespace(namespace)?;
        let loopback = inside.require("lo").await?;
        inside.up(loopback).await?;
        let interface = inside.require(NODE_INTERFACE).await?;
        inside.add_address(interface, with_prefix).await?;
        inside.up(interface).await?;
        inside.default_route(self.gateway.addr()).await?;
        netns::run_in(namespace, || {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        })
    }

    /// Detaches a node; its namespace may be gone already.
    pub async fn detach_node(&self, node: &str) -> Result<()> {
        Netlink::in_namespace(&self.path())?
            .delete(&port_name(node))
            .await
    }

    /// `outboundType: loadBalancer`: lets the network reach what the host reaches, behind the host's address.
    /// `link` is a /30 that is free on the host, such as `169.254.77.0/30`.
    pub async fn enable_egress(&self, link: Ipv4Net) -> Result<()> {
        let [outside, inside] = link_ends(link)?;
        let host = Netlink::here()?;
        let name = egress_name(&self.name);
        host.delete(&name).await?;
        host.add_routed_veth(&name, EGRESS_INTERFACE, &self.path())
            .await?;
        let index = host.require(&name).await?;
        host.add_address(index, outside).await?;
        host.up(index).await?;
        let cluster = Netlink::in_namespace(&self.path())?;
        let index = cluster.require(EGRESS_INTERFACE).await?;
        cluster.add_address(index, inside).await?;
        cluster.up(index).await?;
        cluster.default_route(outside.addr()).await?;
        nft::apply(
            masquerade("fluyt_egress", "oifname", EGRESS_INTERFACE),
            Some(&self.path()),
        )
        .await?;
        nft::apply(
            masquerade(&egress_table(&self.name), "iifname", &name),
            None,
        )
        .await?;
        crate::pod::sysctl("net/ipv4/ip_forward", "1")
    }

    /// Undoes [`Self::enable_egress`]; fine if there is none.
    pub async fn disable_egress(&self) -> Result<()> {
        let table = egress_table(&self.name);
        let name = egress_name(&self.name);
        let host = Netlink::here()?;
        if host.index(&name).await?.is_none() {
            return Ok(());
        }
        host.delete(&name).await?;
        nft::apply(
            format!("table ip {table} {{}}\ndelete table ip {table}\n"),
            None,
        )
        .await
    }

    /// Removes the network. Nodes still attached lose their link. Idempotent.
    pub async fn delete(&self) -> Result<()> {
        self.disable_egress().await?;
        netns::delete(&self.name)
    }
}

impl Netlink {
    /// A veth pair without a bridge.
    async fn add_routed_veth(&self, name: &str, peer: &str, namespace: &Path) -> Result<()> {
        use std::os::fd::AsRawFd;

        use rtnetlink::packet_route::link::{InfoData, InfoVeth};
        use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

        let target = std::fs::File::open(namespace)
            .context(|| format!("opening {}", namespace.display()))?;
        let other = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer)
            .setns_by_fd(target.as_raw_fd())
            .build();
        let pair = LinkVeth::new(name, peer)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
            .build();
        self.handle()
            .link()
            .add(pair)
            .execute()
            .await
            .context(|| format!("creating veth {name}"))
    }
}

fn link_ends(link: Ipv4Net) -> Result<[Ipv4Net; 2]> {
    let base = u32::from(link.network());
    let end = |offset| {
        Ipv4Net::new(Ipv4Addr::from(base + offset), link.prefix_len())
            .map_err(|error| Error::Invalid(error.to_string()))
    };
    if link.prefix_len() > 30 {
        return Err(Error::Invalid(format!(
            "egress link {link} needs two addresses"
        )));
    }
    Ok([end(1)?, end(2)?])
}

fn masquerade(table: &str, direction: &str, interface: &str) -> String {
    // The host's side matches on where a packet came in, which postrouting only knows through a mark.
    let chain = if direction == "oifname" {
        format!(
            "  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{interface}\" masquerade
  }}"
        )
    } else {
        format!(
            "  chain prerouting {{
    type filter hook prerouting priority mangle; policy accept;
    iifname \"{interface}\" ct mark set 0x464c
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ct mark 0x464c oifname != \"{interface}\" masquerade
  }}"
        )
    };
    format!("table ip {table} {{}}\ndelete table ip {table}\ntable ip {table} {{\n{chain}\n}}\n")
}

/// Interface names have at most 15 bytes; a hash keeps long node names apart.
fn port_name(node: &str) -> String {
    format!("fn{:08x}", fnv(node))
}

fn egress_name(cluster: &str) -> String {
    format!("fe{:08x}", fnv(cluster))
}

fn egress_table(cluster: &str) -> String {
    format!("fluyt_egress_{:08x}", fnv(cluster))
}

fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names_fit_an_interface() {
        let a = port_name("aks-nodepool1-12345678-vmss000000");
        let b = port_name("aks-nodepool1-12345678-vmss000001");
        assert!(a.len() <= 15 && a != b);
    }

    #[test]
    fn an_egress_link_has_two_ends() {
        let [outside, inside] = link_ends("169.254.77.0/30".parse().unwrap()).unwrap();
        assert_eq!(outside.to_string(), "169.254.77.1/30");
        assert_eq!(inside.to_string(), "169.254.77.2/30");
        assert!(link_ends("169.254.77.0/31".parse().unwrap()).is_err());
    }
}

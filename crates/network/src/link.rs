//! Links and addresses over rtnetlink: the few operations that the rest of the crate is made of.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder,
};

use crate::{Context, Result, netns};

/// The kernel's errno for a netlink refusal, if that is what it was.
pub fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            message.code.map(|code| code.get().unsigned_abs() as i32)
        }
        _ => None,
    }
}

/// A netlink connection to one network namespace. Closed when dropped.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

/// One end of a veth pair that is made in another namespace.
#[derive(Debug)]
pub struct Peer<'a> {
    pub name: &'a str,
    pub namespace: &'a Path,
    pub mac: [u8; 6],
    pub mtu: u32,
}

// === impl Netlink ===

impl Netlink {
    /// Connects to the namespace of the calling process.
    pub fn here() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context(|| "opening a netlink socket".to_owned())?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Connects to the namespace at `path`.
    pub fn in_namespace(path: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle) = netns::run_in(path, move || {
            let _context = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            Ok((connection, handle))
        })?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The link's index, `None` if there is no such link.
    pub async fn index(&self, name: &str) -> Result<Option<u32>> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if errno(&error) == Some(nix::libc::ENODEV) => Ok(None),
            Err(error) => Err(error).context(|| format!("looking for link {name}")),
        }
    }

    /// Every link of the namespace.
    pub async fn links(&self) -> Result<Vec<LinkMessage>> {
        self.handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .context(|| "listing links".to_owned())
    }

    pub(crate) async fn require(&self, name: &str) -> Result<u32> {
        self.index(name)
            .await?
            .ok_or_else(|| crate::Error::Invalid(format!("there is no link {name}")))
    }

    /// Makes sure that the bridge exists, is up, and owns `address`.
    pub async fn ensure_bridge(&self, name: &str, address: Ipv4Net, mtu: u32) -> Result<u32> {
        let index = match self.index(name).await? {
            Some(index) => index,
            None => {
                let bridge = LinkBridge::new(name)
                    .address(mac_of(address.addr()).to_vec())
                    .mtu(mtu)
                    .up()
                    .build();
                match self.handle.link().add(bridge).execute().await {
                    Err(error) if errno(&error) == Some(nix::libc::EEXIST) => {}
                    other => other.context(|| format!("creating bridge {name}"))?,
                }
                self.require(name).await?
            }
        };
        self.add_address(index, address).await?;
        self.up(index).await?;
        Ok(index)
    }

    /// Makes a veth pair: `name` here, enslaved to `bridge` and up; the peer in its own namespace, still down.
    pub async fn add_veth(&self, name: &str, bridge: u32, mtu: u32, peer: &Peer<'_>) -> Result<()> {
        let namespace = std::fs::File::open(peer.namespace)
            .context(|| format!("opening {}", peer.namespace.display()))?;
        let other = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer.name)
            .address(peer.mac.to_vec())
            .mtu(peer.mtu)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        let pair = LinkVeth::new(name, peer.name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other)))
            .mtu(mtu)
            .controller(bridge)
            .up()
            .build();
        self.handle
            .link()
            .add(pair)
            .execute()
            .await
            .context(|| format!("creating veth {name}"))
    }

    /// Lets a bridge port send a frame back where it came from, so that a pod reaches itself through a service.
    pub async fn hairpin(&self, name: &str) -> Result<()> {
        let index = self.require(name).await?;
        self.handle
            .link()
            .set_port(LinkBridgePort::new(index).hairpin(true).build())
            .execute()
            .await
            .context(|| format!("setting hairpin mode of {name}"))
    }

    pub async fn up(&self, index: u32) -> Result<()> {
        self.handle
            .link()
            .set(LinkUnspec::new_with_index(index).up().build())
            .execute()
            .await
            .context(|| format!("setting link {index} up"))
    }

    /// Adds the address unless it is there.
    pub async fn add_address(&self, index: u32, address: Ipv4Net) -> Result<()> {
        let result = self
            .handle
            .address()
            .add(index, address.addr().into(), address.prefix_len())
            .execute()
            .await;
        match result {
            Err(error) if errno(&error) == Some(nix::libc::EEXIST) => Ok(()),
            other => other.context(|| format!("adding address {address}")),
        }
    }

    /// Adds or replaces the default route.
    pub async fn default_route(&self, gateway: Ipv4Addr) -> Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .build();
        self.handle
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .context(|| format!("setting the default route to {gateway}"))
    }

    /// Deletes the link; a missing one is fine.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let Some(index) = self.index(name).await? else {
            return Ok(());
        };
        match self.handle.link().del(index).execute().await {
            Err(error) if errno(&error) == Some(nix::libc::ENODEV) => Ok(()),
            other => other.context(|| format!("deleting link {name}")),
        }
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A hardware address made from the IP address, as CNI's plugins do: a reused IP keeps its MAC, so no neighbour's
/// ARP cache goes stale.
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_local_unicast_and_carries_the_address() {
        let mac = mac_of(Ipv4Addr::new(10, 244, 1, 9));
        assert_eq!(mac, [0x0a, 0x58, 10, 244, 1, 9]);
        assert_eq!(mac[0] & 0b11, 0b10);
    }
}

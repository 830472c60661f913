//! Pod networking of one node: what kubenet's CNI chain (bridge, host-local, loopback, portmap) does.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::host_local::HostLocal;
use crate::link::{Netlink, Peer, mac_of};
use crate::{Context, Error, Result, host_port, nft};

/// The pod's interface inside its namespace.
pub const POD_INTERFACE: &str = "eth0";

#[derive(Clone, Debug)]
pub struct PodNetworkConfig {
    /// Where reservations and hostPort mappings are kept; must survive a restart of the process.
    pub directory: PathBuf,
    /// The node's bridge (`cbr0`).
    pub bridge: String,
    /// MTU of the bridge and of the pods' interfaces, in bytes.
    pub mtu: u32,
    /// Destinations that see the pod's own address; towards others it is replaced by the node's. Empty: no NAT.
    pub non_masquerade: Vec<Ipv4Net>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A port of the node that leads to a port of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    pub host_ip: Option<Ipv4Addr>,
}

/// The network of a node's pods. Add and remove may be called at the same time for different pods.
#[derive(Debug)]
pub struct PodNetwork {
    config: PodNetworkConfig,
    /// Set once the node has a pod CIDR.
    subnet: Mutex<Option<Subnet>>,
    /// Serialises rewriting the hostPort table.
    host_ports: Mutex<()>,
}

#[derive(Clone, Debug)]
struct Subnet {
    cidr: Ipv4Net,
    ipam: HostLocal,
}

/// What is remembered of a pod besides its address.
#[derive(Debug, Serialize, Deserialize)]
struct PodRecord {
    address: Ipv4Addr,
    ports: Vec<PortMapping>,
}

// === impl PodNetworkConfig ===

impl PodNetworkConfig {
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            bridge: "cbr0".to_owned(),
            mtu: 1500,
            non_masquerade: Vec::new(),
        }
    }
}

// === impl PodNetwork ===

impl PodNetwork {
    pub fn new(config: PodNetworkConfig) -> Result<Self> {
        let pods = config.directory.join("pods");
        fs::create_dir_all(&pods).context(|| format!("creating {}", pods.display()))?;
        Ok(Self {
            config,
            subnet: Mutex::new(None),
            host_ports: Mutex::new(()),
        })
    }

    /// Gives the node its pod CIDR and makes its bridge. Idempotent; a different CIDR while pods have addresses
    /// of the old one is an error, as a node's CIDR never changes.
    pub async fn set_pod_cidr(&self, cidr: Ipv4Net) -> Result<()> {
        let mut subnet = self.subnet.lock().await;
        if let Some(present) = subnet.as_ref() {
            if present.cidr == cidr.trunc() {
                return Ok(());
            }
            return Err(Error::Invalid(format!(
                "the pod CIDR is {} and can't become {cidr}",
                present.cidr
            )));
        }
        let ipam = HostLocal::open(self.config.directory.join("addresses"), cidr)?;
        let gateway = Ipv4Net::new(ipam.gateway(), cidr.prefix_len())
            .map_err(|error| Error::Invalid(error.to_string()))?;
        let netlink = Netlink::here()?;
        netlink
            .ensure_bridge(&self.config.bridge, gateway, self.config.mtu)
            .await?;
        sysctl("net/ipv4/ip_forward", "1")?;
        // hostPorts of 127.0.0.1 lead to pods.
        sysctl(
            &format!("net/ipv4/conf/{}/route_localnet", self.config.bridge),
            "1",
        )?;
        if !self.config.non_masquerade.is_empty() {
            nft::apply(self.masquerade_rules(cidr), None).await?;
        }
        *subnet = Some(Subnet {
            cidr: cidr.trunc(),
            ipam,
        });
        Ok(())
    }

    /// Whether pods can get addresses.
    pub async fn is_ready(&self) -> bool {
        self.subnet.lock().await.is_some()
    }

    /// Connects the namespace of a sandbox and returns the pod's address. Calling it again for the same sandbox
    /// returns the same address.
    pub async fn add(
        &self,
        sandbox: &str,
        namespace: &Path,
        ports: &[PortMapping],
    ) -> Result<Ipv4Addr> {
        let Some(subnet) = self.subnet.lock().await.clone() else {
            return Err(Error::Invalid(
                "cni plugin not initialized: the node has no pod CIDR yet".to_owned(),
            ));
        };
        let address = subnet.ipam.allocate(sandbox)?;
        let connected = self
            .connect(sandbox, namespace, address, &subnet)
            .await
            .and(self.remember(sandbox, address, ports));
        if let Err(error) = connected {
            let _ = self.remove(sandbox).await;
            return Err(error);
        }
        if !ports.is_empty()
            && let Err(error) = self.apply_host_ports().await
        {
            let _ = self.remove(sandbox).await;
            return Err(error);
        }
        Ok(address)
    }

    /// Disconnects a sandbox and gives back what it had. Idempotent.
    pub async fn remove(&self, sandbox: &str) -> Result<()> {
        Netlink::here()?.delete(&veth_name(sandbox)).await?;
        let record = self.record_path(sandbox);
        let had_ports = read_record(&record).is_some_and(|record| !record.ports.is_empty());
        match fs::remove_file(&record) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(|| format!("removing {}", record.display()));
            }
            _ => {}
        }
        if had_ports {
            self.apply_host_ports().await?;
        }
        if let Some(subnet) = self.subnet.lock().await.as_ref() {
            subnet.ipam.release(sandbox)?;
        }
        Ok(())
    }

    /// After a restart: frees what belongs to sandboxes that aren't in `live`.
    pub async fn reconcile(&self, live: &HashSet<String>) -> Result<()> {
        let pods = self.config.directory.join("pods");
        let gone: Vec<String> = fs::read_dir(&pods)
            .context(|| format!("reading {}", pods.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|sandbox| !live.contains(sandbox))
            .collect();
        for sandbox in gone {
            self.remove(&sandbox).await?;
        }
        if let Some(subnet) = self.subnet.lock().await.as_ref() {
            subnet.ipam.reconcile(live)?;
        }
        Ok(())
    }

    async fn connect(
        &self,
        sandbox: &str,
        namespace: &Path,
        address: Ipv4Addr,
        subnet: &Subnet,
    ) -> Result<()> {
        let node = Netlink::here()?;
        let veth = veth_name(sandbox);
        let mtu = self.config.mtu;
        // The kernel forgets a bridge when its namespace is made anew; the bridge is cheap to look up.
        let bridge = node.require(&self.config.bridge).await?;
        node.delete(&veth).await?;
        node.add_veth(
            &veth,
            bridge,
            mtu,
            &Peer {
                name: POD_INTERFACE,
                namespace,
                mac: mac_of(address),
                mtu,
            },
        )
        .await?;
        node.hairpin(&veth).await?;

        let pod = Netlink::in_namespace(namespace)?;
        let loopback = pod.require("lo").await?;
        pod.up(loopback).await?;
        let interface = pod.require(POD_INTERFACE).await?;
        let with_prefix = Ipv4Net::new(address, subnet.cidr.prefix_len())
            .map_err(|error| Error::Invalid(error.to_string()))?;
        pod.add_address(interface, with_prefix).await?;
        pod.up(interface).await?;
        pod.default_route(subnet.ipam.gateway()).await
    }

    fn remember(&self, sandbox: &str, address: Ipv4Addr, ports: &[PortMapping]) -> Result<()> {
        let path = self.record_path(sandbox);
        let record = PodRecord {
            address,
            ports: ports.to_vec(),
        };
        let json =
            serde_json::to_vec(&record).map_err(|error| Error::Invalid(error.to_string()))?;
        let temporary = self.config.directory.join(format!(".{sandbox}.tmp"));
        fs::write(&temporary, json)
            .and_then(|()| fs::rename(&temporary, &path))
            .context(|| format!("writing {}", path.display()))
    }

    fn record_path(&self, sandbox: &str) -> PathBuf {
        self.config.directory.join("pods").join(sandbox)
    }

    async fn apply_host_ports(&self) -> Result<()> {
        let _turn = self.host_ports.lock().await;
        let pods = self.config.directory.join("pods");
        let records: HashMap<PathBuf, PodRecord> = fs::read_dir(&pods)
            .context(|| format!("reading {}", pods.display()))?
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                read_record(&path).map(|record| (path, record))
            })
            .collect();
        let mut records: Vec<PodRecord> = records.into_values().collect();
        records.sort_by_key(|record| record.address);
        let script = host_port::ruleset(
            &self.config.bridge,
            records
                .iter()
                .map(|record| (record.address, record.ports.as_slice())),
        );
        nft::apply(script, None).await
    }

    fn masquerade_rules(&self, cidr: Ipv4Net) -> String {
        let kept = self
            .config
            .non_masquerade
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        format!(
            "table ip fluyt_masquerade {{}}
delete table ip fluyt_masquerade
table ip fluyt_masquerade {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {cidr} ip daddr != {{ {kept} }} masquerade
  }}
}}
"
        )
    }
}

/// The node's end of a sandbox's veth. Interface names have at most 15 bytes; the id's first characters are random.
pub fn veth_name(sandbox: &str) -> String {
    format!("veth{}", sandbox.get(..11).unwrap_or(sandbox))
}

fn read_record(path: &Path) -> Option<PodRecord> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

pub(crate) fn sysctl(key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(key);
    fs::write(&path, value).context(|| format!("writing {}", path.display()))
}

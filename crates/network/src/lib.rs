//! Networks of nodes and pods.
//!
//! Three layers, each usable alone:
//!
//! - [`netns`]: named network namespaces, and running code or opening sockets inside one;
//! - [`pod`]: what a CNI plugin chain does for a pod sandbox (bridge, host-local IPAM, loopback, hostPort);
//! - [`cluster`]: the virtual network of a cluster, a namespace with a bridge that nodes are attached to.
//!
//! Links, addresses and routes go through rtnetlink; packet rules through nftables.

pub mod cluster;
pub mod host_local;
pub mod host_port;
pub mod link;
pub mod netns;
pub mod nft;
pub mod pod;
pub mod routes;

pub use cluster::ClusterNetwork;
pub use pod::{PodNetwork, PodNetworkConfig, PortMapping, Protocol};
pub use routes::set_routes;

/// What can go wrong between us and the kernel's network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{what}: {source}")]
    Netlink {
        what: String,
        #[source]
        source: Box<rtnetlink::Error>,
    },
    #[error("nft: {0}")]
    Nft(String),
    #[error("no free address left in {0}")]
    PoolExhausted(ipnet::Ipv4Net),
    #[error("{0}")]
    Invalid(String),
}

pub type Result<T> = std::result::Result<T, Error>;

pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: what(),
            source,
        })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::Io {
            what: what(),
            source: errno.into(),
        })
    }
}

impl<T> Context<T> for std::result::Result<T, rtnetlink::Error> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Netlink {
            what: what(),
            source: Box::new(source),
        })
    }
}

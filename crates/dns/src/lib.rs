//! Cluster DNS: answers for the cluster's domain from Services and EndpointSlices, and forwards everything else.
//!
//! The records are those of the Kubernetes DNS specification, version 1.1.0.

mod forward;
mod records;
mod server;
mod zone;

use std::net::SocketAddr;
use std::path::PathBuf;

use fluyt_client::Informers;
use tokio_util::sync::CancellationToken;

/// Flags of the DNS server.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Where UDP and TCP queries are taken.
    #[arg(long, default_value = "0.0.0.0:53")]
    pub listen: SocketAddr,
    /// `/health`, `/ready` and `/metrics`.
    #[arg(long, default_value = "0.0.0.0:8181")]
    pub health_address: SocketAddr,
    /// Names the servers that other queries go to.
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
}

/// Runs until shutdown.
///
/// # Errors
/// When a port is taken or the API's address is unknown.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = fluyt_client::kubeconfig::client(args.kubeconfig.as_deref(), "coredns").await?;
    let informers = Informers::new(client, shutdown.clone());
    let zone = zone::Zone::new(
        args.cluster_domain.clone(),
        informers.get(),
        informers.get(),
    );
    let forwarder = forward::Forwarder::from_resolv_conf(&args.resolv_conf);
    server::run(
        server::Server::new(zone, forwarder),
        args.listen,
        args.health_address,
        shutdown,
    )
    .await
}

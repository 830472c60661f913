//! kube-proxy: makes Services reachable from this node, with nftables.
//!
//! [`model`] joins Services and EndpointSlices into what should be reachable, [`ruleset`] says it in nftables' terms, and
//! [`nft`] applies the difference to what it applied last as one atomic transaction.

mod health;
mod model;
mod nft;
mod proxier;
mod ruleset;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

/// Flags of kube-proxy.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node; the host name when not given.
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// Addresses of pods: what comes from elsewhere to a cluster IP is masqueraded.
    #[arg(long)]
    pub cluster_cidr: Option<IpNet>,
    #[arg(long, default_value = "nftables", value_parser = ["nftables"])]
    pub proxy_mode: String,
    #[arg(long, default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: SocketAddr,
}

/// Runs until shutdown.
///
/// # Errors
/// When the API cannot be reached, a port is taken, or nftables cannot be used.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = fluyt_client::kubeconfig::client(args.kubeconfig.as_deref(), "kube-proxy").await?;
    let node = match args.hostname_override {
        Some(name) => name,
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("cannot read the host name")?
            .trim()
            .to_owned(),
    };
    let status = health::Status::default();
    health::serve(args.healthz_bind_address, status.clone(), shutdown.clone()).await?;
    health::serve(args.metrics_bind_address, status.clone(), shutdown.clone()).await?;
    let settings = ruleset::Settings {
        cluster_cidr: args.cluster_cidr,
    };
    proxier::run(client, node, settings, status, shutdown).await
}

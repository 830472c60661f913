//! cloud-controller-manager: what a cluster needs of the cloud around it. Here that cloud is the host: a Service of type
//! LoadBalancer gets an address of the host's loopback pool, on which connections are taken and passed to node ports.

mod forwarder;
mod pool;
mod service;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use ipnet::Ipv4Net;
use kube::Client;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Opens a connection to a node, wherever the cluster's network is.
pub type Connect =
    Arc<dyn Fn(SocketAddr) -> BoxFuture<'static, std::io::Result<TcpStream>> + Send + Sync>;

/// How the controllers are set up.
#[derive(Clone)]
pub struct Config {
    /// Addresses of the host for load balancers.
    pub load_balancer_pool: Ipv4Net,
    pub connect: Connect,
}

/// Flags of cloud-controller-manager.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Addresses of this host on which load balancers listen.
    #[arg(long, default_value = "127.20.0.0/24")]
    pub load_balancer_pool: Ipv4Net,
}

/// Runs the controllers until shutdown.
///
/// # Errors
/// None; failures are retried and told by events.
pub async fn start(
    config: Config,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    service::run(config, client, shutdown).await
}

/// Runs alone, reaching nodes from the process's own network.
///
/// # Errors
/// When the API's address is unknown.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client =
        fluyt_client::kubeconfig::client(args.kubeconfig.as_deref(), "cloud-controller-manager")
            .await?;
    let config = Config {
        load_balancer_pool: args.load_balancer_pool,
        connect: Arc::new(|address| Box::pin(TcpStream::connect(address))),
    };
    start(config, client, shutdown).await
}

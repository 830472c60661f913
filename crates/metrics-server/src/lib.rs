//! metrics-server: CPU and memory in use, scraped from the kubelets and served as `metrics.k8s.io/v1beta1`.

mod api;
mod samples;
mod scrape;
mod serve;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fluyt_client::Informers;
use tokio_util::sync::CancellationToken;

/// Flags of metrics-server.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    #[arg(long, default_value_t = 4443)]
    pub secure_port: u16,
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    pub bind_address: IpAddr,
    /// Seconds between scrapes.
    #[arg(long, default_value_t = 10)]
    pub metric_resolution_seconds: u64,
    /// Takes any certificate of a kubelet.
    #[arg(long)]
    pub kubelet_insecure_tls: bool,
}

/// Runs until shutdown.
///
/// # Errors
/// When the port is taken or the API's address is unknown.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = match &args.kubeconfig {
        Some(path) => {
            let kubeconfig = kube::config::Kubeconfig::read_from(path)?;
            kube::Config::from_custom_kubeconfig(
                kubeconfig,
                &kube::config::KubeConfigOptions::default(),
            )
            .await?
        }
        None => kube::Config::incluster()?,
    };
    let client = kube::Client::try_from(config.clone())?;
    let informers = Informers::new(client.clone(), shutdown.clone());
    let store = Arc::new(samples::Store::default());
    let api = api::Api::new(store.clone(), informers.get(), informers.get());
    let scraper = scrape::Scraper::new(config, args.kubelet_insecure_tls, informers.get(), store);
    let resolution = Duration::from_secs(args.metric_resolution_seconds.max(1));
    let address = SocketAddr::new(args.bind_address, args.secure_port);
    tokio::select! {
        () = scraper.run(resolution) => Ok(()),
        served = serve::run(api, client, address) => served,
        () = shutdown.cancelled() => Ok(()),
    }
}

//! Command-line flags, with upstream's names, and running as a process of its own.

use std::path::PathBuf;

use anyhow::Context as _;
use fluyt_client::{LeaderElector, kubeconfig, leader_election, serving};
use tokio_util::sync::CancellationToken;

use crate::{Config, configuration::KubeSchedulerConfiguration};

/// Flags of kube-scheduler.
#[derive(Debug, Clone, clap::Args)]
#[command(rename_all = "kebab-case")]
pub struct Args {
    /// Path to a KubeSchedulerConfiguration file
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Path to a kubeconfig file with authorization information; in-cluster configuration without
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Stand for election before scheduling, for replicated control planes
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub leader_elect: bool,
    /// Address on which /healthz and /metrics are served
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: std::net::IpAddr,
    /// Port on which /healthz and /metrics are served with TLS; 0 for not at all
    #[arg(long, default_value_t = 10259)]
    pub secure_port: u16,
}

/// Run as a process of its own: serve health and metrics, stand for election, schedule.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut config = Config::default();
    let (mut leader_elect, mut path) = (args.leader_elect, args.kubeconfig);
    if let Some(file) = &args.config {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let parsed = KubeSchedulerConfiguration::parse(&text)
            .with_context(|| format!("in {}", file.display()))?;
        if !parsed.profiles.is_empty() {
            config.profiles = parsed.profiles;
        }
        leader_elect = parsed
            .leader_election
            .and_then(|of| of.leader_elect)
            .unwrap_or(leader_elect);
        path = path.or(parsed
            .client_connection
            .and_then(|of| of.kubeconfig)
            .map(PathBuf::from));
    }
    let client = kubeconfig::client(path.as_deref(), "kube-scheduler").await?;
    if args.secure_port != 0 {
        let address = std::net::SocketAddr::new(args.bind_address, args.secure_port);
        serving::start(address, "kube-scheduler", shutdown.clone()).await?;
    }
    if !leader_elect {
        return crate::start(config, client, shutdown).await;
    }
    let identity = leader_election::unique_identity();
    let elector = LeaderElector::new(client.clone(), "kube-system", "kube-scheduler", &identity);
    let work = |leading| crate::start(config, client, leading);
    elector.run(shutdown, work).await?.unwrap_or(Ok(()))
}

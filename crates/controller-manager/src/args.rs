//! Command-line flags, with upstream's names, and running as a process of its own.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use fluyt_client::{LeaderElector, ServiceAccountClients, kubeconfig, serving};
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    config::{ClientFor, SigningAuthority},
};

/// Flags of kube-controller-manager.
#[derive(Debug, Clone, clap::Args)]
#[command(rename_all = "kebab-case")]
pub struct Args {
    /// Path to a kubeconfig file with authorization information; in-cluster configuration without
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Controllers to enable: '*' for all, 'foo' for one, '-foo' for all but that one
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "*",
        allow_hyphen_values = true
    )]
    pub controllers: Vec<String>,
    /// Stand for election before running the controllers, for replicated control planes
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub leader_elect: bool,
    /// Address networks of the pods, comma-separated (one per address family)
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    /// Prefix length of a node's pod subnet
    #[arg(long, default_value_t = 24)]
    pub node_cidr_mask_size: u8,
    /// Whether to give nodes subnets of --cluster-cidr
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub allocate_node_cidrs: bool,
    /// Network of the Services' cluster addresses
    #[arg(long)]
    pub service_cluster_ip_range: Option<IpNet>,
    /// PEM file with the certificate of the authority that signs certificate signing requests
    #[arg(long, requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// PEM file with the key of that authority
    #[arg(long, requires = "cluster_signing_cert_file")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// Longest life of a signed certificate, such as 8760h0m0s
    #[arg(long, default_value = "8760h", value_parser = parse_duration)]
    pub cluster_signing_duration: Duration,
    /// PEM file with the authorities to publish in every namespace
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    /// PEM file with the key that signs service-account tokens
    #[arg(long)]
    pub service_account_private_key_file: Option<PathBuf>,
    /// Let each controller act as its own service account
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub use_service_account_credentials: bool,
    /// Number of Deployments that are synced concurrently
    #[arg(long, default_value_t = 5)]
    pub concurrent_deployment_syncs: usize,
    /// Number of ReplicaSets that are synced concurrently
    #[arg(long, default_value_t = 5)]
    pub concurrent_replicaset_syncs: usize,
    /// Number of DaemonSets that are synced concurrently
    #[arg(long, default_value_t = 2)]
    pub concurrent_daemonset_syncs: usize,
    /// Number of StatefulSets that are synced concurrently
    #[arg(long, default_value_t = 5)]
    pub concurrent_statefulset_syncs: usize,
    /// Number of Jobs that are synced concurrently
    #[arg(long, default_value_t = 5)]
    pub concurrent_job_syncs: usize,
    /// Number of CronJobs that are synced concurrently
    #[arg(long, default_value_t = 5)]
    pub concurrent_cron_job_syncs: usize,
    /// Number of Endpoints that are synced concurrently
    #[arg(long, default_value_t = 5)]
    pub concurrent_endpoint_syncs: usize,
    /// Number of Services whose EndpointSlices are synced concurrently
    #[arg(long, default_value_t = 5)]
    pub concurrent_service_endpoint_syncs: usize,
    /// Number of namespaces that are synced concurrently
    #[arg(long, default_value_t = 10)]
    pub concurrent_namespace_syncs: usize,
    /// Number of garbage collector workers
    #[arg(long, default_value_t = 20)]
    pub concurrent_gc_syncs: usize,
    /// Number of ResourceQuotas that are synced concurrently
    #[arg(long, default_value_t = 5)]
    pub concurrent_resource_quota_syncs: usize,
    /// Number of ttl-after-finished workers
    #[arg(long, default_value_t = 5)]
    pub concurrent_ttl_after_finished_syncs: usize,
    /// Period of checking the nodes' health
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub node_monitor_period: Duration,
    /// How long a silent node counts as healthy
    #[arg(long, default_value = "50s", value_parser = parse_duration)]
    pub node_monitor_grace_period: Duration,
    /// How long a starting node that has never reported counts as healthy
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    pub node_startup_grace_period: Duration,
    /// Number of ended pods from which the oldest are deleted; 0 for never
    #[arg(long, default_value_t = 12500)]
    pub terminated_pod_gc_threshold: usize,
    /// Endpoints per EndpointSlice
    #[arg(long, default_value_t = 100)]
    pub max_endpoints_per_slice: usize,

    /// Endpoints objects that are mirrored at the same time
    #[arg(long, default_value_t = 5)]
    pub mirroring_concurrent_service_endpoint_syncs: usize,

    /// Endpoints in a mirrored EndpointSlice
    #[arg(long, default_value_t = 1000)]
    pub mirroring_max_endpoints_per_subset: usize,
    /// Address on which /healthz and /metrics are served
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: std::net::IpAddr,
    /// Port on which /healthz and /metrics are served with TLS; 0 for not at all
    #[arg(long, default_value_t = 10257)]
    pub secure_port: u16,
}

/// A Go duration such as `8760h0m0s` or `300ms`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is not a duration such as 1h30m or 5s");
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(error());
    }
    while !rest.is_empty() && rest != "0" {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(error)?;
        let number: f64 = rest[..digits].parse().map_err(|_| error())?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(error()),
        };
        total += Duration::try_from_secs_f64(number * unit).map_err(|_| error())?;
        rest = &rest[end..];
    }
    Ok(total)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

impl Args {
    /// The configuration that the flags stand for.
    pub fn into_config(self, client_for: ClientFor) -> anyhow::Result<Config> {
        let optional = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        let cluster_signing = match (
            &self.cluster_signing_cert_file,
            &self.cluster_signing_key_file,
        ) {
            (Some(certificate), Some(key)) => Some(SigningAuthority {
                certificate: read(certificate)?,
                key: read(key)?,
            }),
            _ => None,
        };
        Ok(Config {
            controllers: self.controllers,
            client_for,
            informers: None,
            cluster_cidrs: self.cluster_cidr,
            node_cidr_mask_size: self.node_cidr_mask_size,
            allocate_node_cidrs: self.allocate_node_cidrs,
            service_cluster_ip_range: self.service_cluster_ip_range,
            cluster_signing,
            cluster_signing_duration: self.cluster_signing_duration,
            root_ca: optional(&self.root_ca_file)?,
            service_account_private_key: optional(&self.service_account_private_key_file)?,
            concurrent_deployment_syncs: self.concurrent_deployment_syncs,
            concurrent_replicaset_syncs: self.concurrent_replicaset_syncs,
            concurrent_daemonset_syncs: self.concurrent_daemonset_syncs,
            concurrent_statefulset_syncs: self.concurrent_statefulset_syncs,
            concurrent_job_syncs: self.concurrent_job_syncs,
            concurrent_cron_job_syncs: self.concurrent_cron_job_syncs,
            concurrent_endpoint_syncs: self.concurrent_endpoint_syncs,
            concurrent_service_endpoint_syncs: self.concurrent_service_endpoint_syncs,
            concurrent_namespace_syncs: self.concurrent_namespace_syncs,
            concurrent_gc_syncs: self.concurrent_gc_syncs,
            concurrent_resource_quota_syncs: self.concurrent_resource_quota_syncs,
            concurrent_ttl_after_finished_syncs: self.concurrent_ttl_after_finished_syncs,
            node_monitor_period: self.node_monitor_period,
            node_monitor_grace_period: self.node_monitor_grace_period,
            node_startup_grace_period: self.node_startup_grace_period,
            terminated_pod_gc_threshold: self.terminated_pod_gc_threshold,
            max_endpoints_per_slice: self.max_endpoints_per_slice,
            mirroring_concurrent_service_endpoint_syncs: self
                .mirroring_concurrent_service_endpoint_syncs,
            mirroring_max_endpoints_per_subset: self.mirroring_max_endpoints_per_subset,
        })
    }
}

/// Run as a process of its own: serve health and metrics, stand for election, run the controllers.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = kubeconfig::client(args.kubeconfig.as_deref(), "kube-controller-manager").await?;
    let leader_elect = args.leader_elect;
    if args.secure_port != 0 {
        let address = std::net::SocketAddr::new(args.bind_address, args.secure_port);
        serving::start(address, "kube-controller-manager", shutdown.clone()).await?;
    }
    let client_for: ClientFor = if args.use_service_account_credentials {
        let path = args.kubeconfig.as_deref();
        let accounts =
            ServiceAccountClients::new(client.clone(), path, "kube-controller-manager").await?;
        Arc::new(move |account| accounts.client(account))
    } else {
        let client = client.clone();
        Arc::new(move |_| client.clone())
    };
    let config = args.into_config(client_for)?;
    if !leader_elect {
        return crate::start(config, client, shutdown).await;
    }
    let identity = fluyt_client::leader_election::unique_identity();
    let elector = LeaderElector::new(
        client.clone(),
        "kube-system",
        "kube-controller-manager",
        &identity,
    );
    let work = |leading| crate::start(config, client, leading);
    elector.run(shutdown, work).await?.unwrap_or(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        let seconds = |text: &str| parse_duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(seconds("8760h0m0s"), Ok(8760.0 * 3600.0));
        assert_eq!(seconds("1h30m"), Ok(5400.0));
        assert_eq!(seconds("1.5s"), Ok(1.5));
        assert_eq!(seconds("300ms"), Ok(0.3));
        assert_eq!(seconds("0"), Ok(0.0));
        for wrong in ["", "5", "s", "5x", "-5s", "1h5"] {
            assert!(seconds(wrong).is_err(), "{wrong:?}");
        }
    }
}

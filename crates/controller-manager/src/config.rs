//! What the controllers are configured with, whether from flags or by the process that embeds them.

use std::{sync::Arc, time::Duration};

use fluyt_client::Informers;
use ipnet::IpNet;
use kube::Client;

/// Makes the client that acts as a service account of kube-system.
pub type ClientFor = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// A certificate authority's certificate and key, both PEM.
#[derive(Clone)]
pub struct SigningAuthority {
    pub certificate: String,
    pub key: String,
}

/// Configuration of the controller manager; [`Config::for_client`] has upstream's defaults.
#[derive(Clone)]
pub struct Config {
    /// `--controllers`: names, `-name` to disable, `*` for the defaults.
    pub controllers: Vec<String>,
    pub client_for: ClientFor,
    /// Informers to share with other components of the process; own ones if none are given.
    pub informers: Option<Informers>,
    /// Pod addresses, cut into one subnet per node; no node IPAM without.
    pub cluster_cidrs: Vec<IpNet>,
    pub node_cidr_mask_size: u8,
    pub allocate_node_cidrs: bool,
    pub service_cluster_ip_range: Option<IpNet>,
    /// Signs certificate signing requests; none are signed without.
    pub cluster_signing: Option<SigningAuthority>,
    pub cluster_signing_duration: Duration,
    /// PEM of the authorities that clients of this cluster should trust.
    pub root_ca: Option<String>,
    /// PEM of the key that signs legacy service-account tokens.
    pub service_account_private_key: Option<String>,
    pub concurrent_deployment_syncs: usize,
    pub concurrent_replicaset_syncs: usize,
    pub concurrent_daemonset_syncs: usize,
    pub concurrent_statefulset_syncs: usize,
    pub concurrent_job_syncs: usize,
    pub concurrent_cron_job_syncs: usize,
    pub concurrent_endpoint_syncs: usize,
    pub concurrent_service_endpoint_syncs: usize,
    pub concurrent_namespace_syncs: usize,
    pub concurrent_gc_syncs: usize,
    pub concurrent_resource_quota_syncs: usize,
    pub concurrent_ttl_after_finished_syncs: usize,
    pub node_monitor_period: Duration,
    pub node_monitor_grace_period: Duration,
    pub node_startup_grace_period: Duration,
    /// Finished pods beyond this number are deleted; 0 for no limit.
    pub terminated_pod_gc_threshold: usize,
    pub max_endpoints_per_slice: usize,
    pub mirroring_concurrent_service_endpoint_syncs: usize,
    pub mirroring_max_endpoints_per_subset: usize,
}

impl Config {
    /// Upstream's defaults, with all controllers acting as `client`.
    pub fn for_client(client: Client) -> Self {
        Self {
            controllers: vec!["*".to_owned()],
            client_for: Arc::new(move |_| client.clone()),
            informers: None,
            cluster_cidrs: Vec::new(),
            node_cidr_mask_size: 24,
            allocate_node_cidrs: false,
            service_cluster_ip_range: None,
            cluster_signing: None,
            cluster_signing_duration: Duration::from_secs(365 * 24 * 3600),
            root_ca: None,
            service_account_private_key: None,
            concurrent_deployment_syncs: 5,
            concurrent_replicaset_syncs: 5,
            concurrent_daemonset_syncs: 2,
            concurrent_statefulset_syncs: 5,
            concurrent_job_syncs: 5,
            concurrent_cron_job_syncs: 5,
            concurrent_endpoint_syncs: 5,
            concurrent_service_endpoint_syncs: 5,
            concurrent_namespace_syncs: 10,
            concurrent_gc_syncs: 20,
            concurrent_resource_quota_syncs: 5,
            concurrent_ttl_after_finished_syncs: 5,
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            terminated_pod_gc_threshold: 12500,
            max_endpoints_per_slice: 100,
            mirroring_concurrent_service_endpoint_syncs: 5,
            mirroring_max_endpoints_per_subset: 1000,
        }
    }

    /// Whether the controller of this name is to run.
    pub fn is_enabled(&self, name: &str) -> bool {
        let named = |wanted: &str| self.controllers.iter().any(|listed| listed == wanted);
        !named(&format!("-{name}")) && (named("*") || named(name))
    }
}

#[cfg(test)]
mod tests {
    use fluyt_client::fake::FakeApi;

    use super::*;

    #[tokio::test]
    async fn controllers_are_enabled_by_name() {
        let mut config = Config::for_client(FakeApi::new().client());
        assert!(config.is_enabled("deployment-controller"));
        config.controllers = vec!["*".to_owned(), "-deployment-controller".to_owned()];
        assert!(!config.is_enabled("deployment-controller"));
        assert!(config.is_enabled("job-controller"));
        config.controllers = vec!["job-controller".to_owned()];
        assert!(!config.is_enabled("deployment-controller"));
        assert!(config.is_enabled("job-controller"));
    }
}

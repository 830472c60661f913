//! Flags about the `kubernetes` service.

use anyhow::bail;
use clap::ValueEnum;

/// How pods find the servers of the cluster.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Endpoints {
    /// How the endpoints of the kubernetes service are kept: lease (every server that is heard of), master-count (as many as
    /// --apiserver-count says; deprecated) or none (by somebody else).
    #[arg(long, value_enum, default_value = "lease")]
    pub endpoint_reconciler_type: Reconciler,
    /// How many API servers there are, for --endpoint-reconciler-type=master-count; deprecated.
    #[arg(long, default_value_t = 1)]
    pub apiserver_count: i64,
    /// Port of the nodes that leads to the kubernetes service; 0 for none.
    #[arg(long, default_value_t = 0)]
    pub kubernetes_service_node_port: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reconciler {
    Lease,
    MasterCount,
    None,
}

impl Default for Endpoints {
    fn default() -> Self {
        Self {
            endpoint_reconciler_type: Reconciler::Lease,
            apiserver_count: 1,
            kubernetes_service_node_port: 0,
        }
    }
}

impl Endpoints {
    /// # Errors
    /// When a number is out of its range.
    pub fn check(self, node_ports: (u16, u16)) -> anyhow::Result<()> {
        let (port, count) = (self.kubernetes_service_node_port, self.apiserver_count);
        if !(0..=65535).contains(&port) {
            bail!(
                "--kubernetes-service-node-port {port} must be between 0 and 65535, inclusive. If 0, the Kubernetes master service will be of type ClusterIP"
            );
        }
        let (first, last) = node_ports;
        if port > 0 && !(i64::from(first)..=i64::from(last)).contains(&port) {
            bail!("kubernetes service node port range {first}-{last} doesn't contain {port}");
        }
        if count <= 0 {
            bail!("--apiserver-count should be a positive number, but value '{count}' provided");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Endpoints)) -> String {
        let mut endpoints = Endpoints::default();
        change(&mut endpoints);
        endpoints.check((30000, 30010)).unwrap_err().to_string()
    }

    #[test]
    fn numbers_have_their_ranges() {
        assert_eq!(
            refused(|e| e.kubernetes_service_node_port = 70000),
            "--kubernetes-service-node-port 70000 must be between 0 and 65535, inclusive. If 0, the Kubernetes master service will be of type ClusterIP"
        );
        assert_eq!(
            refused(|e| e.kubernetes_service_node_port = 30011),
            "kubernetes service node port range 30000-30010 doesn't contain 30011"
        );
        assert_eq!(
            refused(|e| e.apiserver_count = 0),
            "--apiserver-count should be a positive number, but value '0' provided"
        );
    }
}

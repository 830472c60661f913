//! The machine of a node: what its provider is to make, and what the node agent is told.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::keeper::Kept;
use super::kubeconfig;
use super::record::{Cluster, Node, Pool};
use crate::master::pki::Keys;
use crate::node;
use crate::process::Process;
use crate::providers::{Machine, MachineFile, NodeProvider};
use crate::vm_sizes;

/// A node's machine, kept running.
pub struct NodeMachine {
    pub provider: Arc<dyn NodeProvider>,
    pub machine: Machine,
}

#[async_trait]
impl Kept for NodeMachine {
    fn name(&self) -> String {
        format!("node {}", self.machine.name)
    }

    async fn adopt(&self) -> anyhow::Result<Option<Process>> {
        self.provider.adopt(&self.machine).await
    }

    async fn start(&self) -> anyhow::Result<Process> {
        self.provider.create(&self.machine).await?;
        self.provider.start(&self.machine).await
    }

    async fn stop(&self, running: &Process) -> anyhow::Result<()> {
        self.provider.stop(&self.machine, running).await
    }
}

/// The machine of a node of this pool.
///
/// # Errors
/// When the pool's size is not one any more.
pub fn machine(
    data: &Path,
    cluster: &Cluster,
    pool: &Pool,
    node: &Node,
    keys: &Keys,
) -> anyhow::Result<Machine> {
    let Some(size) = vm_sizes::find(&pool.vm_size) else {
        anyhow::bail!("there is no size {}", pool.vm_size)
    };
    let agent = serde_json::to_string_pretty(&agent(cluster, pool, node))?;
    let file = |path: &str, contents: String| MachineFile {
        path: path.into(),
        contents,
    };
    Ok(Machine {
        cluster: cluster.id.clone(),
        name: node.name.clone(),
        directory: cluster.directory(data).join("nodes").join(&node.name),
        network: cluster.cluster_network(),
        address: node.address,
        milli_cpu: size.milli_cpu(),
        memory_bytes: size.memory_bytes(),
        files: vec![
            file(node::CONFIG, agent),
            file(node::CLUSTER_CA, keys.ca.certificate_pem().to_owned()),
            file(
                node::BOOTSTRAP_KUBECONFIG,
                kubeconfig::bootstrap(cluster, keys)?,
            ),
        ],
    })
}

/// A node's Azure id, as its `providerID` has it.
fn provider_id(cluster: &Cluster, pool: &Pool, node: &Node) -> String {
    let number = node
        .name
        .rsplit_once("vmss")
        .and_then(|(_, n)| u32::from_str_radix(n, 36).ok())
        .unwrap_or_default();
    format!(
        "azure:///subscriptions/{}/resourceGroups/{}/providers/Microsoft.Compute/virtualMachineScaleSets/aks-{}-{}-vmss/virtualMachines/{number}",
        cluster.subscription,
        cluster.node_resource_group.to_lowercase(),
        pool.name,
        pool.digits
    )
}

fn agent(cluster: &Cluster, pool: &Pool, node: &Node) -> node::Config {
    let mode = pool.mode.to_lowercase();
    let labels = [
        ("agentpool", pool.name.as_str()),
        ("kubernetes.azure.com/agentpool", &pool.name),
        ("kubernetes.azure.com/cluster", &cluster.node_resource_group),
        ("kubernetes.azure.com/mode", &mode),
        ("kubernetes.azure.com/os-sku", "Ubuntu"),
        ("kubernetes.azure.com/role", "agent"),
        ("node.kubernetes.io/instance-type", &pool.vm_size),
        ("beta.kubernetes.io/instance-type", &pool.vm_size),
        ("topology.kubernetes.io/region", &cluster.location),
        ("topology.kubernetes.io/zone", "0"),
    ];
    let given = pool
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    node::Config {
        name: node.name.clone(),
        address: node.address,
        provider_id: provider_id(cluster, pool, node),
        labels: labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .chain(given)
            .collect(),
        taints: pool.taints.clone(),
        max_pods: pool.max_pods,
        cluster_dns: cluster.network.dns_service_ip,
        pod_cidr: cluster.network.pods,
        node_cidr: cluster.network.nodes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::record::tests::cluster;

    #[test]
    fn nodes_carry_what_azure_puts_on_them() {
        let cluster = cluster(11);
        let pool = &cluster.pools[0];
        let agent = agent(&cluster, pool, &pool.nodes[10]);
        assert!(
            agent
                .provider_id
                .ends_with("aks-nodepool1-12345678-vmss/virtualMachines/10"),
            "{}",
            agent.provider_id
        );
        assert!(
            agent
                .labels
                .contains(&"kubernetes.azure.com/mode=system".to_owned())
        );
        assert!(
            agent
                .labels
                .contains(&"node.kubernetes.io/instance-type=Standard_D2s_v3".to_owned())
        );
    }
}

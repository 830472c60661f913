//! `fluyt aks create`

use http::Method;
use serde_json::{Map, Value, json};

use super::{LOCATION, Target, parse_tags, set, show, words};
use crate::arm::Arm;
use crate::output::Output;
use crate::{Failure, Result};

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    target: Target,
    #[arg(short, long, default_value = LOCATION)]
    location: String,
    /// Number of nodes in the node pool
    #[arg(short = 'c', long, default_value_t = 3, allow_negative_numbers = true)]
    node_count: i64,
    /// Size of the nodes
    #[arg(short = 's', long)]
    node_vm_size: Option<String>,
    /// Version of Kubernetes, such as 1.36.0
    #[arg(short, long)]
    kubernetes_version: Option<String>,
    /// Name of the first node pool: up to 12 lowercase letters and digits
    #[arg(long, default_value = "nodepool1")]
    nodepool_name: String,
    /// Space-separated labels of the nodes: key=value ...
    #[arg(long, num_args = 1..)]
    nodepool_labels: Vec<String>,
    /// Space-separated taints of the nodes: key=value:effect ...
    #[arg(long, num_args = 1..)]
    nodepool_taints: Vec<String>,
    /// Space-separated tags: key[=value] ...
    #[arg(long, num_args = 0..)]
    tags: Vec<String>,
    /// Most pods on a node
    #[arg(short, long)]
    max_pods: Option<i64>,
    /// Prefix of the cluster's host name; made of group and name by default
    #[arg(short = 'p', long)]
    dns_name_prefix: Option<String>,
    #[arg(long)]
    node_resource_group: Option<String>,
    #[arg(long)]
    pod_cidr: Option<String>,
    #[arg(long)]
    service_cidr: Option<String>,
    #[arg(long)]
    dns_service_ip: Option<String>,
    /// How pods reach the outside: none or loadBalancer
    #[arg(long)]
    outbound_type: Option<String>,
    /// Taken as az takes it; nodes have no SSH server
    #[arg(long)]
    generate_ssh_keys: bool,
    /// Taken as az takes it; nodes have no SSH server
    #[arg(long)]
    no_ssh_key: bool,
    /// Do not wait for the end of the operation
    #[arg(long)]
    no_wait: bool,
    #[arg(short, long, hide = true)]
    yes: bool,
    #[command(flatten)]
    output: Output,
}

pub async fn run(args: Args) -> Result {
    let arm = Arm::connect()?;
    let path = arm.cluster(&args.target.resource_group, &args.target.name);
    match arm.get(&path).await {
        Ok(there) => {
            let name = there["name"].as_str().unwrap_or_default();
            let message = format!(
                "(Conflict) The cluster '{name}' already exists in resource group '{}'.",
                args.target.resource_group
            );
            return Err(Failure::new(message));
        }
        Err(failure) if failure.code == 3 => {}
        Err(failure) => return Err(failure),
    }
    let answer = arm.send(Method::PUT, &path, Some(&body(&args))).await?;
    if args.no_wait {
        return Ok(());
    }
    arm.finish(&answer, "Creating").await?;
    show(&arm, &args.target, args.output).await
}

fn body(args: &Args) -> Value {
    let mut pool = Map::new();
    set(&mut pool, "name", Some(args.nodepool_name.as_str()));
    set(&mut pool, "count", Some(args.node_count));
    set(&mut pool, "mode", Some("System"));
    set(&mut pool, "osType", Some("Linux"));
    set(&mut pool, "type", Some("VirtualMachineScaleSets"));
    set(&mut pool, "vmSize", args.node_vm_size.as_deref());
    set(&mut pool, "maxPods", args.max_pods);
    set(
        &mut pool,
        "nodeLabels",
        (!args.nodepool_labels.is_empty())
            .then(|| json!(parse_tags(&words(&args.nodepool_labels)))),
    );
    set(
        &mut pool,
        "nodeTaints",
        (!args.nodepool_taints.is_empty()).then(|| json!(words(&args.nodepool_taints))),
    );
    let mut network = Map::new();
    set(&mut network, "podCidr", args.pod_cidr.as_deref());
    set(&mut network, "serviceCidr", args.service_cidr.as_deref());
    set(&mut network, "dnsServiceIP", args.dns_service_ip.as_deref());
    set(&mut network, "outboundType", args.outbound_type.as_deref());
    let mut properties = Map::new();
    let prefix = args
        .dns_name_prefix
        .clone()
        .unwrap_or_else(|| dns_prefix(&args.target.name, &args.target.resource_group));
    set(&mut properties, "dnsPrefix", Some(prefix));
    set(
        &mut properties,
        "kubernetesVersion",
        args.kubernetes_version.as_deref(),
    );
    set(
        &mut properties,
        "nodeResourceGroup",
        args.node_resource_group.as_deref(),
    );
    set(&mut properties, "agentPoolProfiles", Some(json!([pool])));
    set(
        &mut properties,
        "networkProfile",
        (!network.is_empty()).then_some(network),
    );
    let mut body = json!({"location": args.location, "identity": {"type": "SystemAssigned"}, "properties": properties});
    if !args.tags.is_empty() {
        body["tags"] = json!(parse_tags(&args.tags));
    }
    body
}

/// Cluster and group, shortened and freed of what a DNS name can't have, as az does it.
fn dns_prefix(name: &str, group: &str) -> String {
    let plain = |text: &str, longest: usize| -> String {
        text.chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .take(longest)
            .collect()
    };
    let mut prefix = plain(name, 10);
    if !prefix.starts_with(|c: char| c.is_ascii_alphabetic()) {
        prefix = format!("a{}", prefix.trim_start_matches('-'));
    }
    format!("{prefix}-{}", plain(group, 16))
        .trim_end_matches('-')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_dns_names() {
        assert_eq!(dns_prefix("demo", "rg"), "demo-rg");
        assert_eq!(
            dns_prefix("1_cluster_with_a_long_name", "my.group"),
            "a1clusterwi-mygroup"
        );
        assert_eq!(dns_prefix("a", "--"), "a");
    }
}

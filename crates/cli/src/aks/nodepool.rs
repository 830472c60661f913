//! `fluyt aks nodepool`

use clap::Subcommand;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::{flatten_all, parse_tags, set, words};
use crate::arm::{Arm, flatten};
use crate::output::{Column, Output};
use crate::{Failure, Result};

const COLUMNS: &[Column] = &[
    ("Name", "/name"),
    ("OsType", "/osType"),
    ("KubernetesVersion", "/orchestratorVersion"),
    ("VmSize", "/vmSize"),
    ("Count", "/count"),
    ("MaxPods", "/maxPods"),
    ("ProvisioningState", "/provisioningState"),
    ("Mode", "/mode"),
];

/// Which pool.
#[derive(clap::Args, Clone, Debug)]
pub struct Target {
    #[command(flatten)]
    cluster: Cluster,
    /// Name of the node pool
    #[arg(short, long, visible_alias = "nodepool-name")]
    name: String,
}

#[derive(clap::Args, Clone, Debug)]
pub struct Cluster {
    /// Name of the resource group
    #[arg(short = 'g', long)]
    resource_group: String,
    /// Name of the managed cluster
    #[arg(long)]
    cluster_name: String,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Add a node pool to the managed Kubernetes cluster
    Add {
        #[command(flatten)]
        target: Target,
        /// Number of nodes
        #[arg(short = 'c', long, default_value_t = 3, allow_negative_numbers = true)]
        node_count: i64,
        /// Size of the nodes
        #[arg(short = 's', long)]
        node_vm_size: Option<String>,
        /// System or User
        #[arg(long, default_value = "User")]
        mode: String,
        #[arg(short, long)]
        kubernetes_version: Option<String>,
        #[arg(short, long)]
        max_pods: Option<i64>,
        /// Space-separated labels: key=value ...
        #[arg(long, num_args = 1..)]
        labels: Vec<String>,
        /// Space-separated taints: key=value:effect ...
        #[arg(long, num_args = 1..)]
        node_taints: Vec<String>,
        /// Space-separated tags: key[=value] ...
        #[arg(long, num_args = 0..)]
        tags: Vec<String>,
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// List node pools in the managed Kubernetes cluster
    List {
        #[command(flatten)]
        cluster: Cluster,
        #[command(flatten)]
        output: Output,
    },
    /// Show the details for a node pool
    Show {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Scale the node pool
    Scale {
        #[command(flatten)]
        target: Target,
        /// Number of nodes
        #[arg(short = 'c', long, allow_negative_numbers = true)]
        node_count: i64,
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Delete the node pool
    Delete {
        #[command(flatten)]
        target: Target,
        #[arg(long)]
        no_wait: bool,
    },
    /// Get the versions that a node pool may have
    GetVersions {
        #[command(flatten)]
        cluster: Cluster,
        #[command(flatten)]
        output: Output,
    },
}

// === impl Target ===

impl Target {
    fn path(&self, arm: &Arm) -> String {
        arm.pool(
            &self.cluster.resource_group,
            &self.cluster.cluster_name,
            &self.name,
        )
    }
}

pub async fn run(command: Command) -> Result {
    let arm = Arm::connect()?;
    match command {
        Command::Add {
            target,
            node_count,
            node_vm_size,
            mode,
            kubernetes_version,
            max_pods,
            labels,
            node_taints,
            tags,
            no_wait,
            output,
        } => {
            let path = target.path(&arm);
            match arm.get(&path).await {
                Ok(_) => {
                    return Err(Failure::new(format!(
                        "Node pool {} already exists, please try a different name, use 'fluyt aks nodepool list' to get current list of node pool",
                        target.name
                    )));
                }
                // Not there, or the cluster is not: the service tells which.
                Err(failure) if failure.code == 3 => {}
                Err(failure) => return Err(failure),
            }
            let mut properties = Map::new();
            set(&mut properties, "count", Some(node_count));
            set(&mut properties, "mode", Some(mode));
            set(&mut properties, "osType", Some("Linux"));
            set(&mut properties, "vmSize", node_vm_size);
            set(&mut properties, "orchestratorVersion", kubernetes_version);
            set(&mut properties, "maxPods", max_pods);
            set(
                &mut properties,
                "nodeLabels",
                (!labels.is_empty()).then(|| json!(parse_tags(&words(&labels)))),
            );
            set(
                &mut properties,
                "nodeTaints",
                (!node_taints.is_empty()).then(|| json!(words(&node_taints))),
            );
            set(
                &mut properties,
                "tags",
                (!tags.is_empty()).then(|| json!(parse_tags(&tags))),
            );
            change(&arm, &path, properties, "Adding", no_wait, output).await
        }
        Command::List { cluster, output } => {
            let list = arm
                .get(&arm.pools(&cluster.resource_group, &cluster.cluster_name))
                .await?;
            output.print(&flatten_all(&list), COLUMNS)
        }
        Command::Show { target, output } => {
            output.print(&flatten(&arm.get(&target.path(&arm)).await?), COLUMNS)
        }
        Command::Scale {
            target,
            node_count,
            no_wait,
            output,
        } => {
            let path = target.path(&arm);
            arm.get(&path).await?;
            let mut properties = Map::new();
            set(&mut properties, "count", Some(node_count));
            change(&arm, &path, properties, "Scaling", no_wait, output).await
        }
        Command::Delete { target, no_wait } => {
            let answer = arm.send(Method::DELETE, &target.path(&arm), None).await?;
            if answer.status == StatusCode::NO_CONTENT {
                return Err(Failure {
                    code: 3,
                    message: format!(
                        "Node pool {} doesnt exist, use 'fluyt aks nodepool list' to get current node pool list",
                        target.name
                    ),
                });
            }
            if no_wait {
                Ok(())
            } else {
                arm.finish(&answer, "Deleting").await
            }
        }
        Command::GetVersions { cluster, output } => {
            let path = format!(
                "{}/availableAgentPoolVersions",
                arm.cluster(&cluster.resource_group, &cluster.cluster_name)
            );
            let answer = arm.get(&path).await?;
            match output.format {
                crate::output::Format::Table => {
                    let versions = answer["properties"]["agentPoolVersions"].clone();
                    output.print(
                        &versions,
                        &[
                            ("KubernetesVersion", "/kubernetesVersion"),
                            ("Default", "/default"),
                        ],
                    )
                }
                _ => output.print(&answer, &[]),
            }
        }
    }
}

async fn change(
    arm: &Arm,
    path: &str,
    properties: Map<String, Value>,
    title: &str,
    no_wait: bool,
    output: Output,
) -> Result {
    let answer = arm
        .send(Method::PUT, path, Some(&json!({"properties": properties})))
        .await?;
    if no_wait {
        return Ok(());
    }
    arm.finish(&answer, title).await?;
    output.print(&flatten(&arm.get(path).await?), COLUMNS)
}

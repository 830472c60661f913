//! `fluyt aks`: the verbs, flags and output of `az aks`.

mod create;
mod get_credentials;
mod nodepool;

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

use clap::Subcommand;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::arm::{Arm, flatten};
use crate::output::{Column, Output};
use crate::{Failure, Result};

/// Where everything is, unless told otherwise.
pub const LOCATION: &str = "local";

const COLUMNS: &[Column] = &[
    ("Name", "/name"),
    ("Location", "/location"),
    ("ResourceGroup", "/resourceGroup"),
    ("KubernetesVersion", "/kubernetesVersion"),
    ("CurrentKubernetesVersion", "/currentKubernetesVersion"),
    ("ProvisioningState", "/provisioningState"),
    ("Fqdn", "/fqdn"),
];

/// Which cluster.
#[derive(clap::Args, Clone, Debug)]
pub struct Target {
    /// Name of the resource group
    #[arg(short = 'g', long)]
    pub resource_group: String,
    /// Name of the managed cluster
    #[arg(short, long)]
    pub name: String,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create a new managed Kubernetes cluster
    Create(create::Args),
    /// Show the details of a managed Kubernetes cluster
    Show {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// List managed Kubernetes clusters
    List {
        /// Name of the resource group
        #[arg(short = 'g', long)]
        resource_group: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Scale the node pool in a managed Kubernetes cluster
    Scale {
        #[command(flatten)]
        target: Target,
        /// Number of nodes in the node pool
        #[arg(short = 'c', long, allow_negative_numbers = true)]
        node_count: i64,
        /// Node pool name; needed if there are several
        #[arg(long)]
        nodepool_name: Option<String>,
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Update the tags of a managed Kubernetes cluster
    Update {
        #[command(flatten)]
        target: Target,
        /// Space-separated tags: key[=value] ...; "" clears them
        #[arg(long, num_args = 0.., required = true)]
        tags: Vec<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Delete a managed Kubernetes cluster
    Delete {
        #[command(flatten)]
        target: Target,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
        #[arg(long)]
        no_wait: bool,
    },
    /// Get access credentials for a managed Kubernetes cluster
    GetCredentials(get_credentials::Args),
    /// Get the versions available for creating a managed Kubernetes cluster
    GetVersions {
        #[arg(short, long, default_value = LOCATION)]
        location: String,
        #[command(flatten)]
        output: Output,
    },
    /// Commands to manage node pools in a managed Kubernetes cluster
    #[command(subcommand)]
    Nodepool(nodepool::Command),
}

pub async fn run(command: Command) -> Result {
    match command {
        Command::Create(args) => create::run(args).await,
        Command::Show { target, output } => {
            let arm = Arm::connect()?;
            show(&arm, &target, output).await
        }
        Command::List {
            resource_group,
            output,
        } => {
            let arm = Arm::connect()?;
            let list = arm.get(&arm.clusters(resource_group.as_deref())).await?;
            output.print(&flatten_all(&list), COLUMNS)
        }
        Command::Scale {
            target,
            node_count,
            nodepool_name,
            no_wait,
            output,
        } => scale(&target, node_count, nodepool_name, no_wait, output).await,
        Command::Update {
            target,
            tags,
            output,
        } => {
            let arm = Arm::connect()?;
            let body = json!({"tags": parse_tags(&tags)});
            let path = arm.cluster(&target.resource_group, &target.name);
            output.print(
                &flatten(&arm.send(Method::PATCH, &path, Some(&body)).await?.body),
                COLUMNS,
            )
        }
        Command::Delete {
            target,
            yes,
            no_wait,
        } => delete(&target, yes, no_wait).await,
        Command::GetCredentials(args) => get_credentials::run(args).await,
        Command::GetVersions {
            location: _,
            output,
        } => {
            let arm = Arm::connect()?;
            versions(&arm.get(&arm.versions()).await?, output)
        }
        Command::Nodepool(command) => nodepool::run(command).await,
    }
}

async fn show(arm: &Arm, target: &Target, output: Output) -> Result {
    let cluster = arm
        .get(&arm.cluster(&target.resource_group, &target.name))
        .await?;
    output.print(&flatten(&cluster), COLUMNS)
}

fn flatten_all(list: &Value) -> Value {
    list["value"]
        .as_array()
        .into_iter()
        .flatten()
        .map(flatten)
        .collect()
}

async fn scale(
    target: &Target,
    count: i64,
    pool: Option<String>,
    no_wait: bool,
    output: Output,
) -> Result {
    let arm = Arm::connect()?;
    let path = arm.cluster(&target.resource_group, &target.name);
    let mut cluster = arm.get(&path).await?;
    let pools = cluster["properties"]["agentPoolProfiles"]
        .as_array_mut()
        .map(std::mem::take)
        .unwrap_or_default();
    let name = match pool {
        Some(name) => name,
        None if pools.len() == 1 => pools[0]["name"].as_str().unwrap_or_default().to_owned(),
        None => return Err(Failure::new("There are more than one node pool in the cluster. Please specify nodepool name or use az aks nodepool command to scale node pool".replace("az ", "fluyt "))),
    };
    if !pools.iter().any(|p| p["name"] == name.as_str()) {
        return Err(Failure {
            code: 3,
            message: format!("The nodepool \"{name}\" was not found."),
        });
    }
    let body = json!({"location": cluster["location"], "properties": {"agentPoolProfiles": [{"name": name, "count": count}]}});
    let answer = arm.send(Method::PUT, &path, Some(&body)).await?;
    if no_wait {
        return Ok(());
    }
    arm.finish(&answer, "Scaling").await?;
    show(&arm, target, output).await
}

async fn delete(target: &Target, yes: bool, no_wait: bool) -> Result {
    let arm = Arm::connect()?;
    if !confirmed_or(yes)? {
        return Ok(());
    }
    let path = arm.cluster(&target.resource_group, &target.name);
    let answer = arm.send(Method::DELETE, &path, None).await?;
    if answer.status == StatusCode::NO_CONTENT {
        let message = format!(
            "(ResourceNotFound) The Resource 'Microsoft.ContainerService/managedClusters/{}' under resource group '{}' was not found.",
            target.name, target.resource_group
        );
        return Err(Failure { code: 3, message });
    }
    if no_wait {
        Ok(())
    } else {
        arm.finish(&answer, "Deleting").await
    }
}

fn versions(answer: &Value, output: Output) -> Result {
    if output.format != crate::output::Format::Table {
        return output.print(answer, &[]);
    }
    let mut rows = Vec::new();
    for minor in answer["values"].as_array().into_iter().flatten() {
        for (version, patch) in minor["patchVersions"].as_object().into_iter().flatten() {
            let upgrades: Vec<&str> = patch["upgrades"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let upgrades = if upgrades.is_empty() {
                "None available".to_owned()
            } else {
                upgrades.join(", ")
            };
            rows.push(json!({"version": version, "upgrades": upgrades, "plan": minor["capabilities"]["supportPlan"][0]}));
        }
    }
    output.print(
        &Value::Array(rows),
        &[
            ("KubernetesVersion", "/version"),
            ("Upgrades", "/upgrades"),
            ("SupportPlan", "/plan"),
        ],
    )
}

/// Tags as az takes them: `key=value` or `key`.
pub fn parse_tags(tags: &[String]) -> BTreeMap<String, String> {
    let words = tags.iter().flat_map(|t| t.split_whitespace());
    words
        .map(|t| t.split_once('=').unwrap_or((t, "")))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

/// The words of a flag that takes several, separated by spaces or commas.
pub fn words(values: &[String]) -> Vec<String> {
    values
        .iter()
        .flat_map(|v| v.split([' ', ',']))
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Adds a field if there is a value for it.
pub fn set(map: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value.into());
    }
}

/// Whether the user is sure.
pub fn confirmed_or(yes: bool) -> Result<bool> {
    if yes {
        Ok(true)
    } else {
        confirmed("Are you sure you want to perform this operation?")
    }
}

/// Asks a yes-or-no question.
fn confirmed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(
            "Unable to prompt for confirmation as no tty available. Use --yes.",
        ));
    }
    print!("{question} (y/n): ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_words() {
        let tags = parse_tags(&["a=b c".to_owned(), "d=e=f".to_owned(), String::new()]);
        assert_eq!(json!(tags), json!({"a": "b", "c": "", "d": "e=f"}));
        assert_eq!(
            words(&["a=b,c=d".to_owned(), "e".to_owned()]),
            ["a=b", "c=d", "e"]
        );
    }
}

//! `fluyt node`: the agent of a node, one process with the container runtime, the kubelet, kube-proxy and the routes to
//! the other nodes.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::tasks::Components;
use crate::{files, logs, routes};

/// Where a machine's file system has the agent's configuration and logs.
pub const CONFIG: &str = "/etc/fluyt/node.json";
pub const LOGS: &str = "/var/log/fluyt";

pub const KUBECONFIG: &str = "/var/lib/kubelet/kubeconfig";
pub const BOOTSTRAP_KUBECONFIG: &str = "/var/lib/kubelet/bootstrap-kubeconfig";
pub const CLUSTER_CA: &str = "/etc/kubernetes/certs/ca.crt";
const CRI_SOCKET: &str = "/run/fluyt/cri.sock";

/// Flags of `fluyt node`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// File with the node's configuration, written by the service
    #[arg(long, default_value = CONFIG)]
    pub config: PathBuf,
}

/// What the service tells a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub name: String,
    pub address: Ipv4Addr,
    pub provider_id: String,
    /// `key=value`.
    pub labels: Vec<String>,
    /// `key=value:effect`.
    pub taints: Vec<String>,
    pub max_pods: u32,
    pub cluster_dns: Ipv4Addr,
    pub pod_cidr: Ipv4Net,
    pub node_cidr: Ipv4Net,
}

/// Runs the agent until shutdown; containers go on without it.
///
/// # Errors
/// When the configuration cannot be read.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config: Config = serde_json::from_str(&files::read(&args.config)?)
        .with_context(|| format!("in {}", args.config.display()))?;
    logs::init(Path::new(LOGS), "node")?;
    let components = Components::new(shutdown);
    let runtime_flags = container_runtime_flags(&config);
    components.spawn("container-runtime", move |shutdown| {
        let args = parse::<fluyt_container_runtime::Args>(&runtime_flags);
        async move { fluyt_container_runtime::run(args?, shutdown).await }
    });
    let kubelet_flags = kubelet_flags(&config);
    components.spawn("kubelet", move |shutdown| {
        let args = parse::<fluyt_kubelet::Args>(&kubelet_flags);
        async move { fluyt_kubelet::run(args?, shutdown).await }
    });
    let proxy_flags = kube_proxy_flags(&config);
    components.spawn("kube-proxy", move |shutdown| {
        let args = parse::<fluyt_kube_proxy::Args>(&proxy_flags);
        async move {
            // It shares the kubelet's identity, which is there once the node has joined.
            if !joined(&shutdown).await? {
                return Ok(());
            }
            fluyt_kube_proxy::run(args?, shutdown).await
        }
    });
    components.spawn("routes", move |shutdown| {
        let name = config.name.clone();
        async move {
            if !joined(&shutdown).await? {
                return Ok(());
            }
            let client =
                fluyt_client::kubeconfig::client(Some(Path::new(KUBECONFIG)), "fluyt-node").await?;
            routes::run(client, None, Some(&name), shutdown).await
        }
    });
    components.finished().await;
    Ok(())
}

/// Resolves when the kubelet has got its certificate; false at shutdown.
async fn joined(shutdown: &CancellationToken) -> anyhow::Result<bool> {
    tokio::select! {
        there = file(Path::new(KUBECONFIG)) => there.map(|()| true),
        () = shutdown.cancelled() => Ok(false),
    }
}

/// Resolves when the file is there.
async fn file(path: &Path) -> anyhow::Result<()> {
    let directory = path.parent().context("a file has a directory")?;
    std::fs::create_dir_all(directory)?;
    let watcher = Inotify::init()?;
    watcher
        .watches()
        .add(directory, WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE)?;
    let mut events = watcher.into_event_stream([0; 1024])?;
    // Looked at after the watch began: nothing is missed.
    while !path.metadata().is_ok_and(|m| m.len() > 0) {
        events
            .next()
            .await
            .context("the watch of a directory ended")??;
    }
    Ok(())
}

/// A component's settings out of its own command line flags: in here it runs as it would alone.
fn parse<A: clap::Args>(flags: &[String]) -> anyhow::Result<A> {
    let command = A::augment_args(clap::Command::new("fluyt").no_binary_name(true));
    let matches = command.try_get_matches_from(flags.iter().map(OsString::from))?;
    Ok(A::from_arg_matches(&matches)?)
}

fn container_runtime_flags(config: &Config) -> Vec<String> {
    // Pods see each other's own addresses; what leaves the cluster's network leaves as the node.
    [
        format!("--listen={CRI_SOCKET}"),
        format!("--cni-non-masquerade-cidr={}", config.pod_cidr),
        format!("--cni-non-masquerade-cidr={}", config.node_cidr),
    ]
    .into()
}

fn kubelet_flags(config: &Config) -> Vec<String> {
    let mut flags = vec![
        format!("--hostname-override={}", config.name),
        format!("--node-ip={}", config.address),
        format!("--provider-id={}", config.provider_id),
        format!("--kubeconfig={KUBECONFIG}"),
        format!("--bootstrap-kubeconfig={BOOTSTRAP_KUBECONFIG}"),
        format!("--client-ca-file={CLUSTER_CA}"),
        format!("--container-runtime-endpoint=unix://{CRI_SOCKET}"),
        format!("--cluster-dns={}", config.cluster_dns),
        "--cluster-domain=cluster.local".to_owned(),
        "--pod-manifest-path=/etc/kubernetes/manifests".to_owned(),
        "--rotate-server-certificates=true".to_owned(),
        "--anonymous-auth=false".to_owned(),
        "--authorization-mode=Webhook".to_owned(),
        format!("--max-pods={}", config.max_pods),
    ];
    if !config.labels.is_empty() {
        flags.push(format!("--node-labels={}", config.labels.join(",")));
    }
    if !config.taints.is_empty() {
        flags.push(format!(
            "--register-with-taints={}",
            config.taints.join(",")
        ));
    }
    flags
}

fn kube_proxy_flags(config: &Config) -> Vec<String> {
    vec![
        format!("--kubeconfig={KUBECONFIG}"),
        format!("--hostname-override={}", config.name),
        format!("--cluster-cidr={}", config.pod_cidr),
        "--proxy-mode=nftables".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_components_know_the_flags_they_are_given() {
        let config = Config {
            name: "aks-a-12345678-vmss000000".into(),
            address: Ipv4Addr::new(10, 224, 0, 4),
            provider_id: "azure:///subscriptions/x".into(),
            labels: vec!["a=b".into(), "c=".into()],
            taints: vec!["x=y:NoSchedule".into()],
            max_pods: 250,
            cluster_dns: Ipv4Addr::new(10, 0, 0, 10),
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            node_cidr: "10.224.0.0/16".parse().unwrap(),
        };
        let kubelet = parse::<fluyt_kubelet::Args>(&kubelet_flags(&config)).unwrap();
        assert_eq!(kubelet.node_labels, ["a=b", "c="]);
        let runtime =
            parse::<fluyt_container_runtime::Args>(&container_runtime_flags(&config)).unwrap();
        assert!(parse::<fluyt_kube_proxy::Args>(&kube_proxy_flags(&config)).is_ok());
        assert_eq!(runtime.cni_non_masquerade_cidr.len(), 2);
    }
}

//! The components: each a process of its own with upstream's flags, and the compositions that the service runs.

use std::ffi::OsString;
use std::path::Path;

use clap::Subcommand;
use fluyt_service::logs::{self, Format};
use fluyt_service::tasks;

use crate::logging::{self, Logged, Logging};

#[derive(Subcommand, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one is made, and it is used at once"
)]
pub enum Command {
    /// The service: clusters as resources of an ARM API
    Serve(fluyt_service::serve::Args),
    /// The control plane of one cluster, in one process
    Master(fluyt_service::master::Args),
    /// The agent of one node, in one process
    Node(fluyt_service::node::Args),
    /// The Kubernetes API server
    #[command(args_override_self = true)]
    KubeApiserver(Logged<fluyt_apiserver::Args>),
    /// The Kubernetes controllers
    #[command(args_override_self = true)]
    KubeControllerManager(Logged<fluyt_controller_manager::Args>),
    /// The Kubernetes scheduler
    #[command(args_override_self = true)]
    KubeScheduler(Logged<fluyt_scheduler::Args>),
    /// The Kubernetes node agent
    #[command(args_override_self = true)]
    Kubelet(Logged<fluyt_kubelet::Args>),
    /// A container runtime, served as CRI
    ContainerRuntime(fluyt_container_runtime::Args),
    /// The Kubernetes service proxy of a node
    #[command(args_override_self = true)]
    KubeProxy(Logged<fluyt_kube_proxy::Args>),
    /// The controllers that know the cloud: load balancers, nodes
    #[command(args_override_self = true)]
    CloudControllerManager(Logged<fluyt_cloud_controller_manager::Args>),
    /// The cluster's DNS server
    Dns(fluyt_dns::Args),
    /// Resource metrics of nodes and pods
    MetricsServer(fluyt_metrics_server::Args),
    /// The key-value store with etcd's API
    Etcd(fluyt_etcd::Args),
    /// The sample application's web front
    SampleWeb(fluyt_sample::web::Args),
    /// The sample application's store
    SampleStore(fluyt_sample::store::Args),
}

impl Command {
    /// The flags that components have in common.
    fn logging(&self) -> Option<&Logging> {
        Some(match self {
            Self::KubeApiserver(of) => &of.logging,
            Self::KubeControllerManager(of) => &of.logging,
            Self::KubeScheduler(of) => &of.logging,
            Self::Kubelet(of) => &of.logging,
            Self::KubeProxy(of) => &of.logging,
            Self::CloudControllerManager(of) => &of.logging,
            _ => return None,
        })
    }
}

/// Names that the binary may be called by.
const NAMES: [&str; 10] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "cloud-controller-manager",
    "kubelet",
    "kube-proxy",
    "container-runtime",
    "dns",
    "metrics-server",
    "etcd",
];

/// The arguments as if the component's name had been given as a command.
pub fn by_name(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments
        .first()
        .map(|first| crate::file_name(Path::new(first)).to_owned())
        .unwrap_or_default();
    if NAMES.contains(&name.as_str()) {
        arguments.insert(1, name.into());
    }
    arguments
}

/// The components that have upstream's flags.
const UPSTREAM: usize = 6;

fn is_upstream(arguments: &[OsString]) -> bool {
    let name = arguments.get(1).and_then(|word| word.to_str());
    name.is_some_and(|name| NAMES[..UPSTREAM].contains(&name))
}

/// What is printed instead of running a component whose version is asked for.
pub fn asked_version(arguments: &[OsString]) -> Option<String> {
    let asked = is_upstream(arguments).then(|| logging::asked_version(&arguments[2..]));
    asked.flatten()
}

/// The arguments of a component as upstream takes them: words of flags may be joined by `_`.
pub fn as_upstream(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if !is_upstream(&arguments) {
        return arguments;
    }
    for argument in &mut arguments[2..] {
        let Some(flag) = argument.to_str().and_then(|text| text.strip_prefix("--")) else {
            continue;
        };
        let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
        if name.contains('_') {
            *argument = format!("--{}{value}", name.replace('_', "-")).into();
        }
    }
    arguments
}

pub async fn run(command: Command) -> anyhow::Result<()> {
    let shutdown = tasks::shutdown_on_signals()?;
    // Those two have log files of their own.
    if !matches!(command, Command::Master(_) | Command::Node(_)) {
        match command.logging() {
            None => logs::init_foreground(0, Vec::new(), Format::Text),
            Some(of) => logs::init_foreground(of.v, of.rules()?, of.logging_format),
        }
    }
    fluyt_memory::give_back_when_idle()?;
    match command {
        Command::Serve(args) => fluyt_service::serve::run(args, shutdown).await,
        Command::Master(args) => fluyt_service::master::run(args, shutdown).await,
        Command::Node(args) => fluyt_service::node::run(args, shutdown).await,
        Command::KubeApiserver(of) => Box::pin(fluyt_apiserver::run(of.args, shutdown)).await,
        Command::KubeControllerManager(of) => {
            fluyt_controller_manager::run(of.args, shutdown).await
        }
        Command::KubeScheduler(of) => fluyt_scheduler::run(of.args, shutdown).await,
        Command::Kubelet(of) => fluyt_kubelet::run(of.args, shutdown).await,
        Command::ContainerRuntime(args) => fluyt_container_runtime::run(args, shutdown).await,
        Command::KubeProxy(of) => fluyt_kube_proxy::run(of.args, shutdown).await,
        Command::CloudControllerManager(of) => {
            fluyt_cloud_controller_manager::run(of.args, shutdown).await
        }
        Command::Dns(args) => fluyt_dns::run(args, shutdown).await,
        Command::MetricsServer(args) => fluyt_metrics_server::run(args, shutdown).await,
        Command::Etcd(args) => fluyt_etcd::run(args, shutdown).await,
        Command::SampleWeb(args) => fluyt_sample::web::run(args, shutdown).await,
        Command::SampleStore(args) => fluyt_sample::store::run(args, shutdown).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_a_command() {
        let arguments = by_name(vec!["/usr/bin/kubelet".into(), "--v=2".into()]);
        assert_eq!(arguments, ["/usr/bin/kubelet", "kubelet", "--v=2"]);
        assert_eq!(
            by_name(vec!["./fluyt".into(), "serve".into()]),
            ["./fluyt", "serve"]
        );
    }

    #[test]
    fn words_of_flags_may_be_joined_by_underscores() {
        let arguments = ["fluyt", "kubelet", "--node_ip=a_b", "--v=2", "a_b"];
        let arguments = as_upstream(arguments.map(OsString::from).into());
        assert_eq!(
            arguments,
            ["fluyt", "kubelet", "--node-ip=a_b", "--v=2", "a_b"]
        );
        let others = ["fluyt", "serve", "--a_b"];
        let taken = as_upstream(others.map(OsString::from).into());
        assert_eq!(taken, others);
    }
}

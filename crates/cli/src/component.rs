//! The components: each a process of its own with upstream's flags, and the compositions that the service runs.

use std::ffi::OsString;
use std::path::Path;

use clap::Subcommand;
use fluyt_service::logs::{self, Format};
use fluyt_service::tasks;

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
    KubeApiserver(Logged<fluyt_apiserver::Args>),
    /// The Kubernetes controllers
    KubeControllerManager(Logged<fluyt_controller_manager::Args>),
    /// The Kubernetes scheduler
    KubeScheduler(Logged<fluyt_scheduler::Args>),
    /// The Kubernetes node agent
    Kubelet(Logged<fluyt_kubelet::Args>),
    /// A container runtime, served as CRI
    ContainerRuntime(fluyt_container_runtime::Args),
    /// The Kubernetes service proxy of a node
    KubeProxy(Logged<fluyt_kube_proxy::Args>),
    /// The controllers that know the cloud: load balancers, nodes
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

/// The flags of a component, and upstream's of how much it logs.
#[derive(clap::Args, Debug)]
pub struct Logged<T: clap::Args> {
    #[command(flatten)]
    args: T,
    /// Log level: 0 to 3 tell what happens, 4 and 5 more, higher ones everything.
    #[arg(long, short, default_value_t = 0)]
    v: u8,
    /// Log format: text, or json for an object a line.
    #[arg(long, default_value = "text", value_parser = format)]
    logging_format: Format,
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        other => Err(format!(
            "format: Invalid value: {other:?}: Unsupported log format"
        )),
    }
}

impl Command {
    /// The log level and format that were asked for.
    fn logging(&self) -> (u8, Format) {
        match self {
            Self::KubeApiserver(of) => (of.v, of.logging_format),
            Self::KubeControllerManager(of) => (of.v, of.logging_format),
            Self::KubeScheduler(of) => (of.v, of.logging_format),
            Self::Kubelet(of) => (of.v, of.logging_format),
            Self::KubeProxy(of) => (of.v, of.logging_format),
            Self::CloudControllerManager(of) => (of.v, of.logging_format),
            _ => (0, Format::Text),
        }
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

pub async fn run(command: Command) -> anyhow::Result<()> {
    let shutdown = tasks::shutdown_on_signals()?;
    // Those two have log files of their own.
    if !matches!(command, Command::Master(_) | Command::Node(_)) {
        let (verbosity, format) = command.logging();
        logs::init_foreground(verbosity, format);
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
}

//! The runtime as a process, or as a part of one: flags, recovery, sockets.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use fluyt_network::{PodNetwork, PodNetworkConfig};
use ipnet::Ipv4Net;
use k8s_cri::v1::image_service_server::ImageServiceServer;
use k8s_cri::v1::runtime_service_server::RuntimeServiceServer;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::cri::{ImageService, RuntimeService};
use crate::image::ImageStore;
use crate::runtime::{Options, Runtime};
use crate::shim;
use crate::streaming::StreamingServer;

/// Bytes of a CRI message; upstream's kubelet allows as much.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Flags of `fluyt container-runtime`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Directory of sandboxes, containers and their writable layers
    #[arg(long, default_value = "/var/lib/fluyt/node")]
    pub root: PathBuf,
    /// Directory of sockets and of state that ends with the machine
    #[arg(long, default_value = "/run/fluyt/node")]
    pub state: PathBuf,
    /// Directory of the image store, which several runtimes of a host may share
    #[arg(long, default_value = "/var/lib/fluyt/images")]
    pub image_store: PathBuf,
    /// Unix socket to serve CRI on
    #[arg(long, default_value = "/run/fluyt/cri.sock")]
    pub listen: PathBuf,
    /// Address of the server that exec, attach and port-forward are streamed through
    #[arg(long, default_value = "127.0.0.1:0")]
    pub stream_address: SocketAddr,
    /// Registry (host:port) to speak to without TLS; may be given several times
    #[arg(long)]
    pub insecure_registry: Vec<String>,
    /// Pods' addresses, if not given by the kubelet through CRI
    #[arg(long)]
    pub pod_cidr: Option<Ipv4Net>,
    /// Bridge that the node's pods are attached to
    #[arg(long, default_value = "cbr0")]
    pub cni_bridge: String,
    /// MTU of the bridge and of pods' interfaces
    #[arg(long, default_value_t = 1500)]
    pub cni_mtu: u32,
    /// Destinations that see pods' own addresses; others see the node's. May be given several times; without it there is no NAT
    #[arg(long)]
    pub cni_non_masquerade_cidr: Vec<Ipv4Net>,
    /// Command line of a shim, by default `<this executable> shim`
    #[arg(long, hide = true, num_args = 1..)]
    pub shim_command: Vec<OsString>,
}

/// Serves CRI until shutdown. Sandboxes and containers go on without it.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    let images = ImageStore::open(&args.image_store)?;
    let network = PodNetwork::new(PodNetworkConfig {
        directory: args.root.join("network"),
        bridge: args.cni_bridge.clone(),
        mtu: args.cni_mtu,
        non_masquerade: args.cni_non_masquerade_cidr.clone(),
    })?;
    if let Some(cidr) = args.pod_cidr {
        network.set_pod_cidr(cidr).await?;
    }
    let options = Options {
        root: args.root.clone(),
        state: args.state.clone(),
        shim_command: shim_command(&args),
    };
    let runtime = Runtime::new(options, images, network)?;
    runtime.recover().await?;

    let streams = TcpListener::bind(args.stream_address)
        .await
        .with_context(|| format!("listening on {}", args.stream_address))?;
    let streaming = StreamingServer::new(streams.local_addr()?);
    let serving_streams = tokio::spawn(streaming.clone().serve(
        streams,
        Arc::clone(&runtime),
        shutdown.clone(),
    ));
    let listener = listen(&args.listen)?;
    tracing::info!(socket = %args.listen.display(), "serving CRI");
    tonic::transport::Server::builder()
        .add_service(
            RuntimeServiceServer::new(RuntimeService::new(Arc::clone(&runtime), streaming))
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            ImageServiceServer::new(ImageService::new(runtime, args.insecure_registry))
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled())
        .await
        .context("serving CRI")?;
    let _ = serving_streams.await;
    Ok(())
}

fn shim_command(args: &Args) -> Vec<OsString> {
    if args.shim_command.is_empty() {
        // By this name the executable is found even if it was replaced or removed meanwhile.
        vec!["/proc/self/exe".into(), shim::COMMAND.into()]
    } else {
        args.shim_command.clone()
    }
}

/// Listens on a unix socket that only root may use, replacing one that a dead process left.
fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;

    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::bail!("{} is in use by another process", path.display());
    }
    let _ = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protecting {}", path.display()))?;
    Ok(listener)
}

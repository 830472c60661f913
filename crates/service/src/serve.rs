//! `fluyt serve`: the service as a daemon.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::record::ProvisioningState;
use crate::process::ProcessId;
use crate::providers::sandbox::Sandbox;
use crate::service::{Service, Settings};
use crate::state::{State, Tables};
use crate::{arm, files, images};

/// Where the service keeps everything.
pub const DATA_DIR: &str = "/var/lib/fluyt";

/// What does not outlive the host.
const RUN_DIR: &str = "/run/fluyt";

/// Connections and supervisors may take this long to come to rest.
const GRACE: Duration = Duration::from_secs(3);

/// Flags of `fluyt serve`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8443")]
    pub listen: SocketAddr,
    /// Directory for all state: clusters, images, keys
    #[arg(long, default_value = DATA_DIR)]
    pub data_dir: PathBuf,
    /// How much memory all nodes together may have, in multiples of the host's
    #[arg(long, default_value_t = 8.0)]
    pub memory_overcommit: f64,
    /// Instead of serving: end the running service, delete all clusters, and remove every trace of them from this host
    #[arg(long)]
    pub stop_all: bool,
}

/// Where a client on this host finds address, authority and token.
#[must_use]
pub fn directory(data: &Path) -> PathBuf {
    data.join("service")
}

fn identity_file() -> PathBuf {
    Path::new(RUN_DIR).join("serve.json")
}

/// Serves until shutdown; clusters go on without us.
///
/// # Errors
/// Without root, when the port is taken, or when the state cannot be used.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("fluyt serve must be run as root: it makes namespaces and control groups");
    }
    if args.stop_all {
        return stop_all(args, shutdown).await;
    }
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    let directory = directory(&args.data_dir);
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    let service = open(&args, shutdown).await?;
    let store = args.data_dir.join("images");
    tokio::task::spawn_blocking(move || images::ensure(&store))
        .await?
        .context("making the add-ons' images")?;
    let (identity, token) = arm::server::identity(&directory, address.ip())?;
    files::write(
        &directory.join("endpoint"),
        format!("https://{address}").as_bytes(),
        0o644,
    )?;
    let me = ProcessId::of(std::process::id().cast_signed())?;
    files::write_private(&identity_file(), &serde_json::to_vec(&me)?)?;

    service.resume();
    tracing::info!(%address, data = %args.data_dir.display(), "the service is ready");
    let served = arm::server::serve(service.clone(), listener, &identity, &token).await;
    service.shutdown.cancel();
    service.supervisors.close();
    let _ = tokio::time::timeout(GRACE, service.supervisors.wait()).await;
    let _ = std::fs::remove_file(identity_file());
    tracing::info!("the service ends; clusters go on");
    served
}

async fn open(args: &Args, shutdown: CancellationToken) -> anyhow::Result<Arc<Service>> {
    let state = State::open(&directory(&args.data_dir).join("store")).await?;
    Ok(Arc::new(Service {
        settings: Settings {
            data_dir: args.data_dir.clone(),
            memory_overcommit: args.memory_overcommit,
            host_memory: host_memory()?,
        },
        state,
        provider: Arc::new(Sandbox {
            image_store: args.data_dir.join("images"),
        }),
        supervisors: TaskTracker::new(),
        shutdown,
    }))
}

/// Bytes of memory of this host.
fn host_memory() -> anyhow::Result<u64> {
    let text = files::read(Path::new("/proc/meminfo"))?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .context("/proc/meminfo has no MemTotal")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

/// Ends the service if it runs, and deletes everything that it made.
async fn stop_all(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    if let Ok(id) = files::read(&identity_file())
        && let Some(running) = serde_json::from_str::<ProcessId>(&id)?.open()?
    {
        running.stop(Duration::from_secs(10)).await;
    }
    if directory(&args.data_dir).exists() {
        let service = open(&args, shutdown).await?;
        let delete = |tables: &mut Tables| {
            for key in tables.clusters.keys().cloned().collect::<Vec<_>>() {
                tables.edit(&key, |cluster| cluster.state = ProvisioningState::Deleting);
            }
            anyhow::Ok(())
        };
        service.state.update(delete).await?;
        service.resume();
        service.supervisors.close();
        tokio::select! {
            () = service.supervisors.wait() => {}
            () = service.shutdown.cancelled() => bail!("interrupted; not everything is removed"),
        }
        if !service.state.read().clusters.is_empty() {
            bail!("not all clusters could be deleted; see the messages above");
        }
    }
    for directory in [args.data_dir.as_path(), Path::new(RUN_DIR)] {
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", directory.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

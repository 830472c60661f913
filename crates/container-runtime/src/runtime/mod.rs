//! Pod sandboxes and containers: what CRI's operations do. One file per operation, or per group of small ones.

mod attach;
mod container;
mod container_create;
mod container_list;
mod container_remove;
mod container_start;
mod container_stop;
mod container_update;
mod events;
mod exec;
mod recover;
mod sandbox;
mod sandbox_list;
mod sandbox_remove;
mod sandbox_run;
mod sandbox_stop;
mod stats;

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use fluyt_network::PodNetwork;
use k8s_cri::v1 as cri;
use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::image::{self, ImageStore};

pub use attach::AttachStreams;
pub use container::{Container, Phase};
pub use exec::{ExecStreams, TerminalSize};
pub use sandbox::Sandbox;

/// Events that a slow listener may miss before it has to list.
const EVENTS: usize = 1024;

/// Where things are and how shims are started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Sandboxes, containers and their writable layers; survives a reboot.
    pub root: PathBuf,
    /// Sockets and libcontainer's state; gone after a reboot.
    pub state: PathBuf,
    /// The command line of a shim, to which the path of its configuration is added.
    pub shim_command: Vec<OsString>,
}

/// The runtime's state, shared by all requests.
#[derive(Debug)]
pub struct Runtime {
    pub options: Options,
    pub images: ImageStore,
    pub network: PodNetwork,
    sandboxes: Mutex<HashMap<String, Arc<Sandbox>>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    events: broadcast::Sender<cri::ContainerEventResponse>,
    /// Our name in the image store.
    owner: String,
}

/// An operation's failure, by the gRPC code it has in CRI.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    AlreadyExists(String),
    #[error("{0}")]
    InvalidArgument(String),
    #[error("{0}")]
    FailedPrecondition(String),
    #[error("{0}")]
    DeadlineExceeded(String),
    #[error("{0}")]
    Internal(String),
}

pub type Result<T> = std::result::Result<T, Error>;

// === impl Runtime ===

impl Runtime {
    /// The runtime without the sandboxes that a former process left; see [`Self::recover`].
    pub fn new(options: Options, images: ImageStore, network: PodNetwork) -> Result<Arc<Self>> {
        for directory in [
            options.root.join("sandboxes"),
            options.state.join("c"),
            options.state.join("s"),
        ] {
            std::fs::create_dir_all(&directory).map_err(|error| {
                Error::Internal(format!("creating {}: {error}", directory.display()))
            })?;
        }
        // Names that last as long as the root directory does, so that a restart finds what it holds.
        let owner = owner(&options.root)?;
        Ok(Arc::new(Self {
            options,
            images,
            network,
            sandboxes: Mutex::new(HashMap::new()),
            containers: Mutex::new(HashMap::new()),
            events: broadcast::channel(EVENTS).0,
            owner,
        }))
    }

    /// Under what name this node holds images in the store; for releasing them when the node is deleted.
    pub fn image_owner(&self) -> &str {
        &self.owner
    }

    /// The sandbox with this id, or the only one whose id starts so.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        find(&self.sandboxes.lock(), id).ok_or_else(|| {
            Error::NotFound(format!(
                "an error occurred when try to find sandbox: not found: {id}"
            ))
        })
    }

    /// The container with this id, or the only one whose id starts so.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        find(&self.containers.lock(), id).ok_or_else(|| {
            Error::NotFound(format!(
                "an error occurred when try to find container {id:?}: not found"
            ))
        })
    }

    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.sandboxes.lock().values().cloned().collect()
    }

    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.lock().values().cloned().collect()
    }

    fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.containers
            .lock()
            .values()
            .filter(|container| container.sandbox.id == sandbox)
            .cloned()
            .collect()
    }
}

fn find<T>(all: &HashMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if let Some(found) = all.get(id) {
        return Some(Arc::clone(found));
    }
    if id.is_empty() {
        return None;
    }
    let mut starting = all.iter().filter(|(other, _)| other.starts_with(id));
    match (starting.next(), starting.next()) {
        (Some((_, found)), None) => Some(Arc::clone(found)),
        _ => None,
    }
}

fn owner(root: &std::path::Path) -> Result<String> {
    let path = root.join("image-owner");
    if let Ok(owner) = std::fs::read_to_string(&path) {
        return Ok(owner);
    }
    let owner = uuid::Uuid::new_v4().simple().to_string();
    write_atomically(&path, owner.as_bytes())?;
    Ok(owner)
}

/// A new sandbox's or container's id: 64 hexadecimal digits.
fn new_id() -> String {
    format!(
        "{}{}",
        uuid::Uuid::new_v4().simple(),
        uuid::Uuid::new_v4().simple()
    )
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

fn write_atomically(path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|error| Error::Internal(format!("writing {}: {error}", path.display())))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::Internal(format!("a task panicked: {error}"))))
}

// === impl Error ===

impl Error {
    pub fn internal(what: &str, error: impl std::fmt::Display) -> Self {
        Self::Internal(format!("{what}: {error}"))
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound(message) => Self::not_found(message),
            Error::AlreadyExists(message) => Self::already_exists(message),
            Error::InvalidArgument(message) => Self::invalid_argument(message),
            Error::FailedPrecondition(message) => Self::failed_precondition(message),
            Error::DeadlineExceeded(message) => Self::deadline_exceeded(message),
            Error::Internal(message) => Self::unknown(message),
        }
    }
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Self {
        let message = error.to_string();
        match error {
            image::Error::NotFound(_) => Self::NotFound(message),
            image::Error::InvalidReference(..) => Self::InvalidArgument(message),
            _ => Self::Internal(message),
        }
    }
}

impl From<fluyt_network::Error> for Error {
    fn from(error: fluyt_network::Error) -> Self {
        Self::Internal(format!("failed to setup network for sandbox: {error}"))
    }
}

impl From<crate::spec::Invalid> for Error {
    fn from(error: crate::spec::Invalid) -> Self {
        Self::InvalidArgument(error.to_string())
    }
}

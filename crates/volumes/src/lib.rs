//! Volumes of a pod, one file per type: how each is set up under
//! `<kubelet root>/pods/<uid>/volumes/kubernetes.io~<plugin>/<name>`, refreshed when what it shows
//! changes, and taken away again.
//!
//! Nothing here remembers anything: [`set_up`] may be called any number of times, also by a kubelet that was
//! just restarted, and brings the directory to the state the pod asks for.

mod config_map;
mod downward_api;
mod empty_dir;
mod host_path;
mod local;
mod mount;
mod persistent_volume_claim;
mod projected;
mod secret;

pub mod atomic_writer;
pub mod field_ref;
pub mod ownership;
pub mod quantity;
pub mod resource_field_ref;
pub mod subpath;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Volume,
};

pub use mount::{is_mount_point, mounts_under, unmount};

/// Why a volume can't be set up. The text is what a `FailedMount` event shows.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A ConfigMap or Secret the volume names, and did not call optional, isn't there.
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    /// The volume names a key that its ConfigMap or Secret hasn't got.
    #[error("references non-existent {kind} key: {key}")]
    NoSuchKey { kind: &'static str, key: String },
    /// The source is of a type this node has no plugin for.
    #[error("no volume plugin matched")]
    NoPlugin,
    #[error("{0}")]
    Invalid(String),
    /// A claim that isn't bound yet, or is bound to something that can't be used here.
    #[error("{0}")]
    Claim(String),
    #[error("{0}")]
    Api(String),
    #[error("{context}: {source}")]
    Io {
        context: String,
        source: std::io::Error,
    },
}

impl VolumeError {
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> VolumeError {
        let context = context.into();
        move |source| VolumeError::Io { context, source }
    }

    pub(crate) fn nix(context: impl Into<String>) -> impl FnOnce(nix::Error) -> VolumeError {
        let context = context.into();
        move |errno| VolumeError::Io {
            context,
            source: errno.into(),
        }
    }
}

/// A service account token of a pod and when to ask for the next one.
#[derive(Clone, Debug)]
pub struct Token {
    pub token: String,
    pub refresh_at: Timestamp,
}

/// The API objects that volumes show. The kubelet implements it over watches, tests over maps.
#[async_trait]
pub trait Objects: Send + Sync {
    async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ConfigMap>>, VolumeError>;
    async fn secret(&self, namespace: &str, name: &str)
    -> Result<Option<Arc<Secret>>, VolumeError>;
    /// A token bound to the pod, for `audience` (the API server's own when `None`).
    async fn service_account_token(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        expiration_seconds: i64,
    ) -> Result<Token, VolumeError>;
    async fn persistent_volume_claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, VolumeError>;
    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, VolumeError>;
    async fn cluster_trust_bundles(&self) -> Result<Vec<ClusterTrustBundle>, VolumeError>;
}

/// What every volume type needs to know of the node.
pub struct Context {
    /// `/var/lib/kubelet`, or what `--root-dir` says.
    pub root_dir: PathBuf,
    pub objects: Arc<dyn Objects>,
    /// What `resourceFieldRef` shows where the container sets no limit.
    pub allocatable: resource_field_ref::Allocatable,
}

impl Context {
    /// `<root>/pods/<uid>`
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    /// `<root>/pods/<uid>/volumes/kubernetes.io~<plugin>/<name>`
    pub fn volume_dir(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.pod_dir(uid)
            .join("volumes")
            .join(format!("kubernetes.io~{plugin}"))
            .join(name)
    }
}

/// A volume that is ready to be mounted into containers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mounted {
    /// What a container's mount binds; for `hostPath` the host's own path.
    pub host_path: PathBuf,
    /// The source itself is read-only, whatever the container's mount says.
    pub read_only: bool,
    /// When [`set_up`] should run again although no object changed (token rotation).
    pub refresh_at: Option<Timestamp>,
    /// A `subPath` that isn't there may be created (directories of ours, not a device or a file).
    pub can_create_subpath: bool,
}

/// Brings one volume of the pod to its wanted state and says where it is.
pub async fn set_up(context: &Context, pod: &Pod, volume: &Volume) -> Result<Mounted, VolumeError> {
    if let Some(source) = &volume.empty_dir {
        empty_dir::set_up(context, pod, &volume.name, source)
    } else if let Some(source) = &volume.host_path {
        host_path::set_up(source)
    } else if let Some(source) = &volume.config_map {
        config_map::set_up(context, pod, &volume.name, source).await
    } else if let Some(source) = &volume.secret {
        secret::set_up(context, pod, &volume.name, source).await
    } else if let Some(source) = &volume.projected {
        projected::set_up(context, pod, &volume.name, source).await
    } else if let Some(source) = &volume.downward_api {
        downward_api::set_up(context, pod, &volume.name, source)
    } else if let Some(source) = &volume.persistent_volume_claim {
        persistent_volume_claim::set_up(
            context,
            pod,
            &volume.name,
            &source.claim_name,
            source.read_only.unwrap_or(false),
        )
        .await
    } else if volume.ephemeral.is_some() {
        // The ephemeral-volume controller names the claim after pod and volume.
        let claim = format!(
            "{}-{}",
            pod.metadata.name.as_deref().unwrap_or_default(),
            volume.name
        );
        persistent_volume_claim::set_up(context, pod, &volume.name, &claim, false).await
    } else {
        Err(VolumeError::NoPlugin)
    }
}

/// Takes every volume of a pod away: unmounts what is mounted below the pod's directory, then removes the
/// directory. Never follows a mount: data of a volume that is still mounted is not deleted.
pub fn tear_down_pod(context: &Context, uid: &str) -> Result<(), VolumeError> {
    let dir = context.pod_dir(uid);
    if !dir.exists() {
        return Ok(());
    }
    let mut mounts = mounts_under(&dir)?;
    // The deepest first.
    mounts.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
    for mount in mounts {
        unmount(&mount)?;
    }
    remove_tree(&dir)
}

/// Pods that have a directory here, by uid: what a restarted kubelet looks through for orphans.
pub fn pod_dirs(root_dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root_dir.join("pods")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn remove_tree(dir: &Path) -> Result<(), VolumeError> {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(VolumeError::Io {
            context: format!("removing {}", dir.display()),
            source: error,
        }),
    }
}

pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub(crate) fn fs_group(pod: &Pod) -> Option<u32> {
    pod.spec
        .as_ref()?
        .security_context
        .as_ref()?
        .fs_group
        .and_then(|group| u32::try_from(group).ok())
}

#[cfg(test)]
pub(crate) mod fake;

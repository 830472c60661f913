//! The volumes of the pods here: set up before the containers start, refreshed when what they show changes, taken
//! away when the pod is gone.

use std::collections::{BTreeMap, BTreeSet};

use fluyt_volumes::{Context, Mounted, VolumeError};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::pod::PodExt;

pub struct VolumeManager {
    pub context: Context,
}

/// Volumes that are ready, and when they want to be refreshed.
#[derive(Debug, Default)]
pub struct Ready {
    pub mounted: BTreeMap<String, Mounted>,
    pub refresh_at: Option<Timestamp>,
}

/// A volume that isn't, for the `FailedMount` event.
#[derive(Debug)]
pub struct Failed {
    pub volume: String,
    pub error: VolumeError,
}

impl VolumeManager {
    /// Brings every volume that a container mounts to its wanted state.
    pub async fn ensure(&self, pod: &Pod) -> Result<Ready, Failed> {
        let dir = self.context.pod_dir(pod.uid());
        for sub in ["volumes", "containers"] {
            std::fs::create_dir_all(dir.join(sub)).map_err(|source| Failed {
                volume: String::new(),
                error: VolumeError::Io {
                    context: format!("creating {}", dir.display()),
                    source,
                },
            })?;
        }
        let mut ready = Ready::default();
        for volume in used(pod) {
            let mounted = fluyt_volumes::set_up(&self.context, pod, volume)
                .await
                .map_err(|error| Failed {
                    volume: volume.name.clone(),
                    error,
                })?;
            if let Some(at) = mounted.refresh_at {
                ready.refresh_at = Some(ready.refresh_at.map_or(at, |known| known.min(at)));
            }
            ready.mounted.insert(volume.name.clone(), mounted);
        }
        Ok(ready)
    }

    /// Takes all of a pod's volumes and its directory away.
    pub fn tear_down(&self, uid: &str) -> Result<(), VolumeError> {
        fluyt_volumes::tear_down_pod(&self.context, uid)
    }
}

/// Volumes that some container mounts; others are not set up.
fn used(pod: &Pod) -> Vec<&Volume> {
    let ephemeral = pod.ephemeral_containers();
    let names: BTreeSet<String> = pod
        .spec()
        .containers
        .iter()
        .chain(pod.init_containers())
        .chain(&ephemeral)
        .flat_map(|container| container.volume_mounts.iter().flatten())
        .map(|mount| mount.name.clone())
        .collect();
    pod.spec()
        .volumes
        .iter()
        .flatten()
        .filter(|volume| names.contains(&volume.name))
        .collect()
}

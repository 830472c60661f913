//! `local`: a directory of this node as a persistent volume. It is bound below the pod's directory so that taking the
//! pod away can't touch the data.

use std::path::Path;

use k8s_openapi::api::core::v1::{LocalVolumeSource, PersistentVolume, Pod};

use crate::{Context, Mounted, VolumeError, mount, ownership, uid};

/// Set on volumes of the default storage class: their directory is made when it is first used.
pub const PROVISIONED_BY: &str = "fluyt.io/provisioned-by";

pub fn set_up(
    context: &Context,
    pod: &Pod,
    name: &str,
    volume: &PersistentVolume,
    source: &LocalVolumeSource,
    read_only: bool,
) -> Result<Mounted, VolumeError> {
    let path = Path::new(&source.path);
    let ours = volume
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(PROVISIONED_BY))
        .is_some_and(|by| by == "local");
    if ours {
        std::fs::create_dir_all(path)
            .map_err(VolumeError::io(format!("creating {}", path.display())))?;
    } else if !path.exists() {
        return Err(VolumeError::Invalid(format!(
            "path {:?} does not exist",
            source.path
        )));
    }
    let dir = context.volume_dir(uid(pod), "local-volume", name);
    std::fs::create_dir_all(&dir)
        .map_err(VolumeError::io(format!("creating {}", dir.display())))?;
    if !mount::is_mount_point(&dir)? {
        mount::bind(path, &dir)?;
        if !read_only {
            ownership::apply_fs_group(pod, &dir, read_only)?;
        }
    }
    Ok(Mounted {
        host_path: dir,
        read_only,
        can_create_subpath: true,
        ..Mounted::default()
    })
}

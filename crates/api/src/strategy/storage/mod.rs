//! Storage: volumes, claims, and the kinds of `storage.k8s.io`.

mod attachment;
pub(super) mod claim;
mod class;
mod csi;
mod volume;

pub(super) use attachment::VolumeAttachment;
pub(super) use claim::PersistentVolumeClaim;
pub(super) use class::{StorageClass, VolumeAttributesClass};
pub(super) use csi::{CsiDriver, CsiNode, CsiStorageCapacity};
pub(super) use volume::PersistentVolume;

use crate::validation::{At, Errors};

/// As messages list them.
const ACCESS_MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const BETA_CLASS_WARNING: &str =
    "deprecated since v1.8; use \"storageClassName\" attribute instead";

fn validate_access_modes(modes: &At<'_, '_>, errors: &mut Errors) {
    for mode in modes.list() {
        if !mode.as_str().is_some_and(|m| ACCESS_MODES.contains(&m)) {
            errors.not_supported(modes, mode, ACCESS_MODES);
        }
    }
    let known = |m: &&serde_json::Value| m.as_str().is_some_and(|m| ACCESS_MODES.contains(&m));
    let mut known = modes.list().iter().filter(known);
    let has_pod_mode = modes.list().iter().any(|m| *m == "ReadWriteOncePod");
    if has_pod_mode && known.any(|m| *m != "ReadWriteOncePod") {
        let detail = "may not use ReadWriteOncePod with other access modes";
        errors.forbidden(modes, detail);
    }
}

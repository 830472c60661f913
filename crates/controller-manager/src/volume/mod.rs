//! The controllers of persistent volumes and their claims.

pub mod binder;
mod matching;
pub mod protection;
mod provisioner;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::common::{name, namespace};

/// Written by the scheduler: the node of the claim's first consumer.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Marks volumes on a node's disk that we made.
const FLUYT_PROVISIONED_BY: &str = "fluyt.io/provisioned-by";

/// Whether the volume is reserved for (or bound to) this claim.
fn refers_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| {
        reference.name.as_deref() == Some(name(&claim.metadata))
            && reference.namespace.as_deref() == Some(namespace(&claim.metadata))
            && reference
                .uid
                .as_ref()
                .is_none_or(|uid| uid.is_empty() || claim.metadata.uid.as_ref() == Some(uid))
    })
}

fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    let name = claim.spec.as_ref()?.volume_name.as_deref()?;
    (!name.is_empty()).then_some(name)
}

fn class_name(claim: &PersistentVolumeClaim) -> &str {
    claim
        .spec
        .as_ref()
        .and_then(|spec| spec.storage_class_name.as_deref())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;

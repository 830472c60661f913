//! Which volume suits a claim.

use std::sync::Arc;

use fluyt_api::quantity::Quantity;
use fluyt_client::helpers::labels;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{class_name, refers_to};

/// The storage that a list of resources names.
pub fn storage(
    list: Option<
        &std::collections::BTreeMap<
            String,
            k8s_openapi::apimachinery::pkg::api::resource::Quantity,
        >,
    >,
) -> Quantity {
    let text = list.and_then(|list| list.get("storage"));
    text.and_then(|text| text.0.parse().ok())
        .unwrap_or(Quantity::ZERO)
}

/// What the claim requests.
pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    storage(resources.and_then(|resources| resources.requests.as_ref()))
}

/// Whether the volume has what the claim asks for, whoever has it now.
pub fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(offer), Some(wish)) = (&volume.spec, &claim.spec) else {
        return false;
    };
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let modes = offer.access_modes.as_deref().unwrap_or_default();
    storage(offer.capacity.as_ref()) >= requested(claim)
        && wish
            .access_modes
            .iter()
            .flatten()
            .all(|wanted| modes.contains(wanted))
        && mode(&offer.volume_mode) == mode(&wish.volume_mode)
        && offer.storage_class_name.as_deref().unwrap_or_default() == class_name(claim)
}

/// The volume to bind to the claim: one that is reserved for it, else (unless `only_reserved`) the smallest free one
/// that is large enough.
pub fn find(
    volumes: &[Arc<PersistentVolume>],
    claim: &PersistentVolumeClaim,
    only_reserved: bool,
) -> Option<Arc<PersistentVolume>> {
    let alive = || {
        volumes
            .iter()
            .filter(|volume| volume.metadata.deletion_timestamp.is_none())
    };
    if let Some(reserved) = alive().find(|volume| refers_to(volume, claim) && suits(volume, claim))
    {
        return Some(Arc::clone(reserved));
    }
    if only_reserved {
        return None;
    }
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let free = alive().filter(|volume| {
        let phase = volume
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        phase == Some("Available")
            && volume
                .spec
                .as_ref()
                .is_some_and(|spec| spec.claim_ref.is_none())
            && suits(volume, claim)
            && selector.is_none_or(|selector| {
                labels::matches(selector, labels::labels_of(&volume.metadata))
            })
    });
    free.min_by_key(|volume| storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref())))
        .cloned()
}

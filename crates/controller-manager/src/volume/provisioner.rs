//! The in-tree provisioner `fluyt.io/local-disk`: directories on the disk of the node that the claim's first
//! consumer is scheduled to. The kubelet makes the directory when it mounts the volume.

use k8s_openapi::{
    api::{
        core::v1::{
            LocalVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
            PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use kube::Resource;

use super::{BOUND_BY_CONTROLLER, FLUYT_PROVISIONED_BY, PROVISIONED_BY, matching};
use crate::common::{name, uid};

/// The provisioner's name in storage classes.
pub const NAME: &str = "fluyt.io/local-disk";
const DIRECTORY: &str = "/var/lib/fluyt/volumes";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The volume for the claim on the node; an error says what the claim may not ask for.
pub fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
) -> Result<PersistentVolume, String> {
    let spec = claim.spec.clone().unwrap_or_default();
    let modes = spec.access_modes.unwrap_or_default();
    if let Some(mode) = modes.iter().find(|mode| !mode.starts_with("ReadWriteOnce")) {
        return Err(format!(
            "access mode {mode} is not possible with a node's local disk"
        ));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("volumeMode Block is not possible with a node's local disk".to_owned());
    }
    if spec.selector.is_some() {
        return Err("claim.spec.selector is not supported for dynamic provisioning".to_owned());
    }
    let volume_name = format!("pvc-{}", uid(&claim.metadata));
    let requirement = NodeSelectorRequirement {
        key: HOSTNAME.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![host_name(node).to_owned()]),
    };
    let term = NodeSelectorTerm {
        match_expressions: Some(vec![requirement]),
        match_fields: None,
    };
    let size = Quantity(matching::requested(claim).to_string());
    let annotations = [
        (PROVISIONED_BY, NAME),
        (FLUYT_PROVISIONED_BY, "local"),
        (BOUND_BY_CONTROLLER, "yes"),
    ];
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(volume_name.clone()),
            annotations: Some(
                annotations
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: Some([("storage".to_owned(), size)].into()),
            access_modes: Some(modes),
            volume_mode: Some("Filesystem".to_owned()),
            persistent_volume_reclaim_policy: class
                .reclaim_policy
                .clone()
                .or(Some("Delete".to_owned())),
            storage_class_name: Some(name(&class.metadata).to_owned()),
            mount_options: class.mount_options.clone(),
            local: Some(LocalVolumeSource {
                path: format!("{DIRECTORY}/{volume_name}"),
                fs_type: None,
            }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector {
                    node_selector_terms: vec![term],
                }),
            }),
            claim_ref: Some(claim.object_ref(&())),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

fn host_name(node: &Node) -> &str {
    let label = node
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(HOSTNAME));
    label.map_or_else(|| name(&node.metadata), String::as_str)
}

//! Volumes and claims carry a finalizer so that they outlive their users.

use async_trait::async_trait;
use fluyt_api::Error;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

pub(super) struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    async fn admit(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        object: &mut Value,
    ) -> Result<(), Error> {
        let at = attributes.at;
        if attributes.operation != Operation::Create || !at.subresource.is_empty() {
            return Ok(());
        }
        let finalizer = match (at.resource.group, at.resource.plural) {
            ("", "persistentvolumeclaims") => "kubernetes.io/pvc-protection",
            ("", "persistentvolumes") => "kubernetes.io/pv-protection",
            ("storage.k8s.io", "volumeattributesclasses") => "kubernetes.io/vac-protection",
            _ => return Ok(()),
        };
        super::add_finalizer(object, finalizer);
        Ok(())
    }
}

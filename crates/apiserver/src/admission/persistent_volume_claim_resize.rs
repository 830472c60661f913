//! A claim grows only if its class says that it may.

use async_trait::async_trait;
use fluyt_api::quantity::Quantity;
use fluyt_api::{Error, meta};
use serde_json::Value;

use super::{Attributes, Operation, Plugin, cluster_scoped};
use crate::cache::Caches;

pub(super) struct PersistentVolumeClaimResize;

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        claim: &Value,
    ) -> Result<(), Error> {
        let Some(old) = attributes
            .old
            .filter(|_| attributes.is("persistentvolumeclaims", Operation::Update))
        else {
            return Ok(());
        };
        let size = |o: &Value| {
            o["spec"]["resources"]["requests"]["storage"]
                .as_str()
                .and_then(|s| s.parse::<Quantity>().ok())
        };
        let (Some(new), Some(before)) = (size(claim), size(old)) else {
            return Ok(());
        };
        if new <= before {
            return Ok(());
        }
        if old["status"]["phase"] != "Bound" {
            return Err(attributes.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let class = claim["spec"]["storageClassName"]
            .as_str()
            .unwrap_or_default();
        let grows = cluster_scoped(caches, "storage.k8s.io", "storageclasses")
            .iter()
            .any(|c| meta::name(c) == class && c["allowVolumeExpansion"] == true);
        if grows {
            return Ok(());
        }
        Err(attributes.forbidden("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
    }
}

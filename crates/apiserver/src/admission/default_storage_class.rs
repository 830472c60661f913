//! A claim that names no class gets the default one.

use async_trait::async_trait;
use fluyt_api::{Error, meta};
use serde_json::Value;

use super::{Attributes, Operation, Plugin, cluster_scoped};
use crate::cache::Caches;

pub(super) struct DefaultStorageClass;

#[async_trait]
impl Plugin for DefaultStorageClass {
    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        claim: &mut Value,
    ) -> Result<(), Error> {
        if !attributes.is("persistentvolumeclaims", Operation::Create)
            || claim["spec"]["storageClassName"].is_string()
        {
            return Ok(());
        }
        let newest_default = cluster_scoped(caches, "storage.k8s.io", "storageclasses")
            .into_iter()
            .filter(|c| {
                meta::annotation(c, "storageclass.kubernetes.io/is-default-class") == Some("true")
            })
            .max_by(|a, b| {
                meta::str(a, "creationTimestamp").cmp(meta::str(b, "creationTimestamp"))
            });
        let spec = meta::child(claim, "spec");
        spec.retain(|_, v| !v.is_null());
        if let Some(class) = newest_default {
            spec.insert("storageClassName".into(), meta::name(&class).into());
        }
        Ok(())
    }
}

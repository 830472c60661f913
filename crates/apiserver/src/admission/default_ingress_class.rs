//! An ingress that names no class gets the default one.

use async_trait::async_trait;
use fluyt_api::{Error, meta};
use serde_json::Value;

use super::{Attributes, Operation, Plugin, cluster_scoped};
use crate::cache::Caches;

pub(super) struct DefaultIngressClass;

#[async_trait]
impl Plugin for DefaultIngressClass {
    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        ingress: &mut Value,
    ) -> Result<(), Error> {
        let concerns = attributes.is_of("networking.k8s.io", "ingresses", Operation::Create);
        if !concerns
            || ingress["spec"]["ingressClassName"].is_string()
            || meta::annotation(ingress, "kubernetes.io/ingress.class").is_some()
        {
            return Ok(());
        }
        let newest = cluster_scoped(caches, "networking.k8s.io", "ingressclasses")
            .into_iter()
            .filter(|c| {
                meta::annotation(c, "ingressclass.kubernetes.io/is-default-class") == Some("true")
            })
            .max_by(|a, b| {
                let time = |o| meta::str(o, "creationTimestamp");
                time(a).cmp(time(b)).then(meta::name(b).cmp(meta::name(a)))
            });
        if let Some(class) = newest {
            let name = meta::name(&class).to_owned();
            meta::child(ingress, "spec").insert("ingressClassName".into(), name.into());
        }
        Ok(())
    }
}

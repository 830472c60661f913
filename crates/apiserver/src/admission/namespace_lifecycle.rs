//! Nothing is created in a namespace that does not exist or is being deleted, and the system's namespaces stay.

use async_trait::async_trait;
use fluyt_api::{Cause, Error, resources};
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    async fn validate(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        _object: &Value,
    ) -> Result<(), Error> {
        let at = attributes.at;
        if attributes.is("namespaces", Operation::Delete) && IMMORTAL.contains(&at.name) {
            return Err(attributes.forbidden("this namespace may not be deleted"));
        }
        Ok(())
    }

    // Before every other plugin looks for things in the namespace.
    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        _object: &mut Value,
    ) -> Result<(), Error> {
        let at = attributes.at;
        if !at.resource.namespaced
            || attributes.operation != Operation::Create
            || at.resource.is_virtual()
        {
            return Ok(());
        }
        let Some(namespaces) = resources::find("", "v1", "namespaces") else {
            return Ok(());
        };
        let Some(namespace) = caches.of(namespaces).get(at.namespace) else {
            return Err(Error::not_found("", "namespaces", at.namespace));
        };
        if namespace.is_terminating() {
            let why = format!(
                "unable to create new content in namespace {} because it is being terminated",
                at.namespace
            );
            let mut error = attributes.forbidden(why);
            error.causes.push(Cause {
                reason: "NamespaceTerminating",
                message: format!("namespace {} is being terminated", at.namespace),
                field: "metadata.namespace".into(),
            });
            return Err(error);
        }
        Ok(())
    }
}

//! A namespace in which something is created is created, too.

use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use fluyt_api::Error;
use serde_json::{Value, json};

use super::{Attributes, Operation, Plugin, namespace_exists};
use crate::Server;
use crate::cache::Caches;
use crate::loopback::SERVER;

/// The server creates it.
pub(super) struct NamespaceAutoProvision(pub Arc<OnceLock<Weak<Server>>>);

#[async_trait]
impl Plugin for NamespaceAutoProvision {
    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        _object: &mut Value,
    ) -> Result<(), Error> {
        if attributes.operation != Operation::Create
            || attributes.cx.dry_run
            || namespace_exists::is_satisfied(caches, attributes)
        {
            return Ok(());
        }
        let Some(server) = self.0.get().and_then(Weak::upgrade) else {
            return Err(attributes.forbidden("not yet ready to handle request"));
        };
        let namespace = json!({"metadata": {"name": attributes.at.namespace}});
        let created = SERVER
            .create(&server, "", "namespaces", "", namespace)
            .await;
        created.map(drop).map_err(|e| attributes.forbidden(e))
    }
}

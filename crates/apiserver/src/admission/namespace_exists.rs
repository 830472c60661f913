//! Nothing is written in a namespace that does not exist.

use async_trait::async_trait;
use fluyt_api::{Error, resources};
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

pub(super) struct NamespaceExists;

/// Whether the namespace of a request exists, if it is in one.
pub(super) fn is_satisfied(caches: &Caches, attributes: &Attributes<'_>) -> bool {
    let at = attributes.at;
    if !at.resource.namespaced || at.namespace.is_empty() {
        return true;
    }
    let namespaces = resources::find("", "v1", "namespaces");
    namespaces.is_none_or(|namespaces| caches.of(namespaces).get(at.namespace).is_some())
}

#[async_trait]
impl Plugin for NamespaceExists {
    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        _object: &Value,
    ) -> Result<(), Error> {
        if attributes.operation == Operation::Connect || is_satisfied(caches, attributes) {
            return Ok(());
        }
        let namespace = attributes.at.namespace;
        Err(Error::not_found("", "namespaces", namespace))
    }
}

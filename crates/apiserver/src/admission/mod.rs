//! Admission: plugins that change a write (mutating) or refuse it (validating), each in a file named after upstream's.

mod default_storage_class;
mod default_toleration_seconds;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod resource_quota;
mod service_account;
mod storage_object_in_use_protection;
mod taint_nodes_by_condition;

use std::sync::Arc;

use async_trait::async_trait;
use fluyt_api::Error;
use serde_json::Value;

use crate::cache::Caches;
use crate::registry::{Location, WriteContext};

/// What is being written.
pub struct Attributes<'a> {
    pub cx: &'a WriteContext,
    pub at: Location<'a>,
    pub operation: Operation,
    /// The object before an update.
    pub old: Option<&'a Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

impl Attributes<'_> {
    /// Whether this is about a core resource itself, not one of its subresources.
    fn is(&self, plural: &str, operation: Operation) -> bool {
        self.operation == operation
            && self.at.subresource.is_empty()
            && self.at.resource.group.is_empty()
            && self.at.resource.plural == plural
    }

    fn forbidden(&self, why: impl std::fmt::Display) -> Error {
        Error::forbidden(
            self.at.resource.group,
            self.at.resource.plural,
            self.at.name,
            why,
        )
    }
}

/// One admission plugin.
#[async_trait]
trait Plugin: Send + Sync {
    /// Changes the object.
    async fn admit(
        &self,
        _caches: &Caches,
        _attributes: &Attributes<'_>,
        _object: &mut Value,
    ) -> Result<(), Error> {
        Ok(())
    }

    /// Refuses the write. For deletions the object is null.
    async fn validate(
        &self,
        _caches: &Caches,
        _attributes: &Attributes<'_>,
        _object: &Value,
    ) -> Result<(), Error> {
        Ok(())
    }
}

/// The plugins in upstream's order; quota comes last so that nothing refused is charged.
pub struct Chain {
    caches: Arc<Caches>,
    plugins: Vec<Box<dyn Plugin>>,
}

impl Chain {
    #[must_use]
    pub fn new(caches: Arc<Caches>) -> Self {
        let plugins: Vec<Box<dyn Plugin>> = vec![
            Box::new(namespace_lifecycle::NamespaceLifecycle),
            Box::new(limit_ranger::LimitRanger),
            Box::new(service_account::ServiceAccount),
            Box::new(taint_nodes_by_condition::TaintNodesByCondition),
            Box::new(priority::Priority),
            Box::new(default_toleration_seconds::DefaultTolerationSeconds),
            Box::new(default_storage_class::DefaultStorageClass),
            Box::new(storage_object_in_use_protection::StorageObjectInUseProtection),
            Box::new(node_restriction::NodeRestriction),
            Box::new(resource_quota::ResourceQuota),
        ];
        Self { caches, plugins }
    }

    /// Runs the mutating plugins.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn admit(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Value,
    ) -> Result<(), Error> {
        for plugin in &self.plugins {
            plugin.admit(&self.caches, attributes, object).await?;
        }
        Ok(())
    }

    /// Runs the validating plugins.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn validate(&self, attributes: &Attributes<'_>, object: &Value) -> Result<(), Error> {
        for plugin in &self.plugins {
            plugin.validate(&self.caches, attributes, object).await?;
        }
        Ok(())
    }
}

/// All objects of a core resource in a namespace.
fn in_namespace(caches: &Caches, plural: &str, namespace: &str) -> Vec<Value> {
    let Some(resource) = fluyt_api::resources::find("", "v1", plural) else {
        return Vec::new();
    };
    let snapshot = caches.of(resource).snapshot();
    let prefix = format!("{namespace}/");
    snapshot
        .entries
        .range(Arc::from(prefix.as_str())..)
        .take_while(|(key, _)| key.starts_with(&prefix))
        .map(|(_, entry)| entry.object())
        .collect()
}

/// All objects of a cluster-scoped resource.
fn cluster_scoped(caches: &Caches, group: &str, plural: &str) -> Vec<Value> {
    let Some(resource) = fluyt_api::resources::find(group, "v1", plural) else {
        return Vec::new();
    };
    caches
        .of(resource)
        .snapshot()
        .entries
        .values()
        .map(|e| e.object())
        .collect()
}

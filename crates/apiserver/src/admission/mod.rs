//! Admission: plugins that change a write (mutating) or refuse it (validating), each in a file named after upstream's.

mod certificates;
mod configuration;
mod default_ingress_class;
mod default_storage_class;
mod default_toleration_seconds;
mod expressions;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod persistent_volume_claim_resize;
mod pod_group_workload_exists;
mod pod_security;
mod pod_topology_labels;
mod policy;
mod policy_status;
mod priority;
mod resource_quota;
mod runtime_class;
mod service_account;
mod storage_object_in_use_protection;
mod taint_nodes_by_condition;
mod webhook;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use fluyt_api::Error;
use fluyt_api::resources::{self, Resource};
use fluyt_api::validation::Errors;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::authz::Authorizer;
use crate::cache::Caches;
use crate::custom::Converter;
use crate::registry::{Location, WriteContext};

pub use configuration::validate as validate_configuration;
pub use default_toleration_seconds::Tolerations;
pub use pod_security::template_path;
pub use policy_status::run as watch_policies;

use policy::type_check;

/// What is being written.
pub struct Attributes<'a> {
    pub cx: &'a WriteContext,
    pub at: Location<'a>,
    pub operation: Operation,
    /// The object before an update or a deletion.
    pub old: Option<&'a Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    /// Exec, attach, port-forward and proxies.
    Connect,
}

impl Attributes<'_> {
    /// Whether this is about a core resource itself, not one of its subresources.
    fn is(&self, plural: &str, operation: Operation) -> bool {
        self.operation == operation
            && self.at.subresource.is_empty()
            && self.at.resource.group.is_empty()
            && self.at.resource.plural == plural
    }

    /// The resource in the version that the request came in. It is worked in in another one if it is built in.
    fn requested(&self) -> &Resource {
        let own = self.at.resource;
        let version = self.cx.writer.as_ref().map(|writer| &*writer.api_version);
        let (group, version) = match version.map(|v| v.rsplit_once('/').unwrap_or(("", v))) {
            Some(path) if own.definition.is_none() => path,
            _ => return own,
        };
        resources::find(group, version, own.plural)
            .filter(|requested| std::ptr::eq(requested.hub(), own))
            .unwrap_or(own)
    }

    /// The request's options, as reviews show them.
    fn options(&self) -> Value {
        let kind = match self.operation {
            Operation::Create => "CreateOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
            Operation::Connect => return Value::Null,
        };
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if self.cx.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        options
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

/// What the larger plugins work with.
#[derive(Clone)]
pub struct Shared {
    pub caches: Arc<Caches>,
    pub authorizer: Arc<Authorizer>,
    pub converter: Arc<Converter>,
    pub webhooks: Arc<crate::webhook::Client>,
}

/// What has been made of configuration objects, kept until they change.
struct Compiled<T>(Mutex<HashMap<Arc<str>, Made<T>>>);

/// At which revision something was made, and what.
type Made<T> = (i64, Arc<T>);

impl<T> Default for Compiled<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Compiled<T> {
    /// What was made of an object at a revision; made now if it is new.
    fn get(&self, name: &Arc<str>, revision: i64, make: impl FnOnce() -> T) -> Arc<T> {
        let mut known = self.0.lock();
        if let Some((at, made)) = known.get(name)
            && *at == revision
        {
            return made.clone();
        }
        let made = Arc::new(make());
        known.insert(name.clone(), (revision, made.clone()));
        made
    }
}

/// One admission plugin.
#[async_trait]
trait Plugin: Send + Sync {
    /// Upstream's name, by which it is enabled and disabled.
    fn name(&self) -> &'static str;

    /// The objects of the API that say what it changes, if there are such: then it runs after those that need nobody to
    /// tell them.
    fn mutations(&self) -> Option<&'static str> {
        None
    }

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

/// Every plugin there is, in order.
pub const PLUGINS: [&str; 24] = [
    "NamespaceLifecycle",
    "LimitRanger",
    "ServiceAccount",
    "TaintNodesByCondition",
    "PodSecurity",
    "Priority",
    "DefaultTolerationSeconds",
    "DefaultStorageClass",
    "StorageObjectInUseProtection",
    "PersistentVolumeClaimResize",
    "RuntimeClass",
    "CertificateApproval",
    "CertificateSigning",
    "ClusterTrustBundleAttest",
    "CertificateSubjectRestriction",
    "DefaultIngressClass",
    "PodTopologyLabels",
    "PodGroupWorkloadExists",
    "NodeRestriction",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
    "ResourceQuota",
];

/// The plugins in upstream's order; quota comes last so that nothing refused is charged.
pub struct Chain {
    shared: Shared,
    plugins: Vec<Box<dyn Plugin>>,
}

impl Chain {
    /// The plugins that are on: upstream's default ones but for those that are `disabled` by name.
    #[must_use]
    pub fn new(shared: &Shared, disabled: &[String], tolerations: Tolerations) -> Self {
        let plugins: Vec<Box<dyn Plugin>> = vec![
            Box::new(namespace_lifecycle::NamespaceLifecycle),
            Box::new(limit_ranger::LimitRanger),
            Box::new(service_account::ServiceAccount),
            Box::new(taint_nodes_by_condition::TaintNodesByCondition),
            Box::new(pod_security::PodSecurity),
            Box::new(priority::Priority),
            Box::new(default_toleration_seconds::DefaultTolerationSeconds(
                tolerations,
            )),
            Box::new(default_storage_class::DefaultStorageClass),
            Box::new(storage_object_in_use_protection::StorageObjectInUseProtection),
            Box::new(persistent_volume_claim_resize::PersistentVolumeClaimResize),
            Box::new(runtime_class::RuntimeClass),
            Box::new(certificates::Approval(shared.clone())),
            Box::new(certificates::Signing(shared.clone())),
            Box::new(certificates::TrustBundleAttest(shared.clone())),
            Box::new(certificates::SubjectRestriction),
            Box::new(default_ingress_class::DefaultIngressClass),
            Box::new(pod_topology_labels::PodTopologyLabels),
            Box::new(pod_group_workload_exists::PodGroupWorkloadExists),
            Box::new(node_restriction::NodeRestriction(shared.clone())),
            Box::new(policy::Mutating::new(shared.clone())),
            Box::new(webhook::Mutating::new(shared.clone())),
            Box::new(policy::Validating::new(shared.clone())),
            Box::new(webhook::Validating::new(shared.clone())),
            Box::new(resource_quota::ResourceQuota),
        ];
        let mut plugins = plugins;
        plugins.retain(|plugin| !disabled.iter().any(|d| d == plugin.name()));
        Self {
            shared: shared.clone(),
            plugins,
        }
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
        let mut changed_late = false;
        for plugin in &self.plugins {
            let late = plugin.mutations();
            let caches = &self.shared.caches;
            if late.is_some_and(|plural| !matching::is_configured(caches, plural)) {
                continue;
            }
            let before = late.map(|_| object.clone());
            plugin.admit(caches, attributes, object).await?;
            changed_late |= before.is_some_and(|before| before != *object);
        }
        if changed_late {
            // What policies and webhooks added gets the built-in plugins' treatment too.
            for plugin in self.plugins.iter().filter(|p| p.mutations().is_none()) {
                plugin
                    .admit(&self.shared.caches, attributes, object)
                    .await?;
            }
        }
        Ok(())
    }

    /// Whom plugins ask what a user may do.
    #[must_use]
    pub fn authorizer(&self) -> &Authorizer {
        &self.shared.authorizer
    }

    /// Asks whether the author of a policy or of a binding may read what it is about to read.
    pub async fn authorize(
        &self,
        attributes: &Attributes<'_>,
        object: &Value,
        errors: &mut Errors,
    ) {
        configuration::authorize(&self.shared, attributes, object, errors).await;
    }

    /// Runs the validating plugins.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn validate(&self, attributes: &Attributes<'_>, object: &Value) -> Result<(), Error> {
        for plugin in &self.plugins {
            plugin
                .validate(&self.shared.caches, attributes, object)
                .await?;
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

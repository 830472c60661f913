//! Admission: plugins that change a write (mutating) or refuse it (validating), each in a file named after upstream's. Which
//! there are is in `plugins.rs`, which of them run in `settings.rs`.

mod always_admit;
mod always_deny;
mod always_pull_images;
mod certificates;
mod configuration;
mod default_ingress_class;
mod default_storage_class;
mod default_toleration_seconds;
mod deny_service_external_ips;
mod event_rate_limit;
mod expressions;
mod extended_resource_toleration;
mod image_policy_webhook;
mod job_validation;
mod limit_pod_hard_anti_affinity_topology;
mod limit_ranger;
mod matching;
mod namespace_auto_provision;
mod namespace_exists;
mod namespace_lifecycle;
mod node_declared_feature_validator;
mod node_restriction;
mod owner_references_permission_enforcement;
mod persistent_volume_claim_resize;
mod plugins;
mod pod_group_protection;
mod pod_group_workload_exists;
mod pod_node_selector;
mod pod_resize_validator;
mod pod_security;
mod pod_toleration_restriction;
mod pod_topology_labels;
mod policy;
mod policy_status;
mod priority;
mod resource_quota;
mod runtime_class;
mod service_account;
mod settings;
mod static_manifests;
mod storage_object_in_use_protection;
mod taint_nodes_by_condition;
mod webhook;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use fluyt_api::resources::{self, Resource};
use fluyt_api::validation::Errors;
use fluyt_api::{Error, meta};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::Server;
use crate::authz::Authorizer;
use crate::cache::Caches;
use crate::custom::Converter;
use crate::features::Features;
use crate::registry::{Location, WriteContext};

pub use configuration::validate as validate_configuration;
pub use default_toleration_seconds::Tolerations;
pub use pod_security::template_path;
pub use policy_status::run as watch_policies;
pub use settings::{AdmissionConfiguration, Settings, others};
pub use static_manifests::{
    Metrics as ManifestMetrics, refuse_reserved_name, warning as reserved_name_warning,
};

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
        self.is_of("", plural, operation)
    }

    /// The same of a resource of any group.
    fn is_of(&self, group: &str, plural: &str, operation: Operation) -> bool {
        self.operation == operation
            && self.at.subresource.is_empty()
            && self.at.resource.group == group
            && self.at.resource.plural == plural
    }

    /// Whether this creates or updates a core resource itself, not one of its subresources.
    fn writes(&self, plural: &str) -> bool {
        self.is(plural, Operation::Create) || self.is(plural, Operation::Update)
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
    /// The server itself, once there is one: for plugins that write.
    pub server: Arc<OnceLock<Weak<Server>>>,
    pub manifests: Arc<ManifestMetrics>,
    pub shutdown: CancellationToken,
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

/// Has an object stay until somebody takes the finalizer away.
fn add_finalizer(object: &mut Value, finalizer: &str) {
    let known = meta::finalizers(object).into_iter();
    let mut finalizers: Vec<String> = known.map(Into::into).collect();
    if !finalizers.iter().any(|known| known == finalizer) {
        finalizers.push(finalizer.into());
        meta::set(object, "finalizers", finalizers);
    }
}

/// One admission plugin.
#[async_trait]
trait Plugin: Send + Sync {
    /// The objects of the API that say what it changes, if there are such: then it runs after those that need nobody to
    /// tell them.
    fn mutations(&self) -> Option<&'static str> {
        None
    }

    /// Whether files say so as well.
    fn has_manifests(&self) -> bool {
        false
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

/// The plugins that run, in upstream's order; quota comes after everything that refuses, so that nothing refused is charged.
pub struct Chain {
    shared: Shared,
    plugins: Vec<Box<dyn Plugin>>,
}

impl Chain {
    /// # Errors
    /// When what a plugin is configured with cannot be read or makes no sense.
    pub fn new(shared: &Shared, settings: &Settings, features: Features) -> anyhow::Result<Self> {
        let mut plugins = Vec::new();
        for known in plugins::ALL.iter().filter(|k| settings.has(k, features)) {
            let configuration = settings.configuration.of(known.name)?;
            let setup = plugins::Setup {
                shared,
                features,
                tolerations: settings.tolerations,
                configuration: configuration.as_deref(),
            };
            let plugin = (known.make)(&setup);
            plugins.push(plugin.map_err(|error| {
                let failed = match error.is::<plugins::Invalid>() {
                    true => "failed to initialize admission plugin",
                    false => "couldn't init admission plugin",
                };
                error.context(format!("{failed} {:?}", known.name))
            })?);
        }
        Ok(Self {
            shared: shared.clone(),
            plugins,
        })
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
            if late.is_some_and(|plural| !matching::is_configured(caches, plural))
                && !plugin.has_manifests()
            {
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

    /// Adds the Prometheus text format.
    pub fn render_metrics(&self, out: &mut String) {
        self.shared.manifests.render(out);
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

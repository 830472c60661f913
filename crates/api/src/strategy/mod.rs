//! What a schema cannot say about a kind: defaults that depend on other fields, validation, which part belongs to which
//! subresource, which fields select. One file per kind (or family of kinds).

mod admissionregistration;
mod apiservice;
mod authorization;
mod autoscaling;
mod certificates;
mod config;
mod cronjob;
pub mod customresourcedefinition;
mod daemonset;
mod deployment;
mod disruption;
mod flowcontrol;
mod job;
mod namespace;
mod networking;
mod node;
mod pod;
mod replicaset;
mod reviews;
mod scheduling;
mod service;
mod statefulset;
mod storage;
mod template;

use std::borrow::Cow;

use serde_json::Value;

use crate::meta;
use crate::validation::{self, Errors, Problems};

pub use pod::qos_class;

/// The behaviour of one kind. The defaults are those of a plain object with `spec` and perhaps `status`.
pub trait Strategy: Sync + Send {
    /// How names of this kind are formed.
    fn name_rule(&self) -> fn(&str) -> Problems {
        validation::dns_subdomain
    }

    /// Defaults that depend on other fields; the static ones are in already.
    fn default(&self, _object: &mut Value) {}

    /// Normalises a new object: drops what a client may not set.
    fn prepare_create(&self, object: &mut Value) {
        if let Some(map) = object.as_object_mut() {
            map.remove("status");
        }
    }

    /// Normalises an updated object: keeps what this endpoint may not change.
    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
    }

    /// Normalises an update of the `status` subresource: only status (and metadata that carries no ownership) changes.
    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep_all_but_status(object, old);
    }

    /// Finalizers must be upstream's own or have a domain.
    fn has_standard_finalizers(&self) -> bool {
        true
    }

    /// What the author of a write should know, though it is done.
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// What deletion adds to an object before its finalizers are looked at.
    fn prepare_delete(&self, _object: &mut Value) {}

    fn validate(&self, _object: &Value, _errors: &mut Errors) {}

    fn validate_update(&self, _object: &Value, _old: &Value, _errors: &mut Errors) {}

    /// Everything that an update of the object itself has to satisfy.
    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        self.validate(object, errors);
        self.validate_update(object, old, errors);
    }

    /// What an update of the `status` subresource has to satisfy.
    fn validate_status(&self, _object: &Value, _old: &Value, _errors: &mut Errors) {}

    /// Parts whose change counts as a new `metadata.generation`; empty for kinds without one.
    fn generation_of(&self) -> &'static [&'static str] {
        &["spec"]
    }

    /// Whether objects of this kind have a `metadata.generation`.
    fn has_generation(&self) -> bool {
        !self.generation_of().is_empty()
    }

    /// Whether an update counts as a new `metadata.generation`.
    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        self.generation_of()
            .iter()
            .any(|part| object.get(*part) != old.get(*part))
    }

    /// The selectable fields besides `metadata.name` and `metadata.namespace`.
    fn selectable_fields(&self) -> &[&'static str] {
        &[]
    }

    /// The value of a selectable field besides `metadata.name` and `metadata.namespace`; `None` when the field cannot select.
    fn field<'a>(&self, _object: &'a Value, _field: &str) -> Option<Cow<'a, str>> {
        None
    }

    /// PUT may create.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// An update without `resourceVersion` is taken.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// Seconds an object may take to shut down, when kinds of this sort are deleted gracefully.
    fn grace_period(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }
}

/// The strategy of a kind.
#[must_use]
pub fn of(group: &str, kind: &str) -> &'static dyn Strategy {
    match (group, kind) {
        ("", "Pod") => &pod::Pod,
        ("", "PodTemplate") => &template::PodTemplate,
        ("", "Service") => &service::Service,
        ("", "Namespace") => &namespace::Namespace,
        ("", "Node") => &node::Node,
        ("", "ConfigMap") => &config::ConfigMap,
        ("", "Secret") => &config::Secret,
        ("", "ServiceAccount") => &config::ServiceAccount,
        ("" | "events.k8s.io", "Event") => &config::Event,
        ("", "Endpoints") | ("discovery.k8s.io", "EndpointSlice") => &networking::Endpoints,
        ("", "LimitRange") => &config::LimitRange,
        ("", "ResourceQuota") => &config::ResourceQuota,
        ("", "PersistentVolume") => &storage::PersistentVolume,
        ("", "PersistentVolumeClaim") => &storage::PersistentVolumeClaim,
        ("", "ReplicationController") => &replicaset::ReplicationController,
        ("apps", "ReplicaSet") => &replicaset::ReplicaSet,
        ("apps", "Deployment") => &deployment::Deployment,
        ("apps", "DaemonSet") => &daemonset::DaemonSet,
        ("apps", "StatefulSet") => &statefulset::StatefulSet,
        ("apps", "ControllerRevision") => &config::ControllerRevision,
        ("batch", "Job") => &job::Job,
        ("batch", "CronJob") => &cronjob::CronJob,
        ("autoscaling", "HorizontalPodAutoscaler") => &autoscaling::HorizontalPodAutoscaler,
        ("apiregistration.k8s.io", "APIService") => &apiservice::ApiService,
        ("policy", "PodDisruptionBudget") => &disruption::PodDisruptionBudget,
        ("networking.k8s.io", "Ingress") => &networking::Ingress,
        ("networking.k8s.io", "NetworkPolicy") => &networking::NetworkPolicy,
        ("rbac.authorization.k8s.io", "Role") => &authorization::Role { namespaced: true },
        ("rbac.authorization.k8s.io", "ClusterRole") => &authorization::Role { namespaced: false },
        ("rbac.authorization.k8s.io", "RoleBinding") => {
            &authorization::Binding { namespaced: true }
        }
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => {
            &authorization::Binding { namespaced: false }
        }
        ("authorization.k8s.io", "SubjectAccessReview") => {
            &reviews::AccessReview(reviews::Scope::Subject)
        }
        ("authorization.k8s.io", "LocalSubjectAccessReview") => {
            &reviews::AccessReview(reviews::Scope::Local)
        }
        ("authorization.k8s.io", "SelfSubjectAccessReview") => {
            &reviews::AccessReview(reviews::Scope::Own)
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            &certificates::CertificateSigningRequest
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => &flowcontrol::FlowSchema,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => {
            &flowcontrol::PriorityLevelConfiguration
        }
        ("scheduling.k8s.io", "PriorityClass") => &scheduling::PriorityClass,
        ("storage.k8s.io", "StorageClass") => &storage::StorageClass,
        ("coordination.k8s.io", "Lease") => &config::Lease,
        (
            "admissionregistration.k8s.io",
            "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration",
        ) => &admissionregistration::WebhookConfiguration,
        (
            "admissionregistration.k8s.io",
            "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy",
        ) => &admissionregistration::Policy,
        (
            "admissionregistration.k8s.io",
            "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding",
        ) => &admissionregistration::Binding,
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            &customresourcedefinition::CustomResourceDefinition
        }
        _ => &Plain,
    }
}

/// A kind with nothing special.
struct Plain;

impl Strategy for Plain {}

/// Sets `object[field]` to what `old` has, or removes it.
pub(crate) fn copy_field(object: &mut Value, old: &Value, field: &str) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    match old.get(field) {
        Some(value) => {
            map.insert(field.to_owned(), value.clone());
        }
        None => {
            map.remove(field);
        }
    }
}

/// The status endpoint: everything but `status` is the old object's, except labels, annotations and finalizers that an
/// update of status may carry along.
pub(crate) fn keep_all_but_status(object: &mut Value, old: &Value) {
    let status = object.get("status").cloned();
    let (labels, annotations) = (
        object["metadata"]["labels"].take(),
        object["metadata"]["annotations"].take(),
    );
    let version = object["metadata"]["resourceVersion"].take();
    let managed = object["metadata"]["managedFields"].take();
    let mut kept = old.clone();
    if let (Some(map), Some(status)) = (kept.as_object_mut(), status) {
        map.insert("status".into(), status);
    }
    meta::set(&mut kept, "labels", labels);
    meta::set(&mut kept, "annotations", annotations);
    meta::set(&mut kept, "resourceVersion", version);
    meta::set(&mut kept, "managedFields", managed);
    *object = kept;
}

/// Inserts `value` at `path` when nothing is there.
pub(crate) fn default_at(object: &mut Value, path: &[&str], value: impl Into<Value>) {
    let Some((last, parents)) = path.split_last() else {
        return;
    };
    let mut at = object;
    for parent in parents {
        meta::child(at, parent);
        at = &mut at[*parent];
    }
    let map = match at {
        Value::Object(map) => map,
        _ => return,
    };
    map.entry(*last).or_insert_with(|| value.into());
}

/// A string at `pointer` as a selectable field.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> Cow<'a, str> {
    match object.pointer(pointer) {
        Some(Value::String(s)) => Cow::Borrowed(s),
        Some(Value::Bool(b)) => Cow::Owned(b.to_string()),
        Some(Value::Number(n)) => Cow::Owned(n.to_string()),
        _ => Cow::Borrowed(""),
    }
}

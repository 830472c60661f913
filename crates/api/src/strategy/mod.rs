//! What a schema cannot say about a kind: defaults that depend on other fields, validation, which part belongs to which
//! subresource, which fields select. One file per kind (or family of kinds).

mod admissionregistration;
mod apiservice;
mod authorization;
mod autoscaling;
mod certificates;
mod clustertrustbundle;
mod config;
mod coordination;
mod cronjob;
pub mod customresourcedefinition;
mod daemonset;
mod deployment;
mod device;
mod disruption;
mod event;
mod flowcontrol;
mod job;
mod leasecandidate;
mod namespace;
mod networking;
mod node;
mod pod;
mod podcertificaterequest;
mod podgroup;
mod quota;
mod replicaset;
mod resource;
mod reviews;
mod scheduling;
pub mod service;
mod statefulset;
mod storage;
mod storageversion;
mod storageversionmigration;
mod template;
mod workload;

use std::borrow::Cow;

use serde_json::Value;

use crate::meta;
use crate::validation::{self, Errors, Problems};

pub use pod::qos_class;

/// Validates tolerations that are in no pod.
pub fn validate_tolerations(tolerations: &validation::At<'_, '_>, errors: &mut Errors) {
    let options = template::Options::new(false);
    template::scheduling::validate_tolerations(tolerations, &options, errors);
}

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

    /// Normalises an update of another subresource that is a part of the object.
    fn prepare_subresource_update(&self, _subresource: &str, _object: &mut Value, _old: &Value) {}

    /// Fields that an object does not get unless a feature is on: the gate of the feature, and where the field is.
    fn gated_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[]
    }

    /// Finalizers must be upstream's own or have a domain.
    fn has_standard_finalizers(&self) -> bool {
        true
    }

    /// What the author of a write should know, though it is done.
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// What the author of a write of the status should know, though it is done.
    fn status_warnings(&self, _object: &Value) -> Vec<String> {
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

    /// What an update of another subresource that is a part of the object has to satisfy.
    fn validate_subresource(
        &self,
        _subresource: &str,
        _object: &Value,
        _old: &Value,
        _errors: &mut Errors,
    ) {
    }

    /// How often, and how, upstream looks at metadata in an update, besides what it does for every kind.
    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update]
    }

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

    /// The field by whose values objects are looked up so often that a cache should keep them in its order. It need not be
    /// one that requests can select by.
    fn indexed_field(&self) -> Option<&'static str> {
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

    /// Whether what an object owns stays when its deletion does not say what becomes of it.
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// What is then told whose deletion does not say it.
    fn warning_of_orphans(&self) -> Option<&'static str> {
        None
    }

    /// Seconds an object may take to shut down, when kinds of this sort are deleted gracefully.
    fn grace_period(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }
}

/// How metadata is validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaCheck {
    /// What may not change.
    Update,
    /// All of it, as in a new object.
    Whole,
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
        ("", "Event") => &event::Event::Core,
        ("events.k8s.io", "Event") => &event::Event::Events,
        ("", "Endpoints") => &networking::Endpoints,
        ("discovery.k8s.io", "EndpointSlice") => &networking::EndpointSlice,
        ("", "LimitRange") => &quota::LimitRange,
        ("", "ResourceQuota") => &quota::ResourceQuota,
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
        ("networking.k8s.io", "IngressClass") => &networking::IngressClass,
        ("networking.k8s.io", "IPAddress") => &networking::IpAddress,
        ("networking.k8s.io", "ServiceCIDR") => &networking::ServiceCidr,
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
        ("certificates.k8s.io", "ClusterTrustBundle") => &clustertrustbundle::ClusterTrustBundle,
        ("certificates.k8s.io", "PodCertificateRequest") => {
            &podcertificaterequest::PodCertificateRequest
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => &flowcontrol::FlowSchema,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => {
            &flowcontrol::PriorityLevelConfiguration
        }
        ("scheduling.k8s.io", "PriorityClass") => &scheduling::PriorityClass,
        ("scheduling.k8s.io", "PodGroup") => &podgroup::PodGroup,
        ("scheduling.k8s.io", "Workload") => &podgroup::Workload,
        ("node.k8s.io", "RuntimeClass") => &scheduling::RuntimeClass,
        ("storage.k8s.io", "StorageClass") => &storage::StorageClass,
        ("storage.k8s.io", "VolumeAttributesClass") => &storage::VolumeAttributesClass,
        ("storage.k8s.io", "VolumeAttachment") => &storage::VolumeAttachment,
        ("storage.k8s.io", "CSIDriver") => &storage::CsiDriver,
        ("storage.k8s.io", "CSINode") => &storage::CsiNode,
        ("storage.k8s.io", "CSIStorageCapacity") => &storage::CsiStorageCapacity,
        ("coordination.k8s.io", "Lease") => &coordination::Lease,
        ("resource.k8s.io", "DeviceClass") => &resource::DeviceClass,
        ("resource.k8s.io", "ResourceClaim") => &resource::ResourceClaim,
        ("resource.k8s.io", "ResourceClaimTemplate") => &resource::ResourceClaimTemplate,
        ("resource.k8s.io", "ResourceSlice") => &resource::ResourceSlice,
        ("coordination.k8s.io", "LeaseCandidate") => &leasecandidate::LeaseCandidate,
        ("resource.k8s.io", "DeviceTaintRule") => &device::DeviceTaintRule,
        ("resource.k8s.io", "ResourcePoolStatusRequest") => &device::ResourcePoolStatusRequest,
        ("internal.apiserver.k8s.io", "StorageVersion") => &storageversion::StorageVersion,
        ("storagemigration.k8s.io", "StorageVersionMigration") => {
            &storageversionmigration::StorageVersionMigration
        }
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

/// Drops the fields of features that are off, except where the object has them already.
pub fn drop_disabled_fields(
    strategy: &dyn Strategy,
    object: &mut Value,
    old: Option<&Value>,
    is_on: impl Fn(&str) -> bool,
) {
    let disabled = strategy.gated_fields().iter();
    for (_, path) in disabled.filter(|(gate, _)| !is_on(gate)) {
        let in_use =
            old.is_some_and(|old| !path.iter().fold(old, |at, field| &at[field]).is_null());
        if let Some((field, parents)) = path.split_last()
            && !in_use
            && let Some(parent) = at_mut(object, parents).and_then(Value::as_object_mut)
        {
            parent.remove(*field);
        }
    }
}

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

/// Keeps what metadata says of the object's life, as writes of its parts do.
pub(crate) fn keep_metadata(object: &mut Value, old: &Value) {
    let kept = &old["metadata"];
    let metadata = meta::metadata(object);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "ownerReferences",
        "labels",
        "annotations",
        "finalizers",
    ] {
        match kept.get(field) {
            Some(value) => {
                metadata.insert(field.to_owned(), value.clone());
            }
            None => {
                metadata.remove(field);
            }
        }
    }
}

/// What is at `path`, to be changed. Unlike with indexing, nothing is made of what is not there.
pub(crate) fn at_mut<'v>(value: &'v mut Value, path: &[&str]) -> Option<&'v mut Value> {
    path.iter().try_fold(value, |at, step| at.get_mut(*step))
}

/// The items of the list at `path`, to be changed.
pub(crate) fn items_mut<'v>(
    value: &'v mut Value,
    path: &[&str],
) -> impl Iterator<Item = &'v mut Value> + use<'v> {
    at_mut(value, path)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
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
    let slot = map.entry(*last).or_insert(Value::Null);
    if slot.is_null() {
        *slot = value.into();
    }
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

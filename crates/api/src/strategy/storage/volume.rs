//! Persistent volumes.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{BETA_CLASS, BETA_CLASS_WARNING, VOLUME_MODES, validate_access_modes};
use crate::meta;
use crate::strategy::template::options::Options as PodOptions;
use crate::strategy::template::scheduling::validate_node_selector;
use crate::strategy::template::volume::{
    CEPH_FS, GCE_PERSISTENT_DISK, Kind, Validate, aws_elastic_block_store, azure_disk,
    csi_driver_name, fibre_channel, flex, flocker, host_path, need, need_of_reference, nfs,
    quobyte, scale_io, storage_os_names, validate_iscsi, validate_kinds,
};
use crate::strategy::template::warnings::node_selector_term;
use crate::strategy::{MetaCheck, Strategy, copy_field, text};
use crate::validation::{
    At, Errors, dns_label, dns_subdomain, internal, internal_diff, label_value, no_backsteps,
    positive_quantity, resource,
};

const RECLAIM_POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];

const fn kind(field: &'static str, validate: Validate) -> Kind {
    Kind {
        field,
        called: field,
        when_second: field,
        validate,
    }
}

/// In the order in which upstream looks at them.
const KINDS: &[Kind] = &[
    kind("hostPath", host_path),
    GCE_PERSISTENT_DISK,
    kind("awsElasticBlockStore", aws_elastic_block_store),
    kind("glusterfs", |at, _, e| {
        need(at, &["endpoints", "path"], e);
        let namespace = at.field("endpointsNamespace");
        if namespace.is_set() && namespace.is_empty() {
            let detail = "if the endpointnamespace is set, it must be a valid namespace name";
            e.bad(&namespace, detail);
        }
        e.optional_name(&namespace, dns_label);
    }),
    kind("flocker", flocker),
    kind("nfs", nfs),
    kind("rbd", |at, _, e| need(at, &["monitors", "image"], e)),
    kind("quobyte", quobyte),
    CEPH_FS,
    kind("iscsi", |at, _, e| {
        validate_iscsi(at, "must be valid format", e, |_| {});
        need_of_reference(&at.field("secretRef"), &["name"], e);
    }),
    kind("cinder", |at, _, e| {
        need(at, &["volumeID"], e);
        need_of_reference(&at.field("secretRef"), &["name", "namespace"], e);
    }),
    kind("fc", fibre_channel),
    Kind {
        when_second: "",
        ..kind("flexVolume", flex)
    },
    kind("azureFile", |at, _, e| {
        need(at, &["secretName", "shareName"], e);
        let namespace = at.field("secretNamespace");
        if namespace.is_set() {
            e.required_text(&namespace);
        }
    }),
    kind("vsphereVolume", |at, _, e| need(at, &["volumePath"], e)),
    kind("photonPersistentDisk", |at, _, e| need(at, &["pdID"], e)),
    kind("portworxVolume", |at, _, e| need(at, &["volumeID"], e)),
    kind("azureDisk", azure_disk),
    kind("scaleIO", scale_io),
    kind("local", |at, _, e| {
        let path = at.field("path");
        if path.is_empty() {
            e.required(path, "");
        } else {
            no_backsteps(e, &path);
        }
    }),
    kind("storageos", |at, _, e| {
        storage_os_names(at, e);
        need_of_reference(&at.field("secretRef"), &["name", "namespace"], e);
    }),
    kind("csi", csi),
];

fn csi(at: &At<'_, '_>, _: &PodOptions, errors: &mut Errors) {
    csi_driver_name(&at.field("driver"), errors);
    need(at, &["volumeHandle"], errors);
    for secret in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ] {
        let secret = at.field(secret);
        if secret.is_set() {
            errors.required_name(&secret.field("name"), dns_subdomain);
            errors.required_name(&secret.field("namespace"), dns_label);
        }
    }
}

/// Validates a volume's spec; `inline` ones are part of an attachment.
pub(super) fn validate_spec(
    spec: &At<'_, '_>,
    inline: bool,
    allow_invalid_labels: bool,
    errors: &mut Errors,
) {
    const INLINE: &str = "may not be specified in the context of inline volumes";
    let forbid = |field: &str, errors: &mut Errors| {
        let at = spec.field(field);
        if !at.is_empty() {
            errors.forbidden(at, INLINE);
        }
    };
    let csi = spec.field("csi");
    if inline {
        forbid("claimRef", errors);
        forbid("capacity", errors);
        if !csi.is_set() {
            let detail = "has to be specified in the context of inline volumes";
            errors.required(csi, detail);
        }
    }
    let modes = spec.field("accessModes");
    if modes.is_empty() {
        errors.required(modes, "");
    }
    validate_access_modes(&modes, errors);
    if !inline {
        validate_capacity(&spec.field("capacity"), errors);
    }
    let policy = spec.field("persistentVolumeReclaimPolicy");
    if !policy.is_empty() {
        if !inline {
            errors.member(&policy, RECLAIM_POLICIES);
        } else if policy.str() != "Retain" {
            let detail = "may only be Retain in the context of inline volumes";
            errors.forbidden(policy, detail);
        }
    }
    let affinity = spec.field("nodeAffinity");
    if affinity.is_set() {
        let required = affinity.field("required");
        if inline {
            errors.forbidden(affinity, INLINE);
        } else if required.is_set() {
            validate_node_selector(&required, allow_invalid_labels, errors);
        } else {
            errors.required(required, "must specify required node constraints");
        }
    }
    let count = validate_kinds(
        spec,
        KINDS,
        &PodOptions::default(),
        errors,
        |kind, errors| {
            if kind == "local" && !affinity.is_set() {
                errors.required(affinity, "Local volume requires node affinity");
            }
        },
    );
    if count == 0 {
        errors.required(spec, "must specify a volume type");
    }
    let path = spec.get("hostPath")["path"].as_str().unwrap_or_default();
    if policy.str() == "Recycle" && is_root(path) {
        errors.forbidden(policy, "may not be 'recycle' for a hostPath mount of '/'");
    }
    let class = spec.field("storageClassName");
    if inline {
        forbid("storageClassName", errors);
    } else {
        errors.optional_name(&class, dns_subdomain);
    }
    let mode = spec.field("volumeMode");
    if !inline {
        errors.one_of_optional(&mode, VOLUME_MODES);
    } else if mode.is_set() && mode.str() != "Filesystem" {
        let detail =
            "may not specify volumeMode other than Filesystem in the context of inline volumes";
        errors.forbidden(mode, detail);
    }
    let attributes = spec.field("volumeAttributesClassName");
    if attributes.is_set() && !inline {
        if attributes.is_empty() {
            errors.required(attributes, "an empty string is disallowed");
        }
        errors.optional_name(&attributes, dns_subdomain);
        if !csi.is_set() {
            let detail = "has to be specified when using volumeAttributesClassName";
            errors.required(csi, detail);
        }
    }
}

/// Whether a path that is there leads to the root.
fn is_root(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|step| step.is_empty() || step == ".")
}

fn validate_capacity(capacity: &At<'_, '_>, errors: &mut Errors) {
    if capacity.is_empty() {
        errors.required(capacity, "");
    }
    let amounts = capacity.map().map_or(0, serde_json::Map::len);
    if !capacity.key("storage").is_set() || amounts > 1 {
        errors.not_supported(capacity, capacity.value(), &["storage"]);
    }
    for (_, amount) in capacity.entries() {
        resource::basic_amount(errors, &amount);
        positive_quantity(errors, &amount);
    }
}

/// The source of a spec, whichever type it is.
fn source(spec: &Value) -> Value {
    KINDS
        .iter()
        .filter(|k| spec[k.field].is_object())
        .map(|k| (k.field.to_owned(), spec[k.field].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn validate_immutable(object: &Value, old: &Value, errors: &mut Errors) {
    let (mut new, before) = (source(&object["spec"]), source(&old["spec"]));
    // A secret for expansion may be added.
    if before["csi"].is_object()
        && before["csi"]["controllerExpandSecretRef"].is_null()
        && let Some(csi) = new["csi"].as_object_mut()
    {
        csi.remove("controllerExpandSecretRef");
    }
    if let Some(map) = new.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
    if new != before {
        let diff = internal_diff("io.k8s.api.core.v1.PersistentVolumeSpec", &before, &new);
        let detail = format!("spec.persistentvolumesource is immutable after creation\n{diff}");
        errors.forbidden("spec.persistentvolumesource", &detail);
    }
    errors.immutable(
        "volumeMode",
        &object["spec"]["volumeMode"],
        &old["spec"]["volumeMode"],
    );
    let affinity = |o: &Value| o["spec"]["nodeAffinity"].clone();
    if !affinity(old).is_null()
        && with_stable_keys(affinity(object), &affinity(old)) != affinity(object)
    {
        errors.invalid_as(
            "nodeAffinity",
            &shown_affinity(&affinity(object)),
            "field is immutable, except for updating from beta label to GA",
        );
    }
    if !old["spec"]["volumeAttributesClassName"].is_null()
        && object["spec"]["volumeAttributesClassName"].is_null()
    {
        errors.forbidden(
            "spec.volumeAttributesClassName",
            "update from non-nil value to nil is forbidden",
        );
    }
}

const STABLE_KEYS: [(&str, &str); 5] = [
    (
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/zone",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "topology.kubernetes.io/region",
    ),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    (
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
    ),
];

/// The old affinity with the keys of `new` where only their names became stable.
fn with_stable_keys(new: Value, old: &Value) -> Value {
    let mut result = old.clone();
    let terms = result["required"]["nodeSelectorTerms"].as_array_mut();
    for (t, term) in terms.into_iter().flatten().enumerate() {
        let expressions = term["matchExpressions"].as_array_mut();
        for (e, expression) in expressions.into_iter().flatten().enumerate() {
            let wanted = &new["required"]["nodeSelectorTerms"][t]["matchExpressions"][e];
            // Nothing is the stable key of any other, so that only the absence is told of a key that is gone.
            let stable = STABLE_KEYS
                .iter()
                .find(|(beta, _)| expression["key"] == *beta)
                .map_or("", |(_, stable)| *stable);
            if text(wanted, "/key") == stable {
                copy_field(expression, wanted, "key");
            }
        }
    }
    result
}

fn shown_affinity(affinity: &Value) -> String {
    if affinity.is_null() {
        return "null".to_owned();
    }
    internal("io.k8s.api.core.v1.VolumeNodeAffinity", affinity)
}

fn has_invalid_labels(old: &Value) -> bool {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    list(&old["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"])
        .iter()
        .flat_map(|t| list(&t["matchExpressions"]))
        .flat_map(|e| list(&e["values"]))
        .any(|v| !label_value(v.as_str().unwrap_or_default()).is_empty())
}

const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";

/// The annotation that was there before `mountOptions` is for some types of volumes only.
fn validate_mount_options(object: &Value, errors: &mut Errors) {
    const WITH_OPTIONS: [&str; 13] = [
        "gcePersistentDisk",
        "awsElasticBlockStore",
        "glusterfs",
        "nfs",
        "rbd",
        "quobyte",
        "iscsi",
        "cinder",
        "cephfs",
        "azureFile",
        "vsphereVolume",
        "azureDisk",
        "photonPersistentDisk",
    ];
    let takes_options = WITH_OPTIONS
        .iter()
        .any(|kind| object["spec"][*kind].is_object());
    if !takes_options && meta::annotation(object, MOUNT_OPTIONS).is_some() {
        errors.forbidden(
            format!("metadata.annotations.{MOUNT_OPTIONS}"),
            "may not specify mount options for this volume type",
        );
    }
}

pub(in crate::strategy) struct PersistentVolume;

impl Strategy for PersistentVolume {
    fn default(&self, object: &mut Value) {
        crate::strategy::default_at(object, &["status", "phase"], "Pending");
    }

    /// Volumes by their claim: the Node authorizer asks for them.
    fn indexed_field(&self) -> Option<&'static str> {
        Some("spec.claimRef")
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        let claim = &object["spec"]["claimRef"];
        match (field, claim["namespace"].as_str(), claim["name"].as_str()) {
            ("spec.claimRef", Some(namespace), Some(name)) => {
                Some(Cow::Owned(format!("{namespace}/{name}")))
            }
            _ => None,
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": meta::now()});
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        let status = |o: &Value, field: &str| o["status"][field].clone();
        let same_phase = status(object, "phase") == status(old, "phase");
        let (now, before) = (
            status(object, "lastPhaseTransitionTime"),
            status(old, "lastPhaseTransitionTime"),
        );
        let time = match (same_phase, now.is_null() || now == before) {
            (true, _) if now.is_null() => before,
            (false, true) => meta::now().into(),
            _ => return,
        };
        if !time.is_null() && object["status"].is_object() {
            object["status"]["lastPhaseTransitionTime"] = time;
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        validate_spec(&spec, false, false, errors);
        validate_iscsi_length(object, errors);
        validate_mount_options(object, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let allow = has_invalid_labels(old);
        validate_spec(&root.field("spec"), false, allow, errors);
        validate_mount_options(object, errors);
        validate_spec(&root.field("spec"), false, allow, errors);
        validate_immutable(object, old, errors);
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let root = At::root(object);
        let spec = root.field("spec");
        let mut warnings = Vec::new();
        for (key, why) in [
            (BETA_CLASS, BETA_CLASS_WARNING),
            (
                MOUNT_OPTIONS,
                "deprecated since v1.31; use \"mountOptions\" attribute instead",
            ),
        ] {
            if meta::annotation(object, key).is_some() {
                warnings.push(format!("metadata.annotations[{key}]: {why}"));
            }
        }
        if spec.text("persistentVolumeReclaimPolicy") == "Recycle" {
            warnings.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".into());
        }
        let affinity = spec.field("nodeAffinity");
        let required = affinity.field("required");
        for term in required.field("nodeSelectorTerms").items() {
            node_selector_term(&term, false, &mut warnings);
        }
        for (field, called, why) in [
            (
                "cephfs",
                "cephfs",
                "deprecated in v1.28, non-functional in v1.31+",
            ),
            (
                "photonPersistentDisk",
                "photonPersistentDisk",
                "deprecated in v1.11, non-functional in v1.16+",
            ),
            (
                "scaleIO",
                "scaleIO",
                "deprecated in v1.16, non-functional in v1.22+",
            ),
            (
                "storageos",
                "storageOS",
                "deprecated in v1.22, non-functional in v1.25+",
            ),
            (
                "glusterfs",
                "glusterfs",
                "deprecated in v1.25, non-functional in v1.26+",
            ),
            (
                "rbd",
                "rbd",
                "deprecated in v1.28, non-functional in v1.31+",
            ),
        ] {
            let at = spec.field_as(field, called);
            if at.is_set() {
                warnings.push(format!("{at}: {why}"));
            }
        }
        warnings
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Whole]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

/// Names of iSCSI volumes with an initiator become part of an interface's.
fn validate_iscsi_length(object: &Value, errors: &mut Errors) {
    let iscsi = &object["spec"]["iscsi"];
    let portal = iscsi["targetPortal"].as_str().unwrap_or_default();
    if !iscsi["initiatorName"].is_null() && meta::name(object).len() + 1 + portal.len() > 64 {
        errors.invalid_text("spec.iscsi.targetportal", portal, "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.");
    }
}

//! Persistent volumes, claims and storage classes.

use serde_json::{Value, json};

use super::{Strategy, default_at};
use crate::validation::Errors;

const ACCESS_MODES: [&str; 4] = [
    "ReadWriteOnce",
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOncePod",
];

pub(super) struct PersistentVolume;

impl Strategy for PersistentVolume {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        validate_access_modes(spec, "spec", errors);
        if spec["capacity"]["storage"].is_null() {
            errors.required("spec.capacity", "must specify a storage capacity");
        }
        errors.one_of(
            "spec.persistentVolumeReclaimPolicy",
            &spec["persistentVolumeReclaimPolicy"],
            &["Delete", "Recycle", "Retain"],
        );
        errors.one_of(
            "spec.volumeMode",
            &spec["volumeMode"],
            &["Block", "Filesystem"],
        );
        let known = [
            "hostPath",
            "local",
            "csi",
            "nfs",
            "iscsi",
            "fc",
            "azureDisk",
            "azureFile",
            "cephfs",
            "rbd",
            "glusterfs",
            "flexVolume",
        ];
        if !known.iter().any(|k| spec[*k].is_object()) {
            errors.required("spec", "must specify a volume type");
        }
        if spec["local"].is_object() && spec["nodeAffinity"].is_null() {
            errors.required("spec.nodeAffinity", "Local volume requires node affinity");
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

pub(super) struct PersistentVolumeClaim;

/// Static defaults of a claim that is embedded in another object.
pub(super) fn default_claim(claim: &mut Value) {
    default_at(claim, &["spec", "volumeMode"], "Filesystem");
    default_at(claim, &["status", "phase"], "Pending");
}

impl Strategy for PersistentVolumeClaim {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        validate_access_modes(spec, "spec", errors);
        if spec["resources"]["requests"]["storage"].is_null() {
            errors.required("spec.resources[storage]", "");
        }
        errors.one_of(
            "spec.volumeMode",
            &spec["volumeMode"],
            &["Block", "Filesystem"],
        );
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let fixed = |o: &Value| {
            let mut spec = o["spec"].clone();
            if let Some(map) = spec.as_object_mut() {
                map.remove("resources");
                map.remove("volumeAttributesClassName");
                // Binding sets the name, once.
                if old["spec"]["volumeName"]
                    .as_str()
                    .unwrap_or_default()
                    .is_empty()
                {
                    map.remove("volumeName");
                }
                if old["spec"]["storageClassName"].is_null() {
                    map.remove("storageClassName");
                }
            }
            spec
        };
        if fixed(object) != fixed(old) {
            errors.forbidden("spec", "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims");
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

fn validate_access_modes(spec: &Value, at: &str, errors: &mut Errors) {
    let modes = spec["accessModes"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    if modes.is_empty() {
        errors.required(
            &format!("{at}.accessModes"),
            "at least 1 access mode is required",
        );
    }
    for mode in modes {
        errors.one_of(&format!("{at}.accessModes"), mode, &ACCESS_MODES);
    }
}

pub(super) struct StorageClass;

impl Strategy for StorageClass {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        if object["provisioner"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
        {
            errors.required("provisioner", "");
        }
        errors.one_of(
            "reclaimPolicy",
            &object["reclaimPolicy"],
            &["Delete", "Retain"],
        );
        errors.one_of(
            "volumeBindingMode",
            &object["volumeBindingMode"],
            &["Immediate", "WaitForFirstConsumer"],
        );
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        for field in [
            "parameters",
            "provisioner",
            "reclaimPolicy",
            "volumeBindingMode",
        ] {
            if object[field] != old[field] {
                errors.forbidden(field, "updates to fields are forbidden.");
            }
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

//! Where containers see volumes: mounts and devices.

use std::collections::{HashMap, HashSet};

use super::container::Context;
use crate::validation::{At, Errors, descending_path};

/// What the other list of a container has.
struct Others<'v> {
    names: HashSet<&'v str>,
    /// Of each name the last one, as later entries of it win.
    paths: HashSet<&'v str>,
}

impl<'v> Others<'v> {
    fn of(list: &At<'v, '_>, path: &str) -> Self {
        let entries = list.list().iter().map(|entry| {
            let text = |field: &str| entry[field].as_str().unwrap_or_default();
            (text("name"), text(path))
        });
        let found: HashMap<&str, &str> = entries.collect();
        Self {
            names: found.keys().copied().collect(),
            paths: found.into_values().collect(),
        }
    }
}

pub(super) fn validate_mounts(container: &At<'_, '_>, context: &Context<'_>, errors: &mut Errors) {
    let mounts = container.field("volumeMounts");
    if mounts.is_empty() {
        return;
    }
    let devices = Others::of(&container.field("volumeDevices"), "devicePath");
    let mut seen = HashSet::new();
    for mount in mounts.items() {
        let (name, path) = (mount.field("name"), mount.field("mountPath"));
        errors.required_text(&name);
        if context.volume(name.str()).is_none() {
            errors.not_found(name, &name.str().into());
        }
        errors.required_text(&path);
        if !seen.insert(path.str()) {
            errors.bad(&path, "must be unique");
        }
        if devices.names.contains(name.str()) {
            errors.bad(&name, "must not already exist in volumeDevices");
        }
        if devices.paths.contains(path.str()) {
            errors.bad(&path, "must not already exist as a path in volumeDevices");
        }
        // The rest is said of the list, as upstream does.
        let (sub_path, expression) = (mount.text("subPath"), mount.text("subPathExpr"));
        if !sub_path.is_empty() {
            descending_path(errors, &mounts.place("subPath", mount.get("subPath")));
        }
        if !expression.is_empty() {
            let at = mount.field("subPathExpr");
            if !sub_path.is_empty() {
                errors.bad(&at, "subPathExpr and subPath are mutually exclusive");
            }
            descending_path(errors, &mounts.place("subPathExpr", at.value()));
        }
        validate_propagation(container, &mounts, &mount, errors);
        validate_recursive_read_only(&mounts, &mount, errors);
    }
}

fn validate_propagation(
    container: &At<'_, '_>,
    mounts: &At<'_, '_>,
    mount: &At<'_, '_>,
    errors: &mut Errors,
) {
    let propagation = mounts.place("mountPropagation", mount.get("mountPropagation"));
    errors.one_of_optional(&propagation, &["Bidirectional", "HostToContainer", "None"]);
    let privileged = container.get("securityContext")["privileged"] == true;
    if propagation.str() == "Bidirectional" && !privileged {
        errors.forbidden(
            propagation,
            "Bidirectional mount propagation is available only to privileged containers",
        );
    }
}

fn validate_recursive_read_only(mounts: &At<'_, '_>, mount: &At<'_, '_>, errors: &mut Errors) {
    let at = mounts.place("recursiveReadOnly", mount.get("recursiveReadOnly"));
    match at.str() {
        _ if !at.is_set() => {}
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !mount.field("readOnly").is_true() {
                errors.forbidden(at, "may only be specified when readOnly is true");
            }
            let propagation = mount.field("mountPropagation");
            if propagation.is_set() && propagation.str() != "None" {
                errors.forbidden(
                    at,
                    "may only be specified when mountPropagation is None or not specified",
                );
            }
        }
        _ => errors.unsupported(&at, &["Disabled", "Enabled", "IfPossible"]),
    }
}

pub(super) fn validate_devices(container: &At<'_, '_>, context: &Context<'_>, errors: &mut Errors) {
    let devices = container.field("volumeDevices");
    if devices.is_empty() {
        return;
    }
    let mounts = Others::of(&container.field("volumeMounts"), "mountPath");
    let (mut names, mut seen) = (HashSet::new(), HashSet::new());
    for device in devices.items() {
        let (name, path) = (device.field("name"), device.field("devicePath"));
        let volume = context.volume(name.str());
        errors.required_text(&name);
        if names.contains(&name.str()) {
            errors.bad(&name, "must be unique");
        }
        match volume {
            Some(v) if v["persistentVolumeClaim"].is_null() && v["ephemeral"].is_null() => {
                errors.bad(&name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode");
            }
            Some(_) => {}
            None => errors.not_found(name, &name.str().into()),
        }
        errors.required_text(&path);
        if seen.contains(&path.str()) {
            errors.bad(&path, "must be unique");
        }
        if path.str().split('/').any(|step| step == "..") {
            errors.bad(&path, "can not contain backsteps ('..')");
        } else {
            seen.insert(path.str());
        }
        if mounts.names.contains(name.str()) {
            errors.bad(&name, "must not already exist in volumeMounts");
        }
        if mounts.paths.contains(path.str()) {
            errors.bad(&path, "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names.insert(name.str());
        }
    }
}

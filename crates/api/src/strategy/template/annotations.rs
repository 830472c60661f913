//! Annotations that said what fields say now: they must not contradict each other.

use serde_json::{Value, json};

use super::CONTAINER_LISTS;
use super::options::{Options, has_container};
use super::scheduling::validate_tolerations;
use super::security::validate_apparmor;
use crate::validation::{At, Errors, descending_path, quote};

const MIRROR: &str = "kubernetes.io/config.mirror";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
pub(super) const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
pub(super) const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
pub(super) const APPARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";

fn deletion_cost_is_valid(cost: &str) -> bool {
    let first = cost.as_bytes().first();
    let well_formed = cost == "0" || first.is_some_and(|b| matches!(b, b'-' | b'1'..=b'9'));
    well_formed && cost.parse::<i32>().is_ok()
}

pub(super) fn has_valid_deletion_cost(annotations: &Value) -> bool {
    annotations[DELETION_COST]
        .as_str()
        .is_none_or(deletion_cost_is_valid)
}

/// Annotations at `at` of something whose pod spec is `spec`.
pub(in crate::strategy) fn validate(
    at: &At<'_, '_>,
    spec: &At<'_, '_>,
    options: &Options,
    errors: &mut Errors,
) {
    if at.is_empty() {
        return;
    }
    let mirror = at.key(MIRROR);
    if mirror.is_set() && spec.text("nodeName").is_empty() {
        errors.bad(
            &mirror,
            "must set spec.nodeName if mirror pod annotation is set",
        );
    }
    let tolerations = at.field(TOLERATIONS);
    if !tolerations.is_empty()
        && let Ok(list @ Value::Array(_)) = serde_json::from_str::<Value>(tolerations.str())
    {
        validate_tolerations(&at.place(TOLERATIONS, &list), options, errors);
    }
    if !options.invalid_deletion_cost && !has_valid_deletion_cost(at.value()) {
        errors.bad(&at.key(DELETION_COST), "must be a 32bit integer");
    }
    let pod = at.field(SECCOMP_POD);
    if pod.is_set() {
        validate_seccomp(&pod, errors);
    }
    for (key, value) in at.map().into_iter().flatten() {
        if key.starts_with(SECCOMP_CONTAINER) {
            validate_seccomp(&at.place(key, value), errors);
        }
    }
    for (key, profile) in at.entries() {
        let Some(container) = key.strip_prefix(APPARMOR_CONTAINER) else {
            continue;
        };
        if !has_container(spec, container) {
            errors.invalid_text(profile, container, "container not found");
        }
        let known = ["", "runtime/default", "unconfined"].contains(&profile.str());
        if !known && !profile.str().starts_with("localhost/") {
            let detail = format!("invalid AppArmor profile name: {}", quote(profile.str()));
            errors.bad(&profile, &detail);
        }
    }
}

fn validate_seccomp(at: &At<'_, '_>, errors: &mut Errors) {
    if ["runtime/default", "docker/default", "unconfined"].contains(&at.str()) {
        return;
    }
    let Some(path) = at.str().strip_prefix("localhost/") else {
        errors.bad(at, "must be a valid seccomp profile");
        return;
    };
    let path = json!(path);
    let mut found = Errors::default();
    descending_path(&mut found, &At::named(&path, ""));
    for cause in found.0 {
        let detail = cause
            .message
            .split_once(": ")
            .and_then(|(_, d)| d.split_once(": "));
        errors.invalid(at, &path, detail.map_or("", |(_, d)| d));
    }
}

/// Fields and annotations of a new object must say the same.
pub(in crate::strategy) fn validate_agreement(
    annotations: &At<'_, '_>,
    spec: &At<'_, '_>,
    errors: &mut Errors,
) {
    if annotations.is_empty() {
        return;
    }
    let context = spec.field("securityContext");
    let pod = context.field("seccompProfile");
    if let Some(annotation) = annotations
        .get(SECCOMP_POD)
        .as_str()
        .filter(|_| pod.is_set())
    {
        agree("seccomp", annotation, &pod, errors);
    }
    for (what, prefix, field) in [
        ("seccomp", SECCOMP_CONTAINER, "seccompProfile"),
        ("apparmor", APPARMOR_CONTAINER, "appArmorProfile"),
    ] {
        if what == "apparmor" && spec.get("os")["name"] == "windows" {
            continue;
        }
        for list in CONTAINER_LISTS {
            for container in spec.field(list).items() {
                let own = container.field("securityContext");
                let mut profile = own.field(field);
                let inherited = context.get(field);
                if !profile.is_set() && what == "apparmor" {
                    profile = own.place(field, inherited);
                }
                let key = format!("{prefix}{}", container.text("name"));
                if let Some(annotation) =
                    annotations.get(&key).as_str().filter(|_| profile.is_set())
                {
                    agree(what, annotation, &profile, errors);
                }
            }
        }
    }
}

fn agree(what: &str, annotation: &str, profile: &At<'_, '_>, errors: &mut Errors) {
    let type_differs = |errors: &mut Errors| {
        let detail = format!("{what} type in annotation and field must match");
        errors.forbidden(profile.field("type"), &detail);
    };
    match profile.text("type") {
        "Unconfined" if annotation != "unconfined" => type_differs(errors),
        "RuntimeDefault" => {
            let docker = what == "seccomp" && annotation == "docker/default";
            if annotation != "runtime/default" && !docker {
                type_differs(errors);
            }
        }
        "Localhost" => {
            let local = profile.field("localhostProfile");
            match annotation.strip_prefix("localhost/") {
                None => type_differs(errors),
                Some(path) if local.value().as_str() != Some(path) => {
                    let detail = format!("{what} profile in annotation and field must match");
                    errors.forbidden(local, &detail);
                }
                Some(_) => {}
            }
        }
        _ => {}
    }
}

/// Annotations of a pod that may not come, go or change.
pub(in crate::strategy) fn validate_update(
    new: &At<'_, '_>,
    old: &At<'_, '_>,
    errors: &mut Errors,
) {
    for (key, was) in old.map().into_iter().flatten() {
        if new.get(key) == was {
            continue;
        }
        if key.starts_with(APPARMOR_CONTAINER) {
            errors.forbidden(
                new.key(key),
                "may not remove or update AppArmor annotations",
            );
        }
        if key == MIRROR {
            errors.forbidden(
                new.key(key),
                "may not remove or update mirror pod annotation",
            );
        }
    }
    for key in new.map().into_iter().flat_map(|m| m.keys()) {
        if !old.get(key).is_null() {
            continue;
        }
        if key.starts_with(APPARMOR_CONTAINER) {
            errors.forbidden(new.key(key), "may not add AppArmor annotations");
        }
        if key == MIRROR {
            errors.forbidden(new.key(key), "may not add mirror pod annotation");
        }
    }
}

/// The `appArmorProfile` that an annotation stands for.
pub(in crate::strategy) fn apparmor_field(annotation: &str) -> Option<Value> {
    let profile = match annotation {
        "unconfined" => json!({"type": "Unconfined"}),
        "runtime/default" => json!({"type": "RuntimeDefault"}),
        other => {
            let path = other.strip_prefix("localhost/").filter(|p| !p.is_empty())?;
            json!({"type": "Localhost", "localhostProfile": path})
        }
    };
    let mut errors = Errors::default();
    validate_apparmor(&At::root(&profile), &mut errors);
    errors.is_empty().then_some(profile)
}

//! Defaults of pod specs that depend on other fields.

use serde_json::{Value, json};

use super::CONTAINER_LISTS;
use super::resources::aggregate;
use crate::component_helpers::resource::Requirement;
use crate::quantity::Quantity;
use crate::strategy::storage::claim;
use crate::strategy::{at_mut, default_at, items_mut};
use crate::validation::resource;

/// Defaults of a pod spec, in pods and in templates.
pub(in crate::strategy) fn default_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    drop_disabled(spec);
    // The older name of the field is another way to say the same, and gives way.
    let name = ["serviceAccountName", "serviceAccount"]
        .into_iter()
        .find_map(|field| {
            let name = spec.get(field).and_then(Value::as_str);
            name.filter(|name| !name.is_empty()).map(str::to_owned)
        });
    if let Some(name) = name {
        spec["serviceAccount"] = name.as_str().into();
        spec["serviceAccountName"] = name.into();
    }
    for list in CONTAINER_LISTS {
        for container in items_mut(spec, &[list]) {
            default_container(container);
        }
    }
    for volume in items_mut(spec, &["volumes"]) {
        default_volume(volume);
    }
    round_up(at_mut(spec, &["overhead"]));
    round_up_resources(spec);
}

/// Removes fields whose feature gates are closed, so that no stored pod has them.
fn drop_disabled(spec: &mut Value) {
    for list in CONTAINER_LISTS {
        for container in items_mut(spec, &[list]) {
            let lifecycle = at_mut(container, &["lifecycle"]).and_then(Value::as_object_mut);
            let was_set = lifecycle.is_some_and(|l| l.remove("stopSignal").is_some());
            if was_set && container["lifecycle"] == json!({}) {
                container["lifecycle"].take();
            }
        }
    }
    for volume in items_mut(spec, &["volumes"]) {
        for source in items_mut(volume, &["projected", "sources"]) {
            if let Some(map) = source.as_object_mut() {
                map.remove("clusterTrustBundle");
                map.remove("podCertificate");
            }
        }
    }
}

/// Defaults of the pod template at `path`.
pub(in crate::strategy) fn default_template(object: &mut Value, path: &[&str]) {
    if let Some(spec) = at_mut(object, path).and_then(|template| template.get_mut("spec")) {
        default_spec(spec);
    }
}

/// Defaults of pods that their templates do not have.
pub(in crate::strategy) fn default_pod(spec: &mut Value) {
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, &[list]) {
            if host_network {
                for port in items_mut(container, &["ports"]) {
                    let number = port["containerPort"].clone();
                    default_at(port, &["hostPort"], number);
                }
            }
            let limits = at_mut(container, &["resources", "limits"]);
            let limits = limits.and_then(|l| l.as_object().cloned());
            for (name, limit) in limits.into_iter().flatten() {
                default_at(container, &["resources", "requests", &name], limit);
            }
        }
    }
    default_pod_resources(spec);
    default_at(spec, &["enableServiceLinks"], true);
}

fn is_pod_level(name: &str) -> bool {
    ["cpu", "memory"].contains(&name) || resource::is_huge_page(name)
}

/// A pod that says what it needs as a whole says it of everything that its containers ask for.
fn default_pod_resources(spec: &mut Value) {
    if !spec.get("resources").is_some_and(Value::is_object) {
        return;
    }
    let has = |spec: &Value, kind: &str| {
        spec["resources"][kind]
            .as_object()
            .is_some_and(|m| !m.is_empty())
    };
    if has(spec, "limits") || has(spec, "requests") {
        for (name, limit) in aggregate(spec, Requirement::Limits) {
            let requested = !spec["resources"]["requests"][&name].is_null();
            if resource::is_huge_page(&name) && !requested {
                default_at(spec, &["resources", "limits", &name], limit.to_string());
            }
        }
    }
    if !has(spec, "limits") {
        return;
    }
    for (name, request) in aggregate(spec, Requirement::Requests) {
        if is_pod_level(&name) && resource::is_overcommit_allowed(&name) {
            default_at(spec, &["resources", "requests", &name], request.to_string());
        }
    }
    let limits = spec["resources"]["limits"].as_object().cloned();
    for (name, limit) in limits.into_iter().flatten() {
        if is_pod_level(&name) {
            default_at(spec, &["resources", "requests", &name], limit);
        }
    }
}

/// Amounts of resources have no more than three decimals.
pub(in crate::strategy) fn round_up(amounts: Option<&mut Value>) {
    let amounts = amounts.and_then(Value::as_object_mut).into_iter();
    for amount in amounts.flat_map(|m| m.values_mut()) {
        if let Some(quantity) = amount.as_str().and_then(|a| a.parse::<Quantity>().ok()) {
            let rounded = quantity.rounded_up_to_millis();
            if rounded != quantity {
                *amount = rounded.to_string().into();
            }
        }
    }
}

fn round_up_resources(holder: &mut Value) {
    for kind in ["limits", "requests"] {
        round_up(at_mut(holder, &["resources", kind]));
    }
}

fn default_container(container: &mut Value) {
    default_pull_policy(container, "image", "imagePullPolicy");
    round_up_resources(container);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[probe]["grpc"].is_object() {
            default_at(container, &[probe, "grpc", "service"], "");
        }
    }
}

fn default_pull_policy(holder: &mut Value, image: &str, policy: &str) {
    if holder.is_object() && holder[policy].as_str().unwrap_or_default().is_empty() {
        let tag = tag(holder[image].as_str().unwrap_or_default());
        let default = if tag == Some("latest") {
            "Always"
        } else {
            "IfNotPresent"
        };
        holder[policy] = default.into();
    }
}

const MAX_REPOSITORY: usize = 255;

/// The tag of an image reference: `latest` when it has neither tag nor digest, nothing when it is no reference at all.
fn tag(image: &str) -> Option<&str> {
    if image.contains('@') || image.len() > MAX_REPOSITORY {
        return None;
    }
    let name = image.rsplit('/').next().unwrap_or_default();
    let (name, tag) = name.split_once(':').unwrap_or((name, "latest"));
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    (!name.is_empty() && name.bytes().all(allowed)).then_some(tag)
}

fn default_volume(volume: &mut Value) {
    let Some(map) = volume.as_object() else {
        return;
    };
    if map.keys().all(|k| k == "name") {
        volume["emptyDir"] = json!({});
        return;
    }
    if let Some(image) = at_mut(volume, &["image"]) {
        default_pull_policy(image, "reference", "pullPolicy");
    }
    if let Some(spec) = at_mut(volume, &["ephemeral", "volumeClaimTemplate", "spec"]) {
        claim::default_spec(spec);
    }
}

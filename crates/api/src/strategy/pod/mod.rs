//! Pods.

mod update;

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::template::annotations::{apparmor_field, validate_agreement};
use super::template::options::list;
use super::template::warnings::APPARMOR_FIELD;
use super::template::{self, Options, containers_of};
use super::{MetaCheck, Strategy, at_mut, copy_field, items_mut, keep_metadata, text};
use crate::component_helpers::{qos, resource::PodResources};
use crate::meta;
use crate::validation::{At, Errors, dns_label, ip};

const APPARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";

pub(super) struct Pod;

impl Strategy for Pod {
    fn gated_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("GenericWorkload", &["spec", "schedulingGroup"])]
    }

    fn default(&self, object: &mut Value) {
        if let Some(spec) = at_mut(object, &["spec"]) {
            template::default_spec(spec);
            template::default_pod(spec);
            let grace = &spec["terminationGracePeriodSeconds"];
            if grace.as_i64().is_some_and(|seconds| seconds < 0) {
                spec["terminationGracePeriodSeconds"] = 1.into();
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Pending", "qosClass": qos_class(object)});
        if list(&object["spec"]["schedulingGates"]).next().is_some() {
            object["status"]["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null, "lastTransitionTime": meta::now(),
            }]);
        }
        narrow_selectors(object);
        adopt_apparmor_annotations(object);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        copy_field(&mut object["metadata"], &old["metadata"], "ownerReferences");
        let status = meta::child(object, "status");
        let class = status.get("qosClass").and_then(Value::as_str);
        if class.is_none_or(str::is_empty) {
            status.insert("qosClass".into(), old["status"]["qosClass"].clone());
        }
        // Accepted claims of node resources are behind a gate that is closed.
        status.remove("nodeAllocatableResourceClaimStatuses");
        agree_on_address(status);
        keep_observed_generations(&mut object["status"], &old["status"]);
    }

    fn prepare_subresource_update(&self, subresource: &str, object: &mut Value, old: &Value) {
        match subresource {
            "ephemeralcontainers" => {
                let containers = object["spec"]["ephemeralContainers"].take();
                let mut spec = old["spec"].clone();
                copy_field(
                    &mut spec,
                    &json!({"ephemeralContainers": containers}),
                    "ephemeralContainers",
                );
                object["spec"] = spec;
                copy_field(object, old, "status");
                keep_metadata(object, old);
            }
            "resize" => {
                update::keep_all_but_resources(object, old);
                keep_metadata(object, old);
            }
            _ => {}
        }
    }

    /// Being bound to a node is no change of what was asked for.
    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        let (new, before) = (object["spec"].as_object(), old["spec"].as_object());
        let was_bound = before.is_some_and(|spec| spec.contains_key("nodeName"));
        let asked = |spec: Option<&Map<String, Value>>| -> Vec<(String, Value)> {
            let fields = spec.into_iter().flatten();
            let asked = fields.filter(|(name, _)| was_bound || *name != "nodeName");
            asked
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        new != before && asked(new) != asked(before)
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_whole(object, &Options::new(true), errors);
        let (spec, metadata) = (root.field("spec"), root.field("metadata"));
        let ephemeral = spec.field("ephemeralContainers");
        if !ephemeral.is_empty() {
            errors.forbidden(ephemeral, "cannot be set on create");
        }
        let node = spec.field("nodeName");
        if !node.is_empty() && !spec.field("schedulingGates").is_empty() {
            let detail = "cannot be set until all schedulingGates have been cleared";
            errors.forbidden(node, detail);
        }
        validate_agreement(&metadata.field("annotations"), &spec, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let options = Options::for_update(true, old);
        validate_whole(object, &options, errors);
        validate_annotations_update(object, old, &options, errors);
        update::validate(object, old, &options, errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        update::validate_status(object, old, &Options::for_update(true, old), errors);
    }

    fn validate_subresource(
        &self,
        subresource: &str,
        object: &Value,
        old: &Value,
        errors: &mut Errors,
    ) {
        let options = Options::for_update(true, old);
        match subresource {
            "ephemeralcontainers" => {
                validate_whole(object, &options, errors);
                validate_annotations_update(object, old, &options, errors);
                update::validate_ephemeral_containers(object, old, errors);
            }
            "resize" => {
                validate_whole(object, &options, errors);
                update::validate_resize(object, old, errors);
            }
            _ => {}
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() {
            return Vec::new();
        }
        let root = At::root(object);
        let mut warnings = Vec::new();
        let problems = dns_label(meta::name(object));
        if !problems.is_empty() {
            warnings.push(format!(
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
                problems.join(" ")
            ));
        }
        warnings.extend(unused_apparmor_annotations(object));
        warnings.extend(template::warnings::of(&root, false));
        warnings
    }

    fn status_warnings(&self, object: &Value) -> Vec<String> {
        let root = At::root(object);
        let status = root.field("status");
        let mut warnings = Vec::new();
        for field in ["podIPs", "hostIPs"] {
            for address in status.field(field).items() {
                ip::ip_warning(&mut warnings, &address.field("ip"));
            }
        }
        warnings
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update, MetaCheck::Whole]
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ]
    }

    fn indexed_field(&self) -> Option<&'static str> {
        Some("spec.nodeName")
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        Some(match field {
            "spec.nodeName" => text(object, "/spec/nodeName"),
            "spec.restartPolicy" => text(object, "/spec/restartPolicy"),
            "spec.schedulerName" => text(object, "/spec/schedulerName"),
            "spec.serviceAccountName" => text(object, "/spec/serviceAccountName"),
            "spec.hostNetwork" => match text(object, "/spec/hostNetwork") {
                Cow::Borrowed("") => Cow::Borrowed("false"),
                set => set,
            },
            "status.phase" => text(object, "/status/phase"),
            "status.podIP" => text(object, "/status/podIP"),
            "status.podIPs" => text(object, "/status/podIPs/0/ip"),
            "status.nominatedNodeName" => text(object, "/status/nominatedNodeName"),
            _ => return None,
        })
    }

    fn grace_period(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        // A pod that never reached a node, or has ended, has nothing to shut down.
        let unscheduled = object["spec"]["nodeName"]
            .as_str()
            .unwrap_or_default()
            .is_empty();
        let ended = matches!(
            object["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed")
        );
        if unscheduled || ended {
            return Some(0);
        }
        let own = object["spec"]["terminationGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(30);
        Some(match requested.unwrap_or(own) {
            negative if negative < 0 => 1,
            seconds => seconds,
        })
    }
}

/// What creation and updates alike look at.
fn validate_whole(object: &Value, options: &Options, errors: &mut Errors) {
    let root = At::root(object);
    let (spec, metadata) = (root.field("spec"), root.field("metadata"));
    let annotations = metadata.field("annotations");
    template::annotations::validate(&annotations, &spec, options, errors);
    template::spec::validate(&spec, Some(metadata.value()), options, errors);
    if spec.text("serviceAccountName").is_empty() {
        for volume in spec.field("volumes").items() {
            let projected = volume.field("projected");
            for source in projected.field("sources").items() {
                let token = source.field("serviceAccountToken");
                if token.is_set() {
                    let detail = "must not be specified when serviceAccountName is not set";
                    errors.forbidden(token, detail);
                }
            }
        }
    }
    for name in ["containers", "initContainers"] {
        for container in spec.field(name).items() {
            template::container::validate_image(&container, errors);
        }
    }
}

fn validate_annotations_update(
    object: &Value,
    old: &Value,
    options: &Options,
    errors: &mut Errors,
) {
    let (root, before) = (At::root(object), At::root(old));
    let (metadata, old_metadata) = (root.field("metadata"), before.field("metadata"));
    let annotations = metadata.field("annotations");
    template::annotations::validate_update(
        &annotations,
        &old_metadata.field("annotations"),
        errors,
    );
    template::annotations::validate(&annotations, &root.field("spec"), options, errors);
}

/// Adds the values of a pod's own labels to the selectors that name the keys.
fn narrow_selectors(object: &mut Value) {
    let labels = object["metadata"]["labels"].clone();
    for kind in ["podAffinity", "podAntiAffinity"] {
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        for term in items_mut(object, &["spec", "affinity", kind, required]) {
            narrow(term, &labels);
        }
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        for weighted in items_mut(object, &["spec", "affinity", kind, preferred]) {
            if let Some(term) = at_mut(weighted, &["podAffinityTerm"]) {
                narrow(term, &labels);
            }
        }
    }
    for constraint in items_mut(object, &["spec", "topologySpreadConstraints"]) {
        narrow(constraint, &labels);
    }
}

fn narrow(term: &mut Value, labels: &Value) {
    if !term["labelSelector"].is_object() {
        return;
    }
    for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        let keys: Vec<String> = list(&term[keys])
            .filter_map(|k| k.as_str().map(str::to_owned))
            .collect();
        for key in keys {
            let Some(value) = labels[&key].as_str() else {
                continue;
            };
            let requirement = json!({"key": key, "operator": operator, "values": [value]});
            let expressions = &mut term["labelSelector"]["matchExpressions"];
            match expressions.as_array_mut() {
                Some(list) => list.push(requirement),
                None => *expressions = json!([requirement]),
            }
        }
    }
}

/// Turns annotations that named profiles of containers into the fields that do so now.
fn adopt_apparmor_annotations(object: &mut Value) {
    if !has_apparmor_annotation(object) || object["spec"]["os"]["name"] == "windows" {
        return;
    }
    let annotations = object["metadata"]["annotations"].clone();
    let inherited = object["spec"]["securityContext"]["appArmorProfile"].clone();
    for name in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items_mut(object, &["spec", name]) {
            let key = format!(
                "{APPARMOR_CONTAINER}{}",
                container["name"].as_str().unwrap_or_default()
            );
            let own = &container["securityContext"]["appArmorProfile"];
            if !own.is_null() {
                continue;
            }
            let profile = annotations[&key].as_str().and_then(apparmor_field);
            if let Some(profile) = profile.filter(|p| *p != inherited) {
                container["securityContext"]["appArmorProfile"] = profile;
            }
        }
    }
}

fn has_apparmor_annotation(object: &Value) -> bool {
    let annotations = object["metadata"]["annotations"].as_object();
    annotations.is_some_and(|a| a.keys().any(|k| k.starts_with(APPARMOR_CONTAINER)))
}

/// Annotations of profiles that fields say differently, or that are not known.
fn unused_apparmor_annotations(object: &Value) -> Vec<String> {
    if !has_apparmor_annotation(object) || object["spec"]["os"]["name"] == "windows" {
        return Vec::new();
    }
    let inherited = &object["spec"]["securityContext"]["appArmorProfile"];
    containers_of(&object["spec"])
        .filter_map(|container| {
            let key = format!("{APPARMOR_CONTAINER}{}", container["name"].as_str()?);
            let profile = apparmor_field(meta::annotation(object, &key)?);
            let own = &container["securityContext"]["appArmorProfile"];
            // What was adopted from the annotation is what the field says.
            let adopted = profile.as_ref().is_some_and(|p| p == own);
            let useless = own.is_null() && profile.as_ref() != Some(inherited);
            (adopted || useless).then(|| format!("metadata.annotations[{key}]: {APPARMOR_FIELD}"))
        })
        .collect()
}

/// The address of a pod is the first of its addresses: what is said in one field holds for the other.
fn agree_on_address(status: &mut Map<String, Value>) {
    let address = status
        .get("podIP")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let first = status.get("podIPs").and_then(|ips| ips[0]["ip"].as_str());
    match (address, first) {
        ("", None) => {}
        ("", Some(first)) => {
            let first = first.to_owned();
            status.insert("podIP".into(), first.into());
        }
        (address, first) if first != Some(address) => {
            let addresses = json!([{"ip": address}]);
            status.insert("podIPs".into(), addresses);
        }
        _ => {}
    }
}

/// Conditions and status keep the generation they were about, unless the writer says another.
fn keep_observed_generations(status: &mut Value, old: &Value) {
    let is_unset = |v: &Value| v["observedGeneration"].as_i64().unwrap_or_default() == 0;
    if is_unset(status) {
        copy_field(status, old, "observedGeneration");
    }
    let mut known: Vec<&Value> = list(&old["conditions"]).collect();
    for condition in items_mut(status, &["conditions"]) {
        let before = known.iter().position(|c| c["type"] == condition["type"]);
        let before = before.map(|i| known.remove(i));
        if is_unset(condition)
            && let Some(before) = before
        {
            copy_field(condition, before, "observedGeneration");
        }
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from requests and limits of CPU and memory.
#[must_use]
pub fn qos_class(pod: &Value) -> &'static str {
    qos::class(&PodResources::of(pod))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_some_fields_may_change() {
        let old = json!({"spec": {"nodeName": "a", "containers": [{"name": "c", "image": "1"}]}});
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = "2".into();
        let mut errors = Errors::default();
        update::validate(&new, &old, &Options::new(true), &mut errors);
        assert!(errors.is_empty());
        new["spec"]["nodeName"] = "b".into();
        update::validate(&new, &old, &Options::new(true), &mut errors);
        assert_eq!(errors.0[0].field, "spec");
        assert!(
            errors.0[0].message.contains("-  \"NodeName\": \"a\"")
                || errors.0[0].message.contains("- \"NodeName\": \"a\"")
        );
    }

    #[test]
    fn grace() {
        let pod = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}, "status": {"phase": "Running"}});
        assert_eq!(Pod.grace_period(&pod, None), Some(5));
        assert_eq!(Pod.grace_period(&pod, Some(0)), Some(0));
        assert_eq!(Pod.grace_period(&json!({"spec": {}}), None), Some(0));
    }
}

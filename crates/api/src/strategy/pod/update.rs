//! What may change of a pod: by an update of it, of its status, of its ephemeral containers, and by a resize.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::qos_class;
use crate::strategy::copy_field;
use crate::strategy::template::annotations;
use crate::strategy::template::container::validate_image;
use crate::strategy::template::options::list;
use crate::strategy::template::scheduling::validate_tolerations;
use crate::strategy::template::{Options, containers_of};
use crate::validation::{
    At, Errors, dns_label, dns_subdomain, internal, internal_diff, ip, qualified_name, quantity_of,
    resource,
};

const POD_SPEC: &str = "io.k8s.api.core.v1.PodSpec";
const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
const LISTS: [&str; 2] = ["containers", "initContainers"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

/// Rules of an update of the pod itself.
pub(super) fn validate(object: &Value, old: &Value, options: &Options, errors: &mut Errors) {
    let (root, before) = (At::root(object), At::root(old));
    let (spec, old_spec) = (root.field("spec"), before.field("spec"));
    for name in LISTS {
        let containers = spec.field(name);
        if containers.list().len() != old_spec.field(name).list().len() {
            errors.forbidden(containers, "pod updates may not add or remove containers");
            return;
        }
        for container in containers.items() {
            errors.required_text(&container.field("image"));
            validate_image(&container, errors);
        }
    }
    let (deadline, old_deadline) = (
        spec.field("activeDeadlineSeconds"),
        old_spec.field("activeDeadlineSeconds"),
    );
    match (deadline.int(), old_deadline.int()) {
        (Some(seconds), _) if !(0..=i64::from(i32::MAX)).contains(&seconds) => {
            errors.bad(&deadline, "must be between 0 and 2147483647, inclusive");
            return;
        }
        (Some(seconds), Some(was)) if was < seconds => {
            errors.bad(&deadline, "must be less than or equal to previous value");
            return;
        }
        (None, Some(_)) => errors.invalid(
            deadline,
            &Value::Null,
            "must not update from a positive integer to nil value",
        ),
        _ => {}
    }
    validate_added_tolerations(&spec, &old_spec, options, errors);
    let gates = spec.field("schedulingGates");
    for gate in gates.items() {
        if !list(old_spec.get("schedulingGates")).any(|g| g["name"] == *gate.get("name")) {
            let detail = format!(
                "only deletion is allowed, but found new scheduling gate '{}'",
                gate.text("name")
            );
            errors.forbidden(gate.field("name"), &detail);
        }
    }
    if spec.value() == old_spec.value() {
        return;
    }
    validate_frozen(&spec, &old_spec, errors);
}

fn validate_added_tolerations(
    spec: &At<'_, '_>,
    old_spec: &At<'_, '_>,
    options: &Options,
    errors: &mut Errors,
) {
    let tolerations = spec.field("tolerations");
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(map) = toleration.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        toleration
    };
    for before in list(old_spec.get("tolerations")) {
        let same = |t: &Value| without_seconds(t) == without_seconds(before);
        if !tolerations.list().iter().any(same) {
            let detail = "existing toleration can not be modified except its tolerationSeconds";
            errors.forbidden(tolerations, detail);
            return;
        }
    }
    validate_tolerations(&tolerations, options, errors);
}

fn validate_frozen(spec: &At<'_, '_>, old_spec: &At<'_, '_>, errors: &mut Errors) {
    let (mut new, before) = (spec.value().clone(), old_spec.value());
    for name in LISTS {
        let old_containers = list(&before[name]);
        let containers = new[name].as_array_mut().into_iter().flatten();
        for (container, old) in containers.zip(old_containers) {
            copy_field(container, old, "image");
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        copy_field(&mut new, before, field);
    }
    let grace = "terminationGracePeriodSeconds";
    if before[grace].as_i64().is_some_and(|n| n < 0) && new[grace] == 1 {
        copy_field(&mut new, before, grace);
    }
    if list(&before["schedulingGates"]).next().is_some() {
        validate_gated(spec, old_spec, &mut new, errors);
    }
    drop_nulls(&mut new);
    if new != *before {
        let diff = internal_diff(POD_SPEC, before, &new);
        errors.forbidden(spec, &format!("{UPDATABLE}\n{diff}"));
    }
}

/// Looking at a missing part must not leave it behind.
fn drop_nulls(value: &mut Value) {
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
}

/// Until its gates are gone, it may still be narrowed where a pod can run.
fn validate_gated(spec: &At<'_, '_>, old_spec: &At<'_, '_>, new: &mut Value, errors: &mut Errors) {
    let selector = spec.field("nodeSelector");
    let was = old_spec.get("nodeSelector");
    if selector.value() != was {
        let lost = was
            .as_object()
            .into_iter()
            .flatten()
            .any(|(k, v)| selector.get(k) != v);
        if lost {
            let detail =
                "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            errors.invalid(selector, selector.value(), detail);
        }
        copy_field(new, old_spec.value(), "nodeSelector");
    }
    let affinity = spec.field("affinity");
    let node = affinity.field("nodeAffinity");
    let was = &old_spec.get("affinity")["nodeAffinity"];
    if node.value() == was {
        return;
    }
    validate_narrowed_affinity(&node, was, errors);
    let only_node = affinity
        .map()
        .is_some_and(|m| m.keys().all(|k| k == "nodeAffinity"));
    if !old_spec.get("affinity").is_object() && only_node {
        if let Some(map) = new.as_object_mut() {
            map.remove("affinity");
        }
        return;
    }
    if new["affinity"].is_null() && was.is_null() {
        return;
    }
    if !new["affinity"].is_object() {
        new["affinity"] = Value::Object(Map::new());
    }
    copy_field(
        &mut new["affinity"],
        old_spec.get("affinity"),
        "nodeAffinity",
    );
}

fn validate_narrowed_affinity(node: &At<'_, '_>, was: &Value, errors: &mut Errors) {
    let old_terms = &was[REQUIRED]["nodeSelectorTerms"];
    if was[REQUIRED].is_null() {
        return;
    }
    let required = node.field(REQUIRED);
    let terms = required.field("nodeSelectorTerms");
    let count = list(old_terms).count();
    if count > 0 && count != terms.list().len() {
        let shown = shown_terms(terms.value());
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.invalid_as(terms, &shown, detail);
        return;
    }
    for (term, old) in terms.items().zip(list(old_terms)) {
        let starts_with = |field: &str| {
            let (new, old) = (list(term.get(field)), list(&old[field]));
            let old: Vec<&Value> = old.collect();
            new.take(old.len()).eq(old.iter().copied())
        };
        let was_empty = list(&old["matchExpressions"])
            .chain(list(&old["matchFields"]))
            .next()
            .is_none();
        let is_empty =
            term.field("matchExpressions").is_empty() && term.field("matchFields").is_empty();
        let only_additions = starts_with("matchExpressions") && starts_with("matchFields");
        if !only_additions || (was_empty && !is_empty) {
            let shown = internal("io.k8s.api.core.v1.NodeSelectorTerm", term.value());
            let detail = "only additions are allowed (no mutations or deletions)";
            errors.invalid_as(term, &shown, detail);
        }
    }
}

fn shown_terms(terms: &Value) -> String {
    if terms.is_null() {
        return "null".to_owned();
    }
    let each: Vec<String> = list(terms)
        .map(|t| internal("io.k8s.api.core.v1.NodeSelectorTerm", t))
        .collect();
    format!("[{}]", each.join(","))
}

/// Rules of an update of ephemeral containers; the rest of the pod is the old one's.
pub(super) fn validate_ephemeral_containers(object: &Value, old: &Value, errors: &mut Errors) {
    if is_mirror(old) {
        errors.0.clear();
        errors.forbidden("", "static pods do not support ephemeral containers");
        return;
    }
    let place = "spec.ephemeralContainers";
    for before in list(&old["spec"]["ephemeralContainers"]) {
        let name = before["name"].as_str().unwrap_or_default();
        match last_named(list(&object["spec"]["ephemeralContainers"]), name) {
            None => {
                let detail =
                    format!("existing ephemeral containers \"{name}\" may not be removed\n");
                errors.forbidden(place, &detail);
            }
            Some(container) if container != before => {
                let diff =
                    internal_diff("io.k8s.api.core.v1.EphemeralContainer", before, container);
                let detail =
                    format!("existing ephemeral containers \"{name}\" may not be changed\n{diff}");
                errors.forbidden(place, &detail);
            }
            Some(_) => {}
        }
    }
}

/// The last of the values with a name.
fn last_named<'v>(values: impl Iterator<Item = &'v Value>, name: &str) -> Option<&'v Value> {
    values.filter(|value| value["name"] == name).last()
}

fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string()
}

/// Keeps all of the old pod but what a resize may change.
pub(super) fn keep_all_but_resources(object: &mut Value, old: &Value) {
    let same_containers = LISTS
        .iter()
        .all(|name| list(&object["spec"][*name]).count() == list(&old["spec"][*name]).count());
    if !same_containers {
        return;
    }
    let mut spec = old["spec"].clone();
    for name in LISTS {
        let new: Vec<Value> = list(&object["spec"][name]).cloned().collect();
        let renamed = new
            .iter()
            .zip(list(&old["spec"][name]))
            .any(|(new, old)| new["name"] != old["name"]);
        if renamed {
            spec[name] = new.into();
            continue;
        }
        let kept = spec[name].as_array_mut().into_iter().flatten();
        for (kept, new) in kept.zip(&new) {
            copy_field(kept, new, "resources");
            copy_field(kept, new, "resizePolicy");
        }
    }
    copy_field(&mut spec, &object["spec"], "resources");
    object["spec"] = spec;
    copy_field(object, old, "status");
}

/// Rules of a resize.
pub(super) fn validate_resize(object: &Value, old: &Value, errors: &mut Errors) {
    if is_mirror(old) || old["spec"]["os"]["name"] == "windows" {
        errors.0.clear();
        let what = if is_mirror(old) {
            "static pods cannot be resized"
        } else {
            "windows pods cannot be resized"
        };
        errors.forbidden("", what);
        return;
    }
    let (root, before) = (At::root(object), At::root(old));
    let (spec, old_spec) = (root.field("spec"), before.field("spec"));
    let class = old["status"]["qosClass"]
        .as_str()
        .unwrap_or_else(|| qos_class(old));
    if class != qos_class(object) {
        let shown = object["status"]["qosClass"].clone();
        errors.invalid(
            spec,
            &shown,
            "Pod QOS Class may not change as a result of resizing",
        );
    }
    let running =
        list(&old["status"]["containerStatuses"]).find(|s| s["state"]["running"].is_object());
    if running.is_some_and(|s| s["resources"].is_null()) {
        errors.forbidden(spec, "Pod running on node without support for resize");
    }
    let mut copy = spec.value().clone();
    let has_amounts = |spec: &At<'_, '_>| {
        let resources = spec.field("resources");
        !resources.field("requests").is_empty() || !resources.field("limits").is_empty()
    };
    if has_amounts(&spec) || has_amounts(&old_spec) {
        validate_pod_level_resize(&spec, &old_spec, &mut copy, errors);
    }
    if list(&old["status"]["nodeAllocatableResourceClaimStatuses"])
        .next()
        .is_some()
    {
        let detail = "pods with node allocatable resource claims cannot be resized";
        errors.forbidden(spec, detail);
    }
    if !validate_same_containers(&spec, &old_spec, errors) {
        return;
    }
    for name in ["initContainers", "containers"] {
        let (new, was) = (spec.field(name), old_spec.field(name));
        for (container, before) in new.items().zip(was.items()) {
            validate_amounts_stay(
                &container.field("resources"),
                &before.field("resources"),
                "resource",
                errors,
            );
        }
    }
    validate_only_compute_changes(&spec, &old_spec, &mut copy, errors);
    if !errors.is_empty() {
        return;
    }
    drop_nulls(&mut copy);
    if copy != *old_spec.value() {
        errors.forbidden(spec, "only cpu and memory resources are mutable");
    }
}

fn validate_only_compute_changes(
    spec: &At<'_, '_>,
    old_spec: &At<'_, '_>,
    copy: &mut Value,
    errors: &mut Errors,
) {
    for name in LISTS {
        let place = spec.field(name);
        let containers = copy[name].as_array_mut().into_iter().flatten();
        for (i, (container, before)) in containers.zip(list(old_spec.get(name))).enumerate() {
            let is_modified = container != before;
            keep_compute(&mut container["resources"], &before["resources"]);
            if let Some(resources) = container["resources"].as_object_mut() {
                resources.remove("claims");
            }
            let is_changed = container != before;
            let sidecar = container["restartPolicy"] == "Always";
            if name == "containers" {
                if is_changed {
                    errors.forbidden(spec, "only cpu and memory resources are mutable");
                }
                continue;
            }
            let at = place.index(i);
            if is_changed {
                let detail =
                    "only cpu and memory resources for init or sidecar containers are mutable";
                errors.forbidden(at, detail);
            }
            if is_modified && !sidecar {
                let restarting = list(&container["resizePolicy"])
                    .filter(|p| p["restartPolicy"] == "RestartContainer")
                    .count();
                for _ in 0..restarting {
                    errors.forbidden(at, "non-sidecar init containers with a resize policy of RestartContainer cannot be resized");
                }
            }
        }
    }
}

/// Puts the old amounts of CPU and memory into a list of resources.
fn keep_compute(resources: &mut Value, old: &Value) {
    for kind in ["limits", "requests"] {
        let mut kept: Map<String, Value> = resources[kind].as_object().cloned().unwrap_or_default();
        for name in ["cpu", "memory"] {
            kept.remove(name);
            if let Some(amount) = old[kind].get(name) {
                kept.insert(name.to_owned(), amount.clone());
            }
        }
        if kept.is_empty() && old[kind].is_null() {
            if let Some(map) = resources.as_object_mut() {
                map.remove(kind);
            }
        } else {
            resources[kind] = kept.into();
        }
    }
}

fn validate_amounts_stay(new: &At<'_, '_>, old: &At<'_, '_>, what: &str, errors: &mut Errors) {
    for (kind, called) in [("requests", "requests"), ("limits", "limits")] {
        let at = new.field(kind);
        let lost = old
            .get(kind)
            .as_object()
            .is_some_and(|m| m.keys().any(|k| at.get(k).is_null()));
        if lost {
            errors.forbidden(at, &format!("{what} {called} cannot be removed"));
        }
    }
}

fn validate_pod_level_resize(
    spec: &At<'_, '_>,
    old_spec: &At<'_, '_>,
    copy: &mut Value,
    errors: &mut Errors,
) {
    let (new, was) = (spec.field("resources"), old_spec.field("resources"));
    if was.is_set() && !new.is_set() {
        errors.forbidden(new, "pod-level resources cannot be removed");
        return;
    }
    if was.is_set() {
        validate_amounts_stay(&new, &was, "pod-level resource", errors);
    }
    keep_compute(&mut copy["resources"], was.value());
    if !was.is_set()
        && copy["resources"].as_object().is_none_or(Map::is_empty)
        && let Some(map) = copy.as_object_mut()
    {
        map.remove("resources");
    }
    if copy["resources"] != *was.value() {
        let detail = "only cpu and memory resources are mutable at pod-level";
        errors.forbidden(spec, detail);
    }
}

fn validate_same_containers(spec: &At<'_, '_>, old_spec: &At<'_, '_>, errors: &mut Errors) -> bool {
    let before = errors.len();
    for name in LISTS {
        let (new, was) = (spec.field(name), old_spec.field(name));
        if new.list().len() != was.list().len() {
            let detail = format!("{name} may not be added or removed on resize");
            errors.forbidden(new, &detail);
            continue;
        }
        for (container, old) in new.items().zip(was.list()) {
            if *container.get("name") != old["name"] {
                let detail = format!("{name} may not be renamed or reordered on resize");
                errors.forbidden(container.field("name"), &detail);
            }
        }
    }
    errors.len() == before
}

/// Rules of an update of the status.
pub(super) fn validate_status(object: &Value, old: &Value, options: &Options, errors: &mut Errors) {
    let (root, before) = (At::root(object), At::root(old));
    let (metadata, old_metadata) = (root.field("metadata"), before.field("metadata"));
    let notes = metadata.field("annotations");
    let spec = root.field("spec");
    annotations::validate_update(&notes, &old_metadata.field("annotations"), errors);
    annotations::validate(&notes, &spec, options, errors);
    let (status, old_status) = (root.field("status"), before.field("status"));
    for condition in status.field("conditions").items() {
        non_negative_generation(&condition.field("observedGeneration"), errors);
        let ty = condition.field_as("type", "Type");
        if !["PodScheduled", "Ready", "Initialized"].contains(&ty.str()) {
            errors.problems(&ty, qualified_name(ty.str()));
        }
    }
    let nominated = status.field("nominatedNodeName");
    if nominated.value() != old_status.get("nominatedNodeName") && !nominated.is_empty() {
        errors.problems(&nominated, dns_subdomain(nominated.str()));
        if !old["spec"]["nodeName"].is_null() {
            let detail = "may not be set on pods that are already bound to a node";
            errors.forbidden(nominated, detail);
        }
    }
    non_negative_generation(&status.field("observedGeneration"), errors);
    errors.immutable_field(&status, &old_status, "qosClass");
    for (field, of) in [
        ("containerStatuses", "containers"),
        ("initContainerStatuses", "initContainers"),
        ("ephemeralContainerStatuses", ""),
    ] {
        validate_transitions(
            &status.field(field),
            old_status.get(field),
            &old["spec"],
            of,
            errors,
        );
    }
    validate_claim_statuses(&status, &spec, errors);
    validate_extended_claim(&status.field("extendedResourceClaimStatus"), &spec, errors);
    validate_node_allocatable(&status, &spec, errors);
    validate_addresses(&status, &old_status, errors);
    validate_container_statuses(&status, &spec, errors);
}

fn non_negative_generation(at: &At<'_, '_>, errors: &mut Errors) {
    if at.int().is_some_and(|n| n < 0) {
        errors.bad(at, "must be a non-negative integer");
    }
}

/// Whether a container may run again after it has ended with `code`.
fn may_restart(container: &Value, spec: &Value, code: i64) -> bool {
    let rules = list(&container["restartPolicyRules"]);
    for rule in rules {
        let values = &rule["exitCodes"]["values"];
        let contained = list(values).any(|v| *v == code);
        let matches = match rule["exitCodes"]["operator"].as_str() {
            Some("In") => contained,
            Some("NotIn") => !contained,
            _ => false,
        };
        if matches {
            return rule["action"] == "Restart" || rule["action"] == "RestartAllContainers";
        }
    }
    let own = container["restartPolicy"].as_str();
    match own.or(spec["restartPolicy"].as_str()) {
        Some("Never") => false,
        Some("OnFailure") => code != 0,
        _ => true,
    }
}

/// Whether all containers of a pod may start anew because of what one of them did.
fn restarts_all(spec: &Value) -> bool {
    containers_of(spec)
        .flat_map(|c| list(&c["restartPolicyRules"]))
        .any(|r| r["action"] == "RestartAllContainers")
}

fn validate_transitions(
    new: &At<'_, '_>,
    old: &Value,
    spec: &Value,
    containers: &str,
    errors: &mut Errors,
) {
    if !containers.is_empty() && restarts_all(spec) {
        return;
    }
    for (i, before) in list(old).enumerate() {
        let ended = &before["state"]["terminated"];
        if !ended.is_object() {
            continue;
        }
        let same = |s: &&Value| s["name"] == before["name"];
        let Some(now) = new.list().iter().find(same) else {
            continue;
        };
        if now["state"]["terminated"].is_object() {
            continue;
        }
        let code = ended["exitCode"].as_i64().unwrap_or_default();
        let container = list(&spec[containers]).find(same);
        if !container.is_some_and(|c| may_restart(c, spec, code)) {
            let at = new.index(i);
            let detail = "may not be transitioned to non-terminated state";
            errors.forbidden(at.field("state"), detail);
        }
    }
}

fn validate_claim_statuses(status: &At<'_, '_>, spec: &At<'_, '_>, errors: &mut Errors) {
    let claims = list(spec.get("resourceClaims")).filter_map(|c| c["name"].as_str());
    let claims: HashSet<&str> = claims.collect();
    let mut seen = HashSet::new();
    for entry in status.field("resourceClaimStatuses").items() {
        let name = entry.field("name");
        if !claims.contains(name.str()) {
            let detail = "must match the name of an entry in `spec.resourceClaims`";
            errors.bad(&name, detail);
        }
        if !seen.insert(name.str()) {
            errors.duplicate(name, &name.str().into());
        }
        let claim = entry.field("resourceClaimName");
        if claim.is_set() {
            errors.problems(&claim, dns_subdomain(claim.str()));
        }
    }
}

fn validate_extended_claim(status: &At<'_, '_>, spec: &At<'_, '_>, errors: &mut Errors) {
    if !status.is_set() {
        return;
    }
    let mappings = status.field("requestMappings");
    if mappings.is_empty() {
        errors.required(mappings, "at least one request mapping is required");
    }
    let mut seen = HashSet::new();
    for mapping in mappings.items() {
        let (container, name) = (
            mapping.field("containerName"),
            mapping.field("resourceName"),
        );
        let request = mapping.field("requestName");
        let containers = list(spec.get("initContainers")).chain(list(spec.get("containers")));
        match last_named(containers, container.str()) {
            Some(c) if c["resources"]["requests"][name.str()].is_null() => errors.bad(&name, "must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests"),
            Some(_) => {}
            None => errors.bad(&container, "must match the name of an entry in spec.initContainers.name or spec.containers.name"),
        }
        let misplaced = status.place("requestName", request.value());
        errors.problems(&misplaced, dns_label(request.str()));
        let key = (container.str(), name.str(), request.str());
        if !seen.insert(key) {
            for at in [&container, &name, &request] {
                errors.duplicate(at, &at.str().into());
            }
        }
    }
    errors.required_name(&status.field("resourceClaimName"), dns_subdomain);
}

fn validate_node_allocatable(status: &At<'_, '_>, spec: &At<'_, '_>, errors: &mut Errors) {
    for entry in status.field("nodeAllocatableResourceClaimStatuses").items() {
        let name = entry.field("resourceClaimName");
        if name.is_empty() {
            errors.required(name, "must not be empty");
        }
        let known = list(spec.get("resourceClaims"))
            .chain(list(status.get("resourceClaimStatuses")))
            .any(|c| c["resourceClaimName"] == name.str());
        if !known {
            errors.bad(&name, "no mapping found in pod reference");
        }
        let (containers, resources) = (entry.field("containers"), entry.field("resources"));
        for at in [&containers, &resources] {
            if at.is_empty() {
                errors.required(at, "must not be empty");
            }
        }
        for (name, amount) in resources.entries() {
            if !resource::is_native(name) {
                errors.invalid_text(amount, name, "must be a node allocatable resource name");
            }
            if quantity_of(amount.value()).is_some_and(|q| q.is_negative()) {
                errors.bad(&amount, "must be non-negative");
            }
        }
    }
}

fn validate_addresses(status: &At<'_, '_>, old: &At<'_, '_>, errors: &mut Errors) {
    for (field, one) in [("podIPs", ""), ("hostIPs", "hostIP")] {
        let all = status.field(field);
        if all.is_empty() {
            continue;
        }
        let text = |v: &'_ Value| v["ip"].as_str().unwrap_or_default().to_owned();
        let first = text(&all.list()[0]);
        if !one.is_empty() && status.text(one) != first {
            let at = all.index(0);
            errors.invalid_text(at.field("ip"), &first, "must be equal to `hostIP`");
        }
        let known: Vec<String> = list(old.get(field)).map(text).collect();
        let addresses: Vec<String> = all.list().iter().map(text).collect();
        for (i, address) in addresses.iter().enumerate() {
            if !known.contains(address) {
                ip::strict_ip(errors, &all.index(i), address);
            }
        }
        if addresses.len() > 1 {
            let texts: Vec<&str> = addresses.iter().map(String::as_str).collect();
            if ip::is_dual_stack(&texts) != Some(true) || addresses.len() > 2 {
                let shown: Vec<String> = addresses
                    .iter()
                    .map(|a| format!("{{\"IP\":{}}}", Value::from(a.as_str())))
                    .collect();
                let detail = "may specify no more than one IP for each IP family";
                errors.invalid_as(all, &format!("[{}]", shown.join(",")), detail);
            }
        }
    }
}

fn validate_container_statuses(status: &At<'_, '_>, spec: &At<'_, '_>, errors: &mut Errors) {
    let os = spec.get("os")["name"].as_str().unwrap_or("linux");
    let lists = [
        ("containerStatuses", "containers"),
        ("initContainerStatuses", "initContainers"),
        ("ephemeralContainerStatuses", ""),
    ];
    for (field, _) in lists {
        for container in status.field(field).items() {
            let user = container.field("user");
            let linux = user.field("linux");
            if !linux.is_set() {
                continue;
            }
            if os == "windows" {
                errors.forbidden(linux, "cannot be set for a windows pod");
                continue;
            }
            for id in ["uid", "gid"] {
                errors.in_range(&linux.field(id), 0, i32::MAX.into());
            }
            for group in linux.field("supplementalGroups").items() {
                errors.in_range(&group, 0, i32::MAX.into());
            }
        }
    }
    for (field, of) in lists {
        for container in status.field(field).items() {
            let allocated = container.field("allocatedResourcesStatus");
            if of.is_empty() {
                if !allocated.is_empty() {
                    errors.forbidden(allocated, "must not be specified in container status");
                }
                continue;
            }
            let own = list(spec.get(of)).find(|c| c["name"] == *container.get("name"));
            for entry in allocated.items() {
                validate_allocated(&entry, own, errors);
            }
        }
    }
}

fn validate_allocated(entry: &At<'_, '_>, container: Option<&Value>, errors: &mut Errors) {
    const MAX_MESSAGE: usize = 1024;
    let name = entry.field("name");
    if let Some(container) = container {
        let (found, detail) = if name.str().starts_with("claim:") {
            let found = list(&container["resources"]["claims"]).any(|c| {
                let text = |f: &str| c[f].as_str().unwrap_or_default();
                let (claim, request) = (text("name"), text("request"));
                let slash = if request.is_empty() { "" } else { "/" };
                name.str() == format!("claim:{claim}{slash}{request}")
            });
            (
                found,
                "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty",
            )
        } else {
            let requests = &container["resources"]["requests"];
            (
                !requests[name.str()].is_null(),
                "must match one of the container's resource requests",
            )
        };
        if !found {
            errors.bad(&name, detail);
        }
    }
    let mut ids = Vec::new();
    for resource in entry.field("resources").items() {
        errors.member(
            &resource.field("health"),
            &["Healthy", "Unhealthy", "Unknown"],
        );
        let message = resource.field("message");
        if message.is_set() && message.is_empty() {
            errors.required(message, "must be non-empty if specified");
        } else if message.str().len() > MAX_MESSAGE {
            errors.too_long(message, MAX_MESSAGE);
        }
        let id = resource.field("resourceID");
        if ids.contains(&id.str()) {
            errors.duplicate(id, &id.str().into());
        } else {
            ids.push(id.str());
        }
    }
}

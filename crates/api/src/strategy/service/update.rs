//! Updates of services: what they keep, what they lose with their type, and what may not change.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{addresses, is_external, is_headless, needs_health_check, strings};
use crate::strategy::copy_field;
use crate::validation::{At, Errors, qualified_name};

fn has_cluster_ip(spec: &Value) -> bool {
    spec["type"] != "ExternalName"
}

fn has_node_ports(spec: &Value) -> bool {
    spec["type"] == "NodePort" || spec["type"] == "LoadBalancer"
}

fn node_ports(spec: &Value) -> impl Iterator<Item = i64> {
    let ports = spec["ports"].as_array().into_iter().flatten();
    ports
        .filter_map(|p| p["nodePort"].as_i64())
        .filter(|n| *n != 0)
}

/// What was allocated stays unless the client asks for something else.
pub(super) fn keep_allocated(spec: &mut Value, old: &Value) {
    if has_cluster_ip(old) && has_cluster_ip(spec) {
        if spec["clusterIP"].as_str().is_none_or(str::is_empty) {
            copy_field(spec, old, "clusterIP");
        }
        if strings(&spec["clusterIPs"]).is_empty() {
            copy_field(spec, old, "clusterIPs");
        }
    }
    if has_node_ports(old) && has_node_ports(spec) {
        let before: HashSet<i64> = node_ports(old).collect();
        let mut used: HashSet<i64> = node_ports(spec).filter(|p| before.contains(p)).collect();
        let name = |port: &Value| port["name"].as_str().unwrap_or_default().to_owned();
        let ports = old["ports"].as_array().into_iter().flatten();
        // The last of a name counts.
        let by_name: HashMap<String, &Value> = ports.map(|port| (name(port), port)).collect();
        for port in spec["ports"].as_array_mut().into_iter().flatten() {
            if port["nodePort"].as_i64().unwrap_or_default() != 0 {
                continue;
            }
            let number = by_name
                .get(&name(port))
                .and_then(|o| o["nodePort"].as_i64())
                .unwrap_or_default();
            if number != 0 && used.insert(number) {
                port["nodePort"] = number.into();
            }
        }
    }
    let unset = spec["healthCheckNodePort"].as_i64().unwrap_or_default() == 0;
    if needs_health_check(old) && needs_health_check(spec) && unset {
        copy_field(spec, old, "healthCheckNodePort");
    }
}

/// What only another type has goes with the type, unless the client has changed it.
pub(super) fn drop_what_the_type_has_not(object: &mut Value, old: &Value) {
    let (spec, before) = (&mut object["spec"], &old["spec"]);
    if !spec.is_object() {
        return;
    }
    let mut dropped: Vec<&str> = Vec::new();
    let same = |spec: &Value, field: &str| spec[field] == before[field];
    if has_cluster_ip(before) && !has_cluster_ip(spec) {
        if addresses::same_addresses(spec, before) {
            dropped.extend(["clusterIP", "clusterIPs"]);
        }
        dropped.extend(
            ["ipFamilies", "ipFamilyPolicy"]
                .into_iter()
                .filter(|f| same(spec, f)),
        );
    }
    if has_node_ports(before) && !has_node_ports(spec) {
        let known: HashSet<i64> = node_ports(before).collect();
        if node_ports(spec).all(|p| known.contains(&p)) {
            for port in spec["ports"].as_array_mut().into_iter().flatten() {
                copy_field(port, &Value::Null, "nodePort");
            }
        }
    }
    if needs_health_check(before) && !needs_health_check(spec) && same(spec, "healthCheckNodePort")
    {
        dropped.push("healthCheckNodePort");
    }
    if before["type"] == "LoadBalancer" && spec["type"] != "LoadBalancer" {
        let fields = ["allocateLoadBalancerNodePorts", "loadBalancerClass"];
        dropped.extend(fields.into_iter().filter(|f| same(spec, f)));
    }
    if is_external(before) && !is_external(spec) && same(spec, "externalTrafficPolicy") {
        dropped.push("externalTrafficPolicy");
    }
    for field in dropped {
        copy_field(spec, &Value::Null, field);
    }
    if object["spec"]["type"] != "LoadBalancer" && object["status"].is_object() {
        object["status"]["loadBalancer"] = Value::Object(serde_json::Map::new());
    }
}

/// The class of a load balancer.
pub(super) fn validate_class(class: &At<'_, '_>, errors: &mut Errors) {
    if class.is_set() {
        errors.problems(class, qualified_name(class.str()));
    }
}

/// What may not change, before the rules of any service.
pub(super) fn validate(object: &Value, old: &Value, errors: &mut Errors) {
    const ONCE: &str = "may not change once set";
    let root = At::root(object);
    let spec = root.field("spec");
    let before = &old["spec"];
    validate_addresses(&spec, before, errors);
    validate_families(&spec, before, errors);
    let class = spec.field("loadBalancerClass");
    let is_balancer = |spec: &Value| spec["type"] == "LoadBalancer";
    if is_balancer(spec.value()) {
        if is_balancer(before) && *class.value() != before["loadBalancerClass"] {
            errors.invalid(class, class.value(), ONCE);
        }
        validate_class(&class, errors);
    } else if class.is_set() {
        errors.forbidden(class, "may only be used when `type` is 'LoadBalancer'");
    }
    let health = spec.field("healthCheckNodePort");
    if needs_health_check(before)
        && needs_health_check(spec.value())
        && *health.value() != before["healthCheckNodePort"]
    {
        errors.forbidden(health, "field is immutable");
    }
}

fn validate_addresses(spec: &At<'_, '_>, before: &Value, errors: &mut Errors) {
    const ONCE: &str = "may not change once set";
    if !has_cluster_ip(spec.value())
        || !has_cluster_ip(before)
        || (is_headless(before) && is_headless(spec.value()))
    {
        return;
    }
    let all = spec.field("clusterIPs");
    let (new, was) = (strings(all.value()), strings(&before["clusterIPs"]));
    let place = |i: usize| format!("{all}[{i}]");
    if new.len() == was.len() {
        for i in (0..was.len()).filter(|i| new[*i] != was[*i]) {
            errors.invalid(place(i), all.value(), ONCE);
        }
        return;
    }
    if was.len() > new.len() && new.is_empty() {
        errors.invalid(place(0), all.value(), "primary clusterIP can not be unset");
    }
    if let (Some(new), Some(was)) = (new.first(), was.first())
        && new != was
    {
        errors.invalid(place(0), all.value(), ONCE);
    }
    let policy = spec.field("ipFamilyPolicy");
    if was.len() > new.len() && new.len() == 1 && policy.str() != "SingleStack" {
        let detail = "must be set to 'SingleStack' when releasing the secondary clusterIP";
        errors.invalid(policy, policy.value(), detail);
    }
}

fn validate_families(spec: &At<'_, '_>, before: &Value, errors: &mut Errors) {
    const ONCE: &str = "may not change once set";
    let headless = (is_headless(spec.value()), is_headless(before));
    if !has_cluster_ip(spec.value()) || !has_cluster_ip(before) || headless != (false, false) {
        return;
    }
    let all = spec.field("ipFamilies");
    let (new, was) = (strings(all.value()), strings(&before["ipFamilies"]));
    let place = format!("{all}[0]");
    if new.len() == was.len() {
        for _ in (0..was.len()).filter(|i| new[*i] != was[*i]) {
            errors.invalid(&place, all.value(), ONCE);
        }
        return;
    }
    if let (Some(new), Some(was)) = (new.first(), was.first())
        && new != was
    {
        errors.invalid(&place, spec.get("clusterIPs"), ONCE);
    }
    let policy = spec.field("ipFamilyPolicy");
    if was.len() > new.len() && new.len() == 1 && policy.str() != "SingleStack" {
        let detail = "must be set to 'SingleStack' when releasing the secondary ipFamily";
        errors.invalid(policy, policy.value(), detail);
    }
}

//! Services. Cluster IPs and node ports are allocated by the API server; here is what can be said without allocating.

mod addresses;
mod families;
mod update;

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::Value;

use super::{MetaCheck, Strategy, at_mut, copy_field, default_at, items_mut, text};
use crate::meta;
use crate::validation::{
    At, Errors, PROTOCOLS, Problems, dns_label, dns_subdomain, ip, labels, port_number,
    port_number_or_name, port_range, qualified_name, quote,
};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const POLICIES: &[&str] = &["Cluster", "Local"];
const MAX_AFFINITY_SECONDS: i64 = 86_400;
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";

pub(super) struct Service;

/// Whether something outside of the cluster can reach it.
fn is_external(spec: &Value) -> bool {
    match spec["type"].as_str() {
        Some("LoadBalancer" | "NodePort") => true,
        Some("ClusterIP") => spec["externalIPs"]
            .as_array()
            .is_some_and(|ips| !ips.is_empty()),
        _ => false,
    }
}

/// Whether a load balancer asks nodes for their health.
#[must_use]
pub fn needs_health_check(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

fn is_headless(spec: &Value) -> bool {
    spec["clusterIPs"]
        .as_array()
        .is_some_and(|ips| ips.len() == 1 && ips[0] == "None")
}

/// What comes before addresses and ports are allocated for a service, between mutating admission and validation: values
/// that were allocated for it before are filled in, and its families are settled. `families` are those that the cluster
/// has, the default one first.
pub fn begin(service: &mut Value, old: Option<&Value>, families: &[&str], errors: &mut Errors) {
    let Some(spec) = service.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    let before = old.map(|old| &old["spec"]);
    if let Some(before) = before {
        update::keep_allocated(spec, before);
    }
    addresses::normalise(spec, before);
    families::settle(spec, before, families, errors);
}

/// The strings of a list.
fn strings(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

impl Strategy for Service {
    fn name_rule(&self) -> fn(&str) -> Problems {
        dns_label
    }

    fn default(&self, object: &mut Value) {
        let Some(spec) = at_mut(object, &["spec"]) else {
            return;
        };
        match spec["sessionAffinity"].as_str() {
            Some("None") => copy_field(spec, &Value::Null, "sessionAffinityConfig"),
            Some("ClientIP") => {
                let timeout = ["sessionAffinityConfig", "clientIP", "timeoutSeconds"];
                default_at(spec, &timeout, 10_800);
            }
            _ => {}
        }
        let ty = spec["type"].as_str().unwrap_or_default().to_owned();
        if matches!(ty.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
            default_at(spec, &["internalTrafficPolicy"], "Cluster");
        }
        if is_external(spec) {
            default_at(spec, &["externalTrafficPolicy"], "Cluster");
        }
        if ty == "LoadBalancer" {
            default_at(spec, &["allocateLoadBalancerNodePorts"], true);
        }
        for port in items_mut(spec, &["ports"]) {
            let number = port["port"].clone();
            let target = port.get("targetPort");
            if target.is_none_or(|t| t.is_null() || t == 0 || t == "") {
                port["targetPort"] = number;
            }
        }
        if ty == "LoadBalancer" {
            for point in items_mut(object, &["status", "loadBalancer", "ingress"]) {
                if point["ip"].as_str().is_some_and(|ip| !ip.is_empty()) {
                    default_at(point, &["ipMode"], "VIP");
                }
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = serde_json::json!({"loadBalancer": {}});
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
        update::drop_what_the_type_has_not(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(object, None, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        update::validate(object, old, errors);
        validate(object, Some(old), errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let status = root.field("status");
        let balancer = status.field("loadBalancer");
        let ingress = balancer.field("ingress");
        if object["spec"]["type"] != "LoadBalancer" && !ingress.is_empty() {
            let detail = "may only be used when `spec.type` is 'LoadBalancer'";
            errors.forbidden(ingress, detail);
            return;
        }
        validate_ingress_points(&ingress, &old["status"], true, errors);
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings(object)
    }

    fn status_warnings(&self, object: &Value) -> Vec<String> {
        ingress_warnings(object)
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        match field {
            "spec.clusterIP" => Some(text(object, "/spec/clusterIP")),
            "spec.type" => Some(text(object, "/spec/type")),
            _ => None,
        }
    }
}

fn validate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let root = At::root(object);
    let spec = root.field("spec");
    let ty = spec.text("type");
    let headless = is_headless(spec.value());
    validate_topology_annotations(object, errors);
    let ports = spec.field("ports");
    if ports.is_empty() && !headless && ty != "ExternalName" {
        errors.required(ports, "");
    }
    if headless && matches!(ty, "LoadBalancer" | "NodePort") {
        let ips = spec.field("clusterIPs");
        let detail = format!("may not be set to 'None' for {ty} services");
        errors.bad(&ips.index(0), &detail);
    }
    if ty == "ExternalName" {
        validate_external_name(&spec, errors);
    }
    validate_ports(&ports, errors);
    labels(errors, &spec.field("selector"));
    validate_affinity(&spec, errors);
    addresses::validate(&spec, old, errors);
    let known = old
        .map(|o| strings(&o["spec"]["externalIPs"]))
        .unwrap_or_default();
    for address in spec.field("externalIPs").items() {
        let before = errors.len();
        ip::legacy_ip(errors, &address, &known);
        if errors.len() == before {
            ip::endpoint_ip(errors, &address);
        }
    }
    errors.one_of_required(&spec.field("type"), TYPES);
    validate_node_ports(&ports, ty, errors);
    validate_source_ranges(object, &spec, old, errors);
    let allocate = spec.field("allocateLoadBalancerNodePorts");
    let class = spec.field("loadBalancerClass");
    if ty == "LoadBalancer" {
        if !allocate.is_set() {
            errors.required("allocateLoadBalancerNodePorts", "");
        }
        update::validate_class(&class, errors);
    } else {
        for at in [&allocate, &class] {
            if at.is_set() {
                errors.forbidden(at, "may only be used when `type` is 'LoadBalancer'");
            }
        }
    }
    validate_traffic(&spec, errors);
}

fn validate_topology_annotations(object: &Value, errors: &mut Errors) {
    let (hints, mode) = (
        meta::annotation(object, TOPOLOGY_HINTS),
        meta::annotation(object, TOPOLOGY_MODE),
    );
    if let (Some(hints), Some(mode)) = (hints, mode)
        && hints != mode
    {
        let place = format!("metadata.annotations[{TOPOLOGY_MODE}]");
        let detail = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        errors.invalid_text(place, mode, &detail);
    }
}

fn validate_external_name(spec: &At<'_, '_>, errors: &mut Errors) {
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let at = spec.field(field);
        if !at.is_empty() {
            errors.forbidden(at, "may not be set for ExternalName services");
        }
    }
    let name = spec.field("externalName");
    let domain = name.str().strip_suffix('.').unwrap_or(name.str());
    if domain.is_empty() {
        errors.required(name, "");
    }
    let problems = if domain.is_empty() {
        Vec::new()
    } else {
        dns_subdomain(domain)
    };
    for problem in problems {
        errors.invalid_text(name, domain, &problem);
    }
}

fn validate_ports(ports: &At<'_, '_>, errors: &mut Errors) {
    let needs_names = ports.list().len() > 1;
    let mut names = HashSet::new();
    for port in ports.items() {
        let name = port.field("name");
        if name.is_empty() {
            if needs_names {
                errors.required(name, "");
            }
        } else {
            errors.problems(&name, dns_label(name.str()));
            if !names.insert(name.str()) {
                errors.duplicate(name, name.value());
            }
        }
        port_number(errors, &port.field("port"));
        errors.one_of_required(&port.field("protocol"), PROTOCOLS);
        port_number_or_name(errors, &port.field("targetPort"));
        let protocol = port.field("appProtocol");
        if protocol.is_set() {
            errors.problems(&protocol, qualified_name(protocol.str()));
        }
    }
}

fn validate_affinity(spec: &At<'_, '_>, errors: &mut Errors) {
    let affinity = spec.field("sessionAffinity");
    errors.one_of_required(&affinity, &["ClientIP", "None"]);
    let config = spec.field("sessionAffinityConfig");
    if affinity.str() == "ClientIP" {
        const WHEN: &str = "when session affinity type is ClientIP";
        let client = config.field("clientIP");
        let timeout = client.field("timeoutSeconds");
        if let Some(missing) = [&config, &client, &timeout]
            .into_iter()
            .find(|at| !at.is_set())
        {
            errors.required(missing, WHEN);
        } else if !(1..=MAX_AFFINITY_SECONDS).contains(&timeout.int().unwrap_or_default()) {
            let detail = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
            errors.bad(&timeout, &detail);
        }
    } else if affinity.str() == "None" && config.is_set() {
        errors.forbidden(config, "must not be set when session affinity is None");
    }
}

fn validate_node_ports(ports: &At<'_, '_>, ty: &str, errors: &mut Errors) {
    let number = |port: &Value, field: &str| port[field].as_i64().unwrap_or_default();
    let mut seen: HashSet<(&Value, i64)> = HashSet::new();
    if ty == "ClusterIP" {
        for port in ports.items() {
            if number(port.value(), "nodePort") != 0 {
                let detail = "may not be used when `type` is 'ClusterIP'";
                errors.forbidden(port.field("nodePort"), detail);
            }
        }
    }
    for port in ports.items() {
        let key = (port.get("protocol"), number(port.value(), "nodePort"));
        if !seen.insert(key) && key.1 != 0 {
            errors.duplicate(port.field("nodePort"), &key.1.into());
        }
    }
    seen.clear();
    for port in ports.items() {
        let key = (port.get("protocol"), number(port.value(), "port"));
        if !seen.insert(key) {
            let shown = format!(
                "{{\"Name\":\"\",\"Protocol\":{},\"AppProtocol\":null,\"Port\":{},\"TargetPort\":0,\"NodePort\":0}}",
                key.0, key.1
            );
            errors.duplicate_as(port, &shown);
        }
    }
}

fn validate_source_ranges(
    object: &Value,
    spec: &At<'_, '_>,
    old: Option<&Value>,
    errors: &mut Errors,
) {
    const WRONG_TYPE: &str = "may only be used when `type` is 'LoadBalancer'";
    let is_balancer = spec.text("type") == "LoadBalancer";
    let ranges = spec.field_as("loadBalancerSourceRanges", "LoadBalancerSourceRanges");
    if !ranges.is_empty() {
        if !is_balancer {
            errors.forbidden(ranges, WRONG_TYPE);
        }
        let known = old.map(|o| strings(&o["spec"]["loadBalancerSourceRanges"]));
        let known: Vec<&str> = known.into_iter().flatten().map(str::trim).collect();
        for range in ranges.items() {
            ip::legacy_cidr(errors, &range, range.str().trim(), &known);
        }
        return;
    }
    let Some(value) = meta::annotation(object, SOURCE_RANGES) else {
        return;
    };
    let place = format!("metadata.annotations[{SOURCE_RANGES}]");
    if !is_balancer {
        errors.forbidden(&place, WRONG_TYPE);
    }
    if old.is_some_and(|old| meta::annotation(old, SOURCE_RANGES) == Some(value)) {
        return;
    }
    let at = At::named(&Value::Null, &place);
    for range in value.trim().split(',').filter(|_| !value.trim().is_empty()) {
        ip::legacy_cidr(errors, &at, range.trim(), &[]);
    }
}

fn validate_traffic(spec: &At<'_, '_>, errors: &mut Errors) {
    let external = spec.field("externalTrafficPolicy");
    if is_external(spec.value()) {
        errors.one_of_required(&external, POLICIES);
    } else if !external.is_empty() {
        errors.bad(
            &external,
            "may only be set for externally-accessible services",
        );
    }
    let health = spec.field("healthCheckNodePort");
    let number = health.int().unwrap_or_default();
    if needs_health_check(spec.value()) {
        // Nothing means that one is allocated.
        if let Some(problem) = port_range(number).filter(|_| number != 0) {
            errors.bad(&health, problem);
        }
    } else if number != 0 {
        errors.bad(
            &health,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    }
    let internal = spec.field("internalTrafficPolicy");
    if !internal.is_set() && matches!(spec.text("type"), "NodePort" | "LoadBalancer" | "ClusterIP")
    {
        errors.required(internal, "");
    }
    errors.one_of_optional(&internal, POLICIES);
    errors.one_of_optional(
        &spec.field("trafficDistribution"),
        &["PreferClose", "PreferSameZone", "PreferSameNode"],
    );
}

/// Points at which a load balancer takes traffic; ingresses have them too.
pub(super) fn validate_ingress_points(
    points: &At<'_, '_>,
    old_status: &Value,
    has_modes: bool,
    errors: &mut Errors,
) {
    let old = old_status["loadBalancer"]["ingress"]
        .as_array()
        .into_iter()
        .flatten();
    let known: Vec<&str> = old.filter_map(|p| p["ip"].as_str()).collect();
    for point in points.items() {
        let (address, mode, host) = (
            point.field("ip"),
            point.field("ipMode"),
            point.field("hostname"),
        );
        if !address.is_empty() {
            ip::legacy_ip(errors, &address, &known);
        }
        match (mode.is_set(), !address.is_empty()) {
            _ if !has_modes => {}
            (false, true) => errors.required(mode, "must be specified when `ip` is set"),
            (true, false) => {
                errors.forbidden(mode, "may not be specified when `ip` is not set");
            }
            (true, true) => errors.member(&mode, &["Proxy", "VIP"]),
            (false, false) => {}
        }
        if !host.is_empty() {
            errors.problems(&host, dns_subdomain(host.str()));
            if ip::parse_sloppy(host.str()).is_some() {
                errors.bad(&host, "must be a DNS name, not an IP address");
            }
        }
    }
}

/// Unusual addresses of points of ingress.
pub(super) fn ingress_warnings(object: &Value) -> Vec<String> {
    let root = At::root(object);
    let status = root.field("status");
    let balancer = status.field("loadBalancer");
    let mut warnings = Vec::new();
    for (i, point) in balancer.field("ingress").list().iter().enumerate() {
        let place = format!("status.loadBalancer.ingress[{i}]");
        ip::ip_warning(&mut warnings, &At::named(&point["ip"], &place));
    }
    warnings
}

fn warnings(object: &Value) -> Vec<String> {
    let root = At::root(object);
    let spec = root.field("spec");
    let ty = spec.text("type");
    let headless = ty == "ClusterIP" && spec.text("clusterIP") == "None";
    let mut warnings = Vec::new();
    if meta::annotation(object, TOPOLOGY_HINTS).is_some() {
        warnings.push(format!(
            "annotation {TOPOLOGY_HINTS} is deprecated, please use {TOPOLOGY_MODE} instead"
        ));
    }
    if !matches!(spec.text("clusterIP"), "" | "None") {
        for address in spec.field("clusterIPs").items() {
            ip::ip_warning(&mut warnings, &address);
        }
    }
    let external = spec.field("externalIPs");
    let balancer = spec.field("loadBalancerIP");
    if headless {
        if !balancer.is_empty() {
            warnings.push("spec.loadBalancerIP is ignored for headless services".into());
        }
        if !external.is_empty() {
            warnings.push("spec.externalIPs is ignored for headless services".into());
        }
        if spec.text("sessionAffinity") != "None" {
            warnings.push("spec.SessionAffinity is ignored for headless services".into());
        }
    }
    for address in external.items() {
        ip::ip_warning(&mut warnings, &address);
    }
    if !external.is_empty() && !headless && ty != "ExternalName" {
        warnings.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
                .into(),
        );
    }
    if !balancer.is_empty() {
        ip::ip_warning(&mut warnings, &balancer);
    }
    for range in spec.field("loadBalancerSourceRanges").items() {
        ip::cidr_warnings(&mut warnings, &range);
    }
    if ty == "ExternalName" && !external.is_empty() {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
    }
    if ty != "ExternalName" && !spec.text("externalName").is_empty() {
        warnings.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    let distribution = spec.field("trafficDistribution");
    if distribution.str() == "PreferClose" {
        warnings.push(format!(
            "{distribution}: {} is deprecated; use {}",
            quote("PreferClose"),
            quote("PreferSameZone")
        ));
    }
    warnings
}

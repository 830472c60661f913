//! Endpoints and endpoint slices.

use std::collections::HashSet;

use serde_json::Value;

use crate::meta;
use crate::strategy::template::options::list;
use crate::strategy::{MetaCheck, Strategy, default_at, items_mut};
use crate::validation::{
    At, Errors, PROTOCOLS, dns_label, dns_subdomain, ip, label_value, labels, port_number,
    qualified_name,
};

pub(in crate::strategy) struct Endpoints;

fn validate_subsets(subsets: &At<'_, '_>, errors: &mut Errors) {
    for subset in subsets.items() {
        let (ready, not_ready) = (subset.field("addresses"), subset.field("notReadyAddresses"));
        if ready.is_empty() && not_ready.is_empty() {
            errors.required(subset, "must specify `addresses` or `notReadyAddresses`");
        }
        for address in ready.items().chain(not_ready.items()) {
            let at = address.field("ip");
            ip::legacy_ip(errors, &at, &[]);
            errors.optional_name(&address.field("hostname"), dns_label);
            let node = address.field("nodeName");
            if node.is_set() {
                errors.problems(&node, dns_subdomain(node.str()));
            }
            ip::endpoint_ip(errors, &at);
        }
        let ports = subset.field("ports");
        let needs_names = ports.list().len() > 1;
        for port in ports.items() {
            let name = port.field("name");
            if needs_names {
                errors.required_name(&name, dns_label);
            } else {
                errors.optional_name(&name, dns_label);
            }
            port_number(errors, &port.field("port"));
            errors.one_of_required(&port.field("protocol"), PROTOCOLS);
            app_protocol(&port, errors);
        }
    }
}

fn app_protocol(port: &At<'_, '_>, errors: &mut Errors) {
    let protocol = port.field("appProtocol");
    if protocol.is_set() {
        errors.problems(&protocol, qualified_name(protocol.str()));
    }
}

impl Strategy for Endpoints {
    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_subsets(&root.field("subsets"), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        if object["subsets"] != old["subsets"] {
            self.validate(object, errors);
        }
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if object["metadata"]["labels"]["endpoints.kubernetes.io/managed-by"]
            == "endpoint-controller"
        {
            return warnings;
        }
        let root = At::root(object);
        for subset in root.field("subsets").items() {
            for field in ["addresses", "notReadyAddresses"] {
                for address in subset.field(field).items() {
                    ip::ip_warning(&mut warnings, &address.field("ip"));
                }
            }
        }
        warnings
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update, MetaCheck::Whole]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_TOPOLOGY: usize = 16;
const MAX_HINTS: usize = 8;

pub(in crate::strategy) struct EndpointSlice;

impl EndpointSlice {
    fn validate_with(object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let root = At::root(object);
        let ty = root.field("addressType");
        errors.one_of_required(&ty, &["FQDN", "IPv4", "IPv6"]);
        validate_slice_ports(&root.field("ports"), errors);
        let same = old.is_some_and(|old| old["endpoints"] == object["endpoints"]);
        if !same {
            validate_endpoints(&root.field("endpoints"), ty.str(), errors);
        }
    }
}

fn validate_slice_ports(ports: &At<'_, '_>, errors: &mut Errors) {
    if ports.list().len() > MAX_PORTS {
        errors.too_many(ports, ports.list().len(), MAX_PORTS);
        return;
    }
    let mut names = HashSet::new();
    for port in ports.items() {
        let name = port.field("name");
        errors.optional_name(&name, dns_label);
        if !names.insert(name.str()) {
            errors.duplicate(name, &name.str().into());
        }
        let protocol = port.field("protocol");
        if protocol.is_set() {
            errors.member(&protocol, PROTOCOLS);
        } else {
            errors.required(protocol, "");
        }
        app_protocol(&port, errors);
    }
}

fn validate_endpoints(endpoints: &At<'_, '_>, ty: &str, errors: &mut Errors) {
    if endpoints.list().len() > MAX_ENDPOINTS {
        errors.too_many(endpoints, endpoints.list().len(), MAX_ENDPOINTS);
        return;
    }
    for endpoint in endpoints.items() {
        let addresses = endpoint.field("addresses");
        let count = addresses.list().len();
        if count == 0 {
            errors.required(addresses, "must contain at least 1 address");
        } else if count > MAX_ADDRESSES {
            errors.too_many(addresses, count, MAX_ADDRESSES);
        }
        for address in addresses.items() {
            validate_address(&addresses, &address, ty, errors);
        }
        let node = endpoint.field("nodeName");
        if node.is_set() {
            errors.problems(&node, dns_subdomain(node.str()));
        }
        let topology = endpoint.field("deprecatedTopology");
        let entries = topology.map().map_or(0, serde_json::Map::len);
        if entries > MAX_TOPOLOGY {
            errors.too_many(topology, entries, MAX_TOPOLOGY);
        }
        labels(errors, &topology);
        let hostname = endpoint.field("hostname");
        if hostname.is_set() {
            errors.problems(&hostname, dns_label(hostname.str()));
        }
        let hints = endpoint.field("hints");
        let _ = validate_hints(&hints.field("forZones"), label_value, errors)
            && validate_hints(&hints.field("forNodes"), dns_subdomain, errors);
    }
}

fn validate_address(list: &At<'_, '_>, address: &At<'_, '_>, ty: &str, errors: &mut Errors) {
    let before = errors.len();
    match ty {
        "IPv4" => ip::legacy_ip(errors, address, &[]),
        "IPv6" => ip::canonical_ip(errors, address, address.str()),
        "FQDN" => return validate_domain(address, errors),
        _ => return,
    }
    if errors.len() > before {
        return;
    }
    if ip::is_ipv6(address.str()) != (ty == "IPv6") {
        errors.invalid(list, address.value(), &format!("must be an {ty} address"));
    }
    ip::endpoint_ip(errors, address);
}

fn validate_domain(address: &At<'_, '_>, errors: &mut Errors) {
    if address.is_empty() {
        errors.required(address, "");
        return;
    }
    let name = address.str().strip_suffix('.').unwrap_or(address.str());
    let problems = dns_subdomain(name);
    if !problems.is_empty() {
        errors.invalid_text(address, name, &problems.join(","));
    } else if !name.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.invalid_text(address, name, detail);
    } else if let Some(label) = name.split('.').find(|l| !dns_label(l).is_empty()) {
        errors.invalid_text(address, label, &dns_label(label).join(","));
    }
}

/// Hints of one sort; returns whether there were not too many.
fn validate_hints(hints: &At<'_, '_>, rule: fn(&str) -> Vec<String>, errors: &mut Errors) -> bool {
    let count = hints.list().len();
    if count > MAX_HINTS {
        errors.too_many(hints, count, MAX_HINTS);
        return false;
    }
    let mut names = HashSet::new();
    for hint in hints.items() {
        let name = hint.field("name");
        if !names.insert(name.str()) {
            errors.duplicate(name, &name.str().into());
        }
        errors.problems(&name, rule(name.str()));
    }
    true
}

/// The nodes that endpoints of an older version name by their topology.
fn drop_topology(object: &mut Value, old: Option<&Value>) {
    const HOSTNAME: &str = "kubernetes.io/hostname";
    if old.is_some_and(|old| old["endpoints"] == object["endpoints"]) {
        return;
    }
    let known: Vec<String> = old
        .into_iter()
        .flat_map(|o| list(&o["endpoints"]))
        .filter_map(|e| {
            e["deprecatedTopology"][HOSTNAME]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    for endpoint in items_mut(object, &["endpoints"]) {
        let Some(map) = endpoint.as_object_mut() else {
            continue;
        };
        let topology = map.remove("deprecatedTopology").unwrap_or_default();
        if let Some(node) = topology[HOSTNAME]
            .as_str()
            .filter(|n| known.iter().any(|k| k == n))
        {
            map.entry("nodeName").or_insert_with(|| node.into());
        }
    }
}

impl Strategy for EndpointSlice {
    fn default(&self, object: &mut Value) {
        for port in items_mut(object, &["ports"]) {
            default_at(port, &["name"], "");
            default_at(port, &["protocol"], "TCP");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        drop_topology(object, None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        drop_topology(object, Some(old));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        Self::validate_with(object, None, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        Self::validate_with(object, Some(old), errors);
        errors.immutable("addressType", &object["addressType"], &old["addressType"]);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if old.is_none() && object["addressType"] == "FQDN" {
            warnings.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
        }
        let managers = [
            "endpointslice-controller.k8s.io",
            "endpointslicemirroring-controller.k8s.io",
        ];
        let manager = &meta::labels(object).map_or(&Value::Null, |l| {
            l.get("endpointslice.kubernetes.io/managed-by")
                .unwrap_or(&Value::Null)
        });
        if managers.iter().any(|m| *manager == *m) {
            return warnings;
        }
        let root = At::root(object);
        for endpoint in root.field("endpoints").items() {
            for address in endpoint.field("addresses").items() {
                ip::ip_warning(&mut warnings, &address);
            }
        }
        warnings
    }

    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        ["addressType", "endpoints", "ports"]
            .iter()
            .any(|f| object[*f] != old[*f])
            || object["metadata"]["labels"] != old["metadata"]["labels"]
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &["endpoints", "ports"]
    }
}

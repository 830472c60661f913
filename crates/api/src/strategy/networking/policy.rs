//! Network policies.

use serde_json::{Value, json};

use crate::strategy::template::options::list;
use crate::strategy::{Strategy, at_mut, default_at, items_mut};
use crate::validation::{
    At, Errors, SelectorOptions, ip, label_selector, label_selector_with, port_name, port_range,
};

pub(in crate::strategy) struct NetworkPolicy;

/// Both directions: the field, and that of the peers.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

fn validate_spec(
    spec: &At<'_, '_>,
    options: SelectorOptions,
    known_ranges: &[&str],
    errors: &mut Errors,
) {
    label_selector_with(errors, &spec.field("podSelector"), options);
    for (direction, peers) in DIRECTIONS {
        for rule in spec.field(direction).items() {
            for port in rule.field("ports").items() {
                validate_port(&port, errors);
            }
            for peer in rule.field(peers).items() {
                validate_peer(&peer, options, known_ranges, errors);
            }
        }
    }
    let types = spec.field("policyTypes");
    if types.list().len() > 2 {
        errors.bad(&types, "may not specify more than two policyTypes");
        return;
    }
    for ty in types.items() {
        errors.member(&ty, &["Ingress", "Egress"]);
    }
}

fn validate_port(port: &At<'_, '_>, errors: &mut Errors) {
    errors.one_of_optional(&port.field("protocol"), &["TCP", "UDP", "SCTP"]);
    let (at, end) = (port.field("port"), port.field("endPort"));
    match at.value() {
        Value::Null => {
            if end.is_set() {
                errors.bad(&end, "may not be specified when `port` is not specified");
            }
        }
        Value::String(name) => {
            if end.is_set() {
                errors.bad(&end, "may not be specified when `port` is non-numeric");
            }
            errors.problems(&at, port_name(name));
        }
        _ => {
            let number = at.int().unwrap_or_default();
            if let Some(problem) = port_range(number) {
                errors.bad(&at, problem);
            }
            let Some(last) = end.int() else {
                return;
            };
            if last < number {
                let detail = "must be greater than or equal to `port`";
                errors.invalid(end, &number.into(), detail);
            }
            if let Some(problem) = port_range(last) {
                errors.bad(&end, problem);
            }
        }
    }
}

fn validate_peer(
    peer: &At<'_, '_>,
    options: SelectorOptions,
    known_ranges: &[&str],
    errors: &mut Errors,
) {
    let mut count = 0;
    for selector in ["podSelector", "namespaceSelector"] {
        let selector = peer.field(selector);
        if selector.is_set() {
            count += 1;
            label_selector_with(errors, &selector, options);
        }
    }
    let block = peer.field("ipBlock");
    if block.is_set() {
        count += 1;
        validate_block(&block, known_ranges, errors);
    }
    if count == 0 {
        errors.required(peer, "must specify a peer");
    } else if count > 1 && block.is_set() {
        errors.forbidden(peer, "may not specify both ipBlock and another peer");
    }
}

fn validate_block(block: &At<'_, '_>, known_ranges: &[&str], errors: &mut Errors) {
    let range = block.field("cidr");
    if range.is_empty() {
        errors.required(range, "");
        return;
    }
    ip::legacy_cidr(errors, &range, range.str(), known_ranges);
    let Some(whole) = ip::Cidr::parse_sloppy(range.str()) else {
        return;
    };
    for except in block.field("except").items() {
        ip::legacy_cidr(errors, &except, except.str(), known_ranges);
        let Some(part) = ip::Cidr::parse_sloppy(except.str()) else {
            continue;
        };
        if !whole.contains(part.network()) || whole.prefix >= part.prefix {
            errors.bad(&except, "must be a strict subset of `cidr`");
        }
    }
}

fn known_ranges(old: &Value) -> Vec<&str> {
    let blocks = DIRECTIONS.iter().flat_map(|(direction, peers)| {
        list(&old["spec"][*direction]).flat_map(move |rule| list(&rule[*peers]))
    });
    blocks
        .flat_map(|peer| {
            std::iter::once(&peer["ipBlock"]["cidr"]).chain(list(&peer["ipBlock"]["except"]))
        })
        .filter_map(Value::as_str)
        .collect()
}

impl Strategy for NetworkPolicy {
    fn default(&self, object: &mut Value) {
        let Some(spec) = at_mut(object, &["spec"]) else {
            return;
        };
        for (direction, _) in DIRECTIONS {
            for rule in items_mut(spec, &[direction]) {
                for port in items_mut(rule, &["ports"]) {
                    default_at(port, &["protocol"], "TCP");
                }
            }
        }
        let has = |field: &str| spec.get(field).is_some_and(|v| list(v).next().is_some());
        if !has("policyTypes") {
            let egress = has("egress");
            spec["policyTypes"] = if egress {
                json!(["Ingress", "Egress"])
            } else {
                json!(["Ingress"])
            };
        }
        default_at(spec, &["podSelector"], json!({}));
    }

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_spec(&root.field("spec"), SelectorOptions::default(), &[], errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let mut found = Errors::default();
        label_selector(&mut found, &At::root(&old["spec"]["podSelector"]));
        let options = SelectorOptions {
            allow_invalid_values: !found.is_empty(),
        };
        let root = At::root(object);
        validate_spec(&root.field("spec"), options, &known_ranges(old), errors);
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let root = At::root(object);
        let spec = root.field("spec");
        let mut warnings = Vec::new();
        for (direction, peers) in DIRECTIONS {
            for rule in spec.field(direction).items() {
                for peer in rule.field(peers).items() {
                    let block = peer.field("ipBlock");
                    ip::cidr_warnings(&mut warnings, &block.field("cidr"));
                    for except in block.field("except").items() {
                        ip::cidr_warnings(&mut warnings, &except);
                    }
                }
            }
        }
        warnings
    }
}

//! Where pods may run: affinity, tolerations and how they spread.

use std::collections::HashMap;

use serde_json::Value;

use super::options::{Options, list};
use crate::validation::{
    At, Errors, SelectorOptions, dns_label, dns_subdomain, label_key, label_selector,
    label_selector_with, label_value,
};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// The terms of a `NodeSelector`.
pub(super) fn node_selector_terms(selector: &Value) -> impl Iterator<Item = &Value> {
    list(&selector["nodeSelectorTerms"])
}

pub(super) fn validate_affinity(affinity: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    if affinity.is_empty() {
        return;
    }
    let node = affinity.field("nodeAffinity");
    let required = node.field(REQUIRED);
    if required.is_set() {
        validate_node_selector(
            &required,
            options.invalid_label_values_in_node_affinity,
            errors,
        );
    }
    for term in node.field(PREFERRED).items() {
        validate_weight(&term, errors);
        validate_node_selector_term(&term.field("preference"), true, errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.field(kind);
        for term in pods.field(REQUIRED).items() {
            validate_pod_affinity_term(&term, options, errors);
        }
        for term in pods.field(PREFERRED).items() {
            validate_weight(&term, errors);
            validate_pod_affinity_term(&term.field("podAffinityTerm"), options, errors);
        }
    }
}

fn validate_weight(term: &At<'_, '_>, errors: &mut Errors) {
    let weight = term.field("weight");
    if !(1..=100).contains(&weight.int().unwrap_or_default()) {
        errors.bad(&weight, "must be in the range 1-100");
    }
}

/// A `NodeSelector`, whose terms are alternatives.
pub(in crate::strategy) fn validate_node_selector(
    selector: &At<'_, '_>,
    allow_invalid_values: bool,
    errors: &mut Errors,
) {
    let terms = selector.field("nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(terms, "must have at least one node selector term");
    }
    for term in terms.items() {
        validate_node_selector_term(&term, allow_invalid_values, errors);
    }
}

fn validate_node_selector_term(term: &At<'_, '_>, allow_invalid_values: bool, errors: &mut Errors) {
    for requirement in term.field("matchExpressions").items() {
        let values = requirement.field("values");
        match requirement.text("operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(
                    values,
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.forbidden(
                values,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "Gt" | "Lt" if values.list().len() != 1 => errors.required(
                values,
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => errors.bad(
                &requirement.field("operator"),
                "not a valid selector operator",
            ),
        }
        label_key(errors, &requirement.field("key"));
        if !allow_invalid_values {
            for value in values.items() {
                errors.problems(&value, label_value(value.str()));
            }
        }
    }
    for requirement in term.field("matchFields").items() {
        let values = requirement.field("values");
        match requirement.text("operator") {
            "In" | "NotIn" if values.list().len() != 1 => errors.required(
                values,
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ),
            "In" | "NotIn" => {}
            _ => errors.bad(
                &requirement.field("operator"),
                "not a valid selector operator",
            ),
        }
        let key = requirement.field("key");
        if key.str() == "metadata.name" {
            for value in values.items() {
                errors.problems(&value, dns_subdomain(value.str()));
            }
        } else {
            errors.bad(&key, "not a valid field selector key");
        }
    }
}

fn validate_pod_affinity_term(term: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    let selector_options = SelectorOptions {
        allow_invalid_values: options.invalid_label_values_in_selectors,
    };
    for field in ["labelSelector", "namespaceSelector"] {
        label_selector_with(errors, &term.field(field), selector_options);
    }
    for namespace in term.get("namespaces").as_array().into_iter().flatten() {
        let at = term.place("namespace", namespace);
        errors.problems(&at, dns_label(at.str()));
    }
    match_label_keys(term, errors);
    let key = term.field("topologyKey");
    if key.is_empty() {
        errors.required(key, "can not be empty");
    }
    label_key(errors, &key);
}

/// Keys by whose values a selector is narrowed.
pub(super) fn match_label_keys(term: &At<'_, '_>, errors: &mut Errors) {
    let (with, without) = (
        term.field("matchLabelKeys"),
        term.field("mismatchLabelKeys"),
    );
    if with.is_empty() && without.is_empty() {
        return;
    }
    let selector = term.field("labelSelector");
    for keys in [&with, &without] {
        if keys.is_empty() {
            continue;
        }
        if !selector.is_set() {
            errors.forbidden(keys, "must not be specified when labelSelector is not set");
            continue;
        }
        for key in keys.items() {
            label_key(errors, &key);
        }
    }
    let mut selected: Vec<&str> = selector
        .get("matchLabels")
        .as_object()
        .into_iter()
        .flat_map(|m| m.keys().map(String::as_str))
        .collect();
    for expression in list(selector.get("matchExpressions")) {
        let key = expression["key"].as_str().unwrap_or_default();
        let index = with.list().iter().rposition(|k| k == key);
        if let Some(index) = index.filter(|_| selected.contains(&key)) {
            errors.invalid_text(
                format!("{term}[{index}]"),
                key,
                "exists in both matchLabelKeys and labelSelector",
            );
        }
        selected.push(key);
    }
    for key in with.items() {
        if without.list().contains(key.value()) {
            errors.bad(&key, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
}

/// Keys that narrow a selector, as older objects may have them.
fn legacy_match_label_keys(constraint: &At<'_, '_>, errors: &mut Errors) {
    let keys = constraint.field("matchLabelKeys");
    let selector = constraint.get("labelSelector");
    if keys.is_empty() {
        return;
    }
    if selector.is_null() {
        errors.forbidden(keys, "must not be specified when labelSelector is not set");
    }
    let selects = |key: &str| {
        !selector["matchLabels"][key].is_null()
            || list(&selector["matchExpressions"]).any(|e| e["key"] == key)
    };
    for key in keys.items() {
        label_key(errors, &key);
        if selects(key.str()) {
            errors.bad(&key, "exists in both matchLabelKeys and labelSelector");
        }
    }
}

pub(super) fn validate_topology_spread(
    constraints: &At<'_, '_>,
    options: &Options,
    errors: &mut Errors,
) {
    const ACTIONS: &[&str] = &["DoNotSchedule", "ScheduleAnyway"];
    let pair = |constraint: &'_ Value| {
        let text = |field: &str| constraint[field].as_str().unwrap_or_default().to_owned();
        (text("topologyKey"), text("whenUnsatisfiable"))
    };
    // How many there are yet to come of each pair.
    let mut left: HashMap<(String, String), usize> = HashMap::new();
    for constraint in constraints.list() {
        *left.entry(pair(constraint)).or_default() += 1;
    }
    for constraint in constraints.items() {
        let skew = constraint.field("maxSkew");
        if skew.int().unwrap_or_default() <= 0 {
            errors.bad(&skew, "must be greater than zero");
        }
        let key = constraint.field("topologyKey");
        if key.is_empty() {
            errors.required(key, "can not be empty");
        }
        let action = constraint.field("whenUnsatisfiable");
        errors.member(&action, ACTIONS);
        let left = left.entry(pair(constraint.value())).or_default();
        *left = left.saturating_sub(1);
        if *left > 0 {
            let identity = format!("{{{}, {}}}", key.str(), action.str());
            let place = constraint.field("{topologyKey, whenUnsatisfiable}");
            errors.duplicate(place, &identity.into());
        }
        let domains = constraint.field("minDomains");
        if let Some(number) = domains.int() {
            if number <= 0 {
                errors.bad(&domains, "must be greater than zero");
            }
            if action.str() != "DoNotSchedule" {
                let detail = format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}",
                    action.str()
                );
                errors.bad(&domains, &detail);
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            errors.one_of_optional(&constraint.field(field), &["Honor", "Ignore"]);
        }
        if options.invalid_match_label_keys {
            legacy_match_label_keys(&constraint, errors);
        } else {
            match_label_keys(&constraint, errors);
        }
        if !options.invalid_topology_spread_selectors {
            label_selector(errors, &constraint.field("labelSelector"));
        }
    }
}

/// What a taint does; nothing is an effect only where it says so.
pub(in crate::strategy) fn validate_taint_effect(effect: &At<'_, '_>, errors: &mut Errors) {
    errors.one_of_required(effect, EFFECTS);
}

pub(in crate::strategy) fn validate_tolerations(
    tolerations: &At<'_, '_>,
    options: &Options,
    errors: &mut Errors,
) {
    for toleration in tolerations.items() {
        let (key, operator) = (toleration.field("key"), toleration.field("operator"));
        let (value, effect) = (toleration.field("value"), toleration.field("effect"));
        if key.is_empty() {
            if operator.str() != "Exists" {
                errors.bad(&operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"");
            }
        } else {
            label_key(errors, &key);
        }
        if toleration.field("tolerationSeconds").is_set() && effect.str() != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.bad(&effect, detail);
        }
        match operator.str() {
            "Equal" | "" => {
                let problems = label_value(value.str());
                if !problems.is_empty() {
                    errors.invalid_text(operator, value.str(), &problems.join(";"));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    let detail = "value must be empty when `operator` is 'Exists'";
                    errors.invalid_text(operator, value.str(), detail);
                }
            }
            "Lt" | "Gt" if options.toleration_comparisons => validate_integer(&value, errors),
            "Lt" | "Gt" => errors.unsupported(&operator, &["Equal", "Exists", "Lt", "Gt"]),
            _ => errors.unsupported(&operator, &["Equal", "Exists"]),
        }
        if !effect.is_empty() {
            validate_taint_effect(&effect, errors);
        }
    }
}

fn validate_integer(at: &At<'_, '_>, errors: &mut Errors) {
    let digits = at.str().strip_prefix('-').unwrap_or(at.str());
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let canonical = plain && (!digits.starts_with('0') || at.str() == "0");
    if at.is_empty() {
        errors.bad(at, "must be non-empty");
    } else if !canonical {
        errors.bad(at, "must be a valid decimal integer in canonical form");
    }
    if at.str().parse::<i64>().is_err() {
        let why = if plain {
            "value out of range"
        } else {
            "invalid syntax"
        };
        let detail = format!(
            "strconv.ParseInt: parsing {}: {why}",
            crate::validation::quote(at.str())
        );
        errors.bad(at, &detail);
    }
}

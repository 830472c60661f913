//! Devices: what is known of one, and how much of it there is.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::{TAINT_EFFECTS, is_within, names, unique};
use crate::quantity::Quantity;
use crate::strategy::template::options::list;
use crate::strategy::template::scheduling::validate_node_selector;
use crate::validation::{
    At, Errors, dns_label, dns_subdomain, go_json, label_key, label_value, pattern, quantity_of,
    resource,
};

const MAX_PROPERTIES: usize = 32;

const MAX_VALUES: usize = 48;

/// Bytes of an attribute.
const MAX_VALUE: usize = 64;

const MAX_TAINTS: usize = 16;

const MAX_CONSUMPTIONS: usize = 2;

const MAX_COUNTERS: usize = 32;

const MAX_BINDING_CONDITIONS: usize = 4;

const MAX_VALID_VALUES: usize = 10;

/// Kinds of values that an attribute can have, one of them.
const VALUES: [&str; 8] = [
    "bool", "int", "string", "version", "bools", "ints", "strings", "versions",
];

static SEMVER: LazyLock<Regex> = LazyLock::new(|| {
    const NUMBER: &str = r"(0|[1-9]\d*)";
    const PRE: &str = r"(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)";
    const BUILD: &str = r"[0-9a-zA-Z-]+";
    pattern(&format!(
        r"^{NUMBER}\.{NUMBER}\.{NUMBER}(-{PRE}(\.{PRE})*)?(\+{BUILD}(\.{BUILD})*)?$"
    ))
});

/// One device of a slice. `per_device` says whether each device has nodes of its own.
pub(super) fn validate(
    device: &At<'_, '_>,
    old: Option<&Value>,
    per_device: bool,
    errors: &mut Errors,
) {
    let name = device.field("name");
    errors.problems(&name, dns_label(name.str()));
    let (attributes, capacity) = (device.field("attributes"), device.field("capacity"));
    sizes(device, &attributes, &capacity, errors);
    for (key, attribute) in attributes.entries() {
        names::qualified(&attributes, key, errors);
        validate_attribute(&attribute, errors);
    }
    let shared = device.field("allowMultipleAllocations").is_true();
    for (key, amount) in capacity.entries() {
        names::qualified(&capacity, key, errors);
        let policy = amount.field("requestPolicy");
        if policy.is_set() && shared {
            request_policy(&policy, amount.get("value"), errors);
        } else if policy.is_set() {
            errors.forbidden(policy, "allowMultipleAllocations must be true");
        }
    }
    let taints = device.field("taints");
    let is_new = old.is_none_or(|old| old["taints"] != *taints.value());
    if is_new && is_within(&taints, MAX_TAINTS, errors) {
        for taint in taints.items() {
            validate_taint(&taint, errors);
        }
    }
    let consumed = device.field("consumesCounters");
    if is_within(&consumed, MAX_CONSUMPTIONS, errors) {
        for consumption in consumed.items() {
            counters(&consumption, "counterSet", errors);
        }
        unique(&consumed, |c| super::text(&c["counterSet"]), errors);
    }
    nodes(device, per_device, errors);
    binding_conditions(device, errors);
    node_resources(device, errors);
}

fn sizes(device: &At<'_, '_>, attributes: &At<'_, '_>, capacity: &At<'_, '_>, errors: &mut Errors) {
    let count = |at: &At<'_, '_>| at.map().map_or(0, serde_json::Map::len);
    let properties = count(attributes) + count(capacity);
    if properties > MAX_PROPERTIES {
        let detail = format!(
            "the total number of attributes and capacities must not exceed {MAX_PROPERTIES}"
        );
        errors.invalid(device, &properties.into(), &detail);
    }
    let values = |(_, attribute): (&str, At<'_, '_>)| {
        let several: usize = VALUES.iter().map(|v| list(attribute.get(v)).count()).sum();
        several.max(1)
    };
    let values: usize = attributes.entries().map(values).sum();
    if values > MAX_VALUES {
        let detail = format!("the total number of attribute values must not exceed {MAX_VALUES}");
        errors.invalid(device, &values.into(), &detail);
    }
}

fn validate_attribute(attribute: &At<'_, '_>, errors: &mut Errors) {
    const ONE: &str = "exactly one value must be specified";
    let given: Vec<&str> = VALUES
        .into_iter()
        .filter(|v| attribute.field(v).is_set())
        .collect();
    for name in &given {
        let value = attribute.field(name);
        match *name {
            "string" => string_value(&value, errors),
            "version" => version_value(&value, errors),
            "bool" | "int" => {}
            several => {
                if value.is_empty() {
                    errors.bad(&value, "must not be empty if specified");
                }
                for item in value.items() {
                    match several {
                        "strings" => string_value(&item, errors),
                        "versions" => version_value(&item, errors),
                        _ => {}
                    }
                }
            }
        }
    }
    match given.len() {
        0 => errors.invalid_text(attribute, "", ONE),
        1 => {}
        _ => errors.invalid_as(attribute, &shown(attribute), ONE),
    }
}

/// An attribute as upstream's internal type holds it.
fn shown(attribute: &At<'_, '_>) -> String {
    const FIELDS: [(&str, &str); 8] = [
        ("IntValue", "int"),
        ("BoolValue", "bool"),
        ("StringValue", "string"),
        ("VersionValue", "version"),
        ("IntValues", "ints"),
        ("BoolValues", "bools"),
        ("StringValues", "strings"),
        ("VersionValues", "versions"),
    ];
    let fields =
        FIELDS.map(|(name, field)| format!("\"{name}\":{}", go_json(attribute.get(field))));
    format!("{{{}}}", fields.join(","))
}

fn string_value(at: &At<'_, '_>, errors: &mut Errors) {
    if at.str().len() > MAX_VALUE {
        errors.too_long(at, MAX_VALUE);
    }
}

fn version_value(at: &At<'_, '_>, errors: &mut Errors) {
    if !SEMVER.is_match(at.str()) {
        errors.bad(at, "must be a string compatible with semver.org spec 2.0.0");
    }
    string_value(at, errors);
}

/// How much of a capacity may be asked for.
fn request_policy(policy: &At<'_, '_>, capacity: &Value, errors: &mut Errors) {
    let (values, range) = (policy.field("validValues"), policy.field("validRange"));
    let default = policy.field("default");
    if !values.is_empty() && range.is_set() {
        let detail = r#"exactly one policy can be specified, cannot specify "validValues" and "validRange" at the same time"#;
        errors.forbidden(policy, detail);
        return;
    }
    let (kind, at) = if !values.is_empty() {
        ("validValues", values)
    } else if range.is_set() {
        ("validRange", range)
    } else {
        return;
    };
    let Some(usual) = quantity_of(default.value()) else {
        errors.required(default, &format!("required when {kind} is defined"));
        return;
    };
    let capacity = quantity_of(capacity).unwrap_or(Quantity::ZERO);
    if kind == "validValues" {
        valid_values(&at, usual, capacity, errors);
    } else {
        valid_range(&at, usual, capacity, errors);
    }
}

fn valid_values(at: &At<'_, '_>, usual: Quantity, capacity: Quantity, errors: &mut Errors) {
    let all: Vec<Quantity> = at.list().iter().filter_map(quantity_of).collect();
    for (i, pair) in all.windows(2).enumerate() {
        if pair[0] > pair[1] {
            let detail = "values must be sorted in ascending order";
            errors.invalid_text(at.index(i + 1), &pair[1].to_string(), detail);
        }
    }
    let mut has_usual = false;
    if is_within(at, MAX_VALID_VALUES, errors) {
        has_usual = all.contains(&usual);
        for (i, value) in all.iter().enumerate() {
            if *value > capacity {
                let detail = format!("option is larger than capacity value: {capacity}");
                errors.invalid_text(at.index(i), &value.to_string(), &detail);
            }
        }
        for (i, value) in all.iter().enumerate() {
            if all[..i].iter().any(|v| v.value() == value.value()) {
                let shown = format!("\"{}\"", value.value());
                errors.duplicate_as(at.index(i), &shown);
            }
        }
    }
    if !has_usual {
        let detail = "default value is not valid according to the requestPolicy";
        errors.invalid_text(at, &usual.to_string(), detail);
    }
}

fn valid_range(at: &At<'_, '_>, usual: Quantity, capacity: Quantity, errors: &mut Errors) {
    let amount = |field: &str| quantity_of(at.get(field));
    let Some(min) = amount("min") else {
        errors.required(at.field("min"), "required when validRange is defined");
        return;
    };
    let mut wrong = |field: &str, value: Quantity, detail: String| {
        errors.invalid_text(at.field(field), &value.to_string(), &detail);
    };
    if min > capacity {
        wrong(
            "min",
            min,
            format!("min is larger than capacity value: {capacity}"),
        );
    }
    if usual < min {
        wrong("min", usual, format!("default is less than min: {min}"));
    }
    let max = amount("max");
    if let Some(max) = max {
        if min > max {
            wrong("max", min, format!("min is larger than max: {max}"));
        }
        if max > capacity {
            wrong(
                "max",
                max,
                format!("max is larger than capacity value: {capacity}"),
            );
        }
        if usual > max {
            wrong("max", usual, format!("default is more than max: {max}"));
        }
    }
    let Some(step) = amount("step") else {
        return;
    };
    let added = min.plus(step);
    if added > capacity {
        let detail = format!("one step {added} is larger than capacity value: {capacity}");
        wrong("step", step, detail);
    }
    for value in [Some(usual), max].into_iter().flatten() {
        let steps = value.value().saturating_sub(min.value());
        if steps.checked_rem(step.value()) != Some(0) {
            let detail = format!("value is not a multiple of a given step ({step}) from ({min})");
            wrong("step", value, detail);
        }
    }
}

fn validate_taint(taint: &At<'_, '_>, errors: &mut Errors) {
    label_key(errors, &taint.field("key"));
    errors.optional_name(&taint.field("value"), label_value);
    errors.one_of_required(&taint.field("effect"), TAINT_EFFECTS);
}

/// Counters of a set, or what a device takes of them; `name` is the field that names the set.
pub(super) fn counters(of: &At<'_, '_>, name: &str, errors: &mut Errors) {
    errors.required_name(&of.field(name), dns_label);
    let counters = of.field("counters");
    if counters.is_empty() {
        errors.required(counters, "");
        return;
    }
    let count = counters.map().map_or(0, serde_json::Map::len);
    if count > MAX_COUNTERS {
        errors.too_many(counters, count, MAX_COUNTERS);
        return;
    }
    for (key, _) in counters.entries() {
        for problem in dns_label(key) {
            errors.invalid_text(counters, key, &problem);
        }
    }
}

/// Where a device can be used.
fn nodes(device: &At<'_, '_>, per_device: bool, errors: &mut Errors) {
    const FIELDS: [&str; 3] = ["nodeName", "nodeSelector", "allNodes"];
    if !per_device {
        if FIELDS.iter().any(|field| device.field(field).is_set()) {
            let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
            errors.invalid(device, &Value::Null, detail);
        }
        return;
    }
    let mut given = Vec::new();
    let name = device.field("nodeName");
    if name.is_set() && name.is_empty() {
        errors.bad(&name, "must not be empty");
    } else if name.is_set() {
        given.push("`nodeName`");
        errors.problems(&name, dns_subdomain(name.str()));
    }
    let selector = device.field("nodeSelector");
    if selector.is_set() {
        given.push("`nodeSelector`");
        validate_node_selector(&selector, false, errors);
    }
    let all = device.field("allNodes");
    if all.is_true() {
        given.push("`allNodes`");
    } else if all.is_set() {
        errors.bad(&all, "must be either unset or set to true");
    }
    let detail = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    match given.len() {
        0 => errors.required(device, detail),
        1 => {}
        _ => errors.invalid_text(device, &format!("{{{}}}", given.join(", ")), detail),
    }
}

/// What has to happen, and what may not, before a pod is bound that uses a device.
pub(super) fn binding_conditions(of: &At<'_, '_>, errors: &mut Errors) {
    let (awaited, failures) = (
        of.field("bindingConditions"),
        of.field("bindingFailureConditions"),
    );
    for conditions in [&awaited, &failures] {
        if is_within(conditions, MAX_BINDING_CONDITIONS, errors) {
            for condition in conditions.items() {
                label_key(errors, &condition);
            }
        }
    }
    unique(&awaited, super::text, errors);
    for (i, condition) in failures.items().enumerate() {
        if failures.list()[..i].contains(condition.value()) {
            errors.duplicate(condition, condition.value());
        }
        if awaited.list().contains(condition.value()) {
            let detail = "bindingFailureConditions must not overlap with bindingConditions";
            errors.bad(&condition, detail);
        }
    }
    let mut lacks = |empty: &At<'_, '_>, detail: &str| {
        let shown = if empty.is_set() { "[]" } else { "null" };
        errors.invalid_as(empty, shown, detail);
    };
    if awaited.is_empty() && !failures.is_empty() {
        let detail = "bindingConditions are required to use bindingFailureConditions";
        lacks(&awaited, detail);
    }
    if failures.is_empty() && !awaited.is_empty() {
        let detail = "bindingFailureConditions are required to use bindingConditions";
        lacks(&failures, detail);
    }
}

/// What of a node's own resources a device stands for.
fn node_resources(device: &At<'_, '_>, errors: &mut Errors) {
    for (name, mapping) in device.field("nodeAllocatableResourceMappings").entries() {
        if !resource::is_native(name) {
            errors.invalid_text(mapping, name, "must be a node allocatable resource name");
        }
        let (multiplier, key) = (
            mapping.field("allocationMultiplier"),
            mapping.field("capacityKey"),
        );
        if !multiplier.is_set() && !key.is_set() {
            let detail = "at least one of allocationMultiplier or capacityKey must be set";
            errors.invalid_text(mapping, "", detail);
        }
        if let Some(amount) = quantity_of(multiplier.value())
            && (amount.is_zero() || amount.is_negative())
        {
            errors.invalid_text(multiplier, &amount.to_string(), "must be positive");
        }
        if key.is_set() && key.is_empty() {
            errors.bad(&key, "capacityKey must not be an empty string");
        } else if key.is_set() && device.get("capacity")[key.str()].is_null() {
            errors.not_found(key, key.value());
        }
    }
}

//! Nodes.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::template::scheduling::validate_taint_effect;
use super::{MetaCheck, Strategy, at_mut, copy_field, text};
use crate::validation::{
    At, Errors, config_map_key, dns_label, dns_subdomain, internal, ip, label_key, label_value,
    pattern, resource,
};

const MAX_FEATURE_NAME: usize = 253;
static FEATURE: LazyLock<Regex> =
    LazyLock::new(|| pattern("^[A-Z][a-zA-Z0-9]*(/[a-zA-Z][a-zA-Z0-9]*)*$"));

pub(super) struct Node;

fn validate_taints(taints: &At<'_, '_>, errors: &mut Errors) {
    for (i, taint) in taints.items().enumerate() {
        label_key(errors, &taint.field("key"));
        let value = taint.field("value");
        let problems = label_value(value.str());
        if !problems.is_empty() {
            errors.invalid_text(value, value.str(), &problems.join(";"));
        }
        validate_taint_effect(&taint.field("effect"), errors);
        let same = |other: &Value| {
            ["key", "effect"]
                .iter()
                .all(|field| other.get(field) == taint.value().get(field))
        };
        if taints.list()[..i].iter().any(same) {
            let shown = internal("io.k8s.api.core.v1.Taint", taint.value());
            let detail = "taints must be unique by key and effect pair";
            errors.duplicate_because(taint, &shown, detail);
        }
    }
}

/// The annotation that says which controllers' pods would better be elsewhere.
const AVOID: &str = "scheduler.alpha.kubernetes.io/preferAvoidPods";

fn validate_annotations(node: &At<'_, '_>, errors: &mut Errors) {
    let metadata = node.field("metadata");
    let annotations = metadata.field("annotations");
    let text = annotations.text(AVOID);
    if text.is_empty() {
        return;
    }
    let avoided: Value = match serde_json::from_str(text) {
        Ok(avoided) => avoided,
        Err(error) => {
            let why = json_problem(text).unwrap_or_else(|| error.to_string());
            errors.invalid_text(annotations.field("AvoidPods"), AVOID, &why);
            return;
        }
    };
    let place = annotations.place(AVOID, &avoided["preferAvoidPods"]);
    for entry in place.items() {
        let signature = entry.field_as("podSignature", "PodSignature");
        let controller = signature.field_as("podController", "PodController");
        if !controller.is_set() {
            errors.required(signature, "");
        } else if !controller.field("controller").is_true() {
            let at = controller.place("Controller", &Value::Bool(false));
            errors.bad(&at, "must point to a controller");
        }
    }
}

/// What Go says of a text that does not even begin as JSON.
fn json_problem(text: &str) -> Option<String> {
    let first = text.trim_start().chars().next()?;
    let begins = "{[\"-tfn".contains(first) || first.is_ascii_digit();
    (!begins).then(|| format!("invalid character '{first}' looking for beginning of value"))
}

/// What creation and updates of every part look at.
fn validate_parts(node: &At<'_, '_>, errors: &mut Errors) {
    let status = node.field("status");
    for part in ["capacity", "allocatable"] {
        let amounts = status.field(part);
        for (name, amount) in amounts.entries() {
            // Errors have the name as if it was a field's.
            let place = amounts.place(name, amount.value());
            resource::amount(errors, &place, name);
        }
    }
}

fn validate_features(status: &At<'_, '_>, errors: &mut Errors) {
    let features = status.field("declaredFeatures");
    let names = features.list();
    for (i, feature) in features.items().enumerate() {
        let name = feature.str();
        if name.len() > MAX_FEATURE_NAME {
            let detail = format!(
                "invalid feature name {}: must be no more than {MAX_FEATURE_NAME} characters",
                crate::validation::quote(name)
            );
            errors.bad(&feature, &detail);
        } else if !FEATURE.is_match(name) {
            let detail = format!(
                "invalid feature name {}: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes",
                crate::validation::quote(name)
            );
            errors.bad(&feature, &detail);
        }
        let Some(next) = names.get(i + 1).and_then(Value::as_str) else {
            continue;
        };
        let next_at = features.index(i + 1);
        if next == name {
            errors.duplicate(next_at, next_at.value());
        } else if name > next {
            errors.bad(&next_at, "list must be sorted alphabetically");
        }
    }
}

fn validate(node: &At<'_, '_>, errors: &mut Errors) {
    let spec = node.field("spec");
    let metadata = node.field("metadata");
    validate_annotations(node, errors);
    validate_taints(&metadata.place("taints", spec.get("taints")), errors);
    validate_parts(node, errors);
    let status = node.field("status");
    let swap = &status.get("nodeInfo")["swap"]["capacity"];
    if swap.as_i64().is_some_and(|capacity| capacity <= 0) {
        let place = "metadata.nodeSwapStatus.capacity";
        errors.invalid(place, swap, "must be greater than 0");
    }
    validate_features(&status, errors);
    let ranges = spec.field("podCIDRs");
    for range in ranges.items() {
        ip::legacy_cidr(errors, &range, range.str(), &[]);
    }
    if ranges.list().len() > 1 {
        validate_families(&ranges, errors);
    }
}

fn validate_families(ranges: &At<'_, '_>, errors: &mut Errors) {
    let texts: Vec<&str> = ranges.list().iter().filter_map(Value::as_str).collect();
    let parsed: Vec<_> = texts
        .iter()
        .map(|text| ip::Cidr::parse_sloppy(text))
        .collect();
    if let Some(i) = parsed.iter().position(Option::is_none) {
        let detail = format!(
            "invalid PodCIDRs. failed to check with dual stack with error:invalid CIDR[{i}]: <nil> (invalid CIDR address: {})",
            texts[i]
        );
        errors.internal(ranges, &detail);
    }
    let families = |six: bool| {
        parsed
            .iter()
            .flatten()
            .filter(|c| c.network().is_ipv6() == six)
            .count()
    };
    let is_dual = families(true) > 0 && families(false) > 0 && parsed.iter().all(Option::is_some);
    if !is_dual || texts.len() > 2 {
        errors.bad(
            ranges,
            "may specify no more than one CIDR for each IP family",
        );
    }
}

/// Where a kubelet once had its configuration from. `in_status` also says which version it was.
fn validate_config_source(source: &At<'_, '_>, in_status: bool, errors: &mut Errors) {
    let map = source.field("configMap");
    if !map.is_set() {
        let detail = "exactly one reference subfield must be non-nil";
        errors.invalid_as(source, "{}", detail);
        return;
    }
    for field in ["uid", "resourceVersion"] {
        let at = map.field(field);
        if in_status && at.is_empty() {
            errors.required(at, "");
        } else if !in_status && !at.is_empty() {
            errors.forbidden(at, &format!("{field} must not be set in spec"));
        }
    }
    errors.required_name(&map.field("namespace"), dns_label);
    errors.required_name(&map.field("name"), dns_subdomain);
    errors.required_name(&map.field("kubeletConfigKey"), config_map_key);
}

fn validate_update(node: &At<'_, '_>, old: &Value, errors: &mut Errors) {
    let (spec, status) = (node.field("spec"), node.field("status"));
    validate_annotations(node, errors);
    validate_parts(node, errors);
    validate_features(&status, errors);
    let addresses = status.field("addresses");
    for (i, address) in addresses.items().enumerate() {
        if addresses.list()[..i].contains(address.value()) {
            let shown = internal("io.k8s.api.core.v1.NodeAddress", address.value());
            errors.duplicate_as(address, &shown);
        }
    }
    let before = At::root(old);
    let before = before.field("spec");
    let (was, now) = (before.field("podCIDRs"), spec.field("podCIDRs"));
    let changed = if was.list().len() == now.list().len() {
        was.list()
            .iter()
            .zip(now.list())
            .filter(|(was, now)| was != now)
            .count()
    } else {
        usize::from(!was.is_empty())
    };
    for _ in 0..changed {
        errors.forbidden(
            now,
            "node updates may not change podCIDR except from \"\" to valid",
        );
    }
    let provider = before.text("providerID");
    if !provider.is_empty() && provider != spec.text("providerID") {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.forbidden(spec.field("providerID"), detail);
    }
    let source = spec.field("configSource");
    if source.is_set() {
        validate_config_source(&source, false, errors);
    }
    let config = status.field("config");
    for part in ["assigned", "active", "lastKnownGood"] {
        let source = config.field(part);
        if source.is_set() {
            validate_config_source(&source, true, errors);
        }
    }
    let metadata = node.field("metadata");
    validate_taints(&metadata.place("taints", spec.get("taints")), errors);
    if spec.text("externalID") != before.text("externalID") {
        errors.forbidden(spec.field("externalID"), "may not be updated");
    }
}

/// `podCIDR` is the first of `podCIDRs`: what is said in one field holds for the other.
fn agree_on_range(object: &mut Value) {
    let Some(spec) = at_mut(object, &["spec"]).and_then(Value::as_object_mut) else {
        return;
    };
    let range = spec
        .get("podCIDR")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let first = spec
        .get("podCIDRs")
        .and_then(|ranges| ranges[0].as_str())
        .map(str::to_owned);
    match first {
        Some(first) if range.is_empty() => {
            spec.insert("podCIDR".into(), first.into());
        }
        first if !range.is_empty() && first.as_deref() != Some(&*range) => {
            spec.insert("podCIDRs".into(), vec![range].into());
        }
        _ => {}
    }
}

fn drop_field(object: &mut Value, part: &str, field: &str) {
    if let Some(part) = at_mut(object, &[part]).and_then(Value::as_object_mut) {
        part.remove(field);
    }
}

impl Strategy for Node {
    fn default(&self, object: &mut Value) {
        let capacity = object["status"]["capacity"].clone();
        if capacity.is_object() {
            super::default_at(object, &["status", "allocatable"], capacity);
        }
        agree_on_range(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        // A kubelet registers its node with the status it has already found out.
        drop_field(object, "spec", "configSource");
        drop_field(object, "status", "config");
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
        if old["spec"]["configSource"].is_null() {
            drop_field(object, "spec", "configSource");
        }
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        if old["status"]["config"].is_null() {
            drop_field(object, "status", "config");
        }
    }

    fn gated_fields(&self) -> &'static [(&'static str, &'static [&'static str])] {
        &[("NodeDeclaredFeatures", &["status", "declaredFeatures"])]
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(&At::root(object), errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate_update(&At::root(object), old, errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate_update(&At::root(object), old, errors);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let root = At::root(object);
        let spec = root.field("spec");
        let mut warnings = Vec::new();
        if spec.field("configSource").is_set() {
            warnings.push("spec.configSource: the feature is removed".to_owned());
        }
        if !spec.field("externalID").is_empty() {
            let warning = "spec.externalID: this field is deprecated, and is unused by Kubernetes";
            warnings.push(warning.to_owned());
        }
        for range in spec.field("podCIDRs").items() {
            ip::cidr_warnings(&mut warnings, &range);
        }
        warnings
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "spec.unschedulable").then(|| match text(object, "/spec/unschedulable") {
            Cow::Borrowed("") => Cow::Borrowed("false"),
            set => set,
        })
    }
}

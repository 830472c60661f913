//! Horizontal pod autoscalers, in their stored version v2.

use serde_json::{Value, json};

use super::{Strategy, at_mut, default_at};
use crate::validation::{
    At, Errors, dns_label, non_negative_quantity, path_segment, positive_quantity_as, resource,
};

const MAX_PERIOD: i64 = 1800;
const MAX_STABILIZATION: i64 = 3600;

pub(super) struct HorizontalPodAutoscaler;

/// What a metric is about: its type, the field with the details, and how those are validated.
type Source = (
    &'static str,
    &'static str,
    fn(&At<'_, '_>, &Options, &mut Errors),
);

/// In the order in which upstream looks at them.
const SOURCES: [Source; 5] = [
    ("Object", "object", |at, options, errors| {
        validate_reference(&at.field("describedObject"), options.described, errors);
        validate_identifier(&at.field("metric"), errors);
        let target = at.field("target");
        validate_target(&target, errors);
        if !target.field("value").is_set() {
            let detail = "must set either a target value or averageValue";
            require_average(&target, "averageValue", detail, errors);
        }
    }),
    ("External", "external", |at, _, errors| {
        validate_identifier(&at.field("metric"), errors);
        let target = at.field("target");
        validate_target(&target, errors);
        let (value, average) = (target.field("value"), target.field("averageValue"));
        if !value.is_set() {
            let detail = "must set either a target value for metric or a per-pod target";
            require_average(&target, "averageValue", detail, errors);
        } else if average.is_set() {
            let detail = "may not set both a target value for metric and a per-pod target";
            errors.forbidden(value, detail);
        }
    }),
    ("Pods", "pods", |at, _, errors| {
        validate_identifier(&at.field("metric"), errors);
        let target = at.field("target");
        validate_target(&target, errors);
        let detail = "must specify a positive target averageValue";
        require_average(&target, "averageValue", detail, errors);
    }),
    ("Resource", "resource", |at, _, errors| {
        let name = at.field("name");
        if name.is_empty() {
            errors.required(name, "must specify a resource name");
        }
        validate_resource_target(&at.field("target"), errors);
    }),
    ("ContainerResource", "containerResource", |at, _, errors| {
        let (name, container) = (at.field("name"), at.field("container"));
        if name.is_empty() {
            errors.required(name, "must specify a resource name");
        } else {
            resource::container_name(errors, &name, name.str());
        }
        if container.is_empty() {
            errors.required(container, "must specify a container");
        } else {
            errors.problems(&container, dns_label(container.str()));
        }
        validate_resource_target(&at.field("target"), errors);
    }),
];

const TYPES: &[&str] = &[
    "ContainerResource",
    "External",
    "Object",
    "Pods",
    "Resource",
];

/// How the API version of a reference to another object is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    /// A group and a version.
    Grouped,
    /// The group may be that of the core.
    Any,
    /// Whatever was there before may stay.
    Unchecked,
}

struct Options {
    least: i64,
    target: Version,
    described: Version,
}

impl Options {
    fn new(object: &Value, old: Option<&Value>) -> Self {
        let target = |o: &Value, field: &str| o["spec"]["scaleTargetRef"][field].clone();
        let same = |field: &str| old.is_some_and(|o| target(o, field) == target(object, field));
        let was_invalid = |old: &Value| {
            let metrics = old["spec"]["metrics"].as_array().into_iter().flatten();
            metrics
                .filter(|m| m["type"] == "Object" && m["object"].is_object())
                .map(|m| m["object"]["describedObject"]["apiVersion"].as_str())
                .any(|version| version_problem(version.unwrap_or_default(), Version::Any).is_some())
        };
        Self {
            least: i64::from(!old.is_some_and(|o| o["spec"]["minReplicas"] == 0)),
            target: if same("apiVersion") && same("kind") {
                Version::Unchecked
            } else if target(object, "kind") == "ReplicationController" {
                Version::Any
            } else {
                Version::Grouped
            },
            described: if old.is_some_and(was_invalid) {
                Version::Unchecked
            } else {
                Version::Any
            },
        }
    }
}

fn version_problem(version: &str, rule: Version) -> Option<String> {
    if rule == Version::Unchecked {
        return None;
    }
    if version.matches('/').count() > 1 {
        return Some(format!("unexpected GroupVersion string: {version}"));
    }
    let group = version.split_once('/').map_or("", |(group, _)| group);
    (rule == Version::Grouped && group.is_empty())
        .then(|| "apiVersion must specify API group".to_owned())
}

fn validate_reference(reference: &At<'_, '_>, rule: Version, errors: &mut Errors) {
    for field in ["kind", "name"] {
        errors.required_name(&reference.field(field), path_segment);
    }
    let version = reference.field("apiVersion");
    if let Some(problem) = version_problem(version.str(), rule) {
        errors.invalid_text(version, version.str(), &problem);
    }
}

fn validate_identifier(metric: &At<'_, '_>, errors: &mut Errors) {
    let name = metric.field("name");
    if name.is_empty() {
        errors.required(name, "must specify a metric name");
    } else {
        errors.problems(&name, path_segment(name.str()));
    }
}

fn validate_target(target: &At<'_, '_>, errors: &mut Errors) {
    let ty = target.field("type");
    if ty.is_empty() {
        errors.required(ty, "must specify a metric target type");
    }
    if !["Utilization", "Value", "AverageValue"].contains(&ty.str()) {
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.invalid_text(ty, ty.str(), detail);
    }
    for field in ["value", "averageValue"] {
        positive_quantity_as(errors, &target.field(field), "must be positive");
    }
    let utilization = target.field("averageUtilization");
    if utilization.int().is_some_and(|n| n < 1) {
        errors.bad(&utilization, "must be greater than 0");
    }
}

fn require_average(target: &At<'_, '_>, field: &str, detail: &str, errors: &mut Errors) {
    if !target.field("averageValue").is_set() {
        errors.required(target.field(field), detail);
    }
}

fn validate_resource_target(target: &At<'_, '_>, errors: &mut Errors) {
    validate_target(target, errors);
    let average = target.field("averageValue");
    if !target.field("averageUtilization").is_set() {
        let detail = "must set either a target raw value or a target utilization";
        require_average(target, "averageUtilization", detail, errors);
    } else if average.is_set() {
        let detail = "may not set both a target raw value and a target utilization";
        errors.forbidden(average, detail);
    }
}

fn validate_metric(metric: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    let ty = metric.field("type");
    if ty.is_empty() {
        errors.required(ty, "must specify a metric source type");
    }
    let known = TYPES.contains(&ty.str());
    if !known {
        errors.unsupported(&ty, TYPES);
    }
    let present: Vec<&Source> = SOURCES
        .iter()
        .filter(|(_, field, _)| metric.field(field).is_set())
        .collect();
    if let Some((_, field, validate)) = present.first() {
        validate(&metric.field(field), options, errors);
    }
    let expected = SOURCES.iter().find(|(name, _, _)| *name == ty.str());
    match expected {
        Some((_, field, _)) if !metric.field(field).is_set() => {
            let detail = "must populate information for the given metric source";
            errors.required(metric.field(field), detail);
        }
        Some(_) => {}
        None => errors.unsupported(&ty, TYPES),
    }
    if present.len() != 1 {
        let expected = expected.map(|(_, field, _)| *field);
        for (_, field, _) in present.iter().filter(|(_, f, _)| Some(*f) != expected) {
            let detail = "must populate the given metric source only";
            errors.forbidden(metric.field(field), detail);
        }
    }
}

fn validate_rules(rules: &At<'_, '_>, errors: &mut Errors) {
    if !rules.is_set() {
        return;
    }
    let window = rules.field("stabilizationWindowSeconds");
    if window.int() < Some(0) && window.is_set() {
        errors.bad(&window, "must be greater than or equal to zero");
    }
    if window.int() > Some(MAX_STABILIZATION) {
        let detail = format!("must be less than or equal to {MAX_STABILIZATION}");
        errors.bad(&window, &detail);
    }
    let select = rules.field("selectPolicy");
    if select.is_set() {
        errors.member(&select, &["Disabled", "Max", "Min"]);
    }
    let policies = rules.field("policies");
    if policies.is_empty() {
        errors.required(policies, "must specify at least one Policy");
    }
    for policy in policies.items() {
        errors.member(&policy.field("type"), &["Percent", "Pods"]);
        for field in ["value", "periodSeconds"] {
            let at = policy.field(field);
            let number = at.int().unwrap_or(0);
            if number <= 0 {
                errors.invalid(at, &number.into(), "must be greater than zero");
            }
            if field == "periodSeconds" && number > MAX_PERIOD {
                let detail = format!("must be less than or equal to {MAX_PERIOD}");
                errors.bad(&at, &detail);
            }
        }
    }
    non_negative_quantity(errors, &rules.field("tolerance"));
}

fn validate_spec(spec: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    let (min, max) = (spec.field("minReplicas"), spec.field("maxReplicas"));
    if min.int().is_some_and(|n| n < options.least) {
        let detail = format!("must be greater than or equal to {}", options.least);
        errors.bad(&min, &detail);
    }
    let most = max.int().unwrap_or(0);
    if most == 0 {
        errors.required(max, "must be set and greater than 0");
    } else if most < 0 {
        errors.bad(&max, "must be greater than or equal to 1");
    }
    if min.int().is_some_and(|least| most < least) {
        let detail = "must be greater than or equal to `minReplicas`";
        errors.invalid(max, &most.into(), detail);
    }
    validate_reference(&spec.field("scaleTargetRef"), options.target, errors);
    let metrics = spec.field("metrics");
    for metric in metrics.items() {
        validate_metric(&metric, options, errors);
    }
    let from_outside = |m: &Value| m["type"] == "Object" || m["type"] == "External";
    if min.int() == Some(0) && !metrics.list().iter().any(from_outside) {
        let detail = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.forbidden(metrics, detail);
    }
    let behavior = spec.field("behavior");
    for direction in ["scaleUp", "scaleDown"] {
        validate_rules(&behavior.field(direction), errors);
    }
}

/// A behaviour says everything of both directions.
fn default_behavior(behavior: &mut Value) {
    let period = 15;
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": period});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": period});
    default_at(behavior, &["scaleUp", "stabilizationWindowSeconds"], 0);
    for (direction, policies) in [
        ("scaleUp", json!([pods, percent.clone()])),
        ("scaleDown", json!([percent])),
    ] {
        default_at(behavior, &[direction, "selectPolicy"], "Max");
        default_at(behavior, &[direction, "policies"], policies);
    }
}

impl Strategy for HorizontalPodAutoscaler {
    fn default(&self, object: &mut Value) {
        let Some(spec) = at_mut(object, &["spec"]).filter(|spec| spec.is_object()) else {
            return;
        };
        let metrics = spec.get("metrics").and_then(Value::as_array);
        if metrics.is_none_or(Vec::is_empty) {
            spec["metrics"] = json!([{"type": "Resource", "resource":
                {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        }
        if let Some(behavior) = at_mut(spec, &["behavior"]).filter(|b| b.is_object()) {
            default_behavior(behavior);
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_spec(&root.field("spec"), &Options::new(object, None), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_spec(
            &root.field("spec"),
            &Options::new(object, Some(old)),
            errors,
        );
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let counts = ["currentReplicas", "desiredReplicas"];
        errors.non_negative_fields(&root.field("status"), &counts);
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

//! Limits of a namespace: LimitRange and ResourceQuota.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{MetaCheck, Strategy, items_mut};
use crate::quantity::Quantity;
use crate::validation::{At, Errors, qualified_name, quantity_of, resource};

pub(super) struct LimitRange;

impl Strategy for LimitRange {
    fn default(&self, object: &mut Value) {
        let limits = items_mut(object, &["spec", "limits"]);
        for item in limits.filter(|item| item["type"] == "Container") {
            // A container's default limit is its maximum, its default request the default limit, else its minimum.
            for (target, source) in [
                ("default", "max"),
                ("defaultRequest", "default"),
                ("defaultRequest", "min"),
            ] {
                let amounts = item.get(source).and_then(Value::as_object).cloned();
                for (name, amount) in amounts.unwrap_or_default() {
                    super::default_at(item, &[target, &name], amount);
                }
            }
        }
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let limits = spec.field("limits");
        for (i, limit) in limits.items().enumerate() {
            let ty = limit.field("type");
            validate_type(&ty, errors);
            if limits.list()[..i]
                .iter()
                .any(|before| before.get("type") == limit.value().get("type"))
            {
                errors.duplicate_as(ty, &crate::validation::quote(ty.str()));
            }
            validate_limit(&limit, errors);
        }
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

fn validate_type(ty: &At<'_, '_>, errors: &mut Errors) {
    let problems = qualified_name(ty.str());
    let known = ["Pod", "Container", "PersistentVolumeClaim"].contains(&ty.str());
    if problems.is_empty() && !ty.str().contains('/') && !known {
        errors.bad(ty, "must be a standard limit type or fully qualified");
    }
    for problem in problems {
        errors.invalid_text(ty, ty.str(), &problem);
    }
}

fn validate_limit(limit: &At<'_, '_>, errors: &mut Errors) {
    let ty = limit.text("type");
    let name_rule = match ty {
        "Pod" | "Container" => resource::container_name,
        _ => resource::any_name,
    };
    let mut names = BTreeSet::new();
    for part in [
        "max",
        "min",
        "default",
        "defaultRequest",
        "maxLimitRequestRatio",
    ] {
        let amounts = limit.field(part);
        if part == "maxLimitRequestRatio" && ty == "PersistentVolumeClaim" {
            let bounded = ["min", "max"]
                .iter()
                .any(|p| !limit.get(p)["storage"].is_null());
            if !bounded {
                let detail =
                    "either minimum or maximum storage value is required, but neither was provided";
                errors.required(limit.field("limits"), detail);
            }
        }
        if ty == "Pod" && part.starts_with("default") {
            if !amounts.is_empty() {
                errors.forbidden(amounts, "may not be specified when `type` is 'Pod'");
            }
            continue;
        }
        for (name, amount) in amounts.entries() {
            name_rule(errors, &amount, name);
            names.insert(name);
        }
    }
    for name in names {
        Bounds::of(limit, name, ty == "Pod").validate(limit, name, errors);
    }
}

/// What a limit says of one resource.
struct Bounds {
    min: Option<Quantity>,
    max: Option<Quantity>,
    limit: Option<Quantity>,
    request: Option<Quantity>,
    ratio: Option<Quantity>,
}

impl Bounds {
    fn of(limit: &At<'_, '_>, name: &str, of_pods: bool) -> Self {
        let amount = |part: &str| quantity_of(&limit.get(part)[name]);
        Self {
            min: amount("min"),
            max: amount("max"),
            limit: amount("default").filter(|_| !of_pods),
            request: amount("defaultRequest").filter(|_| !of_pods),
            ratio: amount("maxLimitRequestRatio"),
        }
    }

    fn validate(&self, limit: &At<'_, '_>, name: &str, errors: &mut Errors) {
        // A bound that is too low, one that is too high, and what is reported.
        let orders = [
            (
                ("min value", self.min),
                ("max value", self.max),
                ("min", self.min),
            ),
            (
                ("min value", self.min),
                ("default request value", self.request),
                ("defaultRequest", self.request),
            ),
            (
                ("default request value", self.request),
                ("max value", self.max),
                ("defaultRequest", self.request),
            ),
            (
                ("default request value", self.request),
                ("default limit value", self.limit),
                ("defaultRequest", self.request),
            ),
            (
                ("min value", self.min),
                ("default value", self.limit),
                ("default", self.min),
            ),
            (
                ("default value", self.limit),
                ("max value", self.max),
                ("default", self.max),
            ),
        ];
        for ((low_is, low), (high_is, high), (part, reported)) in orders {
            if let (Some(low), Some(high), Some(reported)) = (low, high, reported)
                && low > high
            {
                let detail = format!("{low_is} {low} is greater than {high_is} {high}");
                errors.invalid(
                    limit.field(part).key(name),
                    &reported.to_string().into(),
                    &detail,
                );
            }
        }
        if let Some(ratio) = self.ratio {
            self.validate_ratio(ratio, limit, name, errors);
        }
        if let (Some(most), Some(wanted)) = (self.limit, self.request)
            && most != wanted
            && !resource::is_overcommit_allowed(name)
        {
            let detail = format!(
                "default value {most} must equal to defaultRequest value {wanted} in {name}"
            );
            errors.invalid(
                limit.field("defaultRequest").key(name),
                &wanted.to_string().into(),
                &detail,
            );
        }
    }

    fn validate_ratio(&self, ratio: Quantity, limit: &At<'_, '_>, name: &str, errors: &mut Errors) {
        let at = limit.field("maxLimitRequestRatio");
        let at = at.key(name);
        let reported = Value::from(ratio.to_string());
        if ratio.millis() < 1000 {
            errors.invalid(at, &reported, &format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (self.min, self.max) {
            #[expect(
                clippy::cast_precision_loss,
                reason = "upstream compares floats as well"
            )]
            let (most, ratio_value) = (
                max.millis() as f64 / min.millis() as f64,
                ratio.millis() as f64 / 1000.0,
            );
            if ratio_value > most {
                let detail = format!("ratio {ratio} is greater than max/min = {most:.6}");
                errors.invalid(at, &reported, &detail);
            }
        }
    }
}

pub(super) struct ResourceQuota;

const CONFLICTING: [[&str; 2]; 2] = [
    ["BestEffort", "NotBestEffort"],
    ["Terminating", "NotTerminating"],
];

/// Scopes that are either there or not.
const EXISTENTIAL: [&str; 5] = [
    "BestEffort",
    "NotBestEffort",
    "Terminating",
    "NotTerminating",
    "CrossNamespacePodAffinity",
];

fn is_scope(name: &str) -> bool {
    EXISTENTIAL.contains(&name) || ["PriorityClass", "VolumeAttributesClass"].contains(&name)
}

/// Whether a scope can narrow what is counted of a resource.
fn narrows(scope: &str, resource: &str) -> bool {
    const COMPUTE: [&str; 6] = [
        "cpu",
        "memory",
        "limits.cpu",
        "limits.memory",
        "requests.cpu",
        "requests.memory",
    ];
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => {
            ["persistentvolumeclaims", "requests.storage"].contains(&resource)
        }
        known if is_scope(known) => resource == "pods" || COMPUTE.contains(&resource),
        _ => true,
    }
}

/// The limited resources that a scope cannot narrow.
fn beyond<'v>(scope: &str, spec: &At<'v, '_>) -> usize {
    let limited = spec.get("hard").as_object().into_iter().flatten();
    limited
        .filter(|(name, _)| resource::is_standard_for_quota(name) && !narrows(scope, name))
        .count()
}

fn validate_spec(spec: &At<'_, '_>, errors: &mut Errors) {
    resource::quota_list(errors, &spec.field("hard"));
    let scopes = spec.field("scopes");
    for scope in scopes.items() {
        if !is_scope(scope.str()) {
            errors.bad(&scopes, "unsupported scope");
        }
        for _ in 0..beyond(scope.str(), spec) {
            errors.bad(&scopes, "unsupported scope applied to resource");
        }
    }
    let has = |name: &str| scopes.list().iter().any(|scope| scope == name);
    for _ in CONFLICTING
        .iter()
        .filter(|pair| pair.iter().all(|name| has(name)))
    {
        errors.bad(&scopes, "conflicting scopes");
    }
    let selector = spec.field("scopeSelector");
    if selector.is_set() {
        validate_selector(spec, &selector, errors);
    }
}

fn validate_selector(spec: &At<'_, '_>, selector: &At<'_, '_>, errors: &mut Errors) {
    let list = selector.field("matchExpressions");
    for item in list.items() {
        // Upstream's places have no index.
        let (name, operator, values) = (
            item.text("scopeName"),
            item.text("operator"),
            item.field("values"),
        );
        let operator_at = list.place("operator", item.get("operator"));
        if !is_scope(name) {
            errors.invalid_text(list.field("scopeName"), name, "unsupported scope");
        }
        for _ in 0..beyond(name, spec) {
            errors.invalid_as(
                list,
                &crate::validation::internal("io.k8s.api.core.v1.ScopeSelector", selector.value()),
                "unsupported scope applied to resource",
            );
        }
        if EXISTENTIAL.contains(&name) && operator != "Exists" {
            let detail = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.invalid_text(operator_at, operator, detail);
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.required(
                list.field("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.invalid(
                list.field("values"),
                values.value(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.invalid_text(operator_at, operator, "not a valid selector operator"),
        }
    }
    let has = |name: &str| list.list().iter().any(|item| item["scopeName"] == name);
    for _ in CONFLICTING
        .iter()
        .filter(|pair| pair.iter().all(|name| has(name)))
    {
        errors.invalid(list, spec.get("scopes"), "conflicting scopes");
    }
}

fn validate_status(status: &At<'_, '_>, errors: &mut Errors) {
    resource::quota_list(errors, &status.field("hard"));
    resource::quota_list(errors, &status.field("used"));
}

impl Strategy for ResourceQuota {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate_spec(&At::root(object).field("spec"), errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let scopes = |object: &Value| -> BTreeSet<String> {
            let list = object["spec"]["scopes"].as_array().into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        if scopes(object) != scopes(old) {
            errors.invalid(
                "spec.scopes",
                &object["spec"]["scopes"],
                "field is immutable",
            );
        }
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        validate_status(&At::root(object).field("status"), errors);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() {
            return Vec::new();
        }
        let hard = &object["spec"]["hard"];
        let mut warnings = Vec::new();
        for name in ["cpu", "memory", "storage", "ephemeral-storage"] {
            let mut wanted = format!("requests.{name}");
            if hard[&wanted].is_null() && ["cpu", "memory"].contains(&name) {
                wanted = name.to_owned();
            }
            let most = format!("limits.{name}");
            if let (Some(request), Some(limit)) =
                (quantity_of(&hard[&wanted]), quantity_of(&hard[&most]))
                && request > limit
            {
                warnings.push(format!(
                    "ResourceQuota {wanted} ({request}) should be less than {most} ({limit})"
                ));
            }
        }
        warnings
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

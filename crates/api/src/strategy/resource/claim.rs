//! Claims to devices, and their templates.

use serde_json::Value;

use super::{
    MAX_CONFIG, MAX_REQUESTS, TAINT_EFFECTS, configuration, is_within, name, names, selectors,
    status, text, unique,
};
use crate::strategy::template::volume::template_metadata;
use crate::strategy::{MetaCheck, Strategy, copy_field, default_at, items_mut, keep_metadata};
use crate::validation::{
    At, Errors, dns_label, dns_subdomain, internal, label_value, qualified_name,
};

const MAX_ALTERNATIVES: usize = 8;

const MAX_CONSTRAINTS: usize = 32;

const MODES: &[&str] = &["All", "ExactCount"];

pub(in crate::strategy) struct ResourceClaim;

pub(in crate::strategy) struct ResourceClaimTemplate;

/// How many devices a request is for.
fn default_count(request: &mut Value) {
    default_at(request, &["allocationMode"], "ExactCount");
    if request["allocationMode"] == "" {
        request["allocationMode"] = "ExactCount".into();
    }
    let unset = request["count"].as_i64().is_none_or(|count| count == 0);
    if request["allocationMode"] == "ExactCount" && unset {
        request["count"] = 1.into();
    }
}

fn default_requests(spec: &mut Value) {
    for request in items_mut(spec, &["devices", "requests"]) {
        if let Some(exactly) = request.get_mut("exactly").filter(|e| e.is_object()) {
            default_count(exactly);
        }
        for alternative in items_mut(request, &["firstAvailable"]) {
            default_count(alternative);
        }
    }
}

/// Names of the requests of a claim, and of their alternatives: `request/alternative`.
pub(super) struct Requests<'v>(&'v [Value]);

impl<'v> Requests<'v> {
    pub(super) fn of(spec: &'v Value) -> Self {
        let requests = spec["devices"]["requests"].as_array();
        Self(requests.map(Vec::as_slice).unwrap_or_default())
    }

    fn has(&self, reference: &str) -> bool {
        let (first, second) = match reference.split_once('/') {
            Some((first, second)) => (first, Some(second)),
            None => (reference, None),
        };
        // Of several requests with one name, the last one counts.
        let Some(request) = self.0.iter().rfind(|r| name(r) == first) else {
            return false;
        };
        let alternatives = request["firstAvailable"].as_array().into_iter().flatten();
        second.is_none_or(|second| alternatives.into_iter().any(|a| name(a) == second))
    }

    /// The name of a request, or of an alternative of one.
    pub(super) fn validate(&self, at: &At<'_, '_>, errors: &mut Errors) {
        const FORM: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
        let parts: Vec<&str> = at.str().split('/').collect();
        if parts.len() > 2 {
            errors.invalid_text(at, at.str(), FORM);
            return;
        }
        for part in parts {
            for problem in dns_label(part) {
                errors.invalid_text(at, part, &problem);
            }
        }
        if !self.has(at.str()) {
            errors.invalid_text(at, at.str(), FORM);
        }
    }

    /// A set of such names.
    pub(super) fn validate_set(&self, at: &At<'_, '_>, errors: &mut Errors) {
        if is_within(at, MAX_REQUESTS, errors) {
            for reference in at.items() {
                self.validate(&reference, errors);
            }
            unique(at, text, errors);
        }
    }
}

fn validate_spec(spec: &At<'_, '_>, errors: &mut Errors) {
    let devices = spec.field("devices");
    let (requests, known) = (devices.field("requests"), Requests::of(spec.value()));
    if is_within(&requests, MAX_REQUESTS, errors) {
        for request in requests.items() {
            validate_request(&request, errors);
        }
        unique(&requests, name, errors);
    }
    let constraints = devices.field("constraints");
    if is_within(&constraints, MAX_CONSTRAINTS, errors) {
        for constraint in constraints.items() {
            validate_constraint(&constraint, &known, errors);
        }
    }
    let configs = devices.field("config");
    if is_within(&configs, MAX_CONFIG, errors) {
        for config in configs.items() {
            known.validate_set(&config.field("requests"), errors);
            configuration(&config, false, errors);
        }
    }
}

fn validate_request(request: &At<'_, '_>, errors: &mut Errors) {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    let name = request.field("name");
    errors.problems(&name, dns_label(name.str()));
    let (exactly, first) = (request.field("exactly"), request.field("firstAvailable"));
    match (exactly.is_set(), !first.is_empty()) {
        (false, false) => errors.required(request, ONE),
        (true, true) => {
            let detail = format!("{ONE}, but multiple fields are set");
            errors.invalid(request, &Value::Null, &detail);
        }
        (true, false) => validate_devices(&exactly, errors),
        (false, true) => {
            if is_within(&first, MAX_ALTERNATIVES, errors) {
                for alternative in first.items() {
                    let name = alternative.field("name");
                    errors.problems(&name, dns_label(name.str()));
                    validate_devices(&alternative, errors);
                }
                unique(&first, super::name, errors);
            }
        }
    }
}

/// Which devices are requested, and how many.
fn validate_devices(request: &At<'_, '_>, errors: &mut Errors) {
    errors.required_name(&request.field("deviceClassName"), dns_subdomain);
    selectors(&request.field("selectors"), errors);
    let (mode, count) = (request.field("allocationMode"), request.field("count"));
    let number = count.int().unwrap_or_default();
    match mode.str() {
        "All" if number != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.bad(&count, detail);
        }
        "ExactCount" if number <= 0 => {
            errors.invalid(count, &number.into(), "must be greater than zero");
        }
        _ => errors.member(&mode, MODES),
    }
    for toleration in request.field("tolerations").items() {
        validate_toleration(&toleration, errors);
    }
}

fn validate_toleration(toleration: &At<'_, '_>, errors: &mut Errors) {
    errors.optional_name(&toleration.field("key"), qualified_name);
    let (operator, value) = (toleration.field("operator"), toleration.field("value"));
    match operator.str() {
        "Exists" if !value.is_empty() => {
            errors.bad(&value, "must be empty for operator `Exists`");
        }
        "Equal" => errors.problems(&value, label_value(value.str())),
        _ => errors.one_of_required(&operator, &["Equal", "Exists"]),
    }
    let effect = toleration.field("effect");
    if !effect.is_empty() {
        errors.member(&effect, TAINT_EFFECTS);
    }
}

fn validate_constraint(constraint: &At<'_, '_>, known: &Requests<'_>, errors: &mut Errors) {
    known.validate_set(&constraint.field("requests"), errors);
    let (same, distinct) = (
        constraint.field("matchAttribute"),
        constraint.field("distinctAttribute"),
    );
    if same.is_set() {
        names::fully_qualified(&same, errors);
    } else if distinct.is_set() {
        names::fully_qualified(&distinct, errors);
    } else {
        let detail = r#"exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set"#;
        errors.required(constraint, detail);
    }
}

/// The spec of both kinds can never change.
fn immutable_spec(type_name: &str, object: &Value, old: &Value, errors: &mut Errors) {
    if object["spec"] != old["spec"] {
        let shown = internal(type_name, &object["spec"]);
        errors.invalid_as("spec", &shown, "field is immutable");
    }
}

impl Strategy for ResourceClaim {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec") {
            default_requests(spec);
        }
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        keep_metadata(object, old);
        status::forget_deallocated(object, old);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate_spec(&At::root(object).field("spec"), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        immutable_spec(
            "io.k8s.api.resource.v1.ResourceClaimSpec",
            object,
            old,
            errors,
        );
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        status::validate(object, old, errors);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

impl Strategy for ResourceClaimTemplate {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.pointer_mut("/spec/spec") {
            default_requests(spec);
        }
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        template_metadata(&spec.field("metadata"), errors);
        validate_spec(&spec.field("spec"), errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let ty = "io.k8s.api.resource.v1.ResourceClaimTemplateSpec";
        immutable_spec(ty, object, old, errors);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

//! Bindings of policies.

use fluyt_api::validation::{At, Errors, dns_subdomain, label_selector, path_segment};

use super::matching::{match_resources, mutating_operations};

const ACTIONS: &[&str] = &["Audit", "Deny", "Warn"];

/// In the order that messages list them in.
const NOT_FOUND_ACTIONS: &[&str] = &["Deny", "Allow"];

pub(super) fn validating(spec: &At<'_, '_>, errors: &mut Errors) {
    binding(spec, errors);
    actions(&spec.field("validationActions"), errors);
}

pub(super) fn mutating(spec: &At<'_, '_>, errors: &mut Errors) {
    binding(spec, errors);
    mutating_operations(&spec.field("matchResources"), errors);
}

/// What all bindings have.
fn binding(spec: &At<'_, '_>, errors: &mut Errors) {
    errors.required_name(&spec.field("policyName"), dns_subdomain);
    parameter(&spec.field("paramRef"), errors);
    match_resources(&spec.field("matchResources"), errors);
}

/// Which objects are the parameters.
fn parameter(at: &At<'_, '_>, errors: &mut Errors) {
    const EXCLUSIVE: &str = "name and selector are mutually exclusive";
    if !at.is_set() {
        return;
    }
    let (name, selector) = (at.field("name"), at.field("selector"));
    if !name.is_empty() {
        errors.problems(&name, path_segment(name.str()));
        if selector.is_set() {
            errors.forbidden(name, EXCLUSIVE);
        }
    }
    if selector.is_set() {
        label_selector(errors, &selector);
        if !name.is_empty() {
            errors.forbidden(selector, EXCLUSIVE);
        }
    } else if name.is_empty() {
        errors.required(at, "one of name or selector must be specified");
    }
    errors.one_of_required(&at.field("parameterNotFoundAction"), NOT_FOUND_ACTIONS);
}

/// What is done about a request that a policy objects to.
fn actions(at: &At<'_, '_>, errors: &mut Errors) {
    for (i, action) in at.items().enumerate() {
        errors.member(&action, ACTIONS);
        if at.list()[..i].contains(action.value()) {
            errors.duplicate(action, action.value());
        }
    }
    let has = |name: &str| at.list().iter().any(|action| action == name);
    if has("Deny") && has("Warn") {
        errors.bad(at, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
    }
    if at.is_empty() {
        errors.required(at, "at least one validation action is required");
    }
}

//! Which requests a webhook or a policy is about.

use fluyt_api::validation::{At, Errors, label_selector, path_segment};
use serde_json::Value;

pub(super) const MATCH_POLICIES: &[&str] = &["Equivalent", "Exact"];

const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

/// Nothing is left of what is deleted that could be changed.
const MUTATING_OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];

const SCOPES: &[&str] = &["*", "Cluster", "Namespaced"];

/// `matchConstraints` of a policy, or `matchResources` of a binding; whoever calls knows whether it must be there.
pub(super) fn match_resources(at: &At<'_, '_>, errors: &mut Errors) {
    if !at.is_set() {
        return;
    }
    let policy = at.field("matchPolicy");
    if policy.is_set() {
        errors.member(&policy, MATCH_POLICIES);
    } else {
        errors.required(policy, "");
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        let selector = at.field(selector);
        if selector.is_set() {
            label_selector(errors, &selector);
        } else {
            errors.required(selector, "");
        }
    }
    for rules in ["resourceRules", "excludeResourceRules"] {
        for rule in at.field(rules).items() {
            resource_names(&rule.field("resourceNames"), errors);
            self::rule(&rule, errors);
        }
    }
}

/// What only policies that mutate are told about their operations.
pub(super) fn mutating_operations(resources: &At<'_, '_>, errors: &mut Errors) {
    let rules = resources.field("resourceRules");
    let operations = rules.field("operations");
    for rule in rules.list() {
        for operation in rule["operations"].as_array().into_iter().flatten() {
            if !MUTATING_OPERATIONS.contains(&operation.as_str().unwrap_or_default()) {
                errors.not_supported(operations, operation, MUTATING_OPERATIONS);
            }
        }
    }
}

fn resource_names(names: &At<'_, '_>, errors: &mut Errors) {
    for (i, name) in names.items().enumerate() {
        errors.problems(&name, path_segment(name.str()));
        if names.list()[..i].contains(name.value()) {
            errors.duplicate(name, name.value());
        }
    }
}

/// One rule: operations on resources.
pub(super) fn rule(rule: &At<'_, '_>, errors: &mut Errors) {
    let operations = rule.field("operations");
    some_or_all(&operations, "operations", errors);
    for operation in operations.items() {
        errors.member(&operation, OPERATIONS);
    }
    some_or_all(&rule.field("apiGroups"), "API groups", errors);
    let versions = rule.field("apiVersions");
    some_or_all(&versions, "API versions", errors);
    for version in versions.items() {
        errors.required_text(&version);
    }
    resources(&rule.field("resources"), errors);
    errors.one_of_optional(&rule.field("scope"), SCOPES);
}

/// A list that is not empty, and in which everything stands alone.
fn some_or_all(at: &At<'_, '_>, what: &str, errors: &mut Errors) {
    if at.is_empty() {
        errors.required(at, "");
    }
    if at.list().len() > 1 && at.list().iter().any(|v| v == "*") {
        let detail = format!("if '*' is present, must not specify other {what}");
        errors.bad(at, &detail);
    }
}

/// Resources and subresources, none of which is named by another as well.
fn resources(at: &At<'_, '_>, errors: &mut Errors) {
    if at.is_empty() {
        errors.required(at, "");
    }
    let mut whole: Vec<&str> = Vec::new();
    let mut everywhere: Vec<&str> = Vec::new();
    let mut last_is_plain = false;
    for item in at.items() {
        let text = item.str();
        if text.is_empty() {
            errors.required(item, "");
            continue;
        }
        let Some((resource, subresource)) = text.split_once('/') else {
            last_is_plain = text != "*";
            continue;
        };
        for (covers, name) in [
            (whole.contains(&resource), format!("{resource}/*")),
            (
                everywhere.contains(&subresource),
                format!("*/{subresource}"),
            ),
        ] {
            if covers {
                let detail = format!("if '{name}' is present, must not specify {text}");
                errors.bad(&item, &detail);
            }
        }
        if subresource == "*" {
            whole.push(resource);
        }
        if resource == "*" {
            everywhere.push(subresource);
        }
    }
    let has = |text: &str| at.list().iter().any(|v: &Value| v == text);
    if at.list().len() > 1 && has("*/*") {
        errors.bad(at, "if '*/*' is present, must not specify other resources");
    }
    if has("*") && last_is_plain {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.bad(at, detail);
    }
}

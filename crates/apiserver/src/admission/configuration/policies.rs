//! Policies: what they are about, what they compute, and what they say or change.

use std::collections::BTreeMap;

use fluyt_api::validation::{At, Errors, dns_1035_label, dns_subdomain, qualified_name};
use fluyt_cel::{Environment, Type};
use serde_json::Value;

use super::conditions::{expression, trimmed};
use super::matching::{match_resources, mutating_operations};
use super::{FAILURE_POLICIES, REINVOCATION_POLICIES, conditions};
use crate::admission::expressions::{self, Sees};

const MAX_AUDIT_ANNOTATIONS: usize = 20;

/// Bytes of the expression of an annotation's value.
const MAX_VALUE_EXPRESSION: usize = 5 * 1024;

const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge"];

const PATCH_TYPES: &[&str] = &["ApplyConfiguration", "JSONPatch"];

fn is_identifier(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(is_letter)
        && name.chars().all(|c| is_letter(c) || c.is_ascii_digit())
        && !fluyt_cel::RESERVED.contains(&name)
}

/// Whether match conditions that were valid before may have become invalid.
fn conditions_changed(spec: &At<'_, '_>, old: Option<&Value>) -> bool {
    old.is_none_or(|old| {
        ["paramKind", "matchConditions"]
            .iter()
            .any(|field| old.get(field) != spec.value().get(field))
    })
}

/// What both kinds of policies have before their variables.
fn scope(spec: &At<'_, '_>, old: Option<&Value>, mutates: bool, errors: &mut Errors) {
    let failure = spec.field("failurePolicy");
    if failure.is_set() {
        errors.member(&failure, FAILURE_POLICIES);
    } else {
        errors.required(failure, "");
    }
    parameter_kind(&spec.field("paramKind"), errors);
    let constraints = spec.field("matchConstraints");
    if constraints.is_set() {
        match_resources(&constraints, errors);
        let rules = constraints.field("resourceRules");
        if rules.is_empty() {
            errors.required(rules, "");
        }
        if mutates {
            mutating_operations(&constraints, errors);
        }
    } else {
        errors.required(constraints, "");
    }
    if conditions_changed(spec, old) {
        let environment = expressions::environment(Sees::of_policy(spec.value()));
        conditions::validate(&spec.field("matchConditions"), &environment, errors);
    }
}

fn parameter_kind(at: &At<'_, '_>, errors: &mut Errors) {
    if !at.is_set() {
        return;
    }
    let version = at.field("apiVersion");
    let problem = |part: &str, problems: Vec<String>, errors: &mut Errors| {
        if !problems.is_empty() {
            errors.invalid_text(version, part, &problems.join(","));
        }
    };
    let (group, name) = match version.str() {
        "/" => ("", ""),
        text => text.split_once('/').unwrap_or(("", text)),
    };
    if version.is_empty() {
        errors.required(version, "");
    } else if name.contains('/') {
        let detail = format!("unexpected GroupVersion string: {}", version.str());
        errors.bad(&version, &detail);
    } else {
        if !group.is_empty() {
            problem(group, dns_subdomain(group), errors);
        }
        if name.is_empty() {
            errors.bad(&version, "version must be specified");
        } else {
            problem(name, dns_1035_label(name), errors);
        }
    }
    let kind = at.field("kind");
    if kind.is_empty() {
        errors.required(kind, "");
        return;
    }
    let problems = dns_1035_label(&kind.str().to_lowercase());
    if !problems.is_empty() {
        let detail = format!(
            "may have mixed case, but should otherwise match: {}",
            problems.join(",")
        );
        errors.bad(&kind, &detail);
    }
}

/// Adds what a policy computes to environments, and checks how.
fn variables(spec: &At<'_, '_>, environments: &mut [&mut Environment], errors: &mut Errors) {
    let nothing = Type::object("kubernetes.variables", &BTreeMap::new());
    for environment in &mut *environments {
        environment.declare("variables", nothing.clone());
    }
    drop(nothing);
    for variable in spec.field("variables").items() {
        let (name, text) = (variable.field("name"), variable.field("expression"));
        if name.str().trim().is_empty() {
            errors.required(name, "name is not specified");
        } else if !is_identifier(name.str()) {
            errors.bad(&name, "must be a valid CEL identifier");
        }
        if text.str().trim().is_empty() {
            errors.required(text, "expression is not specified");
            continue;
        }
        let Some(environment) = environments.first() else {
            continue;
        };
        let compiled = expressions::typed(environment, text.str(), &[]);
        let ty = compiled.as_ref().map_or(Type::Dyn, |p| p.result.clone());
        if let Err(problem) = compiled {
            errors.bad(&text, &problem);
        }
        for environment in &mut *environments {
            environment.extend("variables", name.str(), ty.clone());
        }
    }
}

pub(super) fn validating(
    policy: &At<'_, '_>,
    spec: &At<'_, '_>,
    old: Option<&Value>,
    errors: &mut Errors,
) {
    scope(spec, old, false, errors);
    let sees = Sees::of_policy(spec.value());
    let mut environment = expressions::environment(sees);
    let mut of_messages = expressions::environment(Sees {
        authorizer: false,
        ..sees
    });
    if !spec.field("variables").is_empty() {
        variables(spec, &mut [&mut environment, &mut of_messages], errors);
    }
    let (validations, annotations) = (spec.field("validations"), spec.field("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        errors.required(validations, detail);
        errors.required(annotations, detail);
        return;
    }
    for validation in validations.items() {
        validate_validation(&validation, &environment, &of_messages, errors);
    }
    audit_annotations(policy, &annotations, &environment, errors);
}

fn validate_validation(
    at: &At<'_, '_>,
    environment: &Environment,
    of_messages: &Environment,
    errors: &mut Errors,
) {
    const EMPTY: &str = "must be non-empty if specified";
    let text = at.field("expression");
    if text.str().trim().is_empty() {
        errors.required(text, "expression is not specified");
    } else {
        expression(&text, environment, &[Type::Bool], errors);
    }
    let computed = at.field("messageExpression");
    if !computed.str().trim().is_empty() {
        expression(&computed, of_messages, &[Type::String], errors);
    } else if !computed.is_empty() {
        errors.bad(&computed, EMPTY);
    }
    let message = at.field("message");
    let trimmed = message.str().trim();
    if !message.is_empty() && trimmed.is_empty() {
        errors.bad(&message, EMPTY);
    } else if trimmed.contains(['\n', '\r']) {
        errors.bad(&message, "must not contain line breaks");
    }
    errors.one_of_optional(&at.field("reason"), REASONS);
}

fn audit_annotations(
    policy: &At<'_, '_>,
    at: &At<'_, '_>,
    environment: &Environment,
    errors: &mut Errors,
) {
    if at.list().len() > MAX_AUDIT_ANNOTATIONS {
        let detail = format!("must not have more than {MAX_AUDIT_ANNOTATIONS} auditAnnotations");
        errors.bad(at, &detail);
    }
    let name = policy.field("metadata").text("name");
    let mut keys = Vec::new();
    for annotation in at.items() {
        let key = annotation.field("key");
        if name.is_empty() {
            errors.bad(&key, "requires metadata.name be non-empty");
        } else {
            let full = format!("{name}/{}", key.str());
            for problem in qualified_name(&full) {
                errors.invalid_text(key, &full, &problem);
            }
        }
        let value = annotation.field("valueExpression");
        let text = value.str().trim();
        if text.is_empty() {
            errors.required(value, "valueExpression is not specified");
        } else if text.len() > MAX_VALUE_EXPRESSION {
            let detail = format!("must not exceed {MAX_VALUE_EXPRESSION} bytes in length");
            errors.required(value, &detail);
        } else if let Err(problem) =
            expressions::typed(environment, text, &[Type::String, Type::Null])
        {
            errors.bad(&value, &problem);
        }
        if keys.contains(&key.str()) {
            errors.duplicate_as(key, &fluyt_api::validation::quote(key.str()));
        }
        keys.push(key.str());
    }
}

pub(super) fn mutating(spec: &At<'_, '_>, old: Option<&Value>, errors: &mut Errors) {
    scope(spec, old, true, errors);
    let mut environment = expressions::environment(Sees::of_policy(spec.value()));
    variables(spec, &mut [&mut environment], errors);
    for (name, ty) in expressions::patch_types() {
        environment.declare_object(name, ty);
    }
    let mutations = spec.field("mutations");
    if mutations.is_empty() {
        errors.required(mutations, "mutations must contain at least one item");
    }
    for mutation in mutations.items() {
        validate_mutation(&mutation, &environment, errors);
    }
    errors.one_of_required(&spec.field("reinvocationPolicy"), REINVOCATION_POLICIES);
}

fn validate_mutation(at: &At<'_, '_>, environment: &Environment, errors: &mut Errors) {
    let ty = at.field("patchType");
    let [(_, object), (_, operation)] = expressions::patch_types();
    let (own, other, result) = match ty.str() {
        "JSONPatch" => ("jsonPatch", "applyConfiguration", Type::list(operation)),
        "ApplyConfiguration" => ("applyConfiguration", "jsonPatch", object),
        _ => return errors.one_of_required(&ty, PATCH_TYPES),
    };
    let patch = at.field(own);
    if patch.is_set() {
        let text = patch.field("expression");
        if text.str().trim().is_empty() {
            errors.required(text, "");
        } else {
            trimmed(&text, environment, &[result], errors);
        }
    } else {
        let detail = format!("must be specified when patchType is {}", ty.str());
        errors.required(patch, &detail);
    }
    let other = at.field(other);
    if other.is_set() {
        let name = other.to_string();
        let name = name.rsplit('.').next().unwrap_or_default();
        let detail = format!("must not be specified when patchType is {}", ty.str());
        errors.invalid_text(other, &format!("{{{name}}}"), &detail);
    }
}

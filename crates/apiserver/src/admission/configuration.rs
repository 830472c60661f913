//! Validation of what configures admission: webhooks and policies, with their expressions.

use fluyt_api::resources::Resource;
use fluyt_api::validation::{self, At, Errors};
use fluyt_cel::{Environment, Type};
use serde_json::Value;

use super::expressions;

/// Checks a webhook configuration or a policy. Nothing is said of other resources.
pub fn validate(resource: &Resource, object: &Value, old: Option<&Value>, errors: &mut Errors) {
    if resource.group != "admissionregistration.k8s.io"
        || old.is_some_and(|o| o["spec"] == object["spec"] && o["webhooks"] == object["webhooks"])
    {
        return;
    }
    match resource.kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            webhooks(object, errors)
        }
        "ValidatingAdmissionPolicy" => validating_policy(&object["spec"], errors),
        "MutatingAdmissionPolicy" => mutating_policy(&object["spec"], errors),
        "ValidatingAdmissionPolicyBinding" => {
            let spec = &object["spec"];
            if spec["policyName"].as_str().unwrap_or_default().is_empty() {
                errors.required("spec.policyName", "");
            }
            let actions: Vec<&Value> = spec["validationActions"]
                .as_array()
                .into_iter()
                .flatten()
                .collect();
            if actions.is_empty() {
                errors.required(
                    "spec.validationActions",
                    "at least one validation action is required",
                );
            }
            for (i, action) in actions.iter().enumerate() {
                errors.one_of(
                    format!("spec.validationActions[{i}]"),
                    action,
                    &["Audit", "Deny", "Warn"],
                );
            }
            let has = |name: &str| actions.iter().any(|a| *a == name);
            if has("Deny") && has("Warn") {
                errors.invalid("spec.validationActions", &spec["validationActions"], "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
            }
        }
        _ => {}
    }
}

fn webhooks(object: &Value, errors: &mut Errors) {
    let environment = expressions::environment(false);
    let mut names: Vec<&str> = Vec::new();
    for (i, webhook) in object["webhooks"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let at = format!("webhooks[{i}]");
        let name = webhook["name"].as_str().unwrap_or_default();
        let value = Value::from(name);
        if name.is_empty() {
            errors.required(format!("{at}.name"), "");
        }
        for problem in validation::dns_subdomain(name) {
            errors.invalid(format!("{at}.name"), &value, &problem);
        }
        if !name.is_empty() && name.split('.').count() < 3 {
            errors.invalid(
                format!("{at}.name"),
                &value,
                "should be a domain with at least three segments separated by dots",
            );
        }
        if names.contains(&name) {
            errors.duplicate(format!("{at}.name"), &value);
        }
        names.push(name);
        let versions: Vec<&Value> = webhook["admissionReviewVersions"]
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        if versions.is_empty() {
            errors.required(
                format!("{at}.admissionReviewVersions"),
                "must specify one of v1, v1beta1",
            );
        } else {
            validation::review_versions(
                errors,
                &format!("{at}.admissionReviewVersions"),
                &versions,
                &["v1", "v1beta1"],
                true,
            );
        }
        rules(&webhook["rules"], &format!("{at}.rules"), errors);
        errors.one_of(
            format!("{at}.failurePolicy"),
            &webhook["failurePolicy"],
            &["Fail", "Ignore"],
        );
        errors.one_of(
            format!("{at}.matchPolicy"),
            &webhook["matchPolicy"],
            &["Equivalent", "Exact"],
        );
        errors.one_of(
            format!("{at}.reinvocationPolicy"),
            &webhook["reinvocationPolicy"],
            &["IfNeeded", "Never"],
        );
        match webhook["sideEffects"].as_str() {
            None => errors.required(
                format!("{at}.sideEffects"),
                "must specify one of None, NoneOnDryRun",
            ),
            Some("None" | "NoneOnDryRun") => {}
            Some(_) => errors.not_supported(
                format!("{at}.sideEffects"),
                &webhook["sideEffects"],
                &["None", "NoneOnDryRun"],
            ),
        }
        if let Some(timeout) = webhook["timeoutSeconds"].as_i64()
            && !(1..=30).contains(&timeout)
        {
            let detail = "the timeout value must be between 1 and 30 seconds";
            errors.invalid(format!("{at}.timeoutSeconds"), &timeout.into(), detail);
        }
        for selector in ["namespaceSelector", "objectSelector"] {
            validation::label_selector(
                errors,
                &At::named(&webhook[selector], &format!("{at}.{selector}")),
            );
        }
        validation::webhook_client(
            errors,
            &format!("{at}.clientConfig"),
            &webhook["clientConfig"],
        );
        conditions(
            &environment,
            &webhook["matchConditions"],
            &format!("{at}.matchConditions"),
            errors,
        );
    }
}

fn rules(list: &Value, at: &str, errors: &mut Errors) {
    for (i, rule) in list.as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}[{i}]");
        let words = |field: &str| -> Vec<&str> {
            let list = rule[field].as_array().into_iter().flatten();
            list.filter_map(Value::as_str).collect()
        };
        for field in ["operations", "apiGroups", "apiVersions", "resources"] {
            let words = words(field);
            if words.is_empty() {
                errors.required(format!("{at}.{field}"), "");
            } else if words.len() > 1 && words.contains(&"*") && field != "resources" {
                errors.invalid(
                    format!("{at}.{field}"),
                    &rule[field],
                    "if '*' is present, must not specify other values",
                );
            }
        }
        for (j, operation) in words("operations").iter().enumerate() {
            let known = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
            errors.one_of(
                format!("{at}.operations[{j}]"),
                &(*operation).into(),
                &known,
            );
        }
        errors.one_of(
            format!("{at}.scope"),
            &rule["scope"],
            &["*", "Cluster", "Namespaced"],
        );
    }
}

fn conditions(environment: &Environment, list: &Value, at: &str, errors: &mut Errors) {
    let list: Vec<&Value> = list.as_array().into_iter().flatten().collect();
    if list.len() > 64 {
        errors.too_many(at, i64::try_from(list.len()).unwrap_or(i64::MAX), 64);
    }
    for (i, condition) in list.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let name = condition["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            errors.required(format!("{at}.name"), "");
        } else {
            for problem in validation::qualified_name(name) {
                errors.invalid(format!("{at}.name"), &name.into(), &problem);
            }
        }
        if list[..i].iter().any(|c| c["name"] == name) {
            errors.duplicate(format!("{at}.name"), &name.into());
        }
        expression(
            environment,
            &condition["expression"],
            &format!("{at}.expression"),
            Some(&Type::Bool),
            errors,
        );
    }
}

/// An expression compiles, has the right type, and does not cost too much.
fn expression(
    environment: &Environment,
    value: &Value,
    at: &str,
    ty: Option<&Type>,
    errors: &mut Errors,
) {
    let text = value.as_str().unwrap_or_default();
    if text.trim().is_empty() {
        errors.required(at, "");
        return;
    }
    match environment.compile(text) {
        Err(error) => errors.invalid(at, value, &format!("compilation failed: {error}")),
        Ok(program) => {
            if let Some(ty) = ty.filter(|ty| program.result != **ty && !program.result.is_dyn()) {
                errors.invalid(at, value, &format!("must evaluate to {ty}"));
            }
        }
    }
}

/// What both kinds of policies have; returns the environment of their expressions.
fn policy(spec: &Value, errors: &mut Errors) -> Environment {
    let mut environment = expressions::environment(true);
    let constraints = &spec["matchConstraints"];
    if !constraints.is_object() {
        errors.required("spec.matchConstraints", "");
    } else if constraints["resourceRules"]
        .as_array()
        .is_none_or(Vec::is_empty)
    {
        errors.required("spec.matchConstraints.resourceRules", "");
    }
    rules(
        &constraints["resourceRules"],
        "spec.matchConstraints.resourceRules",
        errors,
    );
    for selector in ["namespaceSelector", "objectSelector"] {
        validation::label_selector(
            errors,
            &At::named(
                &constraints[selector],
                &format!("spec.matchConstraints.{selector}"),
            ),
        );
    }
    errors.one_of(
        "spec.failurePolicy",
        &spec["failurePolicy"],
        &["Fail", "Ignore"],
    );
    conditions(
        &environment,
        &spec["matchConditions"],
        "spec.matchConditions",
        errors,
    );
    let mut fields = std::collections::BTreeMap::new();
    for (i, variable) in spec["variables"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let at = format!("spec.variables[{i}]");
        let name = variable["name"].as_str().unwrap_or_default();
        let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if name.is_empty() {
            errors.required(format!("{at}.name"), "name is not specified");
        } else if !valid {
            errors.invalid(
                format!("{at}.name"),
                &name.into(),
                "name is not a valid CEL identifier",
            );
        } else if fields.contains_key(name) {
            errors.duplicate(format!("{at}.name"), &name.into());
        }
        environment.declare("variables", Type::object("kubernetes.variables", &fields));
        expression(
            &environment,
            &variable["expression"],
            &format!("{at}.expression"),
            None,
            errors,
        );
        let text = variable["expression"].as_str().unwrap_or_default();
        let ty = environment.compile(text).map_or(Type::Dyn, |p| p.result);
        fields.insert(name.to_owned(), ty);
    }
    environment.declare("variables", Type::object("kubernetes.variables", &fields));
    environment
}

fn validating_policy(spec: &Value, errors: &mut Errors) {
    let environment = policy(spec, errors);
    let (validations, annotations) = (
        spec["validations"].as_array(),
        spec["auditAnnotations"].as_array(),
    );
    if validations.is_none_or(Vec::is_empty) && annotations.is_none_or(Vec::is_empty) {
        errors.required(
            "spec.validations",
            "validations or auditAnnotations must contain at least one item",
        );
        errors.required(
            "spec.auditAnnotations",
            "validations or auditAnnotations must contain at least one item",
        );
    }
    for (i, validation) in validations.into_iter().flatten().enumerate() {
        let at = format!("spec.validations[{i}]");
        if validation["expression"]
            .as_str()
            .unwrap_or_default()
            .trim()
            .is_empty()
        {
            errors.required(format!("{at}.expression"), "expression is not specified");
        } else {
            expression(
                &environment,
                &validation["expression"],
                &format!("{at}.expression"),
                Some(&Type::Bool),
                errors,
            );
        }
        if validation["messageExpression"].is_string() {
            expression(
                &environment,
                &validation["messageExpression"],
                &format!("{at}.messageExpression"),
                Some(&Type::String),
                errors,
            );
        }
        if validation["message"]
            .as_str()
            .is_some_and(|m| m.trim().contains('\n'))
        {
            errors.invalid(
                format!("{at}.message"),
                &validation["message"],
                "must not contain line breaks",
            );
        }
        errors.one_of(
            format!("{at}.reason"),
            &validation["reason"],
            &[
                "Unauthorized",
                "Forbidden",
                "Invalid",
                "RequestEntityTooLarge",
            ],
        );
    }
    for (i, annotation) in annotations.into_iter().flatten().enumerate() {
        let at = format!("spec.auditAnnotations[{i}]");
        if annotation["key"].as_str().unwrap_or_default().is_empty() {
            errors.required(format!("{at}.key"), "");
        }
        expression(
            &environment,
            &annotation["valueExpression"],
            &format!("{at}.valueExpression"),
            None,
            errors,
        );
    }
}

fn mutating_policy(spec: &Value, errors: &mut Errors) {
    let mut environment = policy(spec, errors);
    environment.declare_object("Object", Type::Dyn);
    environment.declare_object("JSONPatch", Type::Dyn);
    let mutations = spec["mutations"].as_array();
    if mutations.is_none_or(Vec::is_empty) {
        errors.required("spec.mutations", "mutations must contain at least one item");
    }
    for (i, mutation) in mutations.into_iter().flatten().enumerate() {
        let at = format!("spec.mutations[{i}]");
        let part = match mutation["patchType"].as_str() {
            Some("ApplyConfiguration") => "applyConfiguration",
            Some("JSONPatch") => "jsonPatch",
            None => {
                errors.required(format!("{at}.patchType"), "");
                continue;
            }
            Some(_) => {
                errors.not_supported(
                    format!("{at}.patchType"),
                    &mutation["patchType"],
                    &["ApplyConfiguration", "JSONPatch"],
                );
                continue;
            }
        };
        expression(
            &environment,
            &mutation[part]["expression"],
            &format!("{at}.{part}.expression"),
            None,
            errors,
        );
    }
    match spec["reinvocationPolicy"].as_str() {
        Some("Never" | "IfNeeded") => {}
        None => errors.required("spec.reinvocationPolicy", ""),
        Some(_) => errors.not_supported(
            "spec.reinvocationPolicy",
            &spec["reinvocationPolicy"],
            &["IfNeeded", "Never"],
        ),
    }
}

//! Webhooks. What an old configuration has, its next version may keep.

use fluyt_api::validation::{
    At, Errors, SelectorOptions, dns_subdomain, has_invalid_selector, label_selector_with,
    review_versions, webhook_client,
};
use serde_json::Value;

use super::matching::{MATCH_POLICIES, rule};
use super::{FAILURE_POLICIES, REINVOCATION_POLICIES, conditions};
use crate::admission::expressions::{self, Sees};

/// Versions of `AdmissionReview` that are spoken here.
const REVIEW_VERSIONS: &[&str] = &["v1", "v1beta1"];

const SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun", "Some", "Unknown"];

const NO_SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun"];

/// What is asked of the webhooks of a configuration.
#[derive(Clone, Copy)]
struct Rules {
    side_effects: &'static [&'static str],
    known_version: bool,
    unique_names: bool,
    selectors: SelectorOptions,
    conditions: bool,
}

impl Rules {
    /// As strict as the configuration has been so far.
    fn of(before: Option<&Value>, now: &At<'_, '_>) -> Self {
        let old = before.and_then(Value::as_array);
        let old = old.map(Vec::as_slice).unwrap_or_default();
        let text =
            |webhook: &Value, field: &str| webhook[field].as_str().unwrap_or_default().to_owned();
        let harmless = |w: &Value| NO_SIDE_EFFECTS.contains(&text(w, "sideEffects").as_str());
        let understood = |w: &Value| {
            let versions = w["admissionReviewVersions"].as_array();
            let known = |v: &Value| REVIEW_VERSIONS.contains(&v.as_str().unwrap_or_default());
            versions.is_none_or(|versions| versions.is_empty() || versions.iter().any(known))
        };
        let invalid = |w: &Value| {
            has_invalid_selector(&w["namespaceSelector"])
                || has_invalid_selector(&w["objectSelector"])
        };
        let names: Vec<String> = old.iter().map(|w| text(w, "name")).collect();
        let unique = |(i, name): (usize, &String)| !names[..i].contains(name);
        let same_conditions = before.is_some()
            && old.len() == now.list().len()
            && old
                .iter()
                .zip(now.list())
                .all(|(old, new)| old.get("matchConditions") == new.get("matchConditions"));
        Self {
            side_effects: if old.iter().all(harmless) {
                NO_SIDE_EFFECTS
            } else {
                SIDE_EFFECTS
            },
            known_version: old.iter().all(understood),
            unique_names: names.iter().enumerate().all(unique),
            selectors: SelectorOptions {
                allow_invalid_values: old.iter().any(invalid),
            },
            conditions: !same_conditions,
        }
    }
}

pub(super) fn validate(webhooks: &At<'_, '_>, before: Option<&Value>, errors: &mut Errors) {
    let rules = Rules::of(before, webhooks);
    let mut names = Vec::new();
    for webhook in webhooks.items() {
        validate_webhook(&webhook, rules, errors);
        let versions = webhook.field("admissionReviewVersions");
        if versions.is_empty() {
            let detail = format!("must specify one of {}", REVIEW_VERSIONS.join(", "));
            errors.required(versions, &detail);
        } else {
            let given: Vec<&Value> = versions.list().iter().collect();
            let place = versions.to_string();
            review_versions(errors, &place, &given, REVIEW_VERSIONS, rules.known_version);
        }
        let name = webhook.field("name");
        if rules.unique_names && !name.is_empty() {
            if names.contains(&name.str()) {
                errors.duplicate(name, name.value());
            }
            names.push(name.str());
        }
    }
}

fn validate_webhook(webhook: &At<'_, '_>, rules: Rules, errors: &mut Errors) {
    qualified(&webhook.field("name"), errors);
    for rule in webhook.field("rules").items() {
        self::rule(&rule, errors);
    }
    errors.one_of_optional(&webhook.field("failurePolicy"), FAILURE_POLICIES);
    errors.one_of_optional(&webhook.field("matchPolicy"), MATCH_POLICIES);
    let effects = webhook.field("sideEffects");
    if effects.is_set() {
        errors.member(&effects, rules.side_effects);
    } else {
        let detail = format!("must specify one of {}", rules.side_effects.join(", "));
        errors.required(effects, &detail);
    }
    let timeout = webhook.field("timeoutSeconds");
    if timeout
        .int()
        .is_some_and(|seconds| !(1..=30).contains(&seconds))
    {
        errors.bad(
            &timeout,
            "the timeout value must be between 1 and 30 seconds",
        );
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        label_selector_with(errors, &webhook.field(selector), rules.selectors);
    }
    errors.one_of_optional(&webhook.field("reinvocationPolicy"), REINVOCATION_POLICIES);
    let client = webhook.field("clientConfig");
    webhook_client(errors, &client.to_string(), client.value());
    if rules.conditions {
        let environment = expressions::environment(Sees::WEBHOOK);
        conditions::validate(&webhook.field("matchConditions"), &environment, errors);
    }
}

/// A name with a domain of its own.
fn qualified(name: &At<'_, '_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(name, "");
        return;
    }
    let problems = dns_subdomain(name.str());
    if !problems.is_empty() {
        errors.bad(name, &problems.join(","));
    } else if name.str().split('.').count() < 3 {
        let detail = "should be a domain with at least three segments separated by dots";
        errors.bad(name, detail);
    }
}

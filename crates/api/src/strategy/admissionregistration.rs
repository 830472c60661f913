//! Webhook configurations and admission policies: defaults that stand inside of lists.

use serde_json::{Value, json};

use super::{MetaCheck, Strategy, copy_field, keep_metadata};
use crate::custom::jsonpath::JsonPath;
use crate::validation::{At, Errors, conditions};

/// Validating and mutating webhook configurations.
pub(super) struct WebhookConfiguration;

/// Policies.
pub(super) struct Policy;

/// Bindings of policies.
pub(super) struct Binding;

fn fill(object: &mut Value, defaults: &[(&str, Value)]) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    for (field, default) in defaults {
        map.entry(*field).or_insert_with(|| default.clone());
    }
}

fn scopes(rules: Option<&mut Value>) {
    for rule in rules.and_then(Value::as_array_mut).into_iter().flatten() {
        fill(rule, &[("scope", json!("*"))]);
    }
}

fn constraints(object: Option<&mut Value>) {
    let Some(constraints) = object.filter(|c| c.is_object()) else {
        return;
    };
    fill(
        constraints,
        &[
            ("matchPolicy", json!("Equivalent")),
            ("namespaceSelector", json!({})),
            ("objectSelector", json!({})),
        ],
    );
    scopes(constraints.get_mut("resourceRules"));
    scopes(constraints.get_mut("excludeResourceRules"));
}

impl Strategy for WebhookConfiguration {
    fn default(&self, object: &mut Value) {
        let mutating = object["kind"] == "MutatingWebhookConfiguration";
        for webhook in object
            .get_mut("webhooks")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            fill(
                webhook,
                &[
                    ("failurePolicy", json!("Fail")),
                    ("matchPolicy", json!("Equivalent")),
                    ("namespaceSelector", json!({})),
                    ("objectSelector", json!({})),
                    ("timeoutSeconds", json!(10)),
                ],
            );
            if mutating {
                fill(webhook, &[("reinvocationPolicy", json!("Never"))]);
            }
            scopes(webhook.get_mut("rules"));
            if let Some(service) = webhook.pointer_mut("/clientConfig/service") {
                fill(service, &[("port", json!(443))]);
            }
        }
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn generation_of(&self) -> &'static [&'static str] {
        &["webhooks"]
    }

    fn has_standard_finalizers(&self) -> bool {
        false
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

impl Strategy for Policy {
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec") else {
            return;
        };
        fill(spec, &[("failurePolicy", json!("Fail"))]);
        constraints(spec.get_mut("matchConstraints"));
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        keep_metadata(object, old);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let status = root.field("status");
        let checking = status.field("typeChecking");
        for warning in checking.field("expressionWarnings").items() {
            errors.required_text(&warning.field("warning"));
            expression_place(&warning.field("fieldRef"), errors);
        }
        conditions(errors, &status.field("conditions"));
    }

    fn has_standard_finalizers(&self) -> bool {
        false
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// Where an expression is, as a path of JSON.
fn expression_place(at: &At<'_, '_>, errors: &mut Errors) {
    let path = at.str().trim();
    if path.is_empty() {
        errors.required(at, "");
    } else if JsonPath::parse(&format!(".{}", path.trim_start_matches('.'))).is_none() {
        let why = match path.rfind('[') {
            Some(open) if !path[open..].contains(']') => "unterminated array",
            _ => "unrecognized character in action",
        };
        errors.invalid_text(at, path, &format!("invalid JSONPath: {why}"));
    }
}

impl Strategy for Binding {
    fn default(&self, object: &mut Value) {
        constraints(object.pointer_mut("/spec/matchResources"));
    }

    fn has_standard_finalizers(&self) -> bool {
        false
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

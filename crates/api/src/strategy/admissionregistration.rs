//! Webhook configurations and admission policies: defaults that stand inside of lists.

use serde_json::{Value, json};

use super::Strategy;

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

    fn generation_of(&self) -> &'static [&'static str] {
        &["webhooks"]
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
}

impl Strategy for Binding {
    fn default(&self, object: &mut Value) {
        constraints(object.pointer_mut("/spec/matchResources"));
    }
}

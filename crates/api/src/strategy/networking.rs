//! Endpoints, endpoint slices, ingresses and network policies.

use serde_json::Value;

use super::{Strategy, copy_field, default_at};
use crate::validation::{self, Errors};

pub(super) struct Endpoints;

impl Strategy for Endpoints {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        if object["kind"] == "EndpointSlice" || !object["addressType"].is_null() {
            errors.one_of(
                "addressType",
                &object["addressType"],
                &["FQDN", "IPv4", "IPv6"],
            );
            for (i, endpoint) in object["endpoints"]
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
            {
                if endpoint["addresses"].as_array().is_none_or(Vec::is_empty) {
                    errors.required(
                        &format!("endpoints[{i}].addresses"),
                        "must contain at least 1 address",
                    );
                }
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable("addressType", &object["addressType"], &old["addressType"]);
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &["endpoints", "ports"]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

pub(super) struct Ingress;

impl Strategy for Ingress {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = serde_json::json!({"loadBalancer": {}});
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        let no_rules = spec["rules"].as_array().is_none_or(Vec::is_empty);
        if no_rules && spec["defaultBackend"].is_null() {
            errors.invalid(
                "spec",
                &Value::Null,
                "either `defaultBackend` or `rules` must be specified",
            );
        }
        for (i, rule) in spec["rules"].as_array().into_iter().flatten().enumerate() {
            for (j, path) in rule["http"]["paths"]
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
            {
                let at = format!("spec.rules[{i}].http.paths[{j}]");
                if path["pathType"].is_null() {
                    errors.required(&format!("{at}.pathType"), "pathType must be specified");
                }
                errors.one_of(
                    &format!("{at}.pathType"),
                    &path["pathType"],
                    &["Exact", "ImplementationSpecific", "Prefix"],
                );
                let text = path["path"].as_str().unwrap_or_default();
                if !text.starts_with('/') && path["pathType"] != "ImplementationSpecific" {
                    errors.invalid(
                        &format!("{at}.path"),
                        &path["path"],
                        "must be an absolute path",
                    );
                }
            }
        }
    }
}

pub(super) struct NetworkPolicy;

impl Strategy for NetworkPolicy {
    fn default(&self, object: &mut Value) {
        if object["spec"].is_object() && object["spec"]["policyTypes"].is_null() {
            let egress = object["spec"]["egress"]
                .as_array()
                .is_some_and(|e| !e.is_empty());
            let types: &[&str] = if egress {
                &["Ingress", "Egress"]
            } else {
                &["Ingress"]
            };
            if let Some(spec) = object["spec"].as_object_mut() {
                spec.insert("policyTypes".into(), types.to_vec().into());
            }
            default_at(object, &["spec", "podSelector"], serde_json::json!({}));
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validation::label_selector(errors, "spec.podSelector", &object["spec"]["podSelector"]);
    }
}

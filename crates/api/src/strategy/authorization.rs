//! RBAC: roles and bindings.

use serde_json::Value;

use super::Strategy;
use crate::validation::{self, Errors, Problems};

pub(super) struct Role;

impl Strategy for Role {
    fn name_rule(&self) -> fn(&str) -> Problems {
        validation::path_segment
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        for (i, rule) in object["rules"].as_array().into_iter().flatten().enumerate() {
            let at = format!("rules[{i}]");
            let has = |field: &str| rule[field].as_array().is_some_and(|l| !l.is_empty());
            if !has("verbs") {
                errors.required(
                    &format!("{at}.verbs"),
                    "verbs must contain at least one value",
                );
            }
            if has("nonResourceURLs") {
                if has("apiGroups") || has("resources") || has("resourceNames") {
                    errors.invalid(
                        &format!("{at}.nonResourceURLs"),
                        &rule["nonResourceURLs"],
                        "rules cannot apply to both regular resources and non-resource URLs",
                    );
                }
                continue;
            }
            if !has("apiGroups") {
                errors.required(
                    &format!("{at}.apiGroups"),
                    "resource rules must supply at least one api group",
                );
            }
            if !has("resources") {
                errors.required(
                    &format!("{at}.resources"),
                    "resource rules must supply at least one resource",
                );
            }
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

pub(super) struct Binding;

impl Strategy for Binding {
    fn name_rule(&self) -> fn(&str) -> Problems {
        validation::path_segment
    }

    fn default(&self, object: &mut Value) {
        for subject in object["subjects"].as_array_mut().into_iter().flatten() {
            let group = match subject["kind"].as_str() {
                Some("User" | "Group") => "rbac.authorization.k8s.io",
                _ => continue,
            };
            super::default_at(subject, &["apiGroup"], group);
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let role = &object["roleRef"];
        errors.one_of(
            "roleRef.apiGroup",
            &role["apiGroup"],
            &["rbac.authorization.k8s.io"],
        );
        errors.one_of("roleRef.kind", &role["kind"], &["ClusterRole", "Role"]);
        if role["name"].as_str().unwrap_or_default().is_empty() {
            errors.required("roleRef.name", "");
        }
        for (i, subject) in object["subjects"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            let at = format!("subjects[{i}]");
            if subject["name"].as_str().unwrap_or_default().is_empty() {
                errors.required(&format!("{at}.name"), "");
            }
            match subject["kind"].as_str().unwrap_or_default() {
                "ServiceAccount" => {
                    if subject["namespace"].as_str().unwrap_or_default().is_empty() {
                        errors.required(&format!("{at}.namespace"), "");
                    }
                }
                "User" | "Group" => {}
                _ => errors.not_supported(
                    &format!("{at}.kind"),
                    &subject["kind"],
                    &["Group", "ServiceAccount", "User"],
                ),
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        if object["roleRef"] != old["roleRef"] {
            errors.invalid("roleRef", &object["roleRef"], "cannot change roleRef");
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

//! RBAC: roles and bindings.

use serde_json::Value;

use super::{MetaCheck, Strategy};
use crate::validation::{self, At, Errors, Problems};

const GROUP: &str = "rbac.authorization.k8s.io";

/// `Role`, and `ClusterRole` when it is not `namespaced`.
pub(super) struct Role {
    pub namespaced: bool,
}

impl Strategy for Role {
    fn name_rule(&self) -> fn(&str) -> Problems {
        validation::path_segment
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        for (i, rule) in list(&object["rules"]).enumerate() {
            self.validate_rule(rule, &format!("rules[{i}]"), errors);
        }
        let aggregation = &object["aggregationRule"];
        if self.namespaced || !aggregation.is_object() {
            return;
        }
        let at = "aggregationRule.clusterRoleSelectors";
        if list(&aggregation["clusterRoleSelectors"]).next().is_none() {
            errors.required(
                at,
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            );
        }
        for selector in At::named(&aggregation["clusterRoleSelectors"], at).items() {
            let before = errors.len();
            validation::label_selector(errors, &selector);
            if errors.len() > before {
                errors.invalid(selector, &Value::Null, "invalid label selector.");
            }
        }
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

impl Role {
    fn validate_rule(&self, rule: &Value, at: &str, errors: &mut Errors) {
        let has = |field: &str| list(&rule[field]).next().is_some();
        if !has("verbs") {
            errors.required(
                format!("{at}.verbs"),
                "verbs must contain at least one value",
            );
        }
        if has("nonResourceURLs") {
            let (field, urls) = (format!("{at}.nonResourceURLs"), &rule["nonResourceURLs"]);
            if self.namespaced {
                errors.invalid(
                    &field,
                    urls,
                    "namespaced rules cannot apply to non-resource URLs",
                );
            }
            if has("apiGroups") || has("resources") || has("resourceNames") {
                errors.invalid(
                    &field,
                    urls,
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            return;
        }
        if !has("apiGroups") {
            errors.required(
                format!("{at}.apiGroups"),
                "resource rules must supply at least one api group",
            );
        }
        if !has("resources") {
            errors.required(
                format!("{at}.resources"),
                "resource rules must supply at least one resource",
            );
        }
    }
}

/// `RoleBinding`, and `ClusterRoleBinding` when it is not `namespaced`.
pub(super) struct Binding {
    pub namespaced: bool,
}

impl Strategy for Binding {
    fn name_rule(&self) -> fn(&str) -> Problems {
        validation::path_segment
    }

    fn default(&self, object: &mut Value) {
        for subject in object["subjects"].as_array_mut().into_iter().flatten() {
            let group = match subject["kind"].as_str() {
                Some("User" | "Group") => GROUP,
                _ => continue,
            };
            super::default_at(subject, &["apiGroup"], group);
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let role = &object["roleRef"];
        if text(role, "apiGroup") != GROUP {
            errors.not_supported("roleRef.apiGroup", &text(role, "apiGroup").into(), &[GROUP]);
        }
        let kinds: &[&str] = if self.namespaced {
            &["Role", "ClusterRole"]
        } else {
            &["ClusterRole"]
        };
        if !kinds.contains(&text(role, "kind")) {
            errors.not_supported("roleRef.kind", &text(role, "kind").into(), kinds);
        }
        match text(role, "name") {
            "" => errors.required("roleRef.name", ""),
            name => {
                for problem in validation::path_segment(name) {
                    errors.invalid("roleRef.name", &name.into(), &problem);
                }
            }
        }
        for (i, subject) in list(&object["subjects"]).enumerate() {
            self.validate_subject(subject, &format!("subjects[{i}]"), errors);
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        if object["roleRef"] != old["roleRef"] {
            let role = &object["roleRef"];
            let shown = serde_json::json!({
                "APIGroup": role["apiGroup"], "Kind": role["kind"], "Name": role["name"],
            });
            errors.invalid("roleRef", &shown, "cannot change roleRef");
        }
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

impl Binding {
    fn validate_subject(&self, subject: &Value, at: &str, errors: &mut Errors) {
        let (name, group) = (text(subject, "name"), text(subject, "apiGroup"));
        if name.is_empty() {
            errors.required(format!("{at}.name"), "");
        }
        let grouped = |expected: &str, errors: &mut Errors| {
            if group != expected {
                errors.not_supported(format!("{at}.apiGroup"), &group.into(), &[expected]);
            }
        };
        match text(subject, "kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    for problem in validation::dns_subdomain(name) {
                        errors.invalid(format!("{at}.name"), &name.into(), &problem);
                    }
                }
                grouped("", errors);
                if !self.namespaced && text(subject, "namespace").is_empty() {
                    errors.required(format!("{at}.namespace"), "");
                }
            }
            "User" | "Group" => grouped(GROUP, errors),
            kind => errors.not_supported(
                format!("{at}.kind"),
                &kind.into(),
                &["ServiceAccount", "User", "Group"],
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problems(strategy: &dyn Strategy, object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        strategy.validate(object, &mut errors);
        let all = errors.0.iter();
        all.map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn roles() {
        let urls = json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]});
        let (role, cluster_role) = (Role { namespaced: true }, Role { namespaced: false });
        assert_eq!(problems(&cluster_role, &urls), [] as [&str; 0]);
        assert_eq!(
            problems(&role, &urls),
            [
                "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs"
            ]
        );
        assert_eq!(problems(&role, &json!({"rules": [{}]})).len(), 3);
        let empty = json!({"aggregationRule": {}});
        assert!(
            problems(&cluster_role, &empty)[0]
                .contains("at least one clusterRoleSelector required")
        );
    }

    #[test]
    fn bindings() {
        let (binding, cluster) = (Binding { namespaced: true }, Binding { namespaced: false });
        let mut object = json!({"roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "r"}, "subjects": [
            {"kind": "ServiceAccount", "name": "a"}, {"kind": "User", "name": "u"}]});
        binding.default(&mut object);
        assert_eq!(problems(&binding, &object), [] as [&str; 0]);
        assert_eq!(
            problems(&cluster, &object),
            [
                "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
                "subjects[0].namespace: Required value"
            ]
        );
        object["subjects"] = json!([{"kind": "Robot", "name": "r"}, {"kind": "ServiceAccount", "name": "A", "apiGroup": "x"}]);
        assert_eq!(problems(&binding, &object).len(), 3);
    }
}

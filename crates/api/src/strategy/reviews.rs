//! Access reviews: questions, which are never stored.

use serde_json::{Value, json};

use super::Strategy;
use crate::validation::{self, Errors};

/// `SubjectAccessReview`, `LocalSubjectAccessReview` and `SelfSubjectAccessReview`.
pub(super) struct AccessReview(pub Scope);

/// Whom a review is about, and where.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Subject,
    /// Only in its own namespace.
    Local,
    /// Only its author.
    Own,
}

impl Strategy for AccessReview {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        if resource.is_object() && path.is_object() {
            errors.invalid(
                "spec.nonResourceAttributes",
                &shown_path(path),
                "cannot be specified in combination with resourceAttributes",
            );
        }
        if !resource.is_object() && !path.is_object() {
            errors.invalid(
                "spec.resourceAttributes",
                &Value::Null,
                "exactly one of nonResourceAttributes or resourceAttributes must be specified",
            );
        }
        let named = spec["user"].as_str().is_some_and(|u| !u.is_empty());
        let grouped = spec["groups"].as_array().is_some_and(|g| !g.is_empty());
        if self.0 != Scope::Own && !named && !grouped {
            errors.invalid(
                "spec.user",
                &"".into(),
                "at least one of user or group must be specified",
            );
        }
        validate_selector(resource, "fieldSelector", errors);
        validate_selector(resource, "labelSelector", errors);
        self.validate_metadata(object, errors);
        if self.0 == Scope::Local {
            let namespace = &object["metadata"]["namespace"];
            let asked = &resource["namespace"];
            if resource.is_object()
                && asked.as_str().unwrap_or_default() != namespace.as_str().unwrap_or_default()
            {
                let asked = Value::from(asked.as_str().unwrap_or_default());
                errors.invalid(
                    "spec.resourceAttributes.namespace",
                    &asked,
                    "must match metadata.namespace",
                );
            }
            if path.is_object() {
                errors.invalid(
                    "spec.nonResourceAttributes",
                    &shown_path(path),
                    "disallowed on this kind of request",
                );
            }
        }
    }
}

/// Upstream shows its internal type.
fn shown_path(path: &Value) -> Value {
    let text = |field: &str| path[field].as_str().unwrap_or_default();
    json!({"Path": text("path"), "Verb": text("verb")})
}

impl AccessReview {
    fn validate_metadata(&self, object: &Value, errors: &mut Errors) {
        let metadata = &object["metadata"];
        let allowed = |field: &str| {
            matches!(field, "managedFields" | "creationTimestamp")
                || (field == "namespace" && self.0 == Scope::Local)
        };
        let set = metadata
            .as_object()
            .into_iter()
            .flatten()
            .any(|(field, value)| !allowed(field) && !validation::is_empty_value(value));
        if set {
            let why = match self.0 {
                Scope::Local => "must be empty except for namespace",
                _ => "must be empty",
            };
            errors.invalid("metadata", metadata, why);
        }
    }
}

/// Requirements with operators that are not known pass: a newer client may know more.
fn validate_selector(attributes: &Value, name: &str, errors: &mut Errors) {
    let selector = &attributes[name];
    if !selector.is_object() {
        return;
    }
    let at = format!("spec.resourceAttributes.{name}");
    let raw = selector["rawSelector"].as_str().unwrap_or_default();
    let requirements = selector["requirements"].as_array();
    let requirements = requirements.map(Vec::as_slice).unwrap_or_default();
    match (raw.is_empty(), requirements.is_empty()) {
        (false, false) => errors.invalid(
            format!("{at}.rawSelector"),
            &raw.into(),
            "may not specified at the same time as requirements",
        ),
        (true, true) => errors.required(
            format!("{at}.requirements"),
            &format!("when {at} is specified, requirements or rawSelector is required"),
        ),
        _ => {}
    }
    for (i, requirement) in requirements.iter().enumerate() {
        let at = format!("{at}.requirements[{i}]");
        let operator = requirement["operator"].as_str().unwrap_or_default();
        let values = requirement["values"].as_array().map_or(0, Vec::len);
        let key = requirement["key"].as_str().unwrap_or_default();
        let is_label = name == "labelSelector";
        if key.is_empty() && !is_label {
            errors.required(format!("{at}.key"), "must be specified");
        }
        match operator {
            "In" | "NotIn" if values == 0 => errors.required(
                format!("{at}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            ),
            "Exists" | "DoesNotExist" if values > 0 => errors.forbidden(
                format!("{at}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            _ => {}
        }
        if is_label {
            for problem in validation::qualified_name(key) {
                errors.invalid(format!("{at}.key"), &key.into(), &problem);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(scope: Scope, object: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        AccessReview(scope).validate(object, &mut errors);
        errors
            .0
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect()
    }

    #[test]
    fn a_review_asks_about_one_thing_and_somebody() {
        let empty = json!({"metadata": {}, "spec": {}});
        assert_eq!(
            problems(Scope::Subject, &empty),
            [
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
                "spec.user: Invalid value: \"\": at least one of user or group must be specified"
            ]
        );
        assert_eq!(problems(Scope::Own, &empty).len(), 1);
        let local = json!({"metadata": {"namespace": "a"}, "spec": {"user": "u", "resourceAttributes": {"namespace": "b"}}});
        assert_eq!(
            problems(Scope::Local, &local),
            [
                "spec.resourceAttributes.namespace: Invalid value: \"b\": must match metadata.namespace"
            ]
        );
        let named = json!({"metadata": {"name": "n"}, "spec": {"user": "u", "nonResourceAttributes": {"path": "/"}}});
        assert!(problems(Scope::Subject, &named)[0].contains("must be empty"));
    }

    #[test]
    fn selectors_of_reviews() {
        let with = |selector: Value| {
            let spec = json!({"user": "u", "resourceAttributes": {"fieldSelector": selector}});
            problems(Scope::Subject, &json!({"metadata": {}, "spec": spec}))
        };
        assert!(with(json!({}))[0].contains("requirements or rawSelector is required"));
        assert!(with(json!({"rawSelector": "a=b"})).is_empty());
        let unknown = json!({"requirements": [{"key": "a", "operator": "Near"}]});
        assert!(with(unknown).is_empty());
        let bare = json!({"requirements": [{"operator": "In"}]});
        assert_eq!(with(bare).len(), 2);
    }
}

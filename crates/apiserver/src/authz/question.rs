//! What authorizers are asked: attributes of a request, and what selectors narrow it to.

use std::sync::Arc;

use fluyt_api::Error;
use fluyt_api::Reason;
use fluyt_api::selector::{FieldSelector, LabelSelector, Operator};
use serde_json::{Value, json};

use crate::request::RequestInfo;
use crate::user::User;

/// One question to the authorizers.
#[derive(Clone, Debug, Default)]
pub struct Question {
    pub verb: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// For requests that are not about a resource; then the others are empty.
    pub path: String,
    /// What a list, watch or deletecollection is limited to.
    pub selectors: Option<Arc<Selectors>>,
}

/// The requirements of a request's selectors that authorizers may rely on. What cannot be parsed is left out: that asks
/// for more than the request does, never for less.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    pub fields: Vec<Requirement>,
    pub labels: Vec<Requirement>,
    /// What was left out, in the words of `evaluationError`.
    pub ignored: Vec<&'static str>,
}

/// One requirement in the terms of a `SubjectAccessReview`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: &'static str,
    pub values: Vec<String>,
}

// === impl Question ===

impl Question {
    /// What a request asks.
    #[must_use]
    pub fn of(info: &RequestInfo) -> Self {
        let Some(target) = &info.target else {
            return Self {
                verb: info.verb.into(),
                path: info.path.clone(),
                ..Self::default()
            };
        };
        Self {
            verb: info.verb.into(),
            group: target.group.clone(),
            version: target.version.clone(),
            resource: target.plural.clone(),
            subresource: target.subresource.clone(),
            namespace: target.namespace.clone(),
            name: info.authorized_name(),
            path: String::new(),
            selectors: Selectors::of(info).map(Arc::new),
        }
    }

    /// `pods` or `pods/log`.
    fn resource_path(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// Whether nothing is changed by it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    /// What upstream says to whom it refuses.
    #[must_use]
    pub fn refusal(&self, user: &User) -> String {
        let text = if self.resource.is_empty() {
            format!(
                "User {:?} cannot {} path {:?}",
                user.name, self.verb, self.path
            )
        } else {
            let scope = if self.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {:?}", self.namespace)
            };
            format!(
                "User {:?} cannot {} resource {:?} in API group {:?} {scope}",
                user.name,
                self.verb,
                self.resource_path(),
                self.group
            )
        };
        // Nothing that a browser would take for markup.
        text.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
    }

    /// The answer to whom it refuses, with the reason that the authorizers gave.
    #[must_use]
    pub fn forbidden(&self, user: &User, reason: &str) -> Error {
        let mut why = self.refusal(user);
        if !reason.is_empty() {
            why = format!("{why}: {reason}");
        }
        if self.resource.is_empty() {
            Error::new(Reason::Forbidden, format!("forbidden: {why}"))
        } else {
            Error::forbidden(&self.group, &self.resource, &self.name, why)
        }
    }
}

// === impl Selectors ===

const FIELDS_IGNORED: &str = "spec.resourceAttributes.fieldSelector ignored due to parse error";
const LABELS_IGNORED: &str = "spec.resourceAttributes.labelSelector ignored due to parse error";
const FIELDS_PARTIALLY_IGNORED: &str =
    "spec.resourceAttributes.fieldSelector partially ignored due to parse error";
const LABELS_PARTIALLY_IGNORED: &str =
    "spec.resourceAttributes.labelSelector partially ignored due to parse error";

impl Selectors {
    /// The selectors of a request for a collection.
    fn of(info: &RequestInfo) -> Option<Self> {
        if !matches!(info.verb, "list" | "watch" | "deletecollection") {
            return None;
        }
        let text = |name: &str| info.query.get(name).unwrap_or_default();
        Self::of_text(text("fieldSelector"), text("labelSelector"))
    }

    /// Selectors as requests have them; empty ones select everything.
    #[must_use]
    pub fn of_text(fields: &str, labels: &str) -> Option<Self> {
        if fields.is_empty() && labels.is_empty() {
            return None;
        }
        let mut selectors = Self::default();
        if !fields.is_empty() {
            selectors.parse_fields(fields);
        }
        if !labels.is_empty() {
            selectors.parse_labels(labels);
        }
        Some(selectors)
    }

    /// The selectors of a review's `resourceAttributes`.
    #[must_use]
    pub fn of_review(attributes: &Value) -> Option<Self> {
        let (fields, labels) = (&attributes["fieldSelector"], &attributes["labelSelector"]);
        if !fields.is_object() && !labels.is_object() {
            return None;
        }
        let mut selectors = Self::default();
        if let Some(text) = raw(fields) {
            selectors.parse_fields(text);
        }
        if let Some(text) = raw(labels) {
            selectors.parse_labels(text);
        }
        let known_fields = |operator: &str| match operator {
            "In" => Some("In"),
            "NotIn" => Some("NotIn"),
            _ => None,
        };
        let known_labels = |operator: &str| match operator {
            "Exists" => Some("Exists"),
            "DoesNotExist" => Some("DoesNotExist"),
            other => known_fields(other),
        };
        if let Some((list, all)) = requirements(fields, known_fields, true) {
            let ignored = [FIELDS_IGNORED, FIELDS_PARTIALLY_IGNORED];
            selectors.note(all, list.is_empty(), ignored);
            selectors.fields = list;
        }
        if let Some((list, all)) = requirements(labels, known_labels, false) {
            let ignored = [LABELS_IGNORED, LABELS_PARTIALLY_IGNORED];
            selectors.note(all, list.is_empty(), ignored);
            selectors.labels = list;
        }
        Some(selectors)
    }

    fn note(&mut self, all: bool, none: bool, [ignored, partially]: [&'static str; 2]) {
        match (all, none) {
            (true, _) => {}
            (false, true) => self.ignored.push(ignored),
            (false, false) => self.ignored.push(partially),
        }
    }

    fn parse_fields(&mut self, text: &str) {
        match FieldSelector::parse(text) {
            Ok(selector) => {
                self.fields = selector
                    .terms
                    .into_iter()
                    .map(|term| Requirement {
                        key: term.field,
                        operator: if term.equal { "In" } else { "NotIn" },
                        values: vec![term.value],
                    })
                    .collect();
            }
            Err(_) => self.ignored.push(FIELDS_IGNORED),
        }
    }

    fn parse_labels(&mut self, text: &str) {
        match LabelSelector::parse(text) {
            Ok(selector) => {
                self.labels = selector
                    .requirements()
                    .iter()
                    .filter_map(|requirement| {
                        let operator = match requirement.operator {
                            Operator::In => "In",
                            Operator::NotIn => "NotIn",
                            Operator::Exists => "Exists",
                            Operator::DoesNotExist => "DoesNotExist",
                            Operator::GreaterThan | Operator::LessThan => return None,
                        };
                        Some(Requirement {
                            key: requirement.key.clone(),
                            operator,
                            values: requirement.values.clone(),
                        })
                    })
                    .collect();
            }
            Err(_) => self.ignored.push(LABELS_IGNORED),
        }
    }

    /// Whether a field must have just this value.
    #[must_use]
    pub fn pins(&self, field: &str, value: &str) -> bool {
        self.fields
            .iter()
            .any(|r| r.key == field && r.operator == "In" && r.values == [value])
    }
}

fn raw(selector: &Value) -> Option<&str> {
    selector["rawSelector"].as_str().filter(|t| !t.is_empty())
}

/// The requirements that are understood, and whether those are all.
fn requirements(
    selector: &Value,
    operator: impl Fn(&str) -> Option<&'static str>,
    single: bool,
) -> Option<(Vec<Requirement>, bool)> {
    let list = selector["requirements"]
        .as_array()
        .filter(|l| !l.is_empty())?;
    let understood: Vec<Requirement> = list
        .iter()
        .filter_map(|requirement| {
            let operator = operator(requirement["operator"].as_str().unwrap_or_default())?;
            let values: Vec<String> = requirement["values"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            let counted = match operator {
                "In" | "NotIn" => !values.is_empty() && (!single || values.len() == 1),
                _ => values.is_empty(),
            };
            counted.then(|| Requirement {
                key: requirement["key"].as_str().unwrap_or_default().to_owned(),
                operator,
                values,
            })
        })
        .collect();
    let all = understood.len() == list.len();
    Some((understood, all))
}

impl Requirement {
    /// As a review shows it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut json = json!({"key": self.key, "operator": self.operator});
        if !self.values.is_empty() {
            json["values"] = json!(self.values);
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_carry_reasons_and_no_markup() {
        let question = Question {
            verb: "get".into(),
            resource: "pods".into(),
            namespace: "n".into(),
            name: "p".into(),
            ..Question::default()
        };
        let user = User::new("<a>", &[]);
        let error = question.forbidden(&user, "no relationship");
        assert_eq!(
            error.message,
            "pods \"p\" is forbidden: User \"&lt;a&gt;\" cannot get resource \"pods\" in API group \"\" in the namespace \"n\": no relationship"
        );
        let path = Question {
            verb: "get".into(),
            path: "/metrics".into(),
            ..Question::default()
        };
        assert_eq!(
            path.forbidden(&User::new("a", &[]), "").message,
            "forbidden: User \"a\" cannot get path \"/metrics\""
        );
    }

    #[test]
    fn what_a_selector_says_beyond_understanding_is_left_out() {
        let attributes = json!({
            "fieldSelector": {"requirements": [
                {"key": "spec.nodeName", "operator": "In", "values": ["n"]},
                {"key": "x", "operator": "Near", "values": ["y"]}]},
            "labelSelector": {"rawSelector": "a in (b,c),!d"},
        });
        let selectors = Selectors::of_review(&attributes).unwrap();
        assert!(selectors.pins("spec.nodeName", "n") && !selectors.pins("x", "y"));
        assert_eq!(selectors.labels.len(), 2);
        assert_eq!(selectors.ignored, [FIELDS_PARTIALLY_IGNORED]);
    }
}

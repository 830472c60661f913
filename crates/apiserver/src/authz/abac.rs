//! ABAC: policies from a file, one JSON object a line.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::{Decision, Question, Rule, Verdict};
use crate::user::{AUTHENTICATED, User};

/// The policies of a file.
#[derive(Clone, Debug, Default)]
pub struct Policies(Vec<Policy>);

/// `abac.authorization.kubernetes.io/v1beta1`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    #[serde(rename = "apiGroup")]
    api_group: String,
    resource: String,
    namespace: String,
    #[serde(rename = "nonResourcePath")]
    non_resource_path: String,
}

#[derive(Deserialize)]
struct Versioned {
    spec: Policy,
}

/// Before there were versions: kind, readonly and so on at the top, and no subject means everybody.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Unversioned {
    user: String,
    group: String,
    readonly: bool,
    resource: String,
    namespace: String,
}

impl Policies {
    /// Parses a policy file.
    ///
    /// # Errors
    /// Names the line that is no policy.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut policies = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            policies.push(
                policy(trimmed)
                    .with_context(|| format!("error reading policy file, line {}", number + 1))?,
            );
        }
        Ok(Self(policies))
    }

    pub(super) fn decide(&self, user: &User, question: &Question) -> Decision {
        if self.0.iter().any(|p| p.matches(user, question)) {
            return Decision::of(Verdict::Allow, "");
        }
        Decision::of(Verdict::NoOpinion, "No policy matched.")
    }

    pub(super) fn rules(&self, user: &User, namespace: &str) -> Vec<Arc<Rule>> {
        self.0
            .iter()
            .filter(|p| p.is_for(user))
            .filter_map(|policy| {
                let verbs = if policy.readonly {
                    vec!["get".to_owned(), "list".to_owned(), "watch".to_owned()]
                } else {
                    vec!["*".to_owned()]
                };
                let rule = if !policy.resource.is_empty()
                    && (policy.namespace == "*" || policy.namespace == namespace)
                {
                    Rule {
                        verbs,
                        groups: vec![policy.api_group.clone()],
                        resources: vec![policy.resource.clone()],
                        ..Rule::default()
                    }
                } else if !policy.non_resource_path.is_empty() {
                    Rule {
                        verbs,
                        urls: vec![policy.non_resource_path.clone()],
                        ..Rule::default()
                    }
                } else {
                    return None;
                };
                Some(Arc::new(rule))
            })
            .collect()
    }
}

fn policy(line: &str) -> anyhow::Result<Policy> {
    let object: serde_json::Value = serde_json::from_str(line)?;
    match (object["apiVersion"].as_str(), object["kind"].as_str()) {
        (Some("abac.authorization.kubernetes.io/v1beta1"), Some("Policy")) => {
            let mut policy = serde_json::from_value::<Versioned>(object)?.spec;
            // A subject of either kind that stands for everybody who has logged in.
            if policy.user == "*" || policy.group == "*" {
                policy.user = String::new();
                policy.group = AUTHENTICATED.into();
            }
            Ok(policy)
        }
        (None, None) => {
            let old: Unversioned = serde_json::from_value(object)?;
            let any = |text: String| if text.is_empty() { "*".into() } else { text };
            let everybody = old.user.is_empty() && old.group.is_empty();
            Ok(Policy {
                user: old.user,
                group: if everybody {
                    AUTHENTICATED.into()
                } else {
                    old.group
                },
                readonly: old.readonly,
                api_group: "*".into(),
                non_resource_path: if old.resource.is_empty() && old.namespace.is_empty() {
                    "*".into()
                } else {
                    String::new()
                },
                resource: any(old.resource),
                namespace: any(old.namespace),
            })
        }
        (version, kind) => bail!(
            "unrecognized object: {} {}",
            version.unwrap_or_default(),
            kind.unwrap_or_default()
        ),
    }
}

impl Policy {
    fn is_for(&self, user: &User) -> bool {
        let named = self.user.is_empty() || self.user == user.name;
        let grouped = self.group.is_empty() || user.is_in(&self.group);
        named && grouped && !(self.user.is_empty() && self.group.is_empty())
    }

    fn matches(&self, user: &User, question: &Question) -> bool {
        if !self.is_for(user) || (self.readonly && !question.is_read_only()) {
            return false;
        }
        let is = |pattern: &str, value: &str| pattern == "*" || pattern == value;
        if question.resource.is_empty() {
            let pattern = &self.non_resource_path;
            return is(pattern, &question.path)
                || pattern
                    .strip_suffix('*')
                    .is_some_and(|prefix| question.path.starts_with(prefix));
        }
        is(&self.namespace, &question.namespace)
            && is(&self.resource, &question.resource)
            && is(&self.api_group, &question.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(verb: &str, resource: &str, namespace: &str) -> Question {
        Question {
            verb: verb.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            ..Question::default()
        }
    }

    #[test]
    fn policies_of_both_forms() {
        let text = "# a comment\n\n\
            {\"apiVersion\":\"abac.authorization.kubernetes.io/v1beta1\",\"kind\":\"Policy\",\"spec\":{\"user\":\"alice\",\"namespace\":\"*\",\"resource\":\"*\",\"apiGroup\":\"*\"}}\n\
            {\"apiVersion\":\"abac.authorization.kubernetes.io/v1beta1\",\"kind\":\"Policy\",\"spec\":{\"user\":\"*\",\"nonResourcePath\":\"/version/*\",\"readonly\":true}}\n\
            {\"user\":\"bob\",\"resource\":\"pods\",\"namespace\":\"n\",\"readonly\":true}\n";
        let policies = Policies::parse(text).unwrap();
        let allows = |name: &str, q: &Question| policies.decide(&User::new(name, &[]), q).allows();
        assert!(allows("alice", &question("delete", "secrets", "x")));
        assert!(allows("bob", &question("list", "pods", "n")));
        assert!(!allows("bob", &question("delete", "pods", "n")));
        assert!(!allows("bob", &question("list", "pods", "m")));
        let path = Question {
            verb: "get".into(),
            path: "/version/x".into(),
            ..Question::default()
        };
        assert!(allows("carol", &path));
        assert!(!policies.decide(&User::anonymous(), &path).allows());
        let refused = policies.decide(&User::new("carol", &[]), &question("get", "pods", "n"));
        assert_eq!(refused.reason, "No policy matched.");
        assert!(Policies::parse("{\"kind\":\"Other\"}").is_err());
    }
}

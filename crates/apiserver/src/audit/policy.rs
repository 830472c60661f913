//! The policy: the first rule that matches a request says how much of it is recorded.

use std::collections::HashSet;

use anyhow::{Context as _, bail};
use fluyt_api::validation::{Errors, dns_subdomain};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::event::Stage;
use crate::authz::Question;
use crate::user::User;

/// How much is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

const LEVELS: [(&str, Level); 4] = [
    ("None", Level::None),
    ("Metadata", Level::Metadata),
    ("Request", Level::Request),
    ("RequestResponse", Level::RequestResponse),
];

const STAGES: [(&str, Stage); 4] = [
    ("RequestReceived", Stage::RequestReceived),
    ("ResponseStarted", Stage::ResponseStarted),
    ("ResponseComplete", Stage::ResponseComplete),
    ("Panic", Stage::Panic),
];

/// `audit.k8s.io` `Policy`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    api_version: String,
    kind: String,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<String>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    level: String,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What is recorded of one request.
#[derive(Clone, Debug)]
pub struct Scope {
    pub level: Level,
    omitted: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Scope {
    pub fn omits(&self, stage: Stage) -> bool {
        self.omitted.contains(&stage)
    }
}

impl Policy {
    /// Parses and validates a policy file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let policy: Self = serde_saphyr::from_str(text).context("failed decoding")?;
        let version = policy.api_version.strip_prefix("audit.k8s.io/");
        if !matches!(version, Some("v1" | "v1beta1" | "v1alpha1")) || policy.kind != "Policy" {
            bail!(
                "unknown group version field {:?} in policy",
                policy.api_version
            );
        }
        if policy.rules.is_empty() {
            bail!("loaded illegal policy with 0 rules");
        }
        let mut errors = Errors::default();
        validate_stages(&policy.omit_stages, "omitStages", &mut errors);
        for (i, rule) in policy.rules.iter().enumerate() {
            rule.validate(&format!("rules[{i}]"), &mut errors);
        }
        match crate::validation::sentence(&errors) {
            Some(all) => bail!(all),
            None => Ok(policy),
        }
    }

    /// What is recorded of a request; `user` is absent when nobody was recognised.
    pub fn scope(&self, user: Option<&User>, question: &Question) -> Scope {
        let rule = self.rules.iter().find(|r| r.matches(user, question));
        let stages = self
            .omit_stages
            .iter()
            .chain(rule.into_iter().flat_map(|r| &r.omit_stages));
        Scope {
            level: rule.map_or(Level::None, Rule::level),
            omitted: stages.filter_map(|name| known(&STAGES, name)).collect(),
            omit_managed_fields: rule
                .and_then(|r| r.omit_managed_fields)
                .unwrap_or(self.omit_managed_fields),
        }
    }
}

fn known<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, value)| *value)
}

fn validate_stages(stages: &[String], at: &str, errors: &mut Errors) {
    for (i, stage) in stages.iter().enumerate() {
        if known(&STAGES, stage).is_none() {
            let names: Vec<&str> = STAGES.iter().map(|(name, _)| *name).collect();
            errors.invalid(
                format!("{at}[{i}]"),
                &stage.as_str().into(),
                &format!("allowed stages are {}", names.join(",")),
            );
        }
    }
}

impl Rule {
    fn level(&self) -> Level {
        known(&LEVELS, &self.level).unwrap_or(Level::None)
    }

    fn validate(&self, at: &str, errors: &mut Errors) {
        let field = format!("{at}.level");
        if self.level.is_empty() {
            errors.required(&field, "");
        } else if known(&LEVELS, &self.level).is_none() {
            let names: Vec<&str> = LEVELS.iter().map(|(name, _)| *name).collect();
            errors.not_supported(&field, &self.level.as_str().into(), &names);
        }
        for (i, url) in self.non_resource_urls.iter().enumerate() {
            let field = format!("{at}.nonResourceURLs[{i}]");
            if url == "*" {
                continue;
            }
            if !url.starts_with('/') {
                errors.invalid(
                    &field,
                    &url.as_str().into(),
                    "non-resource URL rules must begin with a '/' character",
                );
            }
            let before = url.strip_suffix('*').unwrap_or(url);
            if before.contains('*') {
                errors.invalid(
                    &field,
                    &url.as_str().into(),
                    "non-resource URL wildcards '*' must be the final character of the rule",
                );
            }
        }
        for resources in &self.resources {
            let group = resources.group.as_str();
            let problems = dns_subdomain(group);
            if !group.is_empty() && group != "*" && !problems.is_empty() {
                errors.invalid(
                    format!("{at}.resources.group"),
                    &group.into(),
                    &problems.join(","),
                );
            }
            if !resources.resource_names.is_empty() && resources.resources.is_empty() {
                errors.invalid(
                    format!("{at}.resources.resourceNames"),
                    &Value::from(resources.resource_names.clone()),
                    "using resourceNames requires at least one resource",
                );
            }
        }
        validate_stages(&self.omit_stages, &format!("{at}.omitStages"), errors);
        if !self.non_resource_urls.is_empty()
            && (!self.resources.is_empty() || !self.namespaces.is_empty())
        {
            errors.invalid(
                format!("{at}.nonResourceURLs"),
                &Value::from(self.non_resource_urls.clone()),
                "rules cannot apply to both regular resources and non-resource URLs",
            );
        }
    }

    fn matches(&self, user: Option<&User>, question: &Question) -> bool {
        let any = |list: &[String], value: &str| list.iter().any(|item| item == value);
        if !self.users.is_empty() && !user.is_some_and(|u| any(&self.users, &u.name)) {
            return false;
        }
        let in_group = |u: &User| u.groups.iter().any(|g| any(&self.user_groups, g));
        if !self.user_groups.is_empty() && !user.is_some_and(in_group) {
            return false;
        }
        if !self.verbs.is_empty() && !any(&self.verbs, &question.verb) {
            return false;
        }
        let is_resource = !question.resource.is_empty();
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return is_resource
                && (self.namespaces.is_empty() || any(&self.namespaces, &question.namespace))
                && (self.resources.is_empty()
                    || self.resources.iter().any(|r| r.matches(question)));
        }
        if !self.non_resource_urls.is_empty() {
            let path = question.path.as_str();
            return !is_resource
                && self.non_resource_urls.iter().any(|url| {
                    url == "*"
                        || url == path
                        || url
                            .strip_suffix('*')
                            .is_some_and(|prefix| path.starts_with(prefix))
                });
        }
        true
    }
}

impl GroupResources {
    fn matches(&self, question: &Question) -> bool {
        if self.group != question.group && self.group != "*" {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let names: HashSet<&str> = self.resource_names.iter().map(String::as_str).collect();
        if !names.is_empty() && !names.contains(question.name.as_str()) {
            return false;
        }
        let (resource, subresource) = (question.resource.as_str(), question.subresource.as_str());
        self.resources.iter().any(|pattern| {
            if pattern == "*" {
                return true;
            }
            match pattern.split_once('/') {
                None => subresource.is_empty() && pattern == resource,
                Some(("*", sub)) => !subresource.is_empty() && sub == subresource,
                Some((name, "*")) => name == resource,
                Some((name, sub)) => name == resource && sub == subresource,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";

    fn level(policy: &str, user: &User, question: &Question) -> Level {
        let policy = Policy::parse(&format!("{HEAD}{policy}")).unwrap();
        policy.scope(Some(user), question).level
    }

    fn question(verb: &str, resource: &str, sub: &str, namespace: &str) -> Question {
        Question {
            verb: verb.into(),
            resource: resource.into(),
            subresource: sub.into(),
            namespace: namespace.into(),
            ..Question::default()
        }
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let policy = "
rules:
- {level: None, users: [noisy]}
- {level: Metadata, resources: [{group: '', resources: [secrets, configmaps, 'pods/*']}]}
- {level: Request, namespaces: [kube-system], verbs: [update]}
- {level: None, nonResourceURLs: ['/healthz*']}
- {level: RequestResponse, userGroups: [ops]}
";
        let (noisy, ops, other) = (
            User::new("noisy", &[]),
            User::new("a", &["ops"]),
            User::new("b", &[]),
        );
        let secrets = question("get", "secrets", "", "n");
        assert_eq!(level(policy, &noisy, &secrets), Level::None);
        assert_eq!(level(policy, &other, &secrets), Level::Metadata);
        assert_eq!(
            level(policy, &other, &question("get", "pods", "log", "n")),
            Level::Metadata
        );
        assert_eq!(
            level(policy, &other, &question("get", "pods", "", "n")),
            Level::Metadata
        );
        let update = question("update", "services", "", "kube-system");
        assert_eq!(level(policy, &other, &update), Level::Request);
        assert_eq!(
            level(policy, &ops, &question("get", "nodes", "", "")),
            Level::RequestResponse
        );
        let health = Question {
            verb: "get".into(),
            path: "/healthz/etcd".into(),
            ..Question::default()
        };
        assert_eq!(level(policy, &ops, &health), Level::None);
    }

    #[test]
    fn everything_wrong_is_said() {
        let error = Policy::parse(&format!(
            "{HEAD}rules:\n- {{level: Much, nonResourceURLs: [x, '/*a'], resources: [{{group: 'a/v1'}}], omitStages: [Never]}}\n"
        ))
        .unwrap_err()
        .to_string();
        for part in [
            "rules[0].level: Unsupported value: \"Much\"",
            "must begin with a '/' character",
            "must be the final character of the rule",
            "rules[0].resources.group: Invalid value: \"a/v1\"",
            "allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic",
            "rules cannot apply to both regular resources and non-resource URLs",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(Policy::parse(HEAD).is_err());
    }
}

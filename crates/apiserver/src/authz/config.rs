//! Which authorizers there are: `--authorization-mode`, or an `AuthorizationConfiguration` file.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use fluyt_api::validation::{Errors, dns_subdomain};
use serde::Deserialize;
use serde_json::Value;

use super::{Policies, WebhookSettings, webhook};
use crate::go_duration;

/// The chain of authorizers.
#[derive(Clone, Debug)]
pub struct Settings {
    pub modes: Vec<Mode>,
    /// The file that the chain is read from again when it changes.
    pub config_file: Option<PathBuf>,
    /// Policies for ABAC, should the chain have it.
    pub policies: Option<Arc<Policies>>,
}

/// One authorizer.
#[derive(Clone, Debug)]
pub enum Mode {
    Node,
    Rbac,
    Abac(Arc<Policies>),
    Webhook(WebhookSettings),
    AlwaysAllow,
    AlwaysDeny,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            modes: vec![Mode::Node, Mode::Rbac],
            config_file: None,
            policies: None,
        }
    }
}

impl Settings {
    /// Whether an authorizer in the chain has no objection to anything.
    #[must_use]
    pub fn allows_everything(&self) -> bool {
        self.modes.iter().any(|m| matches!(m, Mode::AlwaysAllow))
    }
}

/// The types that a configuration may name, besides several webhooks each once.
const TYPES: [&str; 6] = [
    "ABAC",
    "AlwaysAllow",
    "AlwaysDeny",
    "Node",
    "RBAC",
    "Webhook",
];

/// Match conditions of one webhook.
const MAX_CONDITIONS: usize = 64;

const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// `apiserver.config.k8s.io` `AuthorizationConfiguration`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationConfiguration {
    api_version: String,
    kind: String,
    #[serde(default)]
    authorizers: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    name: String,
    webhook: Option<Webhook>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Webhook {
    #[serde(
        default = "authorized_ttl",
        rename = "authorizedTTL",
        deserialize_with = "go_duration::deserialize"
    )]
    authorized_ttl: Duration,
    #[serde(default = "yes")]
    cache_authorized_requests: bool,
    #[serde(
        default = "unauthorized_ttl",
        rename = "unauthorizedTTL",
        deserialize_with = "go_duration::deserialize"
    )]
    unauthorized_ttl: Duration,
    #[serde(default = "yes")]
    cache_unauthorized_requests: bool,
    #[serde(default, deserialize_with = "go_duration::deserialize")]
    timeout: Duration,
    #[serde(default)]
    subject_access_review_version: String,
    #[serde(default)]
    match_condition_subject_access_review_version: String,
    #[serde(default)]
    failure_policy: String,
    #[serde(default)]
    connection_info: ConnectionInfo,
    #[serde(default)]
    match_conditions: Vec<MatchCondition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConnectionInfo {
    #[serde(default, rename = "type")]
    kind: String,
    kube_config_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MatchCondition {
    #[serde(default)]
    expression: String,
}

fn authorized_ttl() -> Duration {
    Duration::from_secs(300)
}

fn unauthorized_ttl() -> Duration {
    Duration::from_secs(30)
}

fn yes() -> bool {
    true
}

impl AuthorizationConfiguration {
    /// Parses and validates a configuration file. `abac` are the policies of `--authorization-policy-file`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, abac: Option<&Arc<Policies>>) -> anyhow::Result<Vec<Mode>> {
        let config: Self = serde_saphyr::from_str(text).context("AuthorizationConfiguration")?;
        let versions = ["v1", "v1beta1", "v1alpha1"];
        let version = config.api_version.strip_prefix("apiserver.config.k8s.io/");
        if !version.is_some_and(|v| versions.contains(&v))
            || config.kind != "AuthorizationConfiguration"
        {
            bail!(
                "no kind {:?} is registered for version {:?}",
                config.kind,
                config.api_version
            );
        }
        let mut errors = Errors::default();
        config.validate(&mut errors);
        if let Some(all) = crate::validation::sentence(&errors) {
            bail!(all);
        }
        config
            .authorizers
            .into_iter()
            .map(|entry| entry.mode(abac))
            .collect()
    }

    fn validate(&self, errors: &mut Errors) {
        if self.authorizers.is_empty() {
            errors.required(
                "authorizers",
                "at least one authorization mode must be defined",
            );
        }
        let (mut types, mut names) = (HashSet::new(), HashSet::new());
        for (i, entry) in self.authorizers.iter().enumerate() {
            let at = format!("authorizers[{i}]");
            let kind = Value::from(entry.kind.clone());
            if entry.kind.is_empty() {
                errors.required(format!("{at}.type"), "");
                continue;
            }
            if !TYPES.contains(&entry.kind.as_str()) {
                errors.not_supported(format!("{at}.type"), &kind, &TYPES);
                continue;
            }
            if !types.insert(&entry.kind) && entry.kind != "Webhook" {
                errors.duplicate(format!("{at}.type"), &kind);
                continue;
            }
            let name = Value::from(entry.name.clone());
            let problems = dns_subdomain(&entry.name);
            if entry.name.is_empty() {
                errors.required(format!("{at}.name"), "");
            } else if !names.insert(&entry.name) {
                errors.duplicate(format!("{at}.name"), &name);
            } else if !problems.is_empty() {
                let why = format!("authorizer name is invalid: {}", problems.join(", "));
                errors.invalid(format!("{at}.name"), &name, &why);
            }
            match (&entry.webhook, entry.kind.as_str()) {
                (Some(webhook), "Webhook") => webhook.validate(&at, errors),
                (None, "Webhook") => {
                    errors.required(format!("{at}.webhook"), "required when type=Webhook");
                }
                (Some(_), _) => errors.invalid(
                    format!("{at}.webhook"),
                    &"non-null".into(),
                    "may only be specified when type=Webhook",
                ),
                (None, _) => {}
            }
        }
    }
}

impl Entry {
    fn mode(self, abac: Option<&Arc<Policies>>) -> anyhow::Result<Mode> {
        Ok(match (self.kind.as_str(), self.webhook) {
            ("Node", _) => Mode::Node,
            ("RBAC", _) => Mode::Rbac,
            ("AlwaysAllow", _) => Mode::AlwaysAllow,
            ("AlwaysDeny", _) => Mode::AlwaysDeny,
            ("ABAC", _) => Mode::Abac(
                abac.context("authorization-mode ABAC's authorization policy file not passed")?
                    .clone(),
            ),
            (_, Some(webhook)) => Mode::Webhook(webhook.settings(self.name)),
            (kind, None) => bail!("unknown authorization mode {kind} specified"),
        })
    }
}

impl Webhook {
    fn settings(self, name: String) -> WebhookSettings {
        let cached = |cache: bool, ttl| if cache { ttl } else { Duration::ZERO };
        WebhookSettings {
            name,
            kubeconfig: self.connection_info.kube_config_file.unwrap_or_default(),
            version: if self.subject_access_review_version == "v1beta1" {
                "v1beta1"
            } else {
                "v1"
            },
            timeout: self.timeout,
            authorized_ttl: cached(self.cache_authorized_requests, self.authorized_ttl),
            unauthorized_ttl: cached(self.cache_unauthorized_requests, self.unauthorized_ttl),
            deny_on_failure: self.failure_policy == "Deny",
            match_conditions: self
                .match_conditions
                .into_iter()
                .map(|c| c.expression)
                .collect(),
        }
    }

    fn validate(&self, at: &str, errors: &mut Errors) {
        let timeout = format!("{at}.timeout");
        if self.timeout.is_zero() {
            errors.required(&timeout, "");
        } else if self.timeout > MAX_TIMEOUT {
            let shown = go_duration::show(self.timeout);
            errors.invalid(&timeout, &shown.into(), "must be > 0s and <= 30s");
        }
        let supported = |errors: &mut Errors, field: &str, value: &str, known: &[&str]| {
            let field = format!("{at}.{field}");
            if value.is_empty() {
                errors.required(&field, "");
            } else if !known.contains(&value) {
                errors.not_supported(&field, &value.into(), known);
            }
        };
        supported(
            errors,
            "subjectAccessReviewVersion",
            &self.subject_access_review_version,
            &["v1", "v1beta1"],
        );
        let conditions_version = &self.match_condition_subject_access_review_version;
        let field = format!("{at}.matchConditionSubjectAccessReviewVersion");
        if conditions_version.is_empty() && !self.match_conditions.is_empty() {
            errors.required(&field, "required if match conditions are specified");
        } else if !conditions_version.is_empty() && conditions_version != "v1" {
            errors.not_supported(&field, &conditions_version.as_str().into(), &["v1"]);
        }
        supported(
            errors,
            "failurePolicy",
            &self.failure_policy,
            &["NoOpinion", "Deny"],
        );
        self.validate_connection(at, errors);
        self.validate_conditions(at, errors);
    }

    fn validate_connection(&self, at: &str, errors: &mut Errors) {
        let file = format!("{at}.connectionInfo.kubeConfigFile");
        let info = &self.connection_info;
        match (info.kind.as_str(), &info.kube_config_file) {
            ("KubeConfigFile", Some(path)) if !path.as_os_str().is_empty() => {
                let shown = Value::from(path.display().to_string());
                if !path.is_absolute() {
                    errors.invalid(&file, &shown, "must be an absolute path");
                } else {
                    match path.metadata() {
                        Err(error) => {
                            let why = format!("error loading file: {error}");
                            errors.invalid(&file, &shown, &why);
                        }
                        Ok(metadata) if !metadata.is_file() => {
                            errors.invalid(&file, &shown, "must be a regular file");
                        }
                        Ok(_) => {}
                    }
                }
            }
            ("KubeConfigFile", _) => errors.required(&file, ""),
            ("", _) => errors.required(format!("{at}.connectionInfo.type"), ""),
            // A server that asks itself whether it may be asked has no end.
            (other, _) => errors.not_supported(
                format!("{at}.connectionInfo.type"),
                &other.into(),
                &["KubeConfigFile"],
            ),
        }
    }

    fn validate_conditions(&self, at: &str, errors: &mut Errors) {
        let count = self.match_conditions.len();
        if count > MAX_CONDITIONS {
            #[allow(clippy::cast_possible_wrap)]
            errors.too_many(
                format!("{at}.matchConditions"),
                count as i64,
                MAX_CONDITIONS as i64,
            );
            return;
        }
        let mut seen = HashSet::new();
        for (i, condition) in self.match_conditions.iter().enumerate() {
            let field = format!("{at}.matchConditions[{i}].expression");
            let expression = condition.expression.as_str();
            if expression.trim().is_empty() {
                errors.required(&field, "");
            } else if !seen.insert(expression) {
                errors.duplicate(&field, &expression.into());
            } else if let Err(why) = webhook::compile(expression) {
                errors.invalid(&field, &expression.into(), &why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n";

    #[test]
    fn a_configuration_names_authorizers_in_order() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "{HEAD}authorizers:\n- {{type: Node, name: node}}\n- type: Webhook\n  name: hook\n  webhook:\n    timeout: 3s\n    subjectAccessReviewVersion: v1\n    matchConditionSubjectAccessReviewVersion: v1\n    failurePolicy: Deny\n    unauthorizedTTL: 10s\n    connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}\n    matchConditions:\n    - expression: has(request.resourceAttributes)\n- {{type: RBAC, name: rbac}}\n",
            file.path().display()
        );
        let modes = AuthorizationConfiguration::parse(&text, None).unwrap();
        let [Mode::Node, Mode::Webhook(webhook), Mode::Rbac] = modes.as_slice() else {
            panic!("{modes:?}");
        };
        assert!(webhook.deny_on_failure && webhook.name == "hook");
        assert_eq!(webhook.authorized_ttl, Duration::from_secs(300));
        assert_eq!(webhook.unauthorized_ttl, Duration::from_secs(10));
    }

    #[test]
    fn everything_wrong_is_said() {
        let parse = |text: &str| {
            let error = AuthorizationConfiguration::parse(&format!("{HEAD}{text}"), None);
            format!("{:#}", error.unwrap_err())
        };
        assert_eq!(
            parse("authorizers: []"),
            "authorizers: Required value: at least one authorization mode must be defined"
        );
        let error = parse(
            "authorizers:\n- {type: RBAC, name: a}\n- {type: RBAC, name: b}\n- {type: Webhook, name: c, webhook: {timeout: 31s, connectionInfo: {type: KubeConfigFile}, matchConditions: [{expression: '1'}]}}\n",
        );
        for part in [
            "authorizers[1].type: Duplicate value: \"RBAC\"",
            "authorizers[2].timeout: Invalid value: \"31s\": must be > 0s and <= 30s",
            "authorizers[2].failurePolicy: Required value",
            "authorizers[2].connectionInfo.kubeConfigFile: Required value",
            "authorizers[2].matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified",
            "authorizers[2].matchConditions[0].expression: Invalid value: \"1\": must evaluate to bool",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(parse("authorizers: []\nunknown: 1").contains("unknown"));
    }
}

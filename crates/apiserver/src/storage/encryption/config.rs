//! The file that says what is encrypted with what: `EncryptionConfiguration` of `apiserver.config.k8s.io/v1`.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluyt_api::validation::Errors;
use serde::Deserialize;
use serde_json::{Value, json};

/// The configuration, valid.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncryptionConfiguration {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    #[serde(default)]
    pub resources: Vec<ResourceConfiguration>,
}

/// How some resources are encrypted: written with the first provider, read with any.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceConfiguration {
    #[serde(default)]
    pub resources: Vec<String>,
    #[serde(default)]
    pub providers: Vec<Provider>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    pub aesgcm: Option<Keys>,
    pub aescbc: Option<Keys>,
    pub secretbox: Option<Keys>,
    pub identity: Option<Identity>,
    pub kms: Option<Kms>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    #[serde(default)]
    pub keys: Vec<Key>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    secret: String,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Name: {}, Secret: [REDACTED]", self.name)
    }
}

impl Key {
    /// The bytes of the secret, which has been validated.
    #[must_use]
    pub fn secret(&self) -> Vec<u8> {
        STANDARD.decode(&self.secret).unwrap_or_default()
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kms {
    #[serde(rename = "apiVersion", default = "v1")]
    api_version: String,
    #[serde(default)]
    pub name: String,
    cachesize: Option<i32>,
    #[serde(default)]
    pub endpoint: String,
    timeout: Option<String>,
}

fn v1() -> String {
    "v1".to_owned()
}

impl Kms {
    /// How long a call may take: 3 s by default.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.parsed_timeout()
            .filter(|t| !t.is_zero())
            .unwrap_or(Duration::from_secs(3))
    }

    fn parsed_timeout(&self) -> Option<Duration> {
        let text = self.timeout.as_deref()?;
        fluyt_cel::parse_duration(text).map(|d| d.try_into().unwrap_or_default())
    }
}

impl EncryptionConfiguration {
    /// Parses and validates the content of the file.
    ///
    /// # Errors
    /// What upstream objects to, with the field's path.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = serde_saphyr::from_str(text)
            .context("error decoding encryption provider configuration")?;
        if config.api_version != "apiserver.config.k8s.io/v1"
            || config.kind != "EncryptionConfiguration"
        {
            bail!(
                "no kind \"{}\" is registered for version \"{}\"",
                config.kind,
                config.api_version
            );
        }
        let mut errors = Errors::default();
        config.validate(&mut errors);
        if errors.is_empty() {
            return Ok(config);
        }
        let messages: Vec<String> = errors
            .0
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect();
        bail!("{}", messages.join(", "));
    }

    fn validate(&self, errors: &mut Errors) {
        if self.resources.is_empty() {
            errors.required("resources", "at least one resources is required");
        }
        let mut names = HashSet::new();
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for (i, config) in self.resources.iter().enumerate() {
            let field = format!("resources[{i}].resources");
            if config.resources.is_empty() {
                errors.required(&field, &format!("at least one {field} is required"));
            }
            validate_resources(&config.resources, &field, errors);
            masked(&config.resources, &mut seen, &field, errors);
            let field = format!("resources[{i}].providers");
            if config.providers.is_empty() {
                errors.required(&field, &format!("at least one {field} is required"));
            }
            for (j, provider) in config.providers.iter().enumerate() {
                provider.validate(&format!("{field}[{j}]"), &mut names, errors);
            }
        }
    }
}

/// `secrets` -> the core group and `secrets`; `*.apps` -> `apps` and `*`.
#[must_use]
pub fn group_resource(name: &str) -> (&str, &str) {
    let (resource, group) = name.split_once('.').unwrap_or((name, ""));
    (group, resource)
}

fn validate_resources(resources: &[String], field: &str, errors: &mut Errors) {
    let parsed: Vec<(&str, &str)> = resources.iter().map(|r| group_resource(r)).collect();
    let pairs = || {
        let all = parsed.iter().enumerate();
        all.flat_map(|(i, a)| parsed[i + 1..].iter().map(move |b| (a, b)))
    };
    if pairs().any(|(a, b)| a == b) {
        let detail = "the same resource cannot be specified multiple times";
        errors.invalid(field, &json!(resources), detail);
    }
    let everything = |r: &(&str, &str)| *r == ("*", "*");
    let overlap = pairs().any(|(a, b)| {
        a != b && (everything(a) || everything(b) || a.0 == b.0 && (a.1 == "*" || b.1 == "*"))
    });
    if overlap {
        let detail = "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked";
        errors.invalid(field, &json!(resources), detail);
    }
    for (i, name) in resources.iter().enumerate() {
        let (group, resource) = group_resource(name);
        let detail = if name.chars().any(char::is_uppercase) {
            "resource name should not contain capital letters"
        } else if name == "*" {
            "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
        } else if matches!(
            name.as_str(),
            "apiserveripinfo" | "serviceipallocations" | "servicenodeportallocations"
        ) {
            "resources which do not have REST API/s cannot be encrypted"
        } else if group == "events.k8s.io" {
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"
        } else if group == "extensions" {
            "'extensions' group has been removed and cannot be used for encryption"
        } else if group == "*" && resource != "*" {
            "encrypting the same resource across groups is not supported"
        } else {
            continue;
        };
        errors.invalid(format!("{field}[{i}]"), &name.as_str().into(), detail);
    }
}

/// A rule that an earlier one leaves nothing for is a mistake.
fn masked<'a>(
    resources: &'a [String],
    seen: &mut Vec<(&'a str, &'a str)>,
    field: &str,
    errors: &mut Errors,
) {
    for name in resources {
        let (group, _) = group_resource(name);
        for mask in [(group, "*"), ("*", "*")] {
            if seen.contains(&mask) {
                let by = format!("{}.{}", mask.1, mask.0);
                let detail = format!("resource \"{name}\" is masked by earlier rule \"{by}\"");
                errors.invalid(field, &name.as_str().into(), &detail);
            }
        }
    }
    seen.extend(resources.iter().map(|r| group_resource(r)));
}

impl Provider {
    fn validate<'a>(&'a self, field: &str, names: &mut HashSet<&'a str>, errors: &mut Errors) {
        let given = [
            self.aesgcm.is_some(),
            self.aescbc.is_some(),
            self.secretbox.is_some(),
            self.identity.is_some(),
            self.kms.is_some(),
        ];
        match given.iter().filter(|g| **g).count() {
            0 => errors.invalid(field, &json!({}), "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"),
            1 => {}
            _ => errors.invalid(field, &json!({}), "more than one provider specified in a single element, should split into different list elements"),
        }
        for (keys, name, sizes) in [
            (&self.aesgcm, "aesgcm", &[16, 24, 32][..]),
            (&self.aescbc, "aescbc", &[16, 24, 32]),
            (&self.secretbox, "secretbox", &[32]),
        ] {
            if let Some(keys) = keys {
                keys.validate(&format!("{field}.{name}.keys"), sizes, errors);
            }
        }
        if let Some(kms) = &self.kms {
            kms.validate(&format!("{field}.kms"), names, errors);
        }
    }
}

impl Keys {
    fn validate(&self, field: &str, sizes: &[usize], errors: &mut Errors) {
        if self.keys.is_empty() {
            errors.required(field, "at least one keys is required");
        }
        for (i, key) in self.keys.iter().enumerate() {
            let field = format!("{field}[{i}]");
            if key.name.is_empty() {
                let detail = "name is a mandatory field for a key";
                errors.required(format!("{field}.name"), detail);
            }
            let at = format!("{field}.secret");
            if key.secret.is_empty() {
                errors.required(&at, "secret is a mandatory field for a key");
                continue;
            }
            let redacted = Value::from("REDACTED");
            match STANDARD.decode(&key.secret) {
                Err(_) => errors.invalid(&at, &redacted, "secrets must be base64 encoded"),
                Ok(secret) if !sizes.contains(&secret.len()) => {
                    let list: Vec<String> = sizes.iter().map(ToString::to_string).collect();
                    let detail = format!(
                        "secret is not of the expected length, got {}, expected one of [{}]",
                        secret.len(),
                        list.join(" ")
                    );
                    errors.invalid(&at, &redacted, &detail);
                }
                Ok(_) => {}
            }
        }
    }
}

impl Kms {
    fn validate<'a>(&'a self, field: &str, names: &mut HashSet<&'a str>, errors: &mut Errors) {
        let name = Value::from(self.name.as_str());
        let at = format!("{field}.name");
        if self.name.is_empty() {
            errors.required(&at, "name is a mandatory field for a provider");
        }
        if self.name.contains(':') {
            let detail = format!(
                "invalid KMS provider name {}, must not contain ':'",
                self.name
            );
            errors.invalid(&at, &name, &detail);
        }
        if !names.insert(&self.name) {
            let detail = format!(
                "duplicate KMS provider name {}, names must be unique",
                self.name
            );
            errors.invalid(&at, &name, &detail);
        }
        if let Some(text) = &self.timeout
            && self.parsed_timeout().is_none_or(|t| t.is_zero())
        {
            let detail = "timeout should be a positive value";
            errors.invalid(format!("{field}.timeout"), &text.as_str().into(), detail);
        }
        let at = format!("{field}.endpoint");
        match self.endpoint.split_once("://") {
            _ if self.endpoint.is_empty() => {
                errors.required(&at, "endpoint is a mandatory field for a kms");
            }
            Some(("unix", _)) => {}
            other => {
                let scheme = other.map_or("", |(scheme, _)| scheme);
                let detail = format!(
                    "unsupported scheme \"{scheme}\" for KMS provider, only unix is supported"
                );
                errors.invalid(&at, &self.endpoint.as_str().into(), &detail);
            }
        }
        let at = format!("{field}.apiVersion");
        match self.api_version.as_str() {
            "v2" => {
                if let Some(size) = self.cachesize {
                    let detail = "cachesize is not supported in v2";
                    errors.invalid(format!("{field}.cachesize"), &size.into(), detail);
                }
            }
            "v1" => errors.invalid(
                &at,
                &"v1".into(),
                "KMSv1 is deprecated and not supported. Use KMSv2 instead.",
            ),
            other => {
                let detail = format!(
                    "unsupported apiVersion {other} for KMS provider, only v1 and v2 are supported"
                );
                errors.invalid(&at, &other.into(), &detail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(resources: &str) -> Result<(), String> {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: {resources}\n"
        );
        let parsed = EncryptionConfiguration::parse(&text);
        parsed.map(|_| ()).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let identity = "providers: [{identity: {}}]";
        assert_eq!(
            parse(&format!("[{{resources: [secrets], {identity}}}]")),
            Ok(())
        );
        for (resources, message) in [
            ("[]", "at least one resources"),
            (&format!("[{{resources: ['*'], {identity}}}]"), "use '*.'"),
            (
                &format!("[{{resources: [secrets, '*.'], {identity}}}]"),
                "overlapping resources",
            ),
            (
                &format!(
                    "[{{resources: ['*.*'], {identity}}}, {{resources: [secrets], {identity}}}]"
                ),
                "is masked by earlier rule \"*.*\"",
            ),
            (
                "[{resources: [secrets], providers: [{aescbc: {keys: [{name: a, secret: eHl6}]}}]}]",
                "resources[0].providers[0].aescbc.keys[0].secret: Invalid value: \"REDACTED\": secret is not of the expected length, got 3, expected one of [16 24 32]",
            ),
            (
                "[{resources: [secrets], providers: [{kms: {name: k, endpoint: 'unix:///x'}}]}]",
                "KMSv1 is deprecated",
            ),
            (
                "[{resources: [secrets], providers: [{kms: {apiVersion: v2, name: k, endpoint: 'tcp://x'}}]}]",
                "unsupported scheme \"tcp\"",
            ),
            ("[{resources: [secrets], unknown: 1}]", "unknown"),
        ] {
            let error = parse(resources).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}

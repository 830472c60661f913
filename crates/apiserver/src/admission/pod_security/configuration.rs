//! `PodSecurityConfiguration`: what holds in namespaces that say nothing, and for whom nothing holds.

use std::collections::HashSet;

use anyhow::bail;
use fluyt_api::validation::{Errors, Problems, dns_label, dns_subdomain};
use serde::Deserialize;
use serde_json::Value;

use super::policy::{Level, NO_LEVEL, NO_VERSION, Policy, Standard, parse_version};
use crate::admission::plugins::Invalid;
use crate::authz::aggregate;
use crate::config_file::{Of, Scheme, Struct};

/// The configuration, valid.
#[derive(Debug, Default)]
pub(super) struct Configuration {
    pub defaults: Policy,
    pub exemptions: Exemptions,
}

/// For whom nothing holds.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Exemptions {
    pub usernames: Vec<String>,
    pub namespaces: Vec<String>,
    pub runtime_classes: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    defaults: Value,
    exemptions: Exemptions,
}

const DEFAULTS: Struct = Struct {
    name: "v1.PodSecurityDefaults",
    fields: &[
        ("enforce", Of::Text),
        ("enforce-version", Of::Text),
        ("audit", Of::Text),
        ("audit-version", Of::Text),
        ("warn", Of::Text),
        ("warn-version", Of::Text),
    ],
};

const EXEMPTIONS: Struct = Struct {
    name: "v1.PodSecurityExemptions",
    fields: &[
        ("usernames", Of::Texts),
        ("namespaces", Of::Texts),
        ("runtimeClasses", Of::Texts),
    ],
};

const KIND: &str = "PodSecurityConfiguration";

const SCHEME: Scheme = Scheme {
    name: "k8s.io/pod-security-admission/admission/api/scheme/scheme.go:31",
    kinds: &[
        ("pod-security.admission.config.k8s.io/v1", KIND),
        ("pod-security.admission.config.k8s.io/v1beta1", KIND),
        ("pod-security.admission.config.k8s.io/v1alpha1", KIND),
    ],
    content: Struct {
        name: "v1.PodSecurityConfiguration",
        fields: &[
            ("defaults", Of::Object(&DEFAULTS)),
            ("exemptions", Of::Object(&EXEMPTIONS)),
        ],
    },
    strict: true,
};

impl Configuration {
    /// Decodes and validates it.
    ///
    /// # Errors
    /// What upstream objects to.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let document: Document = SCHEME.decode(text)?;
        let mut errors = Vec::new();
        let defaults = Policy {
            enforce: standard(&document.defaults, "enforce", &mut errors),
            audit: standard(&document.defaults, "audit", &mut errors),
            warn: standard(&document.defaults, "warn", &mut errors),
        };
        if let Some(all) = aggregate(errors) {
            bail!(Invalid(format!("PodSecurity configuration error: {all}")));
        }
        let mut errors = Errors::default();
        document.exemptions.validate(&mut errors);
        match crate::validation::sentence(&errors) {
            None => Ok(Self {
                defaults,
                exemptions: document.exemptions,
            }),
            Some(all) => bail!(Invalid(format!("PodSecurity invalid: {all}"))),
        }
    }
}

/// The default of a mode.
fn standard(defaults: &Value, mode: &str, errors: &mut Vec<String>) -> Standard {
    let said = |field: &str| defaults[field].as_str().filter(|text| !text.is_empty());
    let level = said(mode).unwrap_or("privileged");
    let parsed = Level::parse(level);
    if parsed.is_none() {
        errors.push(format!("{mode}: {NO_LEVEL}"));
    }
    let field = format!("{mode}-version");
    let version = said(&field).unwrap_or("latest");
    let minor = parse_version(version);
    if minor.is_none() {
        errors.push(format!("{field}: {NO_VERSION}"));
    }
    Standard {
        level: parsed.unwrap_or(Level::Restricted),
        minor: minor.flatten(),
    }
}

impl Exemptions {
    fn validate(&self, errors: &mut Errors) {
        each("namespaces", &self.namespaces, dns_label, errors);
        each(
            "runtimeClasses",
            &self.runtime_classes,
            dns_subdomain,
            errors,
        );
        each("usernames", &self.usernames, username, errors);
    }
}

fn username(name: &str) -> Problems {
    let why = name.is_empty().then(|| "username must not be empty".into());
    why.into_iter().collect()
}

/// Names that follow a rule, each once.
fn each(field: &str, names: &[String], rule: fn(&str) -> Problems, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, name) in names.iter().enumerate() {
        let (at, value) = (
            format!("exemptions.{field}[{i}]"),
            Value::from(name.clone()),
        );
        let problems = rule(name);
        if !problems.is_empty() {
            errors.invalid(at, &value, &problems.join(", "));
        } else if !seen.insert(name) {
            errors.duplicate(at, &value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<Configuration, String> {
        let head = format!("apiVersion: pod-security.admission.config.k8s.io/v1\nkind: {KIND}\n");
        Configuration::parse(&format!("{head}{fields}")).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_and_exemptions_are_read() {
        let read = parse("defaults: {enforce: baseline, enforce-version: v1.30, warn: restricted}\nexemptions: {usernames: [u], namespaces: [free], runtimeClasses: [r.x]}").unwrap();
        let standard = |level, minor| Standard { level, minor };
        assert_eq!(read.defaults.enforce, standard(Level::Baseline, Some(30)));
        assert_eq!(read.defaults.audit, standard(Level::Privileged, None));
        assert_eq!(read.defaults.warn, standard(Level::Restricted, None));
        assert_eq!(read.exemptions.runtime_classes, ["r.x"]);
        for version in ["v1", "v1beta1", "v1alpha1"] {
            let text = format!(
                "{{\"apiVersion\": \"pod-security.admission.config.k8s.io/{version}\", \"kind\": \"{KIND}\"}}"
            );
            assert!(
                Configuration::parse(&text)
                    .unwrap()
                    .defaults
                    .is_privileged()
            );
        }
        assert!(Configuration::parse("").unwrap().defaults.is_privileged());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (fields, message) in [
            (
                "defaults: {enforce: none}",
                "configuration error: enforce: must be one of privileged, baseline, restricted",
            ),
            (
                "defaults: {warn-version: v1.01, audit: x, audit-version: '1.2'}",
                "configuration error: [audit: must be one of privileged, baseline, restricted, audit-version: must be \"latest\" or \"v1.x\", warn-version: must be \"latest\" or \"v1.x\"]",
            ),
            (
                "exemptions: {usernames: ['', u, u]}",
                "invalid: [exemptions.usernames[0]: Invalid value: \"\": username must not be empty, exemptions.usernames[2]: Duplicate value: \"u\"]",
            ),
        ] {
            let expected = format!("PodSecurity {message}");
            assert_eq!(parse(fields).unwrap_err(), expected);
        }
        let names = parse("exemptions: {namespaces: [a.b], runtimeClasses: ['a b']}").unwrap_err();
        assert!(
            names.contains("exemptions.namespaces[0]: Invalid value: \"a.b\": "),
            "{names}"
        );
        assert!(
            names.contains("exemptions.runtimeClasses[0]: Invalid value: \"a b\": "),
            "{names}"
        );
        assert_eq!(
            parse("defaults: {enforced: baseline}").unwrap_err(),
            "strict decoding error: unknown field \"defaults.enforced\""
        );
    }
}

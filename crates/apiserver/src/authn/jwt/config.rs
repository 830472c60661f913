//! Which issuers are believed: an `AuthenticationConfiguration` file, or the `--oidc-*` flags, which are the same for one.

use std::collections::HashSet;
use std::sync::LazyLock;

use ::http::Uri;
use anyhow::{Context as _, bail};
use fluyt_api::validation::Errors;
use regex::Regex;
use serde::Deserialize;

use super::claims::{Mapping, compile_claims, compile_user};
use crate::authn::Anonymous;

/// Issuers of one configuration.
const MAX_ISSUERS: usize = 64;

/// `apiserver.config.k8s.io` `AuthenticationConfiguration`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationConfiguration {
    api_version: String,
    kind: String,
    #[serde(default)]
    pub jwt: Vec<JwtAuthenticator>,
    pub anonymous: Option<Anonymous>,
}

/// An issuer, and how its tokens' claims become users.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtAuthenticator {
    #[serde(default)]
    pub issuer: Issuer,
    #[serde(default)]
    pub claim_validation_rules: Vec<ClaimValidationRule>,
    #[serde(default)]
    pub claim_mappings: ClaimMappings,
    #[serde(default)]
    pub user_validation_rules: Vec<UserValidationRule>,
    /// Names of JOSE algorithms; `--oidc-signing-algs` may narrow them.
    #[serde(skip)]
    pub signing_algorithms: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Issuer {
    #[serde(default)]
    pub url: String,
    #[serde(default, rename = "discoveryURL")]
    pub discovery_url: String,
    #[serde(default)]
    pub certificate_authority: String,
    #[serde(default)]
    pub audiences: Vec<String>,
    #[serde(default)]
    pub audience_match_policy: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimValidationRule {
    #[serde(default)]
    pub claim: String,
    #[serde(default)]
    pub required_value: String,
    #[serde(default)]
    pub expression: String,
    #[serde(default)]
    pub message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimMappings {
    #[serde(default)]
    pub username: Mapping,
    #[serde(default)]
    pub groups: Mapping,
    #[serde(default)]
    pub uid: Mapping,
    #[serde(default)]
    pub extra: Vec<ExtraMapping>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtraMapping {
    #[serde(default)]
    pub key: String,
    #[serde(default)]
    pub value_expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UserValidationRule {
    #[serde(default)]
    pub expression: String,
    #[serde(default)]
    pub message: String,
}

impl AuthenticationConfiguration {
    /// Parses and validates a configuration file; no issuer may be one of service-account tokens.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, disallowed: &[String]) -> anyhow::Result<Self> {
        let config: Self = serde_saphyr::from_str(text).context("AuthenticationConfiguration")?;
        let version = config.api_version.strip_prefix("apiserver.config.k8s.io/");
        if !matches!(version, Some("v1" | "v1beta1" | "v1alpha1"))
            || config.kind != "AuthenticationConfiguration"
        {
            bail!(
                "no kind {:?} is registered for version {:?}",
                config.kind,
                config.api_version
            );
        }
        let mut errors = Errors::default();
        config.validate(disallowed, &mut errors);
        match crate::validation::sentence(&errors) {
            Some(all) => bail!(all),
            None => Ok(config),
        }
    }

    fn validate(&self, disallowed: &[String], errors: &mut Errors) {
        validate_all(&self.jwt, disallowed, errors);
        if let Some(anonymous) = &self.anonymous
            && !anonymous.enabled
            && !anonymous.conditions.is_empty()
        {
            let paths: Vec<&str> = anonymous
                .conditions
                .iter()
                .map(|c| c.path.as_str())
                .collect();
            errors.invalid(
                "anonymous.conditions",
                &paths.into(),
                "enabled should be set to true when conditions are defined",
            );
        }
    }
}

/// Validates issuers that belong together.
pub fn validate_all(issuers: &[JwtAuthenticator], disallowed: &[String], errors: &mut Errors) {
    if issuers.len() > MAX_ISSUERS {
        #[allow(clippy::cast_possible_wrap)]
        errors.too_many("jwt", issuers.len() as i64, MAX_ISSUERS as i64);
        return;
    }
    let (mut urls, mut discovery) = (HashSet::new(), HashSet::new());
    for (i, authenticator) in issuers.iter().enumerate() {
        let at = format!("jwt[{i}]");
        authenticator.validate(&at, disallowed, errors);
        let issuer = &authenticator.issuer;
        if !urls.insert(&issuer.url) {
            let url = issuer.url.as_str().into();
            errors.duplicate(format!("{at}.issuer.url"), &url);
        }
        let from = &issuer.discovery_url;
        if !from.is_empty() && !discovery.insert(from) {
            let url = from.as_str().into();
            errors.duplicate(format!("{at}.issuer.discoveryURL"), &url);
        }
    }
}

impl JwtAuthenticator {
    fn validate(&self, at: &str, disallowed: &[String], errors: &mut Errors) {
        self.issuer
            .validate(&format!("{at}.issuer"), disallowed, errors);
        self.validate_claim_rules(&format!("{at}.claimValidationRules"), errors);
        self.validate_mappings(&format!("{at}.claimMappings"), errors);
        let at = format!("{at}.userValidationRules");
        let mut seen = HashSet::new();
        for (i, rule) in self.user_validation_rules.iter().enumerate() {
            let field = format!("{at}[{i}].expression");
            let expression = rule.expression.as_str();
            if expression.is_empty() {
                errors.required(&field, "");
            } else if !seen.insert(expression) {
                errors.duplicate(&field, &expression.into());
            } else if let Err(why) = compile_user(expression) {
                errors.invalid(&field, &expression.into(), &why);
            }
        }
    }

    fn validate_claim_rules(&self, at: &str, errors: &mut Errors) {
        let (mut claims, mut expressions) = (HashSet::new(), HashSet::new());
        for (i, rule) in self.claim_validation_rules.iter().enumerate() {
            let at = format!("{at}[{i}]");
            match (rule.claim.as_str(), rule.expression.as_str()) {
                ("", "") => errors.required(&at, "claim or expression is required"),
                (claim, "") => {
                    if !rule.message.is_empty() {
                        errors.invalid(
                            format!("{at}.message"),
                            &rule.message.as_str().into(),
                            "may not be specified when claim is set",
                        );
                    }
                    if !claims.insert(claim) {
                        errors.duplicate(format!("{at}.claim"), &claim.into());
                    }
                }
                ("", expression) => {
                    if !rule.required_value.is_empty() {
                        errors.invalid(
                            format!("{at}.requiredValue"),
                            &rule.required_value.as_str().into(),
                            "may not be specified when expression is set",
                        );
                    }
                    let field = format!("{at}.expression");
                    if !expressions.insert(expression) {
                        errors.duplicate(&field, &expression.into());
                    } else if let Err(why) = compile_claims(expression, true) {
                        errors.invalid(&field, &expression.into(), &why);
                    }
                }
                (claim, _) => {
                    errors.invalid(&at, &claim.into(), "claim and expression can't both be set");
                }
            }
        }
    }

    fn validate_mappings(&self, at: &str, errors: &mut Errors) {
        let mappings = &self.claim_mappings;
        mappings
            .username
            .validate(&format!("{at}.username"), true, true, errors);
        mappings
            .groups
            .validate(&format!("{at}.groups"), false, true, errors);
        mappings
            .uid
            .validate(&format!("{at}.uid"), false, false, errors);
        let mut keys = HashSet::new();
        for (i, extra) in mappings.extra.iter().enumerate() {
            let at = format!("{at}.extra[{i}]");
            let field = format!("{at}.key");
            let key = extra.key.as_str();
            errors.domain_prefixed_path(&field, key);
            if key != key.to_lowercase() {
                errors.invalid(&field, &key.into(), "must be lowercase");
            }
            if is_reserved(key) {
                errors.invalid(
                    &field,
                    &key.into(),
                    "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use",
                );
            }
            if !keys.insert(key) {
                errors.duplicate(&field, &key.into());
                continue;
            }
            let field = format!("{at}.valueExpression");
            let expression = extra.value_expression.as_str();
            if expression.is_empty() {
                errors.required(&field, "");
            } else if let Err(why) = compile_claims(expression, false) {
                errors.invalid(&field, &expression.into(), &why);
            }
        }
        self.validate_email(at, errors);
    }

    /// Whoever maps addresses has to look whether they are verified.
    fn validate_email(&self, at: &str, errors: &mut Errors) {
        let username = &self.claim_mappings.username.expression;
        if !EMAIL.is_match(username) {
            return;
        }
        let extra = self
            .claim_mappings
            .extra
            .iter()
            .map(|e| &e.value_expression);
        let rules = self.claim_validation_rules.iter().map(|r| &r.expression);
        let mut all = std::iter::once(username).chain(extra).chain(rules);
        if !all.any(|expression| VERIFIED.is_match(expression)) {
            errors.invalid(
                format!("{at}.username.expression"),
                &username.as_str().into(),
                "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
            );
        }
    }
}

static EMAIL: LazyLock<Regex> = LazyLock::new(|| selecting("email"));
static VERIFIED: LazyLock<Regex> = LazyLock::new(|| selecting("email_verified"));

/// An expression that selects a claim.
fn selecting(claim: &str) -> Regex {
    match Regex::new(&format!(r"\bclaims\s*\.\s*\??\s*{claim}\b")) {
        Ok(regex) => regex,
        Err(error) => unreachable!("a constant pattern: {error}"),
    }
}

fn is_reserved(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    ["kubernetes.io", "k8s.io"]
        .iter()
        .any(|reserved| domain == *reserved || domain.ends_with(&format!(".{reserved}")))
}

impl Issuer {
    fn validate(&self, at: &str, disallowed: &[String], errors: &mut Errors) {
        let field = format!("{at}.url");
        if self.url.is_empty() {
            errors.required(&field, "");
        } else {
            validate_url(&self.url, disallowed, &field, errors);
        }
        if !self.discovery_url.is_empty() {
            let field = format!("{at}.discoveryURL");
            if self.url.trim_end_matches('/') == self.discovery_url.trim_end_matches('/') {
                errors.invalid(
                    &field,
                    &self.discovery_url.as_str().into(),
                    "discoveryURL must be different from URL",
                );
            }
            validate_url(&self.discovery_url, &[], &field, errors);
        }
        self.validate_audiences(at, errors);
        if !self.certificate_authority.is_empty() {
            let usable = crate::server::roots(&self.certificate_authority);
            let why = match usable {
                Ok(roots) if roots.is_empty() => {
                    "data does not contain any valid RSA or ECDSA certificates".to_owned()
                }
                Ok(_) => return,
                Err(error) => format!("{error:#}"),
            };
            let field = format!("{at}.certificateAuthority");
            errors.invalid(&field, &"<omitted>".into(), &why);
        }
    }

    fn validate_audiences(&self, at: &str, errors: &mut Errors) {
        let field = format!("{at}.audiences");
        if self.audiences.is_empty() {
            errors.required(&field, &format!("at least one {field} is required"));
            return;
        }
        let mut seen = HashSet::new();
        for (i, audience) in self.audiences.iter().enumerate() {
            let field = format!("{field}[{i}]");
            if audience.is_empty() {
                errors.required(&field, "");
            }
            if !seen.insert(audience) {
                errors.duplicate(&field, &audience.as_str().into());
            }
        }
        let policy = self.audience_match_policy.as_str();
        let why = match (self.audiences.len(), policy) {
            (_, "MatchAny") | (1, "") => return,
            (1, _) => "audienceMatchPolicy must be empty or MatchAny for single audience",
            _ => "audienceMatchPolicy must be MatchAny for multiple audiences",
        };
        errors.invalid(format!("{at}.audienceMatchPolicy"), &policy.into(), why);
    }
}

fn validate_url(url: &str, disallowed: &[String], field: &str, errors: &mut Errors) {
    let shown = url.into();
    if disallowed.iter().any(|d| d == url) {
        errors.invalid(
            field,
            &shown,
            &format!("URL must not overlap with disallowed issuers: {disallowed:?}"),
        );
    }
    // The parser drops what follows a `#`.
    let without = url.split_once('#').map_or(url, |(before, _)| before);
    let uri: Uri = match without.parse() {
        Ok(uri) => uri,
        Err(error) => return errors.invalid(field, &shown, &format!("{error}")),
    };
    if uri.scheme_str() != Some("https") {
        errors.invalid(field, &shown, "URL scheme must be https");
    }
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        errors.invalid(field, &shown, "URL must not contain a username or password");
    }
    if uri.query().is_some_and(|q| !q.is_empty()) {
        errors.invalid(field, &shown, "URL must not contain a query");
    }
    if url
        .split_once('#')
        .is_some_and(|(_, after)| !after.is_empty())
    {
        errors.invalid(field, &shown, "URL must not contain a fragment");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<AuthenticationConfiguration> {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";
        let disallowed = ["https://own".to_owned()];
        AuthenticationConfiguration::parse(&format!("{head}{text}"), &disallowed)
    }

    #[test]
    fn a_whole_configuration() {
        let config = parse(
            "
jwt:
- issuer: {url: 'https://a.example', discoveryURL: 'https://b.example/x', audiences: [one, two], audienceMatchPolicy: MatchAny}
  claimMappings:
    username: {expression: 'claims.email_verified ? claims.email : \"\"'}
    groups: {claim: roles, prefix: 'x:'}
    uid: {claim: sub}
    extra: [{key: acme.io/tier, valueExpression: claims.tier}]
  claimValidationRules: [{expression: 'claims.hd == \"acme\"', message: wrong}]
  userValidationRules: [{expression: '!user.username.startsWith(\"system:\")'}]
anonymous: {enabled: true, conditions: [{path: /livez}]}
",
        )
        .unwrap();
        assert_eq!(config.jwt.len(), 1);
        let anonymous = config.anonymous.unwrap();
        assert!(anonymous.allows("/livez") && !anonymous.allows("/api"));
    }

    #[test]
    fn everything_wrong_is_said() {
        let error = parse(
            "
jwt:
- issuer: {url: 'http://u@a.example?q=1', audiences: [a, b]}
  claimMappings:
    username: {claim: sub}
    extra: [{key: k8s.io/x, valueExpression: '1 +'}]
- issuer: {url: 'https://own', audiences: [a]}
  claimMappings: {username: {expression: claims.email}}
anonymous: {enabled: false, conditions: [{path: /x}]}
",
        )
        .unwrap_err()
        .to_string();
        for part in [
            "jwt[0].issuer.url: Invalid value: \"http://u@a.example?q=1\": URL scheme must be https",
            "URL must not contain a username or password",
            "URL must not contain a query",
            "audienceMatchPolicy must be MatchAny for multiple audiences",
            "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
            "reserved for Kubernetes use",
            "jwt[0].claimMappings.extra[0].valueExpression: Invalid value: \"1 +\": compilation failed",
            "URL must not overlap with disallowed issuers",
            "claims.email_verified must be used",
            "anonymous.conditions: Invalid value",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}

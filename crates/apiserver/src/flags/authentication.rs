//! Flags about who users are.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ArgAction;
use fluyt_api::validation::{Errors, Url};

use super::read;
use crate::authn::jwt::{
    AuthenticationConfiguration, ClaimMappings, ClaimValidationRule, Issuer, JwtAuthenticator,
    Mapping, validate_all,
};
use crate::authn::{Anonymous, FrontProxy, Settings, TokenFile, TokenWebhookSettings};
use crate::{TokenLifetimes, go_bool, go_duration};

#[derive(clap::Args, Debug)]
pub struct AuthenticationArgs {
    /// Takes requests without credentials for system:anonymous.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true)]
    anonymous_auth: bool,
    /// File with an AuthenticationConfiguration; read again when it changes.
    #[arg(long)]
    authentication_config: Option<PathBuf>,
    /// Lets bootstrap tokens (Secrets in kube-system) authenticate.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    enable_bootstrap_token_auth: bool,
    /// CSV file with tokens: token,user,uid,"group1,group2".
    #[arg(long)]
    token_auth_file: Option<PathBuf>,
    /// Keys that verify service-account tokens, public or private, PEM; may be repeated. Defaults to the signing key.
    #[arg(long)]
    service_account_key_file: Vec<PathBuf>,
    /// Issuer of service-account tokens. When repeated, the first one signs and all are accepted.
    #[arg(long, default_value = "https://kubernetes.default.svc.cluster.local")]
    service_account_issuer: Vec<String>,
    /// Where the discovery document says that the public keys are.
    #[arg(long)]
    service_account_jwks_uri: Option<String>,
    /// Whether tokens of Secrets count only as long as Secret and account are there.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true)]
    service_account_lookup: bool,
    #[command(flatten)]
    pub(super) token_lifetimes: TokenLifetimes,
    /// Kubeconfig of a service that knows tokens.
    #[arg(long)]
    authentication_token_webhook_config_file: Option<PathBuf>,
    /// API version of the TokenReview to send: v1 or v1beta1.
    #[arg(long, default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    authentication_token_webhook_version: String,
    #[arg(long, default_value = "2m", value_parser = go_duration::parse)]
    authentication_token_webhook_cache_ttl: Duration,
    /// URL of an OpenID issuer; https only.
    #[arg(long, requires = "oidc_client_id")]
    oidc_issuer_url: Option<String>,
    #[arg(long, requires = "oidc_issuer_url")]
    oidc_client_id: Option<String>,
    /// Authorities of the issuer; the host's when not given.
    #[arg(long)]
    oidc_ca_file: Option<PathBuf>,
    #[arg(long, default_value = "sub")]
    oidc_username_claim: String,
    /// Put before user names. "-" for none; by default the issuer's URL and a '#', unless the claim is email.
    #[arg(long)]
    oidc_username_prefix: Option<String>,
    #[arg(long)]
    oidc_groups_claim: Option<String>,
    #[arg(long, default_value = "")]
    oidc_groups_prefix: String,
    /// key=value that tokens must have; may be repeated.
    #[arg(long)]
    oidc_required_claim: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "RS256")]
    oidc_signing_algs: Vec<String>,
    /// Authorities of front proxies' certificates.
    #[arg(long)]
    pub(super) requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of front proxies; any that the authority vouches for when not given.
    #[arg(long, value_delimiter = ',')]
    requestheader_allowed_names: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-User")]
    requestheader_username_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    requestheader_uid_headers: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Group")]
    requestheader_group_headers: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "X-Remote-Extra-")]
    requestheader_extra_headers_prefix: Vec<String>,
}

impl AuthenticationArgs {
    /// Whether keys are given that verify service-account tokens.
    pub(super) fn has_keys(&self) -> bool {
        !self.service_account_key_file.is_empty()
    }

    /// The issuer that signs.
    pub(super) fn issuer(&self) -> String {
        self.service_account_issuer
            .first()
            .cloned()
            .unwrap_or_default()
    }

    /// # Errors
    /// When a file cannot be read, or what the flags say makes no sense.
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        self.check()?;
        let keys = self.service_account_key_file.iter().map(|path| read(path));
        let token_file = self.token_auth_file.as_deref().map(read).transpose()?;
        let webhook = self.authentication_token_webhook_config_file.as_ref();
        let mut settings = Settings {
            anonymous: Anonymous {
                enabled: self.anonymous_auth,
                conditions: Vec::new(),
            },
            front_proxy: FrontProxy {
                allowed_names: self.requestheader_allowed_names.clone(),
                username_headers: self.requestheader_username_headers.clone(),
                uid_headers: self.requestheader_uid_headers.clone(),
                group_headers: self.requestheader_group_headers.clone(),
                extra_header_prefixes: self.requestheader_extra_headers_prefix.clone(),
            },
            service_account_keys: keys.collect::<anyhow::Result<_>>()?,
            service_account_issuers: self
                .service_account_issuer
                .iter()
                .skip(1)
                .cloned()
                .collect(),
            secret_token_lookup: self.service_account_lookup,
            jwks_uri: self
                .service_account_jwks_uri
                .clone()
                .filter(|uri| !uri.is_empty()),
            bootstrap_tokens: self.enable_bootstrap_token_auth,
            token_file: token_file
                .map(|text| TokenFile::parse(&text).context("--token-auth-file"))
                .transpose()?,
            jwt: Vec::new(),
            config_file: self.authentication_config.clone(),
            webhook: webhook.map(|kubeconfig| TokenWebhookSettings {
                kubeconfig: kubeconfig.clone(),
                version: if self.authentication_token_webhook_version == "v1" {
                    "v1"
                } else {
                    "v1beta1"
                },
                cache_ttl: self.authentication_token_webhook_cache_ttl,
            }),
        };
        let disallowed = &self.service_account_issuer;
        if let Some(path) = &self.authentication_config {
            if self.oidc_issuer_url.is_some() {
                bail!("authentication-config file and oidc-* flags are mutually exclusive");
            }
            let config = AuthenticationConfiguration::parse(&read(path)?, disallowed)
                .with_context(|| path.display().to_string())?;
            if let Some(anonymous) = config.anonymous {
                settings.anonymous = anonymous;
            }
            settings.jwt = config.jwt;
        } else if let Some(url) = &self.oidc_issuer_url {
            settings.jwt = vec![self.oidc(url)?];
            let mut errors = Errors::default();
            validate_all(&settings.jwt, disallowed, &mut errors);
            if let Some(all) = crate::validation::sentence(&errors) {
                bail!("--oidc-issuer-url: {all}");
            }
        }
        Ok(settings)
    }

    /// What the flags about service accounts' tokens must be like.
    fn check(&self) -> anyhow::Result<()> {
        let issuers = &self.service_account_issuer;
        for (i, issuer) in issuers.iter().enumerate() {
            if issuer.is_empty() {
                bail!("service-account-issuer should not be an empty string");
            }
            if issuer.contains(':')
                && let Err(why) = Url::parse(issuer)
            {
                bail!(
                    "service-account-issuer {issuer:?} contained a ':' but was not a valid URL: {why}"
                );
            }
            if issuers[..i].contains(issuer) {
                bail!("service-account-issuer {issuer:?} is already specified");
            }
        }
        let jwks_uri = self.service_account_jwks_uri.as_deref();
        if let Some(uri) = jwks_uri.filter(|uri| !uri.is_empty()) {
            match Url::parse(uri) {
                Err(why) => bail!("service-account-jwks-uri must be a valid URL: {why}"),
                Ok(url) if url.scheme != "https" => {
                    bail!("service-account-jwks-uri requires https scheme, parsed as: {uri}")
                }
                Ok(_) => {}
            }
        }
        self.token_lifetimes.check()
    }

    /// The flags for one issuer as an authenticator of a configuration.
    fn oidc(&self, url: &str) -> anyhow::Result<JwtAuthenticator> {
        let claim = self.oidc_username_claim.as_str();
        let prefix = match self.oidc_username_prefix.as_deref() {
            Some("-") => String::new(),
            None | Some("") if claim == "email" => String::new(),
            None | Some("") => format!("{url}#"),
            Some(prefix) => prefix.to_owned(),
        };
        let groups = self.oidc_groups_claim.as_ref();
        let groups = groups.map(|claim| Mapping {
            claim: claim.clone(),
            prefix: Some(self.oidc_groups_prefix.clone()),
            ..Mapping::default()
        });
        let required = self.oidc_required_claim.iter().map(|pair| {
            let (claim, value) = pair
                .split_once('=')
                .with_context(|| format!("--oidc-required-claim: {pair:?} is not key=value"))?;
            Ok(ClaimValidationRule {
                claim: claim.to_owned(),
                required_value: value.to_owned(),
                ..ClaimValidationRule::default()
            })
        });
        Ok(JwtAuthenticator {
            issuer: Issuer {
                url: url.to_owned(),
                audiences: self.oidc_client_id.iter().cloned().collect(),
                certificate_authority: self
                    .oidc_ca_file
                    .as_deref()
                    .map(read)
                    .transpose()?
                    .unwrap_or_default(),
                ..Issuer::default()
            },
            claim_mappings: ClaimMappings {
                username: Mapping {
                    claim: claim.to_owned(),
                    prefix: Some(prefix),
                    ..Mapping::default()
                },
                groups: groups.unwrap_or_default(),
                ..ClaimMappings::default()
            },
            claim_validation_rules: required.collect::<anyhow::Result<_>>()?,
            signing_algorithms: self.oidc_signing_algs.clone(),
            ..JwtAuthenticator::default()
        })
    }

    /// Nobody is anonymous where everybody may do everything.
    pub(super) fn without_anonymous(settings: &mut Settings) {
        if settings.anonymous.enabled {
            tracing::warn!(
                "AnonymousAuth is not allowed with the AlwaysAllow authorizer. Resetting AnonymousAuth to false. You should use a different authorizer"
            );
            settings.anonymous.enabled = false;
        }
    }
}

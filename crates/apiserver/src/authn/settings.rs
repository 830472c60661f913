//! How users are found out.

use std::path::PathBuf;

use super::jwt::JwtAuthenticator;
use super::{Anonymous, FrontProxy, TokenFile, TokenWebhookSettings};

/// Everything about authentication but the authorities and the signing key.
#[derive(Clone, Debug)]
pub struct Settings {
    pub anonymous: Anonymous,
    pub front_proxy: FrontProxy,
    /// PEM texts of the keys that verify service-account tokens; the signing key does when there are none.
    pub service_account_keys: Vec<String>,
    /// Issuers of older service-account tokens, which are still good.
    pub service_account_issuers: Vec<String>,
    /// Whether the tokens of Secrets must be those that their Secrets have now.
    pub secret_token_lookup: bool,
    /// Where the public keys are said to be, when it is not this server.
    pub jwks_uri: Option<String>,
    pub bootstrap_tokens: bool,
    pub token_file: Option<TokenFile>,
    pub jwt: Vec<JwtAuthenticator>,
    /// The file that issuers are read from again when it changes.
    pub config_file: Option<PathBuf>,
    pub webhook: Option<TokenWebhookSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            anonymous: Anonymous::default(),
            front_proxy: FrontProxy::default(),
            service_account_keys: Vec::new(),
            service_account_issuers: Vec::new(),
            secret_token_lookup: true,
            jwks_uri: None,
            bootstrap_tokens: true,
            token_file: None,
            jwt: Vec::new(),
            config_file: None,
            webhook: None,
        }
    }
}

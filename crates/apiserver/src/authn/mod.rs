//! Authentication: who makes a request. A front proxy's word, a client certificate and a bearer token are tried in this
//! order; the first that is good counts. A request with nothing but bad credentials is refused, one without any is
//! anonymous, where that is allowed.

mod anonymous;
mod bootstrap_token;
mod impersonation;
pub mod jwt;
mod request_header;
mod secret_token;
mod service_account;
mod settings;
mod token_file;
mod webhook;
mod websocket;
mod x509;

use std::sync::Arc;

use fluyt_api::Error;
use http::header::{self, HeaderMap, SEC_WEBSOCKET_PROTOCOL};
use http::request::Parts;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::cache::Caches;
use crate::dial::ControlPlane;
use crate::tokens::Tokens;
use crate::user::{AUTHENTICATED, UNAUTHENTICATED, User};

pub use anonymous::Anonymous;
pub use impersonation::{Impersonated, impersonate};
pub use request_header::FrontProxy;
pub use secret_token::Uses;
pub(crate) use secret_token::begin_tracking;
pub use service_account::{Authenticated, StaleToken};
pub use settings::Settings;
pub use token_file::TokenFile;
pub use webhook::TokenWebhookSettings;
pub use x509::{ClientCertificates, PeerCertificates};

use jwt::{AuthenticationConfiguration, Issuers};
use secret_token::SecretTokens;
use service_account::ServiceAccounts;
use webhook::TokenWebhook;

/// Finds out who makes a request.
pub struct Authenticator {
    caches: Arc<Caches>,
    certificates: ClientCertificates,
    front_proxy: FrontProxy,
    front_proxy_certificates: ClientCertificates,
    service_accounts: ServiceAccounts,
    secret_tokens: SecretTokens,
    token_file: Option<TokenFile>,
    bootstrap_tokens: bool,
    issuers: Issuers,
    webhook: Option<TokenWebhook>,
    anonymous: RwLock<Anonymous>,
    audiences: Vec<String>,
}

/// The authorities and keys that credentials are verified with.
pub struct Trusted {
    pub clients: ClientCertificates,
    pub front_proxies: ClientCertificates,
    pub tokens: Arc<Tokens>,
}

impl Authenticator {
    /// It tells which tokens of Secrets are used.
    ///
    /// # Errors
    /// When an issuer or a webhook's kubeconfig cannot be used.
    pub fn new(
        caches: Arc<Caches>,
        trusted: Trusted,
        issuer: &str,
        audiences: Vec<String>,
        settings: &Settings,
        network: &ControlPlane,
        shutdown: CancellationToken,
    ) -> anyhow::Result<(Self, Uses)> {
        let issuers = std::iter::once(issuer.to_owned())
            .chain(settings.service_account_issuers.iter().cloned())
            .collect();
        let keys = trusted.tokens;
        let (secret_tokens, uses) =
            SecretTokens::new(caches.clone(), keys.clone(), settings.secret_token_lookup);
        let authenticator = Self {
            service_accounts: ServiceAccounts::new(caches.clone(), keys, issuers),
            secret_tokens,
            caches,
            certificates: trusted.clients,
            front_proxy: settings.front_proxy.clone(),
            front_proxy_certificates: trusted.front_proxies,
            token_file: settings.token_file.clone(),
            bootstrap_tokens: settings.bootstrap_tokens,
            issuers: Issuers::new(&settings.jwt, shutdown)?,
            webhook: settings
                .webhook
                .as_ref()
                .map(|webhook| TokenWebhook::new(webhook, network))
                .transpose()?,
            anonymous: RwLock::new(settings.anonymous.clone()),
            audiences,
        };
        Ok((authenticator, uses))
    }

    /// Takes over a configuration that has changed.
    ///
    /// # Errors
    /// When an issuer is not usable; then everything stays as it is.
    pub fn install(&self, config: AuthenticationConfiguration) -> anyhow::Result<()> {
        self.issuers.install(&config.jwt)?;
        if let Some(anonymous) = config.anonymous {
            *self.anonymous.write() = anonymous;
        }
        Ok(())
    }

    /// The user of a request. What has served as credentials is gone from its headers afterwards.
    ///
    /// # Errors
    /// Unauthorized when it carries credentials that are not good, or none where they are needed.
    pub async fn authenticate(&self, parts: &mut Parts) -> Result<User, Error> {
        // Components in this process bring their identity along; it cannot come over a connection.
        if let Some(user) = parts.extensions.remove::<User>() {
            return Ok(user);
        }
        let mut errors = Vec::new();
        if let Some(mut user) = self.credentials(parts, &mut errors).await {
            parts.headers.remove(header::AUTHORIZATION);
            self.front_proxy.clear(&mut parts.headers);
            if !user.is_in(AUTHENTICATED) && !user.is_in(UNAUTHENTICATED) {
                user.groups.push(AUTHENTICATED.to_owned());
            }
            return Ok(user);
        }
        self.front_proxy.clear(&mut parts.headers);
        if errors.is_empty() && self.anonymous.read().allows(parts.uri.path()) {
            parts.headers.remove(header::AUTHORIZATION);
            return Ok(User::anonymous());
        }
        if !errors.is_empty() {
            tracing::debug!(?errors, "Unable to authenticate the request");
        }
        Err(Error::unauthorized())
    }

    async fn credentials(&self, parts: &mut Parts, errors: &mut Vec<String>) -> Option<User> {
        if let Some(peer) = parts.extensions.get::<PeerCertificates>()
            && !peer.is_empty()
        {
            let certificates = &self.front_proxy_certificates;
            let proxied = self.front_proxy.user(peer, certificates, &parts.headers);
            let own = || peer.client(&self.certificates);
            match proxied.and_then(|user| user.map_or_else(own, |user| Ok(Some(user)))) {
                Ok(Some(user)) => return Some(user),
                Ok(None) => {}
                Err(why) => match own() {
                    Ok(Some(user)) => return Some(user),
                    Ok(None) => errors.push(why),
                    Err(own) => errors.extend([why, own]),
                },
            }
        }
        if let Some(token) = bearer(&parts.headers) {
            match self.token(token, &self.audiences).await {
                Ok(found) => return Some(found.into_user(parts)),
                Err(why) => errors.push(why),
            }
        }
        match websocket::token(&parts.headers) {
            Ok(Some((token, rest))) => match self.token(&token, &self.audiences).await {
                Ok(found) => {
                    parts.headers.insert(SEC_WEBSOCKET_PROTOCOL, rest);
                    return Some(found.into_user(parts));
                }
                Err(why) => errors.push(why),
            },
            Ok(None) => {}
            Err(why) => errors.push(why),
        }
        None
    }

    /// The user of a bearer token that is meant for one of `audiences`.
    ///
    /// # Errors
    /// Why nobody vouches for it.
    pub async fn token(&self, token: &str, audiences: &[String]) -> Result<Authenticated, String> {
        // Tokens that name no audience of this kind are for this server.
        let ours = self.audiences.iter().filter(|a| audiences.contains(a));
        let ours: Vec<String> = ours.cloned().collect();
        let local = |user: User| Authenticated {
            user,
            audiences: ours.clone(),
            stale: None,
        };
        if !ours.is_empty()
            && let Some(user) = self.token_file.as_ref().and_then(|file| file.user(token))
        {
            return Ok(with_group(local(user.clone())));
        }
        let mut errors = Vec::new();
        match self.service_accounts.authenticate(token, audiences).await {
            Some(Ok(found)) => return Ok(with_group(found)),
            Some(Err(why)) => errors.push(why),
            None => {}
        }
        if !ours.is_empty() {
            match self.secret_tokens.authenticate(token).await {
                Some(Ok(user)) => return Ok(with_group(local(user))),
                Some(Err(why)) => errors.push(why),
                None => {}
            }
        }
        if self.bootstrap_tokens
            && !ours.is_empty()
            && let Some(user) = bootstrap_token::user(&self.caches, token)
        {
            return Ok(with_group(local(user)));
        }
        if !ours.is_empty() {
            match self.issuers.authenticate(token).await {
                Some(Ok(user)) => return Ok(with_group(local(user))),
                Some(Err(why)) => errors.push(why),
                None => {}
            }
        }
        if let Some(webhook) = &self.webhook {
            match webhook.authenticate(token, audiences).await {
                Ok(found) => return Ok(with_group(found)),
                Err(why) if why.is_empty() => {}
                Err(why) => errors.push(why),
            }
        }
        Err(crate::authz::aggregate(errors).unwrap_or_else(|| "invalid bearer token".into()))
    }

    #[must_use]
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }
}

impl Authenticated {
    /// The user; what the record shall say of the token goes with the request.
    fn into_user(self, parts: &mut Parts) -> User {
        if let Some(stale) = self.stale {
            parts.extensions.insert(stale);
        }
        self.user
    }
}

fn with_group(mut found: Authenticated) -> Authenticated {
    if !found.user.is_in(AUTHENTICATED) {
        found.user.groups.push(AUTHENTICATED.into());
    }
    found
}

/// The token of `Authorization: Bearer`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|t| !t.is_empty())
}

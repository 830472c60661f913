//! Authentication: client certificates, service-account tokens, bootstrap tokens, and in-process identities.

mod bootstrap_token;
mod service_account;
mod x509;

use std::sync::Arc;

use fluyt_api::Error;
use fluyt_pki::TokenKeys;
use http::header;
use http::request::Parts;
use rustls_pki_types::CertificateDer;

use crate::cache::Caches;
use crate::user::User;

pub use service_account::Authenticated;
pub use x509::ClientCertificates;

/// The certificates that a connection's peer presented.
#[derive(Clone, Debug)]
pub struct PeerCertificates(pub Arc<[CertificateDer<'static>]>);

/// Finds out who makes a request.
pub struct Authenticator {
    caches: Arc<Caches>,
    certificates: ClientCertificates,
    tokens: Arc<TokenKeys>,
    issuer: String,
    audiences: Vec<String>,
}

impl Authenticator {
    #[must_use]
    pub fn new(
        caches: Arc<Caches>,
        certificates: ClientCertificates,
        tokens: Arc<TokenKeys>,
        issuer: String,
        audiences: Vec<String>,
    ) -> Self {
        Self {
            caches,
            certificates,
            tokens,
            issuer,
            audiences,
        }
    }

    /// The user of a request; anonymous when it carries no credentials.
    ///
    /// # Errors
    /// Unauthorized when it carries credentials that are not good.
    pub async fn authenticate(&self, parts: &Parts) -> Result<User, Error> {
        // Components in this process bring their identity along; it cannot come over a connection.
        if let Some(user) = parts.extensions.get::<User>() {
            return Ok(user.clone());
        }
        if let Some(token) = bearer(parts) {
            return self
                .token(token, &self.audiences)
                .await
                .map(|a| a.user)
                .ok_or_else(Error::unauthorized);
        }
        if let Some(PeerCertificates(chain)) = parts.extensions.get::<PeerCertificates>()
            && !chain.is_empty()
        {
            return self
                .certificates
                .user(chain)
                .ok_or_else(Error::unauthorized);
        }
        Ok(User::anonymous())
    }

    /// The user of a bearer token that is meant for one of `audiences`.
    pub async fn token(&self, token: &str, audiences: &[String]) -> Option<Authenticated> {
        if let Some(user) = bootstrap_token::user(&self.caches, token) {
            return Some(Authenticated {
                user,
                audiences: audiences.to_vec(),
            });
        }
        // A token made a moment ago may be bound to objects made a moment ago.
        self.caches.consistent().await.ok()?;
        service_account::user(&self.caches, &self.tokens, &self.issuer, token, audiences)
    }

    #[must_use]
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }
}

/// The token of `Authorization: Bearer`, or of the WebSocket sub-protocol that browsers use instead.
fn bearer(parts: &Parts) -> Option<&str> {
    let value = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|t| !t.is_empty())
}

//! What signs and verifies service-account tokens: a key of the server's own, or a program that keeps the keys.

mod signer;

use std::sync::Arc;

use fluyt_pki::{Claims, SecretClaims, TokenKeys};
use serde_json::Value;

pub use signer::Signer;

/// How service-account tokens are signed.
#[derive(Clone)]
pub enum Signing {
    /// With this private key, PEM.
    Key(String),
    /// By whom it is asked to.
    External(Arc<Signer>),
}

/// The keys of service-account tokens.
pub enum Tokens {
    Own(Box<TokenKeys>),
    External(Arc<Signer>),
}

impl Tokens {
    /// With these PEM texts' keys to verify with, where that is not left to others.
    ///
    /// # Errors
    /// When one of them has no key.
    pub fn new(signing: &Signing, verifying: &[String]) -> anyhow::Result<Self> {
        Ok(match signing {
            Signing::Key(pem) => {
                let keys = TokenKeys::load(pem)?.verified_by(verifying)?;
                Self::Own(Box::new(keys))
            }
            Signing::External(signer) => Self::External(signer.clone()),
        })
    }

    /// Signs a token.
    ///
    /// # Errors
    /// When the signer does not, or not as it should.
    pub async fn sign(&self, claims: &Claims) -> Result<String, String> {
        match self {
            Self::Own(keys) => keys.sign(claims).map_err(|error| error.to_string()),
            Self::External(signer) => signer.sign(claims).await,
        }
    }

    /// Checks signature and times; audiences and bound objects are the caller's to check.
    ///
    /// # Errors
    /// When the token is malformed, expired, not yet valid, or signed by an unknown key.
    pub async fn verify(&self, token: &str) -> Result<Claims, String> {
        let verified = match self {
            Self::Own(keys) => keys.verify(token),
            Self::External(signer) => signer.keys_for(token).await.verify(token),
        };
        verified.map_err(|error| error.to_string())
    }

    /// Checks the signature of a Secret's token.
    ///
    /// # Errors
    /// When the token is malformed or signed by an unknown key.
    pub async fn verify_of_secret(&self, token: &str) -> Result<SecretClaims, String> {
        let verified = match self {
            Self::Own(keys) => keys.verify_of_secret(token),
            Self::External(signer) => signer.keys_for(token).await.verify_of_secret(token),
        };
        verified.map_err(|error| error.to_string())
    }

    /// The names of the algorithms that tokens may be signed with.
    #[must_use]
    pub fn algorithms(&self) -> Vec<&'static str> {
        match self {
            Self::Own(keys) => keys.verifying().algorithms(),
            Self::External(signer) => signer.keys().algorithms(),
        }
    }

    /// The public keys as a JSON Web Key Set.
    #[must_use]
    pub fn jwks(&self) -> Value {
        match self {
            Self::Own(keys) => keys.jwks(),
            Self::External(signer) => signer.keys().jwks(),
        }
    }

    /// How many seconds the set may be kept.
    #[must_use]
    pub fn max_age(&self) -> u64 {
        match self {
            Self::Own(_) => 3600,
            Self::External(signer) => signer.max_age(),
        }
    }

    /// The Prometheus text format.
    pub fn render_metrics(&self, out: &mut String) {
        if let Self::External(signer) = self {
            out.push_str(&signer.render_metrics());
        }
    }
}

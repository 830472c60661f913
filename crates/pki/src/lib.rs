//! Certificate authorities, certificates and service-account tokens.

mod authority;
mod public_key;
mod tokens;

pub use authority::{Authority, Identity, Issued, Usage};
pub use public_key::PublicKey;
pub use tokens::{
    Claims, KubernetesClaims, NamedReference, PodReference, SecretClaims, TokenKeys, VerifyingKeys,
    key_id,
};

/// Why a key, certificate or token could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("certificate: {0}")]
    Parse(String),
    #[error("token: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
    #[error("PEM: {0}")]
    Pem(String),
}

//! Tokens of OpenID Connect issuers: several of them, each with its own audiences, keys and rules.

mod claims;
mod config;
mod distributed;
mod issuer;

use std::sync::Arc;

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::user::User;

pub use claims::Mapping;
pub use config::{
    AuthenticationConfiguration, ClaimMappings, ClaimValidationRule, Issuer, JwtAuthenticator,
    validate_all,
};

pub use issuer::untrusted_issuer;

use issuer::Verifier;

/// The issuers that are believed at this moment.
pub struct Issuers {
    verifiers: RwLock<Arc<[Arc<Verifier>]>>,
    shutdown: CancellationToken,
}

impl Issuers {
    /// # Errors
    /// When an issuer's configuration is not usable.
    pub fn new(list: &[JwtAuthenticator], shutdown: CancellationToken) -> anyhow::Result<Self> {
        let issuers = Self {
            verifiers: RwLock::new(Arc::new([])),
            shutdown,
        };
        issuers.install(list)?;
        Ok(issuers)
    }

    /// Replaces the issuers. Tokens of the new ones are good as soon as their keys have been fetched.
    ///
    /// # Errors
    /// When one is not usable; then the old ones stay.
    pub fn install(&self, list: &[JwtAuthenticator]) -> anyhow::Result<()> {
        let mut verifiers = Vec::new();
        for authenticator in list {
            verifiers.push(Arc::new(Verifier::new(authenticator)?));
        }
        for verifier in &verifiers {
            issuer::discover(verifier.clone(), self.shutdown.child_token());
        }
        let old = std::mem::replace(&mut *self.verifiers.write(), verifiers.into());
        for verifier in &*old {
            verifier.retire();
        }
        Ok(())
    }

    /// The user of a token; `None` when it is of no issuer known here.
    pub async fn authenticate(&self, token: &str) -> Option<Result<User, String>> {
        let verifiers = self.verifiers.read().clone();
        if verifiers.is_empty() {
            return None;
        }
        let issuer = issuer::untrusted_issuer(token)?;
        let verifier = verifiers.iter().find(|v| v.is_of(&issuer))?;
        Some(verifier.authenticate(token).await)
    }
}

//! Client certificates: the common name is the user, the organizations are the groups.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::user::{AUTHENTICATED, User};

/// Verifies client certificates against the cluster's authority.
pub struct ClientCertificates {
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl ClientCertificates {
    /// Trusts `roots`; with none, no certificate is good.
    ///
    /// # Errors
    /// When a root is not a usable authority.
    pub fn new(roots: RootCertStore) -> anyhow::Result<Self> {
        if roots.is_empty() {
            return Ok(Self { verifier: None });
        }
        Ok(Self {
            verifier: Some(WebPkiClientVerifier::builder(Arc::new(roots)).build()?),
        })
    }

    /// The user that a certificate names, if it is valid.
    #[must_use]
    pub fn user(&self, chain: &[CertificateDer<'static>]) -> Option<User> {
        let (end_entity, intermediates) = chain.split_first()?;
        let verifier = self.verifier.as_ref()?;
        verifier
            .verify_client_cert(end_entity, intermediates, UnixTime::now())
            .ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(end_entity).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> = subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok())
            .map(str::to_owned)
            .collect();
        groups.push(AUTHENTICATED.to_owned());
        (!name.is_empty()).then(|| User {
            name,
            groups,
            ..User::default()
        })
    }
}

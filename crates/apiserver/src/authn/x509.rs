//! Client certificates: the common name is the user, the organizations are the groups.

use std::sync::{Arc, OnceLock};

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest as _, Sha256};

use crate::user::{CREDENTIAL_ID, User};

/// Where a certificate may carry the user's uid.
const UID: &str = "1.3.6.1.4.1.57683.2";

/// The certificates that a connection's peer presented, and what has been found out about them.
#[derive(Clone, Debug)]
pub struct PeerCertificates {
    chain: Arc<[CertificateDer<'static>]>,
    client: Arc<OnceLock<Result<Certified, String>>>,
    front_proxy: Arc<OnceLock<Result<Certified, String>>>,
}

/// A certificate that an authority vouches for.
#[derive(Clone, Debug)]
pub struct Certified {
    pub common_name: String,
    user: Option<User>,
    /// Seconds since the epoch.
    until: i64,
}

/// Verifies client certificates against the cluster's authority.
pub struct ClientCertificates {
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

// === impl PeerCertificates ===

impl PeerCertificates {
    #[must_use]
    pub fn new(chain: Arc<[CertificateDer<'static>]>) -> Self {
        Self {
            chain,
            client: Arc::default(),
            front_proxy: Arc::default(),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chain.is_empty()
    }

    /// The certificate as the cluster's authority sees it. Verified once for a connection; its end is looked at each time.
    ///
    /// # Errors
    /// When nobody vouches for it, or not any more.
    pub fn client(&self, certificates: &ClientCertificates) -> Result<Option<User>, String> {
        let verified = self.client.get_or_init(|| certificates.verify(&self.chain));
        current(verified).map(|certified| certified.user.clone())
    }

    /// The certificate as the front proxies' authority sees it.
    ///
    /// # Errors
    /// As [`Self::client`].
    pub fn front_proxy(&self, certificates: &ClientCertificates) -> Result<&Certified, String> {
        let verified = self
            .front_proxy
            .get_or_init(|| certificates.verify(&self.chain));
        current(verified)
    }
}

fn current(verified: &Result<Certified, String>) -> Result<&Certified, String> {
    let certified = verified.as_ref().map_err(Clone::clone)?;
    if certified.until < jiff::Timestamp::now().as_second() {
        return Err("x509: certificate has expired or is not yet valid".into());
    }
    Ok(certified)
}

// === impl ClientCertificates ===

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

    fn verify(&self, chain: &[CertificateDer<'static>]) -> Result<Certified, String> {
        let (end_entity, intermediates) = chain.split_first().ok_or("no certificate")?;
        let verifier = self
            .verifier
            .as_ref()
            .ok_or("x509: certificate signed by unknown authority")?;
        verifier
            .verify_client_cert(end_entity, intermediates, UnixTime::now())
            .map_err(|e| format!("verifying certificate failed: {e}"))?;
        let (_, certificate) =
            x509_parser::parse_x509_certificate(end_entity).map_err(|e| e.to_string())?;
        let subject = certificate.subject();
        let common_name = subject
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .unwrap_or_default()
            .to_owned();
        let uid = subject
            .iter_attributes()
            .find(|attribute| attribute.attr_type().to_id_string() == UID)
            .and_then(|attribute| attribute.as_str().ok())
            .unwrap_or_default();
        let groups = subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok())
            .map(str::to_owned)
            .collect();
        let digest = hex(&Sha256::digest(end_entity));
        // A certificate without a common name names nobody.
        let user = (!common_name.is_empty()).then(|| User {
            name: common_name.clone(),
            uid: uid.to_owned(),
            groups,
            extra: [(CREDENTIAL_ID.into(), vec![format!("X509SHA256={digest}")])].into(),
        });
        Ok(Certified {
            common_name,
            user,
            until: certificate.validity().not_after.timestamp(),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

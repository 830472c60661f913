//! A cluster's own certificate authority.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use crate::Error;

/// Certificates are valid from a little earlier, for clocks that run behind.
const BACKDATE: Duration = Duration::minutes(5);

const AUTHORITY_VALIDITY: Duration = Duration::days(3650);

/// A self-signed authority with its key.
pub struct Authority {
    certificate_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Whom a certificate names.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// The user name in Kubernetes' terms.
    pub common_name: String,
    /// The groups.
    pub organizations: Vec<String>,
    pub dns_names: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
    /// A server that is also a client, as a kubelet's peer is.
    Both,
}

/// A certificate with its private key, PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Authority {
    /// Makes a new authority.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn create(common_name: &str) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        (params.not_before, params.not_after) = validity(AUTHORITY_VALIDITY);
        let certificate = params.self_signed(&key)?;
        let key_pem = key.serialize_pem();
        let certificate_pem = certificate.pem();
        Ok(Self {
            issuer: Issuer::from_ca_cert_pem(&certificate_pem, key)?,
            certificate_pem,
            key_pem,
        })
    }

    /// Reads an authority back.
    ///
    /// # Errors
    /// When either PEM is malformed.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(key_pem)?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_pem(certificate_pem, key)?,
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        })
    }

    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Issues a certificate with a fresh key.
    ///
    /// # Errors
    /// When a DNS name is not one.
    pub fn issue(&self, identity: &Identity, usage: Usage, days: i64) -> Result<Issued, Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for organization in &identity.organizations {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organization.as_str());
        }
        params
            .distinguished_name
            .push(DnType::CommonName, identity.common_name.as_str());
        for name in &identity.dns_names {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into()?));
        }
        params
            .subject_alt_names
            .extend(identity.addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = purposes(usage);
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(Duration::days(days));
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Signs a certificate request as it stands (subject and alternative names), for `seconds`.
    ///
    /// # Errors
    /// When the request is malformed or its signature is wrong.
    pub fn sign_request(
        &self,
        request_pem: &str,
        usage: Usage,
        seconds: i64,
    ) -> Result<String, Error> {
        let mut request = CertificateSigningRequestParams::from_pem(request_pem)?;
        request.params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        request.params.extended_key_usages = purposes(usage);
        request.params.is_ca = IsCa::ExplicitNoCa;
        (request.params.not_before, request.params.not_after) =
            validity(Duration::seconds(seconds));
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

fn purposes(usage: Usage) -> Vec<ExtendedKeyUsagePurpose> {
    match usage {
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Usage::Both => vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ],
    }
}

fn validity(lasting: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BACKDATE, now + lasting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::*;

    #[test]
    fn certificates_carry_the_identity_and_verify_against_the_authority() {
        let authority = Authority::create("test").unwrap();
        let authority = Authority::load(authority.certificate_pem(), authority.key_pem()).unwrap();
        let identity = Identity {
            common_name: "system:node:a".into(),
            organizations: vec!["system:nodes".into()],
            dns_names: vec!["a".into()],
            addresses: vec!["127.0.0.1".parse().unwrap()],
        };
        let issued = authority.issue(&identity, Usage::Both, 1).unwrap();
        let (_, pem) = parse_x509_pem(issued.certificate_pem.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert_eq!(
            certificate
                .subject()
                .iter_common_name()
                .next()
                .unwrap()
                .as_str()
                .unwrap(),
            "system:node:a"
        );
        assert_eq!(
            certificate
                .subject()
                .iter_organization()
                .next()
                .unwrap()
                .as_str()
                .unwrap(),
            "system:nodes"
        );
        let (_, ca) = parse_x509_pem(authority.certificate_pem().as_bytes()).unwrap();
        let ca = ca.parse_x509().unwrap();
        assert!(certificate.verify_signature(Some(ca.public_key())).is_ok());
    }

    #[test]
    fn requests_are_signed_only_when_well_formed() {
        let authority = Authority::create("test").unwrap();
        assert!(
            authority
                .sign_request("nonsense", Usage::Client, 600)
                .is_err()
        );
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "system:node:a");
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let certificate = authority
            .sign_request(&request, Usage::Client, 600)
            .unwrap();
        let (_, pem) = parse_x509_pem(certificate.as_bytes()).unwrap();
        assert!(!pem.parse_x509().unwrap().is_ca());
    }
}

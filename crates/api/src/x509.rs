//! Certificates, requests for them and public keys, as far as validation looks into them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

/// A block of PEM text.
#[derive(Debug)]
pub struct Block {
    pub label: String,
    /// Lines like `Proc-Type: …` come before the content.
    pub has_headers: bool,
    pub content: Vec<u8>,
}

/// The blocks of a PEM text; what is between them, and blocks that are malformed, is passed over.
#[must_use]
pub fn pem_blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("-----BEGIN ") {
        rest = &rest[start + "-----BEGIN ".len()..];
        let Some((label, after)) = rest.split_once("-----") else {
            break;
        };
        let end = format!("-----END {label}-----");
        let Some(length) = after.find(&end).filter(|_| !label.contains('\n')) else {
            continue;
        };
        let body = &after[..length];
        let has_headers = body.lines().any(|line| line.contains(':'));
        let lines = body.lines().filter(|line| !line.contains(':'));
        let encoded: String = lines.flat_map(str::split_whitespace).collect();
        if let Ok(content) = BASE64.decode(encoded) {
            blocks.push(Block {
                label: label.to_owned(),
                has_headers,
                content,
            });
            rest = &after[length + end.len()..];
        }
    }
    blocks
}

/// Whether a certificate is one of an authority; `None` when it is no certificate.
#[must_use]
pub fn is_authority(der: &[u8]) -> Option<bool> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    rest.is_empty().then(|| certificate.is_ca())
}

/// What validation asks of a certificate.
#[derive(Debug)]
pub struct Leaf {
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    pub dns_names: Vec<String>,
    /// The key, in the form in which it is compared.
    pub public_key: Vec<u8>,
}

impl Leaf {
    /// `None` when the bytes are no certificate.
    #[must_use]
    pub fn parse(der: &[u8]) -> Option<Self> {
        use x509_parser::extensions::GeneralName;
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.into_iter().flat_map(|n| &n.value.general_names);
        let dns_names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        Some(Self {
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            dns_names: dns_names.collect(),
            public_key: certificate.public_key().raw.to_vec(),
        })
    }
}

/// A kind of public key with what matters of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ed25519,
    P256,
    P384,
    P521,
    /// A curve that nobody may use, by Go's name.
    OtherCurve(&'static str),
    /// With the size of its modulus in bits.
    Rsa(usize),
    Other,
}

/// A public key.
#[derive(Debug)]
pub struct PublicKey {
    pub kind: Kind,
    /// Its `SubjectPublicKeyInfo`.
    pub der: Vec<u8>,
    bits: Vec<u8>,
}

impl PublicKey {
    /// From a `SubjectPublicKeyInfo`; `None` when it is malformed.
    #[must_use]
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (rest, info) = SubjectPublicKeyInfo::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        Self::of(&info)
    }

    fn of(info: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        let kind = if info.algorithm.algorithm.to_id_string() == "1.3.101.112" {
            Kind::Ed25519
        } else {
            match info.parsed().ok()? {
                Parsed::RSA(key) => Kind::Rsa(key.key_size()),
                Parsed::EC(_) => curve(info)?,
                _ => Kind::Other,
            }
        };
        Some(Self {
            kind,
            der: info.raw.to_vec(),
            bits: info.subject_public_key.data.to_vec(),
        })
    }

    /// Whether the key has signed a message: as it is with Ed25519, its SHA-256 digest with others; RSA by PSS.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signed: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match self.kind {
            Kind::Ed25519 => &signature::ED25519,
            Kind::P256 => &signature::ECDSA_P256_SHA256_ASN1,
            Kind::P384 => &signature::ECDSA_P384_SHA256_ASN1,
            Kind::Rsa(_) => &signature::RSA_PSS_2048_8192_SHA256,
            _ => return false,
        };
        let key = UnparsedPublicKey::new(algorithm, &self.bits);
        key.verify(message, signed).is_ok()
    }
}

/// The curve that a key's parameters name.
fn curve(info: &SubjectPublicKeyInfo<'_>) -> Option<Kind> {
    let parameters = info.algorithm.parameters.as_ref()?;
    Some(match parameters.as_oid().ok()?.to_id_string().as_str() {
        "1.2.840.10045.3.1.7" => Kind::P256,
        "1.3.132.0.34" => Kind::P384,
        "1.3.132.0.35" => Kind::P521,
        "1.3.132.0.33" => Kind::OtherCurve("P-224"),
        _ => return None,
    })
}

/// A request for a certificate.
#[derive(Debug)]
pub struct Request {
    pub key: PublicKey,
    /// It is signed with its key.
    pub is_signed: bool,
}

impl Request {
    /// From PKCS#10; `None` when it is malformed.
    #[must_use]
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (rest, request) = X509CertificationRequest::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        Some(Self {
            key: PublicKey::of(&request.certification_request_info.subject_pki)?,
            is_signed: request.verify_signature().is_ok(),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An authority's certificate.
    pub(crate) const AUTHORITY: &str = include_str!("x509/authority.pem");
    const SERVER: &str = include_str!("x509/server.pem");
    pub(crate) const REQUEST: &str = include_str!("x509/request.pem");

    fn content(pem: &str) -> Vec<u8> {
        pem_blocks(pem).remove(0).content
    }

    #[test]
    fn blocks_are_found_and_told_apart() {
        let text =
            format!("text\n{AUTHORITY}between\n{REQUEST}-----BEGIN X-----\n!\n-----END X-----\n");
        let labels: Vec<String> = pem_blocks(&text).into_iter().map(|b| b.label).collect();
        assert_eq!(labels, ["CERTIFICATE", "CERTIFICATE REQUEST"]);
        let header = AUTHORITY.replacen("-----\n", "-----\nProc-Type: 4\n\n", 1);
        assert!(pem_blocks(&header)[0].has_headers && !pem_blocks(AUTHORITY)[0].has_headers);
    }

    #[test]
    fn authorities_are_told_from_others() {
        assert_eq!(is_authority(&content(AUTHORITY)), Some(true));
        assert_eq!(is_authority(&content(SERVER)), Some(false));
        assert_eq!(is_authority(&content(REQUEST)), None);
        let leaf = Leaf::parse(&content(SERVER)).unwrap();
        assert_eq!(leaf.dns_names, ["a.example.com"]);
        assert!(leaf.not_after > leaf.not_before);
    }

    #[test]
    fn requests_are_signed() {
        let mut der = content(REQUEST);
        let request = Request::parse(&der).unwrap();
        assert!(request.is_signed);
        assert_eq!(request.key.kind, Kind::P256);
        assert_eq!(PublicKey::parse(&request.key.der).unwrap().kind, Kind::P256);
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(!Request::parse(&der).unwrap().is_signed);
        assert!(Request::parse(&content(SERVER)).is_none());
    }
}

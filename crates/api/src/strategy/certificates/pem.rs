//! What is in a request, and in a certificate.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::nom;
use x509_parser::oid_registry::{OID_SIG_ED25519, Oid};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::validation::quote;

const CERTIFICATE: &str = "CERTIFICATE";

const REQUEST: &str = "CERTIFICATE REQUEST";

/// RSA's signature algorithms.
const RSA: &str = "1.2.840.113549.1.1";

/// A part of a PEM text.
struct Block<'t> {
    label: &'t str,
    has_headers: bool,
    contents: Vec<u8>,
}

/// The blocks of a text. What is none is skipped.
fn blocks(text: &str) -> impl Iterator<Item = Block<'_>> {
    let mut lines = text.lines();
    std::iter::from_fn(move || {
        loop {
            let line = lines.next()?.trim_end();
            let label = line.strip_prefix("-----BEGIN ");
            let Some(label) = label.and_then(|l| l.strip_suffix("-----")) else {
                continue;
            };
            let mut rest = lines.clone();
            if let Some(block) = block(label, &mut rest) {
                lines = rest;
                return Some(block);
            }
        }
    })
}

/// The block that begins with a label, up to its end.
fn block<'t>(label: &'t str, lines: &mut std::str::Lines<'_>) -> Option<Block<'t>> {
    let (mut has_headers, mut encoded) = (false, String::new());
    for line in lines {
        let line = line.trim();
        if let Some(end) = line.strip_prefix("-----END ") {
            let contents = BASE64.decode(encoded).ok()?;
            return (end.strip_suffix("-----")? == label).then_some(Block {
                label,
                has_headers,
                contents,
            });
        }
        if line.contains(':') {
            has_headers = true;
        } else {
            encoded.push_str(line);
        }
    }
    None
}

/// Why DER is not what it should be.
fn asn1_problem(error: &nom::Err<X509Error>) -> String {
    match error {
        nom::Err::Incomplete(_) => "asn1: syntax error: data truncated".to_owned(),
        nom::Err::Error(error) | nom::Err::Failure(error) => {
            format!("asn1: structure error: {error}")
        }
    }
}

/// Why a text is no request for a certificate that its author has the key of.
pub(super) fn request_problem(text: &str) -> Option<String> {
    let Some(block) = blocks(text).next().filter(|b| b.label == REQUEST) else {
        return Some(format!("PEM block type must be {REQUEST}"));
    };
    if block.contents.is_empty() {
        return Some("asn1: syntax error: sequence truncated".to_owned());
    }
    let request = match X509CertificationRequest::from_der(&block.contents) {
        Ok((_, request)) => request,
        Err(error) => return Some(asn1_problem(&error)),
    };
    let algorithm = &request.signature_algorithm.algorithm;
    match request.verify_signature() {
        Ok(()) => None,
        Err(X509Error::SignatureUnsupportedAlgorithm) => {
            Some("x509: cannot verify signature: algorithm unimplemented".to_owned())
        }
        Err(_) => Some(signature_problem(algorithm)),
    }
}

fn signature_problem(algorithm: &Oid<'_>) -> String {
    if *algorithm == OID_SIG_ED25519 {
        "x509: Ed25519 verification failure".to_owned()
    } else if algorithm.to_id_string().starts_with(RSA) {
        "crypto/rsa: verification error".to_owned()
    } else {
        "x509: ECDSA verification failure".to_owned()
    }
}

/// Why a text is not a chain of certificates.
pub(super) fn certificate_problem(text: &str) -> Option<String> {
    let mut found = false;
    for block in blocks(text) {
        if block.label != CERTIFICATE {
            let other = quote(block.label);
            return Some(format!(
                "only {CERTIFICATE} PEM blocks are allowed, found {other}"
            ));
        }
        if block.has_headers {
            return Some("no PEM block headers are permitted".to_owned());
        }
        if X509Certificate::from_der(&block.contents).is_err() {
            return Some("x509: malformed certificate".to_owned());
        }
        found = true;
    }
    (!found).then(|| format!("must contain at least one {CERTIFICATE} PEM block"))
}

//! Requests for certificates of pods: what a node asks for, and what a signer answers.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::certificates::{is_kubernetes_signer, signer_name};
use super::template::projected::user_annotations;
use super::{Strategy, copy_field, keep_metadata, text};
use crate::validation::{At, Errors, conditions, dns_subdomain, internal};
use crate::x509::{self, Kind, Leaf, PublicKey, Request};

pub(super) struct PodCertificateRequest;

const MAX_UID: usize = 128;
const SHORTEST: i64 = 60 * 60;
const LONGEST: i64 = 91 * 24 * 60 * 60;
/// Of signers of Kubernetes itself.
const LONGEST_OF_OURS: i64 = 24 * 60 * 60;
const MAX_KEY: usize = 10 * 1024;
const MAX_CHAIN: usize = 100 * 1024;
/// How far the clocks of signers may be off, in seconds.
const SKEW: i64 = 5 * 60;
/// How far from both ends of its life a certificate is refreshed, in seconds.
const REFRESH_MARGIN: i64 = 10 * 60;

const ISSUED: &str = "Issued";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";

fn bytes(at: &At<'_, '_>) -> Vec<u8> {
    BASE64.decode(at.str()).unwrap_or_default()
}

fn validate_uid(at: &At<'_, '_>, errors: &mut Errors) {
    if at.is_empty() {
        errors.bad(at, "must not be empty");
    }
    if at.str().len() > MAX_UID {
        errors.too_long(at, MAX_UID);
    }
}

fn validate_spec(spec: &At<'_, '_>, errors: &mut Errors) {
    let signer = spec.field("signerName");
    signer_name(&signer, errors);
    user_annotations(&spec.field("unverifiedUserAnnotations"), errors);
    for (name, uid) in [
        ("podName", "podUID"),
        ("serviceAccountName", "serviceAccountUID"),
        ("nodeName", "nodeUID"),
    ] {
        let name = spec.field(name);
        for problem in dns_subdomain(name.str()) {
            errors.bad(&name, &problem);
        }
        validate_uid(&spec.field(uid), errors);
    }
    let expiration = spec.field("maxExpirationSeconds");
    let Some(seconds) = expiration.int() else {
        errors.required(expiration, "must be set");
        return;
    };
    let longest = if is_kubernetes_signer(signer.str()) {
        LONGEST_OF_OURS
    } else {
        LONGEST
    };
    if !(SHORTEST..=longest).contains(&seconds) {
        let detail = format!("must be in the range [{SHORTEST}, {longest}]");
        errors.bad(&expiration, &detail);
    }
    let (request, key, proof) = (
        spec.field("stubPKCS10Request"),
        spec.field("pkixPublicKey"),
        spec.field("proofOfPossession"),
    );
    match (request.is_empty(), key.is_empty(), proof.is_empty()) {
        (false, true, true) => validate_request(&request, errors),
        (true, false, false) => validate_key(&key, &proof, spec.text("podUID"), errors),
        _ => errors.invalid_omitted(
            spec,
            "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set",
        ),
    }
}

/// Whether a key is of a kind that may be certified.
fn validate_kind(
    at: &At<'_, '_>,
    kind: Kind,
    curves: &str,
    unknown: impl FnOnce(&mut Errors),
    errors: &mut Errors,
) -> bool {
    match kind {
        Kind::Ed25519 | Kind::P256 | Kind::P384 | Kind::P521 | Kind::Rsa(3072 | 4096) => {
            return true;
        }
        Kind::OtherCurve(name) => {
            let detail = format!("elliptic public keys must use curve {curves}");
            errors.invalid_text(at, &format!("curve {name}"), &detail);
        }
        Kind::Rsa(bits) => {
            let shown = format!("{bits}-bit modulus");
            errors.invalid_text(at, &shown, "RSA keys must have modulus size 3072 or 4096");
        }
        Kind::Other => unknown(errors),
    }
    false
}

const UNKNOWN_KEY: &str = "unknown public key type; supported types are Ed25519, ECDSA, and RSA";

fn validate_request(at: &At<'_, '_>, errors: &mut Errors) {
    let der = bytes(at);
    if der.len() > MAX_KEY {
        errors.too_long(at, MAX_KEY);
        return;
    }
    let Some(request) = Request::parse(&der) else {
        errors.invalid_omitted(at, "must be a valid PKCS#10 CSR");
        return;
    };
    let unknown = |errors: &mut Errors| errors.invalid_omitted(at, UNKNOWN_KEY);
    let is_fine = validate_kind(at, request.key.kind, "P256, P384, or P521", unknown, errors);
    if is_fine && !request.is_signed {
        errors.invalid_omitted(at, "invalid signature");
    }
}

fn validate_key(at: &At<'_, '_>, proof: &At<'_, '_>, pod_uid: &str, errors: &mut Errors) {
    let der = bytes(at);
    for (at, length) in [(at, der.len()), (proof, bytes(proof).len())] {
        if length > MAX_KEY {
            errors.too_long(at, MAX_KEY);
            return;
        }
    }
    let Some(key) = PublicKey::parse(&der) else {
        errors.bad(at, "must be a valid PKIX-serialized public key");
        return;
    };
    let unknown = |errors: &mut Errors| errors.bad(at, UNKNOWN_KEY);
    let is_fine = validate_kind(at, key.kind, "P256 or P384", unknown, errors);
    if is_fine && !key.verifies(pod_uid.as_bytes(), &bytes(proof)) {
        let detail = "could not verify proof-of-possession signature";
        errors.invalid_omitted(proof, detail);
    }
}

fn is(object: &Value, ty: &str) -> bool {
    let all = object["status"]["conditions"].as_array();
    let mut all = all.into_iter().flatten();
    all.any(|c| c["type"] == ty && c["status"] == "True")
}

/// At most one of the conditions that there are, and true.
fn validate_conditions(at: &At<'_, '_>, errors: &mut Errors) {
    for (i, condition) in at.items().enumerate() {
        // Upstream writes the index as a field.
        let index = format!("[{i}]");
        let place = at.place(&index, condition.value());
        let (ty, status) = (place.field("type"), place.field("status"));
        if ![ISSUED, DENIED, FAILED].contains(&ty.str()) {
            errors.unsupported(&ty, &[ISSUED, DENIED, FAILED]);
            continue;
        }
        if i > 0 {
            let detail = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            errors.bad(&ty, detail);
        }
        errors.member(&status, &["True"]);
    }
    conditions(errors, at);
}

/// A time of the status in seconds since 1970.
fn seconds(at: &At<'_, '_>) -> Option<i64> {
    let time: jiff::Timestamp = at.str().parse().ok()?;
    Some(time.as_second())
}

/// What is issued fits what was asked for.
fn validate_issued(status: &At<'_, '_>, spec: &At<'_, '_>, errors: &mut Errors) {
    let chain = status.field("certificateChain");
    if chain.str().len() > MAX_CHAIN {
        errors.too_long(chain, MAX_CHAIN);
        return;
    }
    let blocks = x509::pem_blocks(chain.str());
    let Some((first, others)) = blocks.split_first() else {
        let detail = "issued certificate chain must contain at least one certificate";
        errors.bad(&chain, detail);
        return;
    };
    if first.label != "CERTIFICATE" {
        let detail = "issued certificate chain must consist entirely of CERTIFICATE PEM blocks";
        errors.bad(&chain, detail);
        return;
    }
    let Some(leaf) = Leaf::parse(&first.content) else {
        errors.bad(&chain, "leaf certificate does not parse as valid X.509");
        return;
    };
    for name in &leaf.dns_names {
        for (wrong, detail) in [
            (
                name.is_empty(),
                "leaf certificate should not contain empty DNSName",
            ),
            (
                name.contains(".."),
                "leaf certificate's DNSName should not contain '..'",
            ),
            (
                name.starts_with('.') || name.ends_with('.'),
                "leaf certificate's DNSName should not start or end with '.'",
            ),
        ] {
            if wrong {
                errors.invalid_text(chain, name, detail);
            }
        }
    }
    let (request, key) = (spec.field("stubPKCS10Request"), spec.field("pkixPublicKey"));
    let wanted = match Request::parse(&bytes(&request)) {
        Some(request) => Some(request.key.der),
        None => PublicKey::parse(&bytes(&key)).map(|key| key.der),
    };
    if wanted.is_none_or(|wanted| wanted != leaf.public_key) {
        let detail = "leaf certificate was not issued to the requested public key";
        errors.bad(&chain, detail);
        return;
    }
    if !validate_times(status, spec, &leaf, errors) {
        return;
    }
    for block in others {
        if block.label != "CERTIFICATE" {
            let detail = "issued certificate chain must consist entirely of CERTFICATE PEM blocks";
            errors.bad(&chain, detail);
            return;
        }
        if Leaf::parse(&block.content).is_none() {
            let detail = "intermediate certificate does not parse as valid X.509";
            errors.bad(&chain, detail);
            return;
        }
    }
}

/// Whether the times of the status are those of the certificate, and sensible.
fn validate_times(
    status: &At<'_, '_>,
    spec: &At<'_, '_>,
    leaf: &Leaf,
    errors: &mut Errors,
) -> bool {
    let (before, after, refresh) = (
        status.field("notBefore"),
        status.field("notAfter"),
        status.field("beginRefreshAt"),
    );
    let consistent = "must be present and consistent with the issued certificate";
    let in_range = "must be present and in the range [notbefore+10min, notafter-10min]";
    for (at, detail) in [
        (&before, consistent),
        (&after, consistent),
        (&refresh, in_range),
    ] {
        if at.is_empty() {
            errors.required(at, detail);
        }
    }
    let (Some(starts), Some(ends), Some(refreshed)) =
        (seconds(&before), seconds(&after), seconds(&refresh))
    else {
        return false;
    };
    let chain = status.field("certificateChain");
    let longest = spec.field("maxExpirationSeconds").int().unwrap_or_default();
    let lifetime = leaf.not_after - leaf.not_before;
    let nanoseconds = json!(lifetime.saturating_mul(1_000_000_000));
    let now = jiff::Timestamp::now().as_second();
    if starts != leaf.not_before {
        let detail = "must be set to the NotBefore time encoded in the leaf certificate";
        errors.bad(&before, detail);
    } else if (starts - now).abs() >= SKEW {
        let detail = "must be set to within 5 minutes of kube-apiserver's current time";
        errors.bad(&before, detail);
    } else if ends != leaf.not_after {
        let detail = "must be set to the NotAfter time encoded in the leaf certificate";
        errors.bad(&after, detail);
    } else if lifetime < SHORTEST {
        let detail = "leaf certificate lifetime must be >= 1 hour";
        errors.invalid(chain, &nanoseconds, detail);
    } else if lifetime > longest {
        let detail =
            format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({longest})");
        errors.invalid(chain, &nanoseconds, &detail);
    } else if refreshed < starts + REFRESH_MARGIN {
        errors.bad(
            &refresh,
            "must be at least 10 minutes after status.notBefore",
        );
    } else if refreshed > ends - REFRESH_MARGIN {
        errors.bad(
            &refresh,
            "must be at least 10 minutes before status.notAfter",
        );
    } else {
        return true;
    }
    false
}

impl Strategy for PodCertificateRequest {
    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        keep_metadata(object, old);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_spec(&root.field("spec"), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        if object["spec"] != old["spec"] {
            let ty = "io.k8s.api.certificates.v1beta1.PodCertificateRequestSpec";
            let shown = internal(ty, &object["spec"]);
            errors.invalid_as("spec", &shown, "field is immutable");
        }
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let status = root.field("status");
        let before = errors.len();
        validate_conditions(&status.field("conditions"), errors);
        if errors.len() > before {
            return;
        }
        let same = status.value() == &old["status"];
        let mut only_conditions = status.value().clone();
        if let Some(map) = only_conditions.as_object_mut() {
            map.retain(|field, _| field == "conditions");
        }
        if [ISSUED, DENIED, FAILED].iter().any(|ty| is(old, ty)) {
            if !same {
                let detail = "immutable after PodCertificateRequest is issued, denied, or failed";
                errors.invalid_omitted(status, detail);
            }
        } else if is(object, DENIED) || is(object, FAILED) {
            if *status.value() != only_conditions {
                let detail = "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
                errors.invalid_omitted(status, detail);
            }
        } else if is(object, ISSUED) {
            validate_issued(&status, &root.field("spec"), errors);
        } else if !same {
            let detail =
                "status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\"";
            errors.invalid_omitted(status, detail);
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["spec.signerName", "spec.podName", "spec.nodeName"]
    }

    fn indexed_field(&self) -> Option<&'static str> {
        Some("spec.nodeName")
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        match field {
            "spec.signerName" => Some(text(object, "/spec/signerName")),
            "spec.podName" => Some(text(object, "/spec/podName")),
            "spec.nodeName" => Some(text(object, "/spec/nodeName")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Value {
        let request = &x509::pem_blocks(x509::tests::REQUEST)[0];
        json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {
            "signerName": "example.com/s", "podName": "p", "podUID": "1", "serviceAccountName": "default",
            "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3", "maxExpirationSeconds": 3600,
            "stubPKCS10Request": BASE64.encode(&request.content)}})
    }

    fn found(errors: Errors) -> Vec<String> {
        let list = errors.0.into_iter();
        list.map(|e| format!("{}: {}", e.field, e.message))
            .collect()
    }

    #[test]
    fn requests_are_checked() {
        let check = |change: &dyn Fn(&mut Value)| {
            let mut object = request();
            change(&mut object["spec"]);
            let mut errors = Errors::default();
            PodCertificateRequest.validate(&object, &mut errors);
            found(errors)
        };
        assert!(check(&|_| {}).is_empty());
        assert_eq!(
            check(&|spec| spec["maxExpirationSeconds"] = 10.into()),
            ["spec.maxExpirationSeconds: Invalid value: 10: must be in the range [3600, 7862400]"]
        );
        assert_eq!(
            check(&|spec| spec["pkixPublicKey"] = "AA==".into()),
            [
                "spec: Invalid value: exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set"
            ]
        );
        assert_eq!(
            check(&|spec| spec["stubPKCS10Request"] = "AAAA".into()),
            ["spec.stubPKCS10Request: Invalid value: must be a valid PKCS#10 CSR"]
        );
        assert_eq!(
            check(&|spec| spec["podUID"] = "".into()),
            ["spec.podUID: Invalid value: \"\": must not be empty"]
        );
    }

    #[test]
    fn answers_are_final() {
        let with = |ty: &str, status: &str| {
            let mut object = request();
            object["status"] = json!({"conditions": [{"type": ty, "status": status, "reason": "R",
                "lastTransitionTime": "2026-01-02T03:04:05Z"}]});
            object
        };
        let check = |object: &Value, old: &Value| {
            let mut errors = Errors::default();
            PodCertificateRequest.validate_status(object, old, &mut errors);
            found(errors)
        };
        let (pending, denied) = (request(), with("Denied", "True"));
        assert!(check(&denied, &pending).is_empty());
        assert_eq!(
            check(&with("Failed", "True"), &denied),
            [
                "status: Invalid value: immutable after PodCertificateRequest is issued, denied, or failed"
            ]
        );
        assert_eq!(
            check(&with("Denied", "False"), &pending),
            [
                "status.conditions.[0].status: Unsupported value: \"False\": supported values: \"True\""
            ]
        );
        assert_eq!(
            check(&with("Issued", "True"), &pending),
            [
                "status.certificateChain: Invalid value: \"\": issued certificate chain must contain at least one certificate"
            ]
        );
    }
}

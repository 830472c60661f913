//! Projected volumes: several sources in one directory.

use std::collections::HashSet;

use super::options::Options;
use super::volume::{downward_api_file, key_to_path, mode};
use crate::strategy::certificates::{
    is_kubernetes_signer, signer_name, trust_bundle_name_problems,
};
use crate::validation::{
    At, Errors, annotations, label_selector, non_reserved_path, qualified_name,
};

const SHORTEST_TOKEN: i64 = 10 * 60;
const LONGEST_TOKEN: i64 = 1 << 32;
const KEY_TYPES: &[&str] = &[
    "RSA3072",
    "RSA4096",
    "ECDSAP256",
    "ECDSAP384",
    "ECDSAP521",
    "ED25519",
];
const SHORTEST_CERTIFICATE: i64 = 3600;
const LONGEST_CERTIFICATE: i64 = 91 * 86_400;
const LONGEST_KUBERNETES_CERTIFICATE: i64 = 86_400;

/// The paths that sources have claimed so far.
struct Paths<'v, 'a, 'b> {
    seen: HashSet<&'v str>,
    volume: &'a At<'v, 'b>,
}

impl<'v> Paths<'v, '_, '_> {
    /// Claims a path; a conflict is reported in the name of `value`.
    fn claim(&mut self, path: &'v str, value: &str, errors: &mut Errors) {
        if !self.seen.insert(path) {
            errors.invalid_text(self.volume, value, "conflicting duplicate paths");
        }
    }
}

pub(super) fn validate(volume: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    mode(&volume.field("defaultMode"), errors);
    let mut paths = Paths {
        seen: HashSet::new(),
        volume,
    };
    let sources = volume.field("sources");
    for at in sources.items() {
        let mut count = 0;
        for kind in ["secret", "configMap"] {
            let keyed = at.field(kind);
            if !keyed.is_set() {
                continue;
            }
            count += 1;
            errors.required_text(&keyed.field("name"));
            for item in keyed.field("items").items() {
                key_to_path(&item, errors);
                if let Some(path) = item.get("path").as_str().filter(|p| !p.is_empty()) {
                    paths.claim(path, keyed.get("name").as_str().unwrap_or_default(), errors);
                }
            }
        }
        let downward = at.field("downwardAPI");
        if downward.is_set() {
            count += 1;
            for file in downward.get("items").as_array().into_iter().flatten() {
                downward_api_file(&downward, file, errors);
                if let Some(path) = file["path"].as_str().filter(|p| !p.is_empty()) {
                    paths.claim(path, path, errors);
                }
            }
        }
        let token = at.field("serviceAccountToken");
        if token.is_set() {
            count += 1;
            validate_token(&token, volume, options, errors);
        }
        let bundle = at.field("clusterTrustBundle");
        if bundle.is_set() {
            count += 1;
            validate_bundle(&bundle, errors);
            let path = bundle.get("path").as_str().unwrap_or_default();
            paths.claim(path, path, errors);
        }
        let certificate = at.field("podCertificate");
        if certificate.is_set() {
            count += 1;
            validate_certificate(&certificate, errors);
            validate_certificate_paths(&certificate, &mut paths, errors);
        }
        if count > 1 {
            errors.forbidden(at, "may not specify more than 1 volume type per source");
        }
    }
}

fn validate_token(token: &At<'_, '_>, volume: &At<'_, '_>, options: &Options, errors: &mut Errors) {
    let expiration = token.field("expirationSeconds");
    let seconds = expiration.int().unwrap_or_default();
    if seconds < SHORTEST_TOKEN {
        errors.bad(
            &expiration,
            "may not specify a duration less than 10 minutes",
        );
    }
    if seconds > LONGEST_TOKEN {
        errors.bad(
            &expiration,
            "may not specify a duration larger than 2^32 seconds",
        );
    }
    let path = volume.place("path", token.get("path"));
    if path.is_empty() {
        errors.required(path, "");
    } else if !options.reserved_token_paths {
        non_reserved_path(errors, &path);
    }
}

fn validate_bundle(bundle: &At<'_, '_>, errors: &mut Errors) {
    let (name, signer) = (bundle.field("name"), bundle.field("signerName"));
    let selector = bundle.field("labelSelector");
    match (name.is_set(), signer.is_set()) {
        (true, true) => errors.bad(bundle, "only one of name and signerName may be used"),
        (true, false) => {
            if name.is_empty() {
                errors.required(name, "must be a valid object name");
            }
            for problem in trust_bundle_name_problems(name.str()) {
                let detail = format!("not a valid clustertrustbundlename: {problem}");
                errors.bad(&name, &detail);
            }
            if selector.is_set() {
                errors.bad(
                    &selector,
                    "labelSelector must be unset if name is specified",
                );
            }
        }
        (false, true) => {
            if signer.is_empty() {
                errors.required(signer, "must be a valid signer name");
            }
            signer_name(&signer, errors);
            label_selector(errors, &selector);
        }
        (false, false) => {
            errors.required(bundle, "either name or signerName must be specified");
        }
    }
    let path = bundle.field("path");
    errors.required_text(&path);
    non_reserved_path(errors, &path);
}

/// What users add to requests for certificates: keys with a domain, not too much of it.
pub(in crate::strategy) fn user_annotations(user: &At<'_, '_>, errors: &mut Errors) {
    for (key, _) in user.entries() {
        let key = key.to_lowercase();
        let problems = qualified_name(&key);
        if problems.is_empty() && !key.contains('/') {
            let form = "must be a domain-prefixed key (such as \"acme.io/foo\")";
            errors.invalid_text(user, &key, form);
        }
        for problem in problems {
            errors.invalid_text(user, &key, &problem);
        }
    }
    let mut size = Errors::default();
    annotations(&mut size, user);
    errors.0.extend(
        size.0
            .into_iter()
            .filter(|c| c.reason == "FieldValueTooLong"),
    );
}

fn validate_certificate(certificate: &At<'_, '_>, errors: &mut Errors) {
    let signer = certificate.field("signerName");
    signer_name(&signer, errors);
    user_annotations(&certificate.field("userAnnotations"), errors);
    errors.member(&certificate.field("keyType"), KEY_TYPES);
    let expiration = certificate.field("maxExpirationSeconds");
    if let Some(seconds) = expiration.int() {
        if seconds < SHORTEST_CERTIFICATE {
            errors.bad(
                &expiration,
                "if provided, maxExpirationSeconds must be >= 3600",
            );
        }
        let longest = if is_kubernetes_signer(signer.str()) {
            LONGEST_KUBERNETES_CERTIFICATE
        } else {
            LONGEST_CERTIFICATE
        };
        if seconds > longest {
            let detail = format!("if provided, maxExpirationSeconds must be <= {longest}");
            errors.bad(&expiration, &detail);
        }
    }
}

fn validate_certificate_paths<'v>(
    certificate: &At<'v, '_>,
    paths: &mut Paths<'v, '_, '_>,
    errors: &mut Errors,
) {
    let mut count = 0;
    for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        let path = certificate.field(field);
        if !path.is_empty() {
            count += 1;
            non_reserved_path(errors, &path);
            paths.claim(path.str(), path.str(), errors);
        }
    }
    if count == 0 {
        errors.required(
            certificate,
            "specify at least one of credentialBundlePath, keyPath, and certificateChainPath",
        );
    }
}

//! Certificate signing requests.

use std::borrow::Cow;

use serde_json::Value;

use super::{Strategy, copy_field, text};
use crate::validation::{At, Errors, Problems, dns_label, dns_subdomain, quote};

pub(super) struct CertificateSigningRequest;

fn any_name(_: &str) -> Problems {
    Vec::new()
}

/// Whether a signer is one of Kubernetes' own.
pub(super) fn is_kubernetes_signer(name: &str) -> bool {
    let host = name.split('/').next().unwrap_or_default();
    host == "kubernetes.io" || host.ends_with(".kubernetes.io")
}

/// The name of a signer: a domain and a path.
pub(super) fn signer_name(at: &At<'_, '_>, errors: &mut Errors) {
    const MAX_DOMAIN: usize = 253;
    const MAX_NAME: usize = 571;
    if at.is_empty() {
        errors.required(at, "");
        return;
    }
    let Some((domain, path)) = at
        .str()
        .split_once('/')
        .filter(|(_, path)| !path.contains('/'))
    else {
        let form =
            "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.bad(at, form);
        return;
    };
    if domain.len() > MAX_DOMAIN {
        errors.too_long(at, MAX_DOMAIN);
    }
    first_problem(at, domain, dns_label, errors);
    if !domain.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.invalid_text(at, domain, detail);
    }
    first_problem(at, path, dns_subdomain, errors);
    if at.str().len() > MAX_NAME {
        errors.too_long(at, MAX_NAME);
    }
}

/// What is wrong with the first part between dots that has something wrong.
fn first_problem(at: &At<'_, '_>, whole: &str, rule: fn(&str) -> Problems, errors: &mut Errors) {
    let wrong = whole.split('.').find(|part| !rule(part).is_empty());
    for problem in wrong.map(rule).unwrap_or_default() {
        let part = quote(wrong.unwrap_or_default());
        errors.invalid_text(at, whole, &format!("validating label {part}: {problem}"));
    }
}

/// What is wrong with the name of a bundle of trust, which starts with its signer's if it has one.
pub(super) fn trust_bundle_name_problems(name: &str) -> Problems {
    match name.rsplit_once(':') {
        Some((_, rest)) => dns_subdomain(rest),
        None => dns_subdomain(name),
    }
}

impl Strategy for CertificateSigningRequest {
    fn name_rule(&self) -> fn(&str) -> Problems {
        any_name
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        // The request itself can never change.
        copy_field(object, old, "spec");
        copy_field(object, old, "status");
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        if spec["request"].as_str().unwrap_or_default().is_empty() {
            errors.invalid(
                "spec.request",
                &spec["request"],
                "PEM block type must be CERTIFICATE REQUEST",
            );
        }
        let signer = spec["signerName"].as_str().unwrap_or_default();
        if !signer.contains('/') {
            errors.invalid(
                "spec.signerName",
                &spec["signerName"],
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            );
        }
        if spec["usages"].as_array().is_none_or(Vec::is_empty) {
            errors.required("spec.usages", "usages must be provided");
        }
        if spec["expirationSeconds"].as_i64().is_some_and(|n| n < 600) {
            errors.invalid(
                "spec.expirationSeconds",
                &spec["expirationSeconds"],
                "may not specify a duration less than 600 seconds (10 minutes)",
            );
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["spec.signerName"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "spec.signerName").then(|| text(object, "/spec/signerName"))
    }
}

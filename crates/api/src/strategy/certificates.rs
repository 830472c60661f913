//! Certificate signing requests.

use std::borrow::Cow;

use serde_json::Value;

use super::{Strategy, copy_field, text};
use crate::validation::{Errors, Problems};

pub(super) struct CertificateSigningRequest;

fn any_name(_: &str) -> Problems {
    Vec::new()
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

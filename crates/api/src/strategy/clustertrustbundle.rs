//! Bundles of trust: the certificates of authorities, by the name of their signer or without one.

use std::borrow::Cow;

use serde_json::Value;

use super::certificates::signer_name;
use super::{MetaCheck, Strategy, text};
use crate::meta;
use crate::validation::{At, Errors, Problems, dns_subdomain};
use crate::x509;

pub(super) struct ClusterTrustBundle;

const MAX_BUNDLE: usize = 1024 * 1024;
/// What messages show instead of certificates.
const OMITTED: &str = "<value omitted>";

/// The rule depends on the signer, so that it is checked with the object.
fn any_name(_: &str) -> Problems {
    Vec::new()
}

fn name_problems(name: &str, signer: &str) -> Problems {
    if signer.is_empty() {
        if name.contains(':') {
            let problem = "ClusterTrustBundle without signer name must not have \":\" in its name";
            return vec![problem.to_owned()];
        }
        return dns_subdomain(name);
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&prefix) {
        Some(rest) => dns_subdomain(rest),
        None => vec![format!(
            "ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}"
        )],
    }
}

/// Nothing but certificates of authorities, each of them once.
fn validate_bundle(at: &At<'_, '_>, errors: &mut Errors) {
    if at.str().len() > MAX_BUNDLE {
        errors.too_long(at, MAX_BUNDLE);
        return;
    }
    let before = errors.len();
    let mut anchors: Vec<(Vec<u8>, Vec<usize>)> = Vec::new();
    for (i, block) in x509::pem_blocks(at.str()).into_iter().enumerate() {
        let problem = if block.label != "CERTIFICATE" {
            format!("entry {i} has bad block type: {}", block.label)
        } else if block.has_headers {
            format!("entry {i} has PEM block headers")
        } else {
            match x509::is_authority(&block.content) {
                None => format!("entry {i} does not parse as X.509"),
                Some(false) => format!("entry {i} does not have the CA bit set"),
                Some(true) => {
                    match anchors.iter_mut().find(|(der, _)| *der == block.content) {
                        Some((_, places)) => places.push(i),
                        None => anchors.push((block.content, vec![i])),
                    }
                    continue;
                }
            }
        };
        errors.invalid_text(at, OMITTED, &problem);
    }
    if errors.len() > before {
        return;
    }
    if anchors.is_empty() {
        let problem = "at least one trust anchor must be provided";
        errors.invalid_text(at, OMITTED, problem);
    }
    for (_, places) in anchors.iter().filter(|(_, places)| places.len() > 1) {
        let places: Vec<String> = places.iter().map(ToString::to_string).collect();
        let problem = format!("duplicate trust anchor (indices [{}])", places.join(" "));
        errors.invalid_text(at, OMITTED, &problem);
    }
}

impl ClusterTrustBundle {
    fn check(object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let (signer, bundle) = (spec.field("signerName"), spec.field("trustBundle"));
        if !meta::name(object).is_empty() {
            let name = At::named(&object["metadata"]["name"], "metadata.name");
            errors.problems(&name, name_problems(name.str(), signer.str()));
        }
        if !signer.is_empty() {
            signer_name(&signer, errors);
        }
        // What is stored is not parsed again.
        if old.is_none_or(|old| old["spec"]["trustBundle"] != *bundle.value()) {
            validate_bundle(&bundle, errors);
        }
        if let Some(old) = old {
            let was = old["spec"]["signerName"].as_str().unwrap_or_default();
            if signer.str() != was {
                errors.bad(&signer, "field is immutable");
            }
        }
    }
}

impl Strategy for ClusterTrustBundle {
    fn name_rule(&self) -> fn(&str) -> Problems {
        any_name
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        Self::check(object, None, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        Self::check(object, Some(old), errors);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["spec.signerName"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "spec.signerName").then(|| text(object, "/spec/signerName"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn messages(object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut errors = Errors::default();
        ClusterTrustBundle::check(object, old, &mut errors);
        let list = errors.0.into_iter();
        list.map(|e| format!("{}: {}", e.field, e.message))
            .collect()
    }

    fn bundle(name: &str, signer: &str, pem: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": pem}})
    }

    #[test]
    fn a_bundle_is_made_of_authorities() {
        let pem = x509::tests::AUTHORITY;
        assert!(messages(&bundle("a", "", pem), None).is_empty());
        assert!(messages(&bundle("example.com:s:a", "example.com/s", pem), None).is_empty());
        assert_eq!(
            messages(&bundle("a", "example.com/s", &pem.repeat(2)), None),
            [
                "metadata.name: Invalid value: \"a\": ClusterTrustBundle for signerName example.com/s must be named with prefix example.com:s:",
                "spec.trustBundle: Invalid value: \"<value omitted>\": duplicate trust anchor (indices [0 1])",
            ]
        );
        assert_eq!(
            messages(&bundle("a:b", "", "none"), None),
            [
                "metadata.name: Invalid value: \"a:b\": ClusterTrustBundle without signer name must not have \":\" in its name",
                "spec.trustBundle: Invalid value: \"<value omitted>\": at least one trust anchor must be provided",
            ]
        );
        let key = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
        assert_eq!(
            messages(&bundle("a", "", key), None),
            [
                "spec.trustBundle: Invalid value: \"<value omitted>\": entry 0 has bad block type: PUBLIC KEY"
            ]
        );
    }

    #[test]
    fn the_signer_stays() {
        let old = bundle("a", "", "none");
        assert!(messages(&old, Some(&old)).is_empty());
        let changed = bundle("example.com:s:a", "example.com/s", "none");
        assert_eq!(
            messages(&changed, Some(&old)),
            ["spec.signerName: Invalid value: \"example.com/s\": field is immutable"]
        );
    }
}

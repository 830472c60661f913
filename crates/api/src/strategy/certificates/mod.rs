//! Certificate signing requests.

mod pem;

use std::borrow::Cow;
use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use pem::{certificate_problem, request_problem};

use super::template::options::list;
use super::{MetaCheck, Strategy, copy_field, default_at, items_mut, text};
use crate::meta;
use crate::validation::{At, Errors, Problems, dns_label, dns_subdomain, path_segment, quote};

pub(super) struct CertificateSigningRequest;

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

const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// Which parts of the status a write may set.
#[derive(Clone, Copy, Default)]
struct Allowed {
    approval: bool,
    certificate: bool,
}

fn conditions(object: &Value) -> impl Iterator<Item = &Value> {
    list(&object["status"]["conditions"])
}

fn of_type<'v>(object: &'v Value, ty: &'v str) -> impl Iterator<Item = &'v Value> {
    conditions(object).filter(move |condition| condition["type"] == ty)
}

/// Conditions have times, at the latest that of their write.
fn stamp(object: &mut Value, old: &Value) {
    let now = meta::now();
    for condition in items_mut(object, &["status", "conditions"]) {
        default_at(condition, &["lastUpdateTime"], now.as_str());
        let same =
            |c: &&Value| c["type"] == condition["type"] && c["status"] == condition["status"];
        let before = conditions(old)
            .find(same)
            .map(|c| c["lastTransitionTime"].clone());
        let since = before
            .filter(Value::is_string)
            .unwrap_or_else(|| now.as_str().into());
        default_at(condition, &["lastTransitionTime"], since);
    }
}

fn has_duplicates<'v>(values: impl Iterator<Item = &'v Value>) -> bool {
    let mut seen: HashSet<&Value> = HashSet::new();
    values.into_iter().any(|value| !seen.insert(value))
}

fn validate_usages(usages: &At<'_, '_>, old: Option<&Value>, errors: &mut Errors) {
    let before = |old: &Value| list(&old["spec"]["usages"]).cloned().collect::<Vec<_>>();
    let before = old.map(before).unwrap_or_default();
    if usages.is_empty() {
        errors.required(usages, "");
    }
    let is_known = |usage: &Value| usage.as_str().is_some_and(|u| USAGES.contains(&u));
    if before.iter().all(is_known) {
        for usage in usages.items() {
            errors.member(&usage, USAGES);
        }
    }
    if !has_duplicates(before.iter()) {
        for (i, usage) in usages.items().enumerate() {
            if usages.list()[..i].contains(usage.value()) {
                errors.duplicate(usage, usage.value());
            }
        }
    }
}

fn validate_conditions(at: &At<'_, '_>, old: Option<&Value>, errors: &mut Errors) {
    let types = |old: &Value| {
        conditions(old)
            .map(|c| c["type"].clone())
            .collect::<Vec<_>>()
    };
    let before = old.map(types).unwrap_or_default();
    let had = |ty: &str| before.iter().any(|t| t == ty);
    let were_exclusive = !(had(APPROVED) && had(DENIED));
    let had_nameless = before.iter().any(|t| t.as_str().is_none_or(str::is_empty));
    let had_duplicates = has_duplicates(before.iter());
    for (i, condition) in at.items().enumerate() {
        let (ty, status) = (condition.field("type"), condition.field("status"));
        if ty.is_empty() && !had_nameless {
            errors.required(ty, "");
        }
        let always_true = [APPROVED, DENIED, FAILED].contains(&ty.str());
        let known: &[&str] = if always_true {
            &["True"]
        } else {
            &["False", "True", "Unknown"]
        };
        errors.one_of_required(&status, known);
        let before = &at.list()[..i];
        let other = if ty.str() == APPROVED {
            DENIED
        } else {
            APPROVED
        };
        let decides = ty.str() == APPROVED || ty.str() == DENIED;
        if were_exclusive && decides && before.iter().any(|c| c["type"] == other) {
            let detail = "Approved and Denied conditions are mutually exclusive";
            errors.invalid_text(at, ty.str(), detail);
        }
        if !had_duplicates
            && before
                .iter()
                .any(|c| c.get("type") == condition.value().get("type"))
        {
            errors.duplicate_as(ty, &quote(ty.str()));
        }
    }
}

fn decoded(value: &Value) -> String {
    let bytes = BASE64
        .decode(value.as_str().unwrap_or_default())
        .unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn validate(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let root = At::root(object);
    let (spec, status) = (root.field("spec"), root.field("status"));
    let request = spec.field("request");
    if let Some(problem) = request_problem(&decoded(request.value())) {
        errors.invalid(request, request.value(), &problem);
    }
    validate_usages(&spec.field("usages"), old, errors);
    let signer = spec.field("signerName");
    let legacy = "kubernetes.io/legacy-unknown";
    if signer.str() == legacy && old.is_none_or(|o| o["spec"]["signerName"] != legacy) {
        let detail = "the legacy signerName is not allowed via this API version";
        errors.bad(&signer, detail);
    } else {
        signer_name(&signer, errors);
    }
    let duration = spec.field("expirationSeconds");
    if duration.int().is_some_and(|seconds| seconds < 600) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.bad(&duration, detail);
    }
    validate_conditions(&status.field("conditions"), old, errors);
    let certificate = status.get("certificate");
    let was_valid = old.is_none_or(|old| {
        let before = &old["status"]["certificate"];
        before != certificate
            && (before.is_null() || certificate_problem(&decoded(before)).is_none())
    });
    if was_valid
        && certificate.as_str().is_some_and(|c| !c.is_empty())
        && let Some(problem) = certificate_problem(&decoded(certificate))
    {
        errors.invalid_text("status.certificate", "<certificate data>", &problem);
    }
}

fn validate_change(object: &Value, old: &Value, allowed: Allowed, errors: &mut Errors) {
    validate(object, Some(old), errors);
    let count = |object: &Value, ty: &str| of_type(object, ty).count();
    for ty in [APPROVED, DENIED, FAILED] {
        if count(object, ty) < count(old, ty) {
            let detail = format!("updates may not remove a condition of type {}", quote(ty));
            errors.forbidden("status.conditions", &detail);
        }
    }
    for ty in [APPROVED, DENIED].into_iter().filter(|_| !allowed.approval) {
        let (now, before) = (count(object, ty), count(old, ty));
        let verb = if now > before {
            "add"
        } else if now == before && !of_type(object, ty).eq(of_type(old, ty)) {
            "modify"
        } else {
            continue;
        };
        let detail = format!("updates may not {verb} a condition of type {}", quote(ty));
        errors.forbidden("status.conditions", &detail);
    }
    let certificate = |o: &Value| o["status"]["certificate"].clone();
    if certificate(object) != certificate(old) {
        if !allowed.certificate {
            let detail = "updates may not set certificate content";
            errors.forbidden("status.certificate", detail);
        } else if !certificate(old).is_null() {
            let detail = "updates may not modify existing certificate content";
            errors.forbidden("status.certificate", detail);
        }
    }
}

impl Strategy for CertificateSigningRequest {
    fn name_rule(&self) -> fn(&str) -> Problems {
        path_segment
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        // The request itself can never change.
        copy_field(object, old, "spec");
        copy_field(object, old, "status");
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        // Who approves or denies does so elsewhere.
        for ty in [APPROVED, DENIED] {
            if of_type(object, ty).count() == of_type(old, ty).count() {
                let kept: Vec<Value> = of_type(old, ty).cloned().collect();
                let new = items_mut(object, &["status", "conditions"]);
                for (new, kept) in new.filter(|c| c["type"] == ty).zip(kept) {
                    *new = kept;
                }
            }
        }
        stamp(object, old);
    }

    fn prepare_subresource_update(&self, _approval: &str, object: &mut Value, old: &Value) {
        let conditions = object["status"]["conditions"].take();
        copy_field(object, old, "spec");
        copy_field(object, old, "status");
        if !conditions.is_null() {
            meta::child(object, "status").insert("conditions".into(), conditions);
        }
        stamp(object, old);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(object, None, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate_change(object, old, Allowed::default(), errors);
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let allowed = Allowed {
            certificate: true,
            ..Allowed::default()
        };
        validate_change(object, old, allowed, errors);
    }

    fn validate_subresource(
        &self,
        _approval: &str,
        object: &Value,
        old: &Value,
        errors: &mut Errors,
    ) {
        let allowed = Allowed {
            approval: true,
            ..Allowed::default()
        };
        validate_change(object, old, allowed, errors);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
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

//! API services: a group and version, and who serves it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::{MetaCheck, Strategy, copy_field, keep_metadata};
use crate::meta;
use crate::validation::{At, Errors, Problems, dns_1035_label, dns_subdomain, path_segment, quote};

const MAX_GROUP_PRIORITY: i64 = 20_000;

const MAX_VERSION_PRIORITY: i64 = 1000;

const STATUSES: &[&str] = &["True", "False", "Unknown"];

pub(super) struct ApiService;

impl Strategy for ApiService {
    fn name_rule(&self) -> fn(&str) -> Problems {
        path_segment
    }

    fn prepare_create(&self, object: &mut Value) {
        let Some(map) = object.as_object_mut() else {
            return;
        };
        map.remove("status");
        if object["spec"]["service"].is_null() {
            object["status"] = json!({"conditions": [{
                "type": "Available", "status": "True", "reason": "Local",
                "message": "Local APIServices are always available", "lastTransitionTime": meta::now(),
            }]});
        }
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        keep_metadata(object, old);
    }

    fn has_standard_finalizers(&self) -> bool {
        false
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Update, MetaCheck::Whole]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let (group, version) = (spec.field("group"), spec.field("version"));
        validate_name(
            object,
            &format!("{}.{}", version.str(), group.str()),
            errors,
        );
        if group.is_empty() && version.str() != "v1" {
            let why = "only v1 may have an empty group and it better be legacy kube";
            errors.required(group, why);
        }
        errors.optional_name(&group, dns_subdomain);
        errors.problems(&version, dns_1035_label(version.str()));
        for (field, highest) in [
            ("groupPriorityMinimum", MAX_GROUP_PRIORITY),
            ("versionPriority", MAX_VERSION_PRIORITY),
        ] {
            let at = spec.field(field);
            let value = at.int().unwrap_or_default();
            if value <= 0 || value > highest {
                let why = format!("must be positive and less than {highest}");
                errors.invalid(at, &value.into(), &why);
            }
        }
        if spec.field("service").is_set() {
            remote(&spec, errors);
        } else {
            local(&spec, errors);
        }
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let status = root.field("status");
        for condition in status.field("conditions").items() {
            errors.member(&condition.field("status"), STATUSES);
        }
    }
}

/// The name is the version and the group. Of a name that could not be one in a path, nothing more is said.
fn validate_name(object: &Value, expected: &str, errors: &mut Errors) {
    let root = At::root(object);
    let metadata = root.field("metadata");
    let why = format!(
        "must be `spec.version+\".\"+spec.group`: {}",
        quote(expected)
    );
    for field in ["generateName", "name"] {
        let at = metadata.field(field);
        let name = at.str();
        if !name.is_empty() && path_segment(name).is_empty() && name != expected {
            errors.bad(&at, &why);
        }
    }
}

fn local(spec: &At<'_, '_>, errors: &mut Errors) {
    let bundle = spec.field("caBundle");
    if !bundle.is_empty() {
        let size = BASE64.decode(bundle.str()).map_or(0, |bytes| bytes.len());
        let why = "local APIServices may not have a caBundle";
        errors.invalid_text(bundle, &format!("{size} bytes"), why);
    }
    let insecure = spec.field("insecureSkipTLSVerify");
    if insecure.is_true() {
        let why = "local APIServices may not have insecureSkipTLSVerify";
        errors.bad(&insecure, why);
    }
}

fn remote(spec: &At<'_, '_>, errors: &mut Errors) {
    let service = spec.field("service");
    for field in ["namespace", "name"] {
        errors.required_text(&service.field(field));
    }
    let port = service.field("port");
    let number = port.int().unwrap_or(443);
    if !(1..=65_535).contains(&number) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid(port, &number.into(), why);
    }
    let insecure = spec.field("insecureSkipTLSVerify");
    if insecure.is_true() && !spec.field("caBundle").is_empty() {
        errors.bad(&insecure, "may not be true if caBundle is present");
    }
}

//! API services: a group and version, and who serves it.

use serde_json::{Value, json};

use super::Strategy;
use crate::meta;
use crate::validation::{self, Errors, Problems};

pub(super) struct ApiService;

impl Strategy for ApiService {
    fn name_rule(&self) -> fn(&str) -> Problems {
        validation::path_segment
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

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        let (group, version) = (
            spec["group"].as_str().unwrap_or_default(),
            spec["version"].as_str().unwrap_or_default(),
        );
        let name = format!("{version}.{group}");
        if meta::name(object) != name {
            let why = format!("must be `spec.version+\".\"+spec.group`: {name:?}");
            errors.invalid("metadata.name", &object["metadata"]["name"], &why);
        }
        if group.is_empty() && version != "v1" {
            let why = "only v1 may have an empty group and it better be legacy kube";
            errors.required("spec.group", why);
        }
        if !group.is_empty() {
            for problem in validation::dns_subdomain(group) {
                errors.invalid("spec.group", &spec["group"], &problem);
            }
        }
        for problem in validation::dns_1035_label(version) {
            errors.invalid("spec.version", &version.into(), &problem);
        }
        for (field, highest) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
            let value = spec[field].as_i64().unwrap_or_default();
            if value <= 0 || value > highest {
                let why = format!("must be positive and less than {highest}");
                errors.invalid(format!("spec.{field}"), &value.into(), &why);
            }
        }
        if spec["service"].is_null() {
            local(spec, errors);
        } else {
            remote(spec, errors);
        }
    }
}

fn bundle(spec: &Value) -> &str {
    spec["caBundle"].as_str().unwrap_or_default()
}

fn local(spec: &Value, errors: &mut Errors) {
    if !bundle(spec).is_empty() {
        let why = "local APIServices may not have a caBundle";
        errors.invalid("spec.caBundle", &spec["caBundle"], why);
    }
    if spec["insecureSkipTLSVerify"] == true {
        let why = "local APIServices may not have insecureSkipTLSVerify";
        errors.invalid("spec.insecureSkipTLSVerify", &true.into(), why);
    }
}

fn remote(spec: &Value, errors: &mut Errors) {
    let service = &spec["service"];
    for field in ["namespace", "name"] {
        if service[field].as_str().unwrap_or_default().is_empty() {
            errors.required(format!("spec.service.{field}"), "");
        }
    }
    let port = service["port"].as_i64().unwrap_or(443);
    if !(1..=65_535).contains(&port) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid("spec.service.port", &port.into(), why);
    }
    if spec["insecureSkipTLSVerify"] == true && !bundle(spec).is_empty() {
        let why = "may not be true if caBundle is present";
        errors.invalid("spec.insecureSkipTLSVerify", &true.into(), why);
    }
}

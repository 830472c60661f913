//! Kinds that carry data rather than a desired state: ConfigMap, Secret, ServiceAccount, Event, Lease, LimitRange,
//! ResourceQuota, ControllerRevision.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::{Strategy, text};
use crate::validation::{self, Errors};

/// Upstream's limit for the data of one Secret or ConfigMap, in bytes.
const MAX_DATA: usize = 1024 * 1024;

pub(super) struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        let mut total = 0;
        for part in ["data", "binaryData"] {
            for (key, value) in object[part].as_object().into_iter().flatten() {
                for problem in validation::config_map_key(key) {
                    errors.invalid(&format!("{part}[{key}]"), &key.as_str().into(), &problem);
                }
                total += value.as_str().map_or(0, str::len);
            }
        }
        for key in object["binaryData"]
            .as_object()
            .into_iter()
            .flat_map(Map::keys)
        {
            if object["data"].get(key).is_some() {
                errors.invalid(
                    &format!("data[{key}]"),
                    &key.as_str().into(),
                    "duplicate of key present in binaryData",
                );
            }
        }
        if total > MAX_DATA {
            errors.too_long("", MAX_DATA);
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate_immutable(object, old, &["data", "binaryData"], errors);
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

fn validate_immutable(object: &Value, old: &Value, parts: &[&str], errors: &mut Errors) {
    if old["immutable"] != true {
        return;
    }
    if object["immutable"] != true {
        errors.forbidden("immutable", "field is immutable when `immutable` is set");
    }
    for part in parts {
        if object[*part] != old[*part] {
            errors.forbidden(part, "field is immutable when `immutable` is set");
        }
    }
}

pub(super) struct Secret;

impl Strategy for Secret {
    fn default(&self, object: &mut Value) {
        use base64::Engine as _;
        // `stringData` is write-only: it lands in `data`.
        let Some(Value::Object(strings)) =
            object.as_object_mut().and_then(|m| m.remove("stringData"))
        else {
            return;
        };
        let data = crate::meta::child(object, "data");
        for (key, value) in strings {
            let encoded = base64::engine::general_purpose::STANDARD
                .encode(value.as_str().unwrap_or_default());
            data.insert(key, encoded.into());
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let mut total = 0;
        for (key, value) in object["data"].as_object().into_iter().flatten() {
            for problem in validation::config_map_key(key) {
                errors.invalid(&format!("data[{key}]"), &key.as_str().into(), &problem);
            }
            total += value.as_str().map_or(0, str::len) / 4 * 3;
        }
        if total > MAX_DATA {
            errors.too_long("data", MAX_DATA);
        }
        let required: &[&str] = match object["type"].as_str().unwrap_or_default() {
            "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
            "kubernetes.io/dockercfg" => &[".dockercfg"],
            "kubernetes.io/tls" => &["tls.crt", "tls.key"],
            "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
            _ => &[],
        };
        for key in required {
            if object["data"].get(*key).is_none() {
                errors.required(&format!("data[{key}]"), "");
            }
        }
        if object["type"] == "kubernetes.io/service-account-token"
            && crate::meta::annotation(object, "kubernetes.io/service-account.name").is_none()
        {
            errors.required(
                "metadata.annotations[kubernetes.io/service-account.name]",
                "",
            );
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable("type", &object["type"], &old["type"]);
        validate_immutable(object, old, &["data"], errors);
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &["type"]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        (field == "type").then(|| text(object, "/type"))
    }
}

pub(super) struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

pub(super) struct Event;

impl Strategy for Event {
    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "reason",
            "reportingComponent",
            "reportingController",
            "source",
            "type",
        ]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        Some(match field {
            "involvedObject.kind" => text(object, "/involvedObject/kind"),
            "involvedObject.namespace" => text(object, "/involvedObject/namespace"),
            "involvedObject.name" => text(object, "/involvedObject/name"),
            "involvedObject.uid" => text(object, "/involvedObject/uid"),
            "involvedObject.apiVersion" => text(object, "/involvedObject/apiVersion"),
            "involvedObject.resourceVersion" => text(object, "/involvedObject/resourceVersion"),
            "involvedObject.fieldPath" => text(object, "/involvedObject/fieldPath"),
            "regarding.kind" => text(object, "/involvedObject/kind"),
            "regarding.namespace" => text(object, "/involvedObject/namespace"),
            "regarding.name" => text(object, "/involvedObject/name"),
            "regarding.uid" => text(object, "/involvedObject/uid"),
            "reason" => text(object, "/reason"),
            "reportingComponent" | "reportingController" => text(object, "/reportingComponent"),
            "source" => text(object, "/source/component"),
            "type" => text(object, "/type"),
            _ => return None,
        })
    }
}

pub(super) struct Lease;

impl Strategy for Lease {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        let duration = &object["spec"]["leaseDurationSeconds"];
        if duration.as_i64().is_some_and(|n| n <= 0) {
            errors.invalid(
                "spec.leaseDurationSeconds",
                duration,
                "must be greater than 0",
            );
        }
        errors.non_negative("spec.leaseTransitions", &object["spec"]["leaseTransitions"]);
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

pub(super) struct LimitRange;

impl Strategy for LimitRange {
    fn default(&self, object: &mut Value) {
        for item in object["spec"]["limits"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            if item["type"] != "Container" {
                continue;
            }
            // A container's default limit is its maximum, its default request the default limit, else its minimum.
            for (target, sources) in [
                ("default", ["max", "max"]),
                ("defaultRequest", ["default", "min"]),
            ] {
                for source in sources {
                    for (name, amount) in item[source].as_object().cloned().unwrap_or_default() {
                        super::default_at(item, &[target, &name], amount);
                    }
                }
            }
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let parse = |v: &Value| {
            v.as_str()
                .and_then(|t| t.parse::<crate::quantity::Quantity>().ok())
        };
        for (i, item) in object["spec"]["limits"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            for (name, min) in item["min"].as_object().into_iter().flatten() {
                if let (Some(low), Some(high)) = (parse(min), parse(&item["max"][name]))
                    && low > high
                {
                    let detail = format!("min value {low} is greater than max value {high}");
                    errors.invalid(&format!("spec.limits[{i}].min[{name}]"), min, &detail);
                }
            }
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

pub(super) struct ResourceQuota;

impl Strategy for ResourceQuota {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        for (name, amount) in object["spec"]["hard"].as_object().into_iter().flatten() {
            for problem in validation::qualified_name(name.trim_start_matches("count/")) {
                errors.invalid(
                    &format!("spec.hard[{name}]"),
                    &name.as_str().into(),
                    &problem,
                );
            }
            if amount
                .as_str()
                .and_then(|a| a.parse::<crate::quantity::Quantity>().ok())
                .is_some_and(|q| q.is_negative())
            {
                errors.invalid(
                    &format!("spec.hard[{name}]"),
                    amount,
                    "must be greater than or equal to 0",
                );
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable(
            "spec.scopes",
            &object["spec"]["scopes"],
            &old["spec"]["scopes"],
        );
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

pub(super) struct ControllerRevision;

impl Strategy for ControllerRevision {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        errors.non_negative("revision", &object["revision"]);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable("data", &object["data"], &old["data"]);
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

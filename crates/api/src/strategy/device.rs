//! What is said of devices apart from their slices and claims: rules that taint them, and requests to know the state of pools.

use serde_json::Value;

use super::template::volume::csi_driver_name;
use super::{Strategy, copy_field, default_at, keep_metadata};
use crate::meta;
use crate::validation::{
    At, Errors, Problems, conditions, dns_label, dns_subdomain, internal, label_key, label_value,
};

pub(super) struct DeviceTaintRule;
pub(super) struct ResourcePoolStatusRequest;

const MAX_POOL: usize = 253;
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];
const MAX_RULE_CONDITIONS: usize = 8;
const MAX_REQUEST_CONDITIONS: usize = 10;
const MAX_POOLS: usize = 1000;
const MAX_LIMIT: i64 = 1000;
const MAX_PROBLEM: usize = 256;

/// A domain whose case does not matter.
fn caseless(name: &str) -> Problems {
    let problems = dns_subdomain(&name.to_lowercase());
    problems
        .into_iter()
        .map(|problem| {
            if problem.starts_with("must be") {
                return problem;
            }
            "an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'Example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".to_owned()
        })
        .collect()
}

fn validate_selector(selector: &At<'_, '_>, errors: &mut Errors) {
    let (driver, pool, device) = (
        selector.field("driver"),
        selector.field("pool"),
        selector.field("device"),
    );
    if driver.is_set() {
        csi_driver_name(&driver, errors);
    }
    if pool.is_set() {
        if pool.is_empty() {
            errors.required(pool, "");
        } else {
            if pool.str().len() > MAX_POOL {
                errors.too_long(pool, MAX_POOL);
            }
            for part in pool.str().split('/') {
                for problem in dns_subdomain(part) {
                    errors.invalid_text(pool, part, &problem);
                }
            }
        }
    }
    if device.is_set() {
        errors.problems(&device, dns_label(device.str()));
    }
}

fn validate_rule(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let root = At::root(object);
    let spec = root.field("spec");
    validate_selector(&spec.field("deviceSelector"), errors);
    let taint = spec.field("taint");
    label_key(errors, &taint.field("key"));
    let value = taint.field("value");
    errors.problems(&value, label_value(value.str()));
    let effect = taint.field("effect");
    if old.is_none_or(|old| old["spec"]["taint"]["effect"] != *effect.value()) {
        errors.one_of_required(&effect, EFFECTS);
    }
}

impl Strategy for DeviceTaintRule {
    fn default(&self, object: &mut Value) {
        if object["spec"]["taint"].is_object() {
            default_at(object, &["spec", "taint", "timeAdded"], meta::now());
        }
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
        // The time is that of the effect.
        let (taint, before) = (&object["spec"]["taint"], &old["spec"]["taint"]);
        if taint["effect"] != before["effect"] && taint["timeAdded"] == before["timeAdded"] {
            object["spec"]["taint"]["timeAdded"] = meta::now().into();
        }
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        keep_metadata(object, old);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate_rule(object, None, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate_rule(object, Some(old), errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let status = root.field("status");
        let at = status.field("conditions");
        conditions(errors, &at);
        if at.list().len() > MAX_RULE_CONDITIONS {
            errors.too_many(at, at.list().len(), MAX_RULE_CONDITIONS);
        }
    }
}

/// The name of a pool: segments that are domains.
fn validate_pool_name(at: &At<'_, '_>, errors: &mut Errors) {
    if at.str().len() > MAX_POOL {
        errors.too_long(at, MAX_POOL);
    }
    for (i, part) in at.str().split('/').enumerate() {
        if part.is_empty() {
            errors.bad(at, &format!("segment {i}: must not be empty"));
            continue;
        }
        for problem in dns_subdomain(part) {
            errors.invalid_text(at, part, &format!("segment {i}: {problem}"));
        }
    }
}

fn at_least(at: &At<'_, '_>, least: i64, errors: &mut Errors) {
    if at.int().is_some_and(|n| n < least) {
        errors.bad(at, &format!("must be greater than or equal to {least}"));
    }
}

fn validate_pool(pool: &At<'_, '_>, errors: &mut Errors) {
    errors.required_name(&pool.field("driver"), caseless);
    let name = pool.field("poolName");
    if name.is_empty() {
        errors.required(name, "");
    } else {
        validate_pool_name(&name, errors);
    }
    let generation = pool.field("generation");
    if generation.int().unwrap_or_default() == 0 {
        errors.required(generation, "");
    }
    at_least(&generation, 0, errors);
    at_least(&pool.field("resourceSliceCount"), 1, errors);
    for count in [
        "totalDevices",
        "allocatedDevices",
        "availableDevices",
        "unavailableDevices",
    ] {
        at_least(&pool.field(count), 0, errors);
    }
    let node = pool.field("nodeName");
    if node.is_set() {
        errors.problems(&node, dns_subdomain(node.str()));
    }
    let problem = pool.field("validationError");
    if problem.str().len() > MAX_PROBLEM {
        errors.too_long(problem, MAX_PROBLEM);
    }
}

impl Strategy for ResourcePoolStatusRequest {
    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        keep_metadata(object, old);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        errors.required_name(&spec.field("driver"), caseless);
        let pool = spec.field("poolName");
        if pool.is_set() {
            validate_pool_name(&pool, errors);
        }
        let limit = spec.field("limit");
        if limit.int() > Some(MAX_LIMIT) {
            errors.bad(
                &limit,
                &format!("must be less than or equal to {MAX_LIMIT}"),
            );
        }
        at_least(&limit, 1, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        if object["spec"] != old["spec"] {
            errors.invalid("spec", &Value::Null, "field is immutable");
        }
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let status = root.field("status");
        if !old["status"].is_null() {
            if *status.value() != old["status"] {
                let ty = "io.k8s.api.resource.v1alpha3.ResourcePoolStatusRequestStatus";
                let shown = internal(ty, status.value());
                errors.invalid_as(status, &shown, "field is immutable");
            }
            return;
        }
        if !status.is_set() {
            return;
        }
        let at = status.field("conditions");
        conditions(errors, &at);
        if at.list().len() > MAX_REQUEST_CONDITIONS {
            errors.too_many(at, at.list().len(), MAX_REQUEST_CONDITIONS);
        }
        let count = status.field("poolCount");
        if !count.is_set() {
            errors.required(count, "");
        }
        at_least(&count, 0, errors);
        let pools = status.field("pools");
        if pools.list().len() > MAX_POOLS {
            errors.too_many(pools, pools.list().len(), MAX_POOLS);
            return;
        }
        for pool in pools.items() {
            validate_pool(&pool, errors);
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(errors: Errors) -> Vec<String> {
        let list = errors.0.into_iter();
        list.map(|e| format!("{}: {}", e.field, e.message))
            .collect()
    }

    #[test]
    fn rules_are_checked() {
        let mut errors = Errors::default();
        let rule = json!({"spec": {"deviceSelector": {"driver": "", "pool": "a/B", "device": "x.y"},
            "taint": {"key": "a", "effect": "Evict"}}});
        DeviceTaintRule.validate(&rule, &mut errors);
        let fields: Vec<String> = errors.0.iter().map(|e| e.field.clone()).collect();
        assert_eq!(
            fields,
            [
                "spec.deviceSelector.driver",
                "spec.deviceSelector.pool",
                "spec.deviceSelector.device",
                "spec.taint.effect"
            ]
        );
    }

    #[test]
    fn another_effect_has_another_time() {
        let old = json!({"spec": {"taint": {"key": "a", "effect": "None", "timeAdded": "2026-01-02T03:04:05Z"}}});
        let mut same = old.clone();
        same["spec"]["taint"]["value"] = "v".into();
        DeviceTaintRule.prepare_update(&mut same, &old);
        assert_eq!(same["spec"]["taint"]["timeAdded"], "2026-01-02T03:04:05Z");
        let mut other = old.clone();
        other["spec"]["taint"]["effect"] = "NoSchedule".into();
        DeviceTaintRule.prepare_update(&mut other, &old);
        assert_ne!(other["spec"]["taint"]["timeAdded"], "2026-01-02T03:04:05Z");
    }

    #[test]
    fn requests_for_the_state_of_pools_are_checked() {
        let check = |spec: Value| {
            let mut errors = Errors::default();
            ResourcePoolStatusRequest.validate(&json!({"spec": spec}), &mut errors);
            found(errors)
        };
        assert!(check(json!({"driver": "Example.com", "limit": 100})).is_empty());
        assert_eq!(
            check(json!({"poolName": "a//b", "limit": 0})),
            [
                "spec.driver: Required value",
                "spec.poolName: Invalid value: \"a//b\": segment 1: must not be empty",
                "spec.limit: Invalid value: 0: must be greater than or equal to 1",
            ]
        );
        let mut errors = Errors::default();
        let status = |count: i64| json!({"status": {"poolCount": count, "pools": [{"driver": "d", "poolName": "p", "generation": 1}]}});
        ResourcePoolStatusRequest.validate_status(&status(1), &json!({}), &mut errors);
        assert!(errors.is_empty());
        ResourcePoolStatusRequest.validate_status(&status(2), &status(1), &mut errors);
        assert_eq!(errors.0[0].field, "status");
    }
}

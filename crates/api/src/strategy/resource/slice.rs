//! What drivers offer: devices in pools.

use std::borrow::Cow;

use serde_json::Value;

use super::device::counters;
use super::{device, is_within, name, names, unique};
use crate::meta;
use crate::strategy::template::options::list;
use crate::strategy::template::scheduling::validate_node_selector;
use crate::strategy::{Strategy, default_at, items_mut, text};
use crate::validation::{At, Errors, dns_subdomain, internal, quote};

const MAX_DEVICES: usize = 128;

/// When devices have more to them.
const MAX_ADVANCED_DEVICES: usize = 64;

const MAX_COUNTER_SETS: usize = 8;

/// Attributes with several values, which are off.
const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];

/// Fields of devices that are off.
const DISABLED: [&str; 1] = ["nodeAllocatableResourceMappings"];

pub(in crate::strategy) struct ResourceSlice;

fn devices(object: &Value) -> impl Iterator<Item = &Value> {
    list(&object["spec"]["devices"])
}

fn attributes(device: &Value) -> impl Iterator<Item = &Value> {
    let all = device["attributes"].as_object().into_iter().flatten();
    all.map(|(_, attribute)| attribute)
}

fn has_lists(device: &Value) -> bool {
    attributes(device).any(|attribute| LISTS.iter().any(|field| !attribute[*field].is_null()))
}

/// Drops what is off, unless it has been in use.
fn drop_disabled(object: &mut Value, old: Option<&Value>) {
    let in_use = |field: &str| {
        let has = |d: &Value| !crate::validation::is_empty_value(&d[field]);
        old.is_some_and(|old| devices(old).any(has))
    };
    let dropped: Vec<&str> = DISABLED
        .into_iter()
        .filter(|field| !in_use(field))
        .collect();
    let keeps_lists = old.is_some_and(|old| devices(old).any(has_lists));
    for device in items_mut(object, &["spec", "devices"]) {
        let Some(device) = device.as_object_mut() else {
            continue;
        };
        for field in &dropped {
            device.remove(*field);
        }
        if keeps_lists {
            continue;
        }
        let attributes = device.get_mut("attributes").and_then(Value::as_object_mut);
        for (_, attribute) in attributes.into_iter().flatten() {
            for field in LISTS {
                if let Some(attribute) = attribute.as_object_mut() {
                    attribute.remove(field);
                }
            }
        }
    }
}

fn validate_spec(spec: &At<'_, '_>, old: Option<&Value>, errors: &mut Errors) {
    names::driver(&spec.field("driver"), errors);
    pool(&spec.field("pool"), errors);
    if let Some(old) = old {
        let old = At::root(old);
        let (pool, before) = (spec.field("pool"), old.field("pool"));
        errors.immutable_field(&pool, &before, "name");
        errors.immutable_field(spec, &old, "driver");
        errors.immutable_field(spec, &old, "nodeName");
    }
    nodes(spec, errors);
    let (shared, devices) = (spec.field("sharedCounters"), spec.field("devices"));
    if shared.is_set() && devices.is_set() {
        let detail = "only one of `sharedCounters` or `devices` is allowed";
        errors.invalid_text(spec, "", detail);
    }
    let is_advanced = |device: &Value| {
        ["taints", "consumesCounters"]
            .iter()
            .any(|field| list(&device[*field]).next().is_some())
            || has_lists(device)
    };
    let max = if devices.list().iter().any(is_advanced) {
        MAX_ADVANCED_DEVICES
    } else {
        MAX_DEVICES
    };
    if is_within(&devices, max, errors) {
        let per_device = spec.field("perDeviceNodeSelection").is_true();
        for device in devices.items() {
            let known = |d: &&Value| name(d) == device.text("name");
            let before = old.and_then(|old| list(&old["devices"]).find(known));
            device::validate(&device, before, per_device, errors);
        }
        unique(&devices, name, errors);
    }
    if is_within(&shared, MAX_COUNTER_SETS, errors) {
        for set in shared.items() {
            counters(&set, "name", errors);
        }
        unique(&shared, name, errors);
    }
}

fn pool(pool: &At<'_, '_>, errors: &mut Errors) {
    names::pool(&pool.field("name"), errors);
    let count = pool.field("resourceSliceCount");
    let slices = count.int().unwrap_or_default();
    if slices <= 0 {
        errors.invalid(count, &slices.into(), "must be greater than zero");
    }
    let generation = pool.field("generation");
    if generation.int().is_some_and(|g| g < 0) {
        errors.bad(&generation, "must be greater than or equal to zero");
    }
}

/// Where the devices can be used.
fn nodes(spec: &At<'_, '_>, errors: &mut Errors) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let mut given = Vec::new();
    let name = spec.field("nodeName");
    if name.is_set() && name.is_empty() {
        let detail = "must be either unset or set to a non-empty string";
        errors.bad(&name, detail);
    } else if name.is_set() {
        given.push("`nodeName`");
        errors.problems(&name, dns_subdomain(name.str()));
    }
    let selector = spec.field("nodeSelector");
    if selector.is_set() {
        given.push("`nodeSelector`");
        validate_node_selector(&selector, false, errors);
        let terms = selector.field("nodeSelectorTerms");
        if terms.list().len() != 1 {
            let ty = "io.k8s.api.core.v1.NodeSelectorTerm";
            let shown: Vec<String> = terms.list().iter().map(|t| internal(ty, t)).collect();
            let shown = if terms.is_set() {
                format!("[{}]", shown.join(","))
            } else {
                "null".to_owned()
            };
            errors.invalid_as(terms, &shown, "must have exactly one node selector term");
        }
    }
    for (field, called) in [
        ("allNodes", "`allNodes`"),
        ("perDeviceNodeSelection", "`perDeviceNodeSelection`"),
    ] {
        let at = spec.field(field);
        if at.is_true() {
            given.push(called);
        } else if at.is_set() {
            errors.bad(&at, "must be either unset or set to true");
        }
    }
    match given.len() {
        0 => errors.required(spec, ONE),
        1 => {}
        _ => {
            let detail = format!("{ONE}, but multiple fields are set");
            errors.invalid_text(spec, &format!("{{{}}}", given.join(", ")), &detail);
        }
    }
}

impl Strategy for ResourceSlice {
    fn default(&self, object: &mut Value) {
        for device in items_mut(object, &["spec", "devices"]) {
            for taint in items_mut(device, &["taints"]) {
                default_at(taint, &["timeAdded"], meta::now());
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        drop_disabled(object, None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        drop_disabled(object, Some(old));
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let driver = object["spec"]["driver"].as_str().unwrap_or_default();
        if driver == driver.to_lowercase() {
            return Vec::new();
        }
        let driver = quote(driver);
        vec![format!(
            "spec.driver: driver names should be lowercase; {driver} contains uppercase characters"
        )]
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate_spec(&At::root(object).field("spec"), None, errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        validate_spec(&At::root(object).field("spec"), Some(&old["spec"]), errors);
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["spec.nodeName", "spec.driver"]
    }

    fn indexed_field(&self) -> Option<&'static str> {
        Some("spec.nodeName")
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        match field {
            "spec.nodeName" => Some(text(object, "/spec/nodeName")),
            "spec.driver" => Some(text(object, "/spec/driver")),
            _ => None,
        }
    }
}

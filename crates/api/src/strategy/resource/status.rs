//! What a claim has been given.

use serde_json::Value;

use super::claim::Requests;
use super::device::binding_conditions;
use super::{MAX_CONFIG, configuration, is_within, names, raw, text, unique};
use crate::meta;
use crate::strategy::template::scheduling::validate_node_selector;
use crate::validation::ip::interface_address;
use crate::validation::{At, Errors, conditions, dns_label, go_json, internal};

const MAX_RESULTS: usize = 32;

const MAX_CONSUMERS: usize = 256;

const MAX_CONDITIONS: usize = 8;

const MAX_ADDRESSES: usize = 16;

const MAX_INTERFACE_NAME: usize = 256;

const MAX_HARDWARE_ADDRESS: usize = 128;

/// The parts of a device's name.
const IDENTITY: [&str; 4] = ["driver", "pool", "device", "shareID"];

fn is_same_device(one: &Value, other: &Value) -> bool {
    IDENTITY
        .iter()
        .all(|part| text(&one[*part]) == text(&other[*part]))
}

fn allocated(object: &Value) -> &[Value] {
    let results = object.pointer("/status/allocation/devices/results");
    let results = results.and_then(Value::as_array);
    results.map(Vec::as_slice).unwrap_or_default()
}

/// What is known of devices that are given back goes with them.
pub(super) fn forget_deallocated(object: &mut Value, old: &Value) {
    let kept = allocated(object).to_vec();
    let gone = |device: &Value| {
        allocated(old).iter().any(|was| is_same_device(was, device))
            && !kept.iter().any(|is| is_same_device(is, device))
    };
    let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) else {
        return;
    };
    let Some(devices) = status.get_mut("devices").and_then(Value::as_array_mut) else {
        return;
    };
    devices.retain(|device| !gone(device));
    if devices.is_empty() {
        status.remove("devices");
    }
}

pub(super) fn validate(object: &Value, old: &Value, errors: &mut Errors) {
    let root = At::root(object);
    let status = root.field("status");
    let known = Requests::of(&object["spec"]);
    consumers(&status.field("reservedFor"), errors);
    let devices = status.field("devices");
    for device in devices.items() {
        validate_device(&device, allocated(object), errors);
    }
    for (i, device) in devices.items().enumerate() {
        let before = &devices.list()[..i];
        if before.iter().any(|d| is_same_device(d, device.value())) {
            errors.duplicate_as(device, &shown(device.value()));
        }
    }
    let allocation = status.field("allocation");
    reservations(&status, object, old, errors);
    if !allocation.is_set() {
        return;
    }
    let before = &old["status"]["allocation"];
    if before.is_null() {
        validate_allocation(&allocation, &known, errors);
    } else if before != allocation.value() {
        let shown = internal(
            "io.k8s.api.resource.v1.AllocationResult",
            allocation.value(),
        );
        errors.invalid_as(allocation, &shown, "field is immutable");
    }
}

/// Who uses the claim.
fn consumers(at: &At<'_, '_>, errors: &mut Errors) {
    if !is_within(at, MAX_CONSUMERS, errors) {
        return;
    }
    for consumer in at.items() {
        for field in ["resource", "name", "uid"] {
            errors.required_text(&consumer.field(field));
        }
    }
    unique(at, |consumer| text(&consumer["uid"]), errors);
}

/// Nobody can use what is not given, nor what is about to go.
fn reservations(status: &At<'_, '_>, object: &Value, old: &Value, errors: &mut Errors) {
    let reserved = status.field("reservedFor");
    if reserved.is_empty() {
        return;
    }
    if !status.field("allocation").is_set() {
        let detail = "may not be specified when `allocated` is not set";
        errors.forbidden(reserved, detail);
    } else if meta::is_terminating(object) {
        let known = old["status"]["reservedFor"].as_array();
        let is_new = |c: &Value| known.is_none_or(|known| !known.contains(c));
        if reserved.list().iter().any(is_new) {
            let detail = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.forbidden(reserved, detail);
        }
    }
}

/// A device's name as messages show it.
fn shown(device: &Value) -> String {
    let [driver, pool, device, share] = IDENTITY.map(|part| go_json(&text(&device[part]).into()));
    format!("{{\"Driver\":{driver},\"Pool\":{pool},\"Device\":{device},\"ShareID\":{share}}}")
}

fn validate_device(device: &At<'_, '_>, allocated: &[Value], errors: &mut Errors) {
    names::driver(&device.field("driver"), errors);
    names::pool(&device.field("pool"), errors);
    let name = device.field("device");
    errors.problems(&name, dns_label(name.str()));
    share(device, errors);
    if !allocated.iter().any(|a| is_same_device(a, device.value())) {
        let detail = "must be an allocated device in the claim";
        errors.invalid_as(device, &shown(device.value()), detail);
    }
    let list = device.field("conditions");
    is_within(&list, MAX_CONDITIONS, errors);
    conditions(errors, &list);
    let data = device.field("data");
    if data.is_set() {
        raw(&data, false, errors);
    }
    let network = device.field("networkData");
    for (field, max) in [
        ("interfaceName", MAX_INTERFACE_NAME),
        ("hardwareAddress", MAX_HARDWARE_ADDRESS),
    ] {
        let at = network.field(field);
        if at.str().len() > max {
            errors.too_long(at, max);
        }
    }
    let addresses = network.field("ips");
    if is_within(&addresses, MAX_ADDRESSES, errors) {
        for address in addresses.items() {
            interface_address(errors, &address);
        }
        unique(&addresses, text, errors);
    }
}

fn share(of: &At<'_, '_>, errors: &mut Errors) {
    let share = of.field("shareID");
    if share.is_set() {
        names::uid(&share, errors);
    }
}

fn validate_allocation(allocation: &At<'_, '_>, known: &Requests<'_>, errors: &mut Errors) {
    let devices = allocation.field("devices");
    let results = devices.field("results");
    if is_within(&results, MAX_RESULTS, errors) {
        for result in results.items() {
            known.validate(&result.field("request"), errors);
            names::driver(&result.field("driver"), errors);
            names::pool(&result.field("pool"), errors);
            let name = result.field("device");
            errors.problems(&name, dns_label(name.str()));
            binding_conditions(&result, errors);
            share(&result, errors);
        }
    }
    // Of the class and of the claim.
    let configs = devices.field("config");
    if is_within(&configs, 2 * MAX_CONFIG, errors) {
        for config in configs.items() {
            let sources = &["FromClaim", "FromClass"];
            errors.one_of_required(&config.field("source"), sources);
            known.validate_set(&config.field("requests"), errors);
            configuration(&config, false, errors);
        }
    }
    let nodes = allocation.field("nodeSelector");
    if nodes.is_set() {
        validate_node_selector(&nodes, false, errors);
    }
}

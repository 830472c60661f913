//! What is asked of claims to devices, and of what selects devices, that takes more than the object: its namespace, and
//! the expressions' types.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use fluyt_api::resources::{self, Resource};
use fluyt_api::validation::{At, Errors};
use fluyt_cel::{Environment, Field, ObjectType, Type};
use serde_json::Value;

use super::Location;
use crate::cache::Caches;

/// The label of namespaces in which claims may be for devices that others use.
const ADMIN_LABEL: &str = "resource.kubernetes.io/admin-access";

const MAX_EXPRESSION: usize = 10 * 1024;

/// What evaluating an expression once may cost at most, as far as can be told.
const MAX_COST: u64 = 1_000_000;

const MAX_DOMAIN: u64 = 63;

const MAX_ID: u64 = 32;

const MAX_VALUE: u64 = 64;

const MAX_PROPERTIES: u64 = 32;

static DEVICE: LazyLock<Environment> = LazyLock::new(|| {
    let mut environment = Environment::default();
    environment.declare_data("device", device());
    environment
});

fn field(name: &str, ty: Type, max_elements: u64) -> Field {
    Field {
        ty,
        name: name.to_owned(),
        max_elements,
        element: None,
        key: None,
        min_size: 2,
    }
}

/// Values by domain, and in it by identifier.
fn properties(name: &str, value: Field) -> Field {
    let map = |name: &str, key: u64, value: Field| Field {
        key: Some(Arc::new(field("", Type::String, key))),
        element: Some(Arc::new(value.clone())),
        ..field(name, Type::map(Type::String, value.ty), MAX_PROPERTIES)
    };
    map(name, MAX_DOMAIN, map("", MAX_ID, value))
}

/// A device as expressions see it.
fn device() -> Field {
    let quantity = Type::Opaque("kubernetes.Quantity");
    let fields = [
        field("driver", Type::String, MAX_DOMAIN),
        field("allowMultipleAllocations", Type::Bool, 1),
        properties("attributes", field("", Type::Dyn, MAX_VALUE)),
        properties("capacity", field("", quantity, 1)),
    ];
    let fields: BTreeMap<String, Field> = fields.map(|f| (f.name.clone(), f)).into();
    let name = "kubernetes.DRADevice".to_owned();
    field(
        "device",
        Type::Object(Arc::new(ObjectType { name, fields })),
        1,
    )
}

/// Access to devices that are in use needs a namespace that is set apart for it.
pub(super) fn admin_access(
    caches: &Caches,
    at: Location<'_>,
    object: &Value,
    old: Option<&Value>,
    errors: &mut Errors,
) {
    let requests = match (at.resource.kind, at.subresource, old) {
        _ if at.resource.group != "resource.k8s.io" => return,
        ("ResourceClaim", "", None) => object.pointer("/spec/devices/requests"),
        ("ResourceClaimTemplate", "", None) => object.pointer("/spec/spec/devices/requests"),
        ("ResourceClaim", "status", _) => None,
        _ => return,
    };
    let is_admin = |r: &Value| r["adminAccess"] == true || r["exactly"]["adminAccess"] == true;
    let results = "/status/allocation/devices/results";
    let had = old.and_then(|old| old.pointer(results)?.as_array());
    if had.is_some_and(|had| had.iter().any(is_admin)) {
        return;
    }
    let (asked, place) = match requests {
        Some(requests) => (Some(requests), "spec.devices.requests"),
        None => (object.pointer(results), "status.allocation.devices.results"),
    };
    let asked = asked.and_then(Value::as_array);
    let Some(index) = asked.and_then(|asked| asked.iter().position(is_admin)) else {
        return;
    };
    let namespaces = resources::find("", "v1", "namespaces");
    let namespace = namespaces.and_then(|n| caches.of(n).get(at.namespace));
    let label = |o: &Value| o["metadata"]["labels"][ADMIN_LABEL] == "true";
    if !namespace.is_some_and(|n| label(&n.object())) {
        let detail = format!(
            "admin access to devices requires the `{ADMIN_LABEL}: true` label on the containing namespace"
        );
        errors.forbidden(format!("{place}[{index}].adminAccess"), &detail);
    }
}

/// Expressions that select devices. Those that are stored already are not looked at again.
pub(super) fn selectors(
    resource: &Resource,
    object: &Value,
    old: Option<&Value>,
    errors: &mut Errors,
) {
    if resource.group != "resource.k8s.io" {
        return;
    }
    let root = At::root(object);
    let spec = root.field("spec");
    match (resource.kind, old) {
        ("DeviceClass", _) => {
            let selectors = spec.field("selectors");
            if old.is_none_or(|old| old["spec"]["selectors"] != *selectors.value()) {
                validate(&selectors, errors);
            }
        }
        ("ResourceClaim", None) => of_claim(&spec, errors),
        ("ResourceClaimTemplate", None) => of_claim(&spec.field("spec"), errors),
        _ => {}
    }
}

fn of_claim(spec: &At<'_, '_>, errors: &mut Errors) {
    let devices = spec.field("devices");
    for request in devices.field("requests").items() {
        let exactly = request.field("exactly");
        validate(&exactly.field("selectors"), errors);
        for alternative in request.field("firstAvailable").items() {
            validate(&alternative.field("selectors"), errors);
        }
    }
}

fn validate(selectors: &At<'_, '_>, errors: &mut Errors) {
    for selector in selectors.items() {
        let cel = selector.field("cel");
        if cel.is_set() {
            expression(&cel.field("expression"), errors);
        }
    }
}

fn expression(at: &At<'_, '_>, errors: &mut Errors) {
    if at.str().len() > MAX_EXPRESSION {
        return errors.too_long(at, MAX_EXPRESSION);
    }
    match DEVICE.compile(at.str()) {
        Err(error) => errors.bad(at, &format!("compilation failed: {error}")),
        Ok(program) if !matches!(program.result, Type::Bool | Type::Dyn) => {
            let found = program.result.runtime_name();
            let detail = format!("must evaluate to bool or the unknown type, not {found}");
            errors.bad(at, &detail);
        }
        Ok(program) if program.estimate.max > MAX_COST => {
            errors.forbidden(at, "too complex, exceeds cost limit");
        }
        Ok(_) => {}
    }
}

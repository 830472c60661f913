//! Addresses of services as objects, and the ranges they are from.

use serde_json::Value;

use crate::strategy::{MetaCheck, Strategy, copy_field, keep_metadata};
use crate::validation::{At, Errors, Problems, dns_subdomain, internal, ip, path_segment};

pub(in crate::strategy) struct IpAddress;

/// The name is the address.
fn address_name(name: &str) -> Problems {
    let mut errors = Errors::default();
    ip::canonical_ip(&mut errors, &At::root(&Value::Null), name);
    let prefix = format!("Invalid value: {}: ", crate::validation::quote(name));
    let problems = errors.0.into_iter();
    problems
        .map(|c| {
            c.message
                .strip_prefix(&prefix)
                .unwrap_or_default()
                .to_owned()
        })
        .collect()
}

impl Strategy for IpAddress {
    fn name_rule(&self) -> fn(&str) -> Problems {
        address_name
    }

    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let parent = spec.field("parentRef");
        if !parent.is_set() {
            errors.required(parent, "");
            return;
        }
        errors.optional_name(&parent.field("group"), dns_subdomain);
        errors.required_name(&parent.field("resource"), path_segment);
        errors.required_name(&parent.field("name"), path_segment);
        errors.optional_name(&parent.field("namespace"), path_segment);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let parent = &object["spec"]["parentRef"];
        if *parent != old["spec"]["parentRef"] {
            let shown = internal("io.k8s.api.networking.v1.ParentReference", parent);
            errors.invalid_as("spec.parentRef", &shown, "field is immutable");
        }
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[MetaCheck::Whole, MetaCheck::Update]
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

pub(in crate::strategy) struct ServiceCidr;

fn validate_ranges(spec: &At<'_, '_>, errors: &mut Errors) {
    let ranges = spec.field("cidrs");
    match ranges.list().len() {
        0 => return errors.required(ranges, "at least one CIDR required"),
        1 | 2 => {}
        _ => {
            let shown = internal("io.k8s.api.networking.v1.ServiceCIDRSpec", spec.value());
            errors.invalid_as(ranges, &shown, "may only hold up to 2 values");
            return;
        }
    }
    for range in ranges.items() {
        ip::canonical_cidr(errors, &range, range.str());
    }
    let families: Vec<bool> = ranges
        .items()
        .filter_map(|r| ip::Cidr::parse_sloppy(r.str()))
        .map(|r| ip::unmapped(r.address).is_ipv6())
        .collect();
    if let [first, second] = families.as_slice()
        && first == second
    {
        let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.bad(&ranges, detail);
    }
}

impl Strategy for ServiceCidr {
    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        keep_metadata(object, old);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        validate_ranges(&root.field("spec"), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        const IMMUTABLE: &str = "field is immutable";
        let (root, before) = (At::root(object), At::root(old));
        let (spec, old_spec) = (root.field("spec"), before.field("spec"));
        let (ranges, was) = (spec.field("cidrs"), old_spec.field("cidrs"));
        let (count, before) = (ranges.list().len(), was.list().len());
        let may_grow = before == 1 && count == 2;
        if count != before && !may_grow {
            errors.invalid(ranges, ranges.value(), IMMUTABLE);
            return;
        }
        for (new, old) in ranges.items().zip(was.list()) {
            if new.value() != old {
                errors.bad(&new, IMMUTABLE);
            }
        }
        if may_grow {
            validate_ranges(&spec, errors);
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

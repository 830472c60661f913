//! Cluster IPs and the families they are of, as far as they can be judged without knowing the cluster's.

use serde_json::{Value, json};

use super::{is_headless, strings};
use crate::strategy::copy_field;
use crate::validation::{At, Errors, ip};

const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const FAMILY_POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];

pub(super) fn cluster_ip(spec: &Value) -> &str {
    spec["clusterIP"].as_str().unwrap_or_default()
}

/// Whether both say the same addresses.
pub(super) fn same_addresses(a: &Value, b: &Value) -> bool {
    cluster_ip(a) == cluster_ip(b) && strings(&a["clusterIPs"]) == strings(&b["clusterIPs"])
}

pub(super) fn same_list(a: &Value, b: &Value) -> bool {
    strings(&a["clusterIPs"]) == strings(&b["clusterIPs"])
}

/// Makes the old field for one address and the list agree, where a client has written only one of them.
pub(super) fn normalise(spec: &mut Value, old: Option<&Value>) {
    let one = cluster_ip(spec).to_owned();
    let Some(old) = old else {
        if !one.is_empty() && strings(&spec["clusterIPs"]).is_empty() {
            spec["clusterIPs"] = json!([one]);
        }
        return;
    };
    let was = cluster_ip(old);
    if !strings(&old["clusterIPs"]).is_empty()
        && strings(&spec["clusterIPs"]).is_empty()
        && was == one
    {
        spec["clusterIPs"] = old["clusterIPs"].clone();
    }
    if was == one || !same_list(spec, old) {
        return;
    }
    if !was.is_empty() && one.is_empty() {
        copy_field(spec, &Value::Null, "clusterIPs");
    } else {
        spec["clusterIPs"] = json!([one]);
    }
}

/// The rules of addresses and families.
pub(super) fn validate(spec: &At<'_, '_>, old: Option<&Value>, errors: &mut Errors) {
    if spec.text("type") != "ExternalName" {
        validate_fields(spec, old.map(|o| &o["spec"]), errors);
    }
}

pub(super) fn validate_fields(spec: &At<'_, '_>, old: Option<&Value>, errors: &mut Errors) {
    let (one, all) = (spec.text("clusterIP"), spec.field("clusterIPs"));
    let addresses = strings(all.value());
    match (one, addresses.first()) {
        ("", Some(_)) => errors.bad(&all, "must be empty when `clusterIP` is not specified"),
        ("", None) => {}
        (_, None) => errors.required(all, ""),
        (one, Some(first)) if one != *first => {
            errors.bad(&all, "first value must match `clusterIP`");
        }
        _ => {}
    }
    let families = spec.field("ipFamilies");
    let mut seen = Vec::new();
    for family in families.items() {
        errors.member(&family, FAMILIES);
        if seen.contains(&family.str()) {
            errors.duplicate(family, family.value());
        }
        seen.push(family.str());
    }
    errors.one_of_optional(&spec.field("ipFamilyPolicy"), FAMILY_POLICIES);
    let known = old.map(|o| strings(&o["clusterIPs"])).unwrap_or_default();
    let mut wrong = false;
    for (i, address) in all.items().enumerate() {
        if i == 0 && address.str() == "None" {
            if addresses.len() > 1 {
                wrong = true;
                errors.bad(&all, "'None' must be the first and only value");
            }
            continue;
        }
        let before = errors.len();
        ip::legacy_ip(errors, &address, &known);
        wrong |= errors.len() > before;
    }
    if addresses.len() > 2 {
        errors.bad(&all, "may only hold up to 2 values");
    }
    if wrong {
        return;
    }
    if addresses.len() > 1 && ip::is_dual_stack(&addresses) != Some(true) {
        errors.bad(&all, "may specify no more than one IP for each IP family");
    }
    if is_headless(spec.value()) {
        return;
    }
    for (address, family) in all.items().zip(families.items()) {
        let is_six = ip::is_ipv6(address.str());
        let wanted = family.str();
        if (wanted == "IPv4" && is_six) || (wanted == "IPv6" && !is_six) {
            let index = families
                .list()
                .iter()
                .position(|f| f == wanted)
                .unwrap_or_default();
            let detail =
                format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
            errors.bad(&address, &detail);
        }
    }
}

//! Cluster IPs and the families they are of, as far as they are known without allocating. Clusters have one family.

use serde_json::{Value, json};

use super::{is_headless, strings};
use crate::validation::{At, Errors, ip};

const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const FAMILY_POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
/// The family that services of the cluster have.
const FAMILY: &str = "IPv4";

fn cluster_ip(spec: &Value) -> &str {
    spec["clusterIP"].as_str().unwrap_or_default()
}

/// Whether both say the same addresses.
pub(super) fn same_addresses(a: &Value, b: &Value) -> bool {
    cluster_ip(a) == cluster_ip(b) && strings(&a["clusterIPs"]) == strings(&b["clusterIPs"])
}

fn same_list(a: &Value, b: &Value) -> bool {
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
    spec["clusterIPs"] = if !was.is_empty() && one.is_empty() {
        json!([])
    } else {
        json!([one])
    };
}

/// Says which families a service is of, where it does not.
pub(super) fn choose_families(spec: &mut Value, old: Option<&Value>) {
    if !spec.is_object() || spec["type"] == "ExternalName" {
        return;
    }
    let without_selector = spec["selector"]
        .as_object()
        .is_none_or(serde_json::Map::is_empty);
    let everywhere = cluster_ip(spec) == "None" && without_selector;
    if spec["ipFamilyPolicy"].is_null() {
        let kept = old
            .map(|o| o["ipFamilyPolicy"].clone())
            .filter(|p| !p.is_null());
        let chosen = if everywhere {
            "RequireDualStack"
        } else {
            "SingleStack"
        };
        spec["ipFamilyPolicy"] = kept.unwrap_or_else(|| chosen.into());
    }
    let mut families: Vec<String> = strings(&spec["ipFamilies"])
        .into_iter()
        .map(str::to_owned)
        .collect();
    let addresses: Vec<String> = strings(&spec["clusterIPs"])
        .into_iter()
        .map(str::to_owned)
        .collect();
    for address in addresses
        .iter()
        .skip(families.len())
        .take_while(|a| *a != "None")
    {
        let family = if ip::is_ipv6(address) { "IPv6" } else { "IPv4" };
        if families.iter().any(|known| known == family) {
            break;
        }
        families.push(family.to_owned());
    }
    if families.is_empty() {
        families.push(FAMILY.to_owned());
    }
    if everywhere && families.len() == 1 && spec["ipFamilyPolicy"] != "SingleStack" {
        let other = if families[0] == "IPv4" {
            "IPv6"
        } else {
            "IPv4"
        };
        families.push(other.to_owned());
    }
    spec["ipFamilies"] = families.into();
}

/// What upstream looks at before it allocates, and returns by itself. Returns whether there was nothing.
pub(super) fn validate_families(spec: &Value, old: Option<&Value>, errors: &mut Errors) -> bool {
    if spec["type"] == "ExternalName" {
        return true;
    }
    let before = errors.len();
    let at = At::named(spec, "spec");
    validate_fields(&at, old, errors);
    if errors.len() > before {
        return false;
    }
    let policy = at.field("ipFamilyPolicy");
    let addresses = strings(&spec["clusterIPs"]);
    let families = strings(&spec["ipFamilies"]);
    let single = policy.str() == "SingleStack";
    for (many, what) in [
        (addresses.len(), "cluster IPs"),
        (families.len(), "IP families"),
    ] {
        if single && many == 2 {
            let detail = format!(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
            );
            errors.bad(&policy, &detail);
        }
    }
    if errors.len() > before {
        return false;
    }
    let everywhere = cluster_ip(spec) == "None"
        && spec["selector"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty);
    if everywhere {
        return true;
    }
    if policy.str() == "RequireDualStack" {
        errors.bad(
            &policy,
            "this cluster is not configured for dual-stack services",
        );
    }
    for family in at.field("ipFamilies").items().filter(|f| f.str() != FAMILY) {
        errors.bad(&family, "not configured on this cluster");
    }
    errors.len() == before
}

/// The rules of addresses and families.
pub(super) fn validate(spec: &At<'_, '_>, old: Option<&Value>, errors: &mut Errors) {
    if spec.text("type") != "ExternalName" {
        validate_fields(spec, old.map(|o| &o["spec"]), errors);
    }
}

fn validate_fields(spec: &At<'_, '_>, old: Option<&Value>, errors: &mut Errors) {
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

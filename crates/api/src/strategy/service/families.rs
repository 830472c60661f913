//! Which address families a service is of. That depends on what the cluster has, so it is not part of validation: upstream
//! settles it before it allocates.

use serde_json::{Value, json};

use super::addresses::{cluster_ip, same_list, validate_fields};
use super::strings;
use crate::strategy::copy_field;
use crate::validation::{At, Errors, ip};

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// Fills in the policy and the families that a service does not name. With errors, the service is not to be used.
pub(super) fn settle(
    spec: &mut Value,
    old: Option<&Value>,
    configured: &[&str],
    errors: &mut Errors,
) {
    if spec["type"] == "ExternalName" || old.is_some_and(|old| keeps_preference(spec, old)) {
        return;
    }
    choose_policy(spec, old);
    let before = errors.len();
    validate_fields(&At::named(spec, "spec"), old, errors);
    if errors.len() > before {
        return;
    }
    if let Some(old) = old {
        reduce(spec, old, errors);
    }
    validate_counts(spec, errors);
    infer_from_addresses(spec, configured, errors);
    if errors.len() > before {
        return;
    }
    if is_everywhere(spec) {
        complete(spec, configured, true);
        return;
    }
    validate_configured(spec, configured, errors);
    if errors.len() == before {
        complete(spec, configured, configured.len() == 2);
    }
}

fn policy(spec: &Value) -> &str {
    spec["ipFamilyPolicy"].as_str().unwrap_or_default()
}

fn families(spec: &Value) -> Vec<String> {
    let families = strings(&spec["ipFamilies"]);
    families.into_iter().map(str::to_owned).collect()
}

/// Nothing is known of who answers for a headless service without a selector, so it may have any family.
fn is_everywhere(spec: &Value) -> bool {
    cluster_ip(spec) == "None"
        && spec["selector"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty)
}

/// A service that would like two families gets or loses one only when it is asked for: not because the cluster has
/// changed.
fn keeps_preference(spec: &Value, old: &Value) -> bool {
    let ty = spec["type"].as_str().unwrap_or_default();
    policy(spec) == PREFER
        && matches!(policy(old), "" | PREFER)
        && spec["type"] == old["type"]
        && matches!(ty, "ClusterIP" | "NodePort" | "LoadBalancer")
        && same_list(spec, old)
        && families(spec) == families(old)
}

fn choose_policy(spec: &mut Value, old: Option<&Value>) {
    if !spec["ipFamilyPolicy"].is_null() {
        return;
    }
    let kept = old.map(|old| &old["ipFamilyPolicy"]);
    spec["ipFamilyPolicy"] = match kept.filter(|policy| !policy.is_null()) {
        Some(policy) => policy.clone(),
        None if is_everywhere(spec) => REQUIRE.into(),
        None => SINGLE.into(),
    };
}

/// To ask for a single family is to give the second one back; nothing else gives it back.
fn reduce(spec: &mut Value, old: &Value, errors: &mut Errors) {
    if policy(spec) == SINGLE {
        let same = [same_list(spec, old), families(spec) == families(old)];
        for (field, same) in ["clusterIPs", "ipFamilies"].into_iter().zip(same) {
            if let Some(list) = spec[field].as_array_mut().filter(|_| same) {
                list.truncate(1);
            }
        }
        return;
    }
    let at = At::named(spec, "spec");
    for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (now, was) = (strings(&spec[field]).len(), strings(&old[field]).len());
        if (1..was).contains(&now) {
            let detail = format!("must be 'SingleStack' to release the secondary {what}");
            errors.bad(&at.field("ipFamilyPolicy"), &detail);
        }
    }
}

fn validate_counts(spec: &Value, errors: &mut Errors) {
    let at = At::named(spec, "spec");
    for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if policy(spec) == SINGLE && strings(&spec[field]).len() == 2 {
            let detail = format!(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
            );
            errors.bad(&at.field("ipFamilyPolicy"), &detail);
        }
    }
}

fn infer_from_addresses(spec: &mut Value, configured: &[&str], errors: &mut Errors) {
    let mut families = families(spec);
    for (i, address) in strings(&spec["clusterIPs"]).into_iter().enumerate() {
        if address == "None" {
            break;
        }
        if i < families.len() {
            continue;
        }
        let family = if ip::is_ipv6(address) { "IPv6" } else { "IPv4" };
        if configured.contains(&family) {
            families.push(family.to_owned());
        } else {
            let detail = format!("{family} is not configured on this cluster");
            let place = format!("spec.clusterIPs[{i}]");
            errors.invalid(place, &spec["clusterIPs"], &detail);
        }
    }
    set(spec, families);
}

fn validate_configured(spec: &Value, configured: &[&str], errors: &mut Errors) {
    let at = At::named(spec, "spec");
    if policy(spec) == REQUIRE && configured.len() < 2 {
        let detail = "this cluster is not configured for dual-stack services";
        errors.bad(&at.field("ipFamilyPolicy"), detail);
    }
    for family in at.field("ipFamilies").items() {
        if !configured.contains(&family.str()) {
            errors.bad(&family, "not configured on this cluster");
        }
    }
}

/// The default family where none is named, and the other one where both are wanted and `may_have_both`.
fn complete(spec: &mut Value, configured: &[&str], may_have_both: bool) {
    let mut families = families(spec);
    if families.is_empty() {
        families.extend(configured.first().map(|family| (*family).to_owned()));
    }
    if may_have_both && families.len() == 1 && policy(spec) != SINGLE {
        let other = if families[0] == "IPv4" {
            "IPv6"
        } else {
            "IPv4"
        };
        families.push(other.to_owned());
    }
    set(spec, families);
}

fn set(spec: &mut Value, families: Vec<String>) {
    if families.is_empty() {
        copy_field(spec, &Value::Null, "ipFamilies");
    } else {
        spec["ipFamilies"] = json!(families);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &[&str] = &["IPv6", "IPv4"];

    fn settled(mut spec: Value, old: Option<&Value>, configured: &[&str]) -> Value {
        let mut errors = Errors::default();
        settle(&mut spec, old, configured, &mut errors);
        let messages: Vec<String> = errors.0.into_iter().map(|c| c.message).collect();
        match messages.as_slice() {
            [] => json!([
                spec["ipFamilyPolicy"],
                spec["ipFamilies"],
                spec["clusterIPs"]
            ]),
            messages => json!(messages),
        }
    }

    #[test]
    fn new_services_get_what_the_cluster_has() {
        let spec = json!({"type": "ClusterIP", "selector": {"a": "b"}});
        let with = |field: &str, value: Value| {
            let mut spec = spec.clone();
            spec[field] = value;
            spec
        };
        assert_eq!(
            settled(spec.clone(), None, BOTH),
            json!([SINGLE, ["IPv6"], null])
        );
        let prefer = with("ipFamilyPolicy", PREFER.into());
        assert_eq!(
            settled(prefer.clone(), None, BOTH),
            json!([PREFER, ["IPv6", "IPv4"], null])
        );
        assert_eq!(
            settled(prefer, None, &["IPv4"]),
            json!([PREFER, ["IPv4"], null])
        );
        let require = with("ipFamilyPolicy", REQUIRE.into());
        assert!(
            settled(require, None, &["IPv4"])[0]
                .as_str()
                .unwrap()
                .ends_with("this cluster is not configured for dual-stack services")
        );
        let mut six = with("clusterIP", "fd00::1".into());
        six["clusterIPs"] = json!(["fd00::1"]);
        assert_eq!(
            settled(six.clone(), None, BOTH),
            json!([SINGLE, ["IPv6"], ["fd00::1"]])
        );
        assert!(
            settled(six, None, &["IPv4"])[0]
                .as_str()
                .unwrap()
                .ends_with("IPv6 is not configured on this cluster")
        );
    }

    #[test]
    fn headless_services_without_selector_have_both_families() {
        let spec = json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]});
        assert_eq!(
            settled(spec, None, &["IPv4"]),
            json!([REQUIRE, ["IPv4", "IPv6"], ["None"]])
        );
    }

    #[test]
    fn a_second_family_comes_and_goes_with_the_policy() {
        let both = json!({"type": "ClusterIP", "selector": {"a": "b"}, "ipFamilyPolicy": PREFER,
            "ipFamilies": ["IPv4", "IPv6"], "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]});
        let mut single = both.clone();
        single["ipFamilyPolicy"] = SINGLE.into();
        assert_eq!(
            settled(single, Some(&both), BOTH),
            json!([SINGLE, ["IPv4"], ["10.0.0.1"]])
        );
        let mut reduced = both.clone();
        reduced["ipFamilies"] = json!(["IPv4"]);
        assert!(
            settled(reduced, Some(&both), BOTH)[0]
                .as_str()
                .unwrap()
                .ends_with("must be 'SingleStack' to release the secondary IP family")
        );
        // The cluster has lost a family, which is no reason for the service to lose it.
        assert_eq!(
            settled(both.clone(), Some(&both), &["IPv4"]),
            json!([PREFER, ["IPv4", "IPv6"], ["10.0.0.1", "fd00::1"]])
        );
        let one = json!({"type": "ClusterIP", "selector": {"a": "b"}, "ipFamilyPolicy": REQUIRE,
            "ipFamilies": ["IPv4"], "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]});
        let mut was = one.clone();
        was["ipFamilyPolicy"] = SINGLE.into();
        assert_eq!(
            settled(one, Some(&was), BOTH),
            json!([REQUIRE, ["IPv4", "IPv6"], ["10.0.0.1"]])
        );
    }
}

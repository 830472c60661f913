//! Who writes which part of a claim's status: where a claim is allocated is said by schedulers, and what became of its
//! devices by their drivers.

use std::collections::{BTreeMap, BTreeSet};

use fluyt_api::validation::{Errors, dns_subdomain};
use serde_json::Value;

use crate::admission::Attributes;
use crate::authz::{Authorizer, Question};
use crate::user::User;

const NODE_OF_USER: &str = "authentication.kubernetes.io/node-name";

/// Asks whether the author of a claim's status may change what changes in it.
pub(super) async fn authorize_status(
    authorizer: &Authorizer,
    attributes: &Attributes<'_>,
    object: &Value,
    errors: &mut Errors,
) {
    let at = attributes.at;
    let is_claim = (at.resource.group, at.resource.kind) == ("resource.k8s.io", "ResourceClaim");
    let (true, "status", Some(old)) = (is_claim, at.subresource, attributes.old) else {
        return;
    };
    let user = &attributes.cx.user;
    let (new, old) = (&object["status"], &old["status"]);
    let verb = if attributes.cx.patches {
        "patch"
    } else {
        "update"
    };
    let question = |verb: &str, subresource: &str| Question {
        verb: verb.into(),
        group: at.resource.group.into(),
        version: at.resource.version.into(),
        resource: at.resource.plural.into(),
        subresource: subresource.into(),
        ..Question::default()
    };
    if new["allocation"] != old["allocation"] || new["reservedFor"] != old["reservedFor"] {
        let asked = question(verb, "binding");
        if let Err(why) = ask(authorizer, user, &asked).await {
            let detail = format!(
                "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"{verb}\" permission: {why}"
            );
            errors.forbidden("status.allocation", &detail);
        }
    }
    // Without an allocation, nothing is kept of devices.
    if new["allocation"].is_null() {
        return;
    }
    let mut verbs = vec![format!("arbitrary-node:{verb}")];
    if is_on_node_of(user, &new["allocation"]) {
        verbs.insert(0, format!("associated-node:{verb}"));
    }
    for driver in changed_drivers(&new["devices"], &old["devices"]) {
        let mut first = None;
        for verb in &verbs {
            let asked = Question {
                namespace: at.namespace.into(),
                name: driver.into(),
                ..question(verb, "driver")
            };
            match ask(authorizer, user, &asked).await {
                Ok(()) => {
                    first = None;
                    break;
                }
                Err(why) => {
                    first.get_or_insert(why);
                }
            }
        }
        if let Some(why) = first {
            let detail = format!(
                "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{}]\" permission: {why}",
                verbs.join(" ")
            );
            errors.forbidden("status.devices", &detail);
        }
    }
}

async fn ask(authorizer: &Authorizer, user: &User, question: &Question) -> Result<(), String> {
    let decision = authorizer.decide(user, question).await;
    if decision.allows() {
        return Ok(());
    }
    let reason = match (decision.error, decision.reason) {
        (Some(error), reason) if reason.is_empty() => error,
        (Some(error), reason) => format!("{error}: {reason}"),
        (None, reason) => reason,
    };
    Err(question.forbidden(user, &reason).message)
}

/// The drivers of devices whose status is new, gone or another.
fn changed_drivers<'a>(new: &'a Value, old: &'a Value) -> BTreeSet<&'a str> {
    let by_key = |devices: &'a Value| -> BTreeMap<[&'a str; 4], &'a Value> {
        let devices = devices.as_array().into_iter().flatten();
        let key = |device: &'a Value| {
            ["driver", "pool", "device", "shareID"]
                .map(|field| device[field].as_str().unwrap_or_default())
        };
        devices.map(|device| (key(device), device)).collect()
    };
    let (new, old) = (by_key(new), by_key(old));
    let differing = new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(*value));
    let gone = old.iter().filter(|(key, _)| !new.contains_key(*key));
    differing.chain(gone).map(|(key, _)| key[0]).collect()
}

/// Whether a user is a service account's pod on the one node that an allocation is for.
fn is_on_node_of(user: &User, allocation: &Value) -> bool {
    let one = |list: &Value| match list.as_array().map(Vec::as_slice) {
        Some([one]) => Some(one.clone()),
        _ => None,
    };
    let Some(term) = one(&allocation["nodeSelector"]["nodeSelectorTerms"]) else {
        return false;
    };
    let Some(field) = one(&term["matchFields"]) else {
        return false;
    };
    let is_by_name = field["key"] == "metadata.name" && field["operator"] == "In";
    let others = term["matchExpressions"].as_array();
    if !is_by_name || others.is_some_and(|others| !others.is_empty()) {
        return false;
    }
    let is_account = user.name.starts_with("system:serviceaccount:");
    match user.extra.get(NODE_OF_USER).map(Vec::as_slice) {
        Some([node]) => {
            let named = one(&field["values"]).is_some_and(|name| name == node.as_str());
            is_account && dns_subdomain(node).is_empty() && named
        }
        _ => false,
    }
}

//! Which requests a webhook or policy is about: rules, namespaces and labels.

use std::sync::Arc;

use fluyt_api::resources::{self, Handle, Resource};
use fluyt_api::selector::LabelSelector;
use fluyt_api::{Error, convert, meta};
use serde_json::Value;

use super::{Attributes, Operation};
use crate::cache::{Caches, storage_resource, working_resource};
use crate::custom::Converter;

/// Webhooks of the API are not asked about what configures admission, so that a bad one can be removed.
pub fn is_exempt(attributes: &Attributes<'_>) -> bool {
    attributes.at.resource.group == "admissionregistration.k8s.io"
        && matches!(
            attributes.at.resource.kind,
            "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration"
        )
        || is_exempt_from_policies(attributes)
}

/// Nor are policies of the API asked about policies.
pub fn is_exempt_from_policies(attributes: &Attributes<'_>) -> bool {
    attributes.at.resource.group == "admissionregistration.k8s.io"
        && matches!(
            attributes.at.resource.kind,
            "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding"
                | "MutatingAdmissionPolicy"
                | "MutatingAdmissionPolicyBinding"
        )
}

/// The resource version in which a request matches rules: its own, or an equivalent one.
pub fn matched(
    caches: &Caches,
    attributes: &Attributes<'_>,
    rules: &Value,
    equivalent: bool,
) -> Option<Handle> {
    let own = attributes.requested();
    let served = caches.served();
    let list = || rules.as_array().into_iter().flatten();
    let fits = |resource: &Resource, rule: &Value| rule_matches(rule, resource, attributes);
    if list().any(|rule| fits(own, rule)) {
        return served.find(own.group, own.version, own.plural);
    }
    if !equivalent {
        return None;
    }
    let stored = storage_resource(own).storage;
    let others: Vec<&Resource> = served
        .all()
        .filter(|r| r.storage == stored && !std::ptr::eq(*r, own))
        .collect();
    let other = list().find_map(|rule| others.iter().find(|r| fits(r, rule)))?;
    served.find(other.group, other.version, other.plural)
}

fn contains(list: &Value, word: &str) -> bool {
    list.as_array()
        .into_iter()
        .flatten()
        .any(|v| v == "*" || v == word)
}

fn rule_matches(rule: &Value, resource: &Resource, attributes: &Attributes<'_>) -> bool {
    let scope = match rule["scope"].as_str() {
        Some("Namespaced") => resource.namespaced,
        Some("Cluster") => !resource.namespaced,
        _ => true,
    };
    let names = &rule["resourceNames"];
    let named = names.as_array().is_none_or(Vec::is_empty)
        || names
            .as_array()
            .is_some_and(|n| n.iter().any(|n| n == attributes.at.name));
    scope
        && named
        && contains(&rule["operations"], attributes.operation.word())
        && contains(&rule["apiGroups"], resource.group)
        && contains(&rule["apiVersions"], resource.version)
        && resource_matches(
            &rule["resources"],
            resource.plural,
            attributes.at.subresource,
        )
}

/// `pods`, `pods/status`, `pods/*`, `*/status`, `*/*`, `*`
fn resource_matches(list: &Value, plural: &str, subresource: &str) -> bool {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .any(|wanted| {
            let (resource, sub) = wanted.split_once('/').unwrap_or((wanted, ""));
            (resource == "*" || resource == plural) && (sub == subresource || sub == "*")
        })
}

/// Whether rules that are to be left out match a request.
pub fn is_excluded(attributes: &Attributes<'_>, rules: &Value) -> bool {
    rules
        .as_array()
        .into_iter()
        .flatten()
        .any(|rule| rule_matches(rule, attributes.requested(), attributes))
}

/// The namespace of a request, as an object; the namespace itself when the request is about one.
pub fn namespace(caches: &Caches, attributes: &Attributes<'_>, object: &Value) -> Option<Value> {
    let at = attributes.at;
    if at.resource.group.is_empty() && at.resource.plural == "namespaces" {
        return Some(if object.is_null() {
            attributes.old.cloned().unwrap_or_default()
        } else {
            object.clone()
        });
    }
    if !at.resource.namespaced {
        return None;
    }
    let namespaces = resources::find("", "v1", "namespaces")?;
    caches.of(namespaces).get(at.namespace).map(|e| e.object())
}

/// Whether the namespace's labels match; requests outside of namespaces do.
pub fn namespace_matches(selector: &Value, namespace: Option<&Value>) -> bool {
    match namespace {
        None => true,
        Some(namespace) => selects(selector, namespace),
    }
}

fn selects(selector: &Value, object: &Value) -> bool {
    if selector.as_object().is_none_or(serde_json::Map::is_empty) {
        return true;
    }
    LabelSelector::from_json(selector).is_ok_and(|s| s.matches(meta::labels(object)))
}

/// Whether the object's labels match, before or after.
pub fn object_matches(selector: &Value, object: &Value, old: Option<&Value>) -> bool {
    (object.is_object() && selects(selector, object))
        || old.is_some_and(|old| selects(selector, old))
}

/// An object in the version that matched.
pub async fn versioned(
    converter: &Converter,
    attributes: &Attributes<'_>,
    to: &Handle,
    object: &Value,
) -> Result<Value, Error> {
    if object.is_null() || object["kind"] != attributes.at.resource.kind {
        return Ok(object.clone());
    }
    if to.definition.is_some() {
        return converter.one(object.clone(), to).await;
    }
    let working = working_resource(to);
    Ok(if std::ptr::eq(&**to, working) {
        object.clone()
    } else {
        convert::from_storage(to, object.clone())
    })
}

/// An object in the version that matched, brought back into the one that is worked in.
pub async fn worked_in(
    converter: &Converter,
    attributes: &Attributes<'_>,
    from: &Handle,
    object: Value,
) -> Result<Value, Error> {
    let own = attributes.at.resource;
    if own.definition.is_some() {
        return converter.one(object, own).await;
    }
    Ok(if std::ptr::eq(&**from, own) {
        object
    } else {
        convert::to_storage(from, own, object)
    })
}

/// Whether there are objects of one of the configuration kinds.
pub fn is_configured(caches: &Caches, plural: &str) -> bool {
    resources::find("admissionregistration.k8s.io", "v1", plural)
        .is_some_and(|resource| caches.of(resource).len() > 0)
}

/// All objects of one of the configuration kinds, in order of their names.
pub fn configurations(
    caches: &Caches,
    plural: &str,
) -> Vec<(Arc<str>, i64, Arc<crate::cache::Entry>)> {
    let Some(resource) = resources::find("admissionregistration.k8s.io", "v1", plural) else {
        return Vec::new();
    };
    caches
        .of(resource)
        .snapshot()
        .entries
        .iter()
        .map(|(name, entry)| (name.clone(), entry.revision, entry.clone()))
        .collect()
}

impl Operation {
    /// As rules name it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

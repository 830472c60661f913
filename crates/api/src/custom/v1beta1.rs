//! Definitions as they are stored: in `apiextensions.k8s.io/v1beta1`, which has at its top what all versions agree on.

use serde_json::{Map, Value, json};

use crate::meta::child;

/// Their version in the store.
pub const API_VERSION: &str = "apiextensions.k8s.io/v1beta1";

/// What every version has, by its name there and at the top.
const SHARED: [(&str, &str); 4] = [
    ("schema", "validation"),
    ("subresources", "subresources"),
    ("additionalPrinterColumns", "additionalPrinterColumns"),
    ("selectableFields", "selectableFields"),
];

/// From v1.
#[must_use]
pub fn to_v1beta1(mut crd: Value) -> Value {
    crd["apiVersion"] = API_VERSION.into();
    let spec = child(&mut crd, "spec");
    let mut versions = take_list(spec, "versions");
    if let Some(name) = versions.first().map(|v| v["name"].clone()) {
        spec.insert("version".into(), name);
    }
    for version in &mut versions {
        rename_columns(version, "jsonPath", "JSONPath");
    }
    for (below, top) in SHARED {
        let first = versions.first().map(|v| v[below].clone());
        let Some(first) = first.filter(|f| !f.is_null()) else {
            continue;
        };
        if versions.iter().all(|v| v[below] == first) {
            for version in versions.iter_mut().filter_map(Value::as_object_mut) {
                version.remove(below);
            }
            spec.insert(top.into(), first);
        }
    }
    for version in versions.iter_mut().filter_map(Value::as_object_mut) {
        version.retain(|_, value| !value.is_null());
    }
    spec.insert("versions".into(), versions.into());
    spec.entry("preserveUnknownFields").or_insert(false.into());
    if let Some(Value::Object(conversion)) = spec.get_mut("conversion")
        && let Some(Value::Object(mut webhook)) = conversion.remove("webhook")
    {
        if let Some(client) = webhook.remove("clientConfig") {
            conversion.insert("webhookClientConfig".into(), client);
        }
        conversion.extend(webhook);
    }
    crd
}

/// Into v1.
#[must_use]
pub fn from_v1beta1(mut crd: Value) -> Value {
    crd["apiVersion"] = "apiextensions.k8s.io/v1".into();
    let spec = child(&mut crd, "spec");
    let mut versions = take_list(spec, "versions");
    if let Some(name) = spec.remove("version")
        && versions.is_empty()
    {
        versions.push(json!({"name": name, "served": true, "storage": true}));
    }
    for (below, top) in SHARED {
        let Some(shared) = spec.remove(top) else {
            continue;
        };
        for version in versions.iter_mut().filter_map(Value::as_object_mut) {
            let slot = version.entry(below).or_insert(Value::Null);
            if slot.is_null() {
                slot.clone_from(&shared);
            }
        }
    }
    for version in &mut versions {
        rename_columns(version, "JSONPath", "jsonPath");
    }
    spec.insert("versions".into(), versions.into());
    // True was the default; false is nothing in v1.
    match spec.get("preserveUnknownFields") {
        None => {
            spec.insert("preserveUnknownFields".into(), true.into());
        }
        Some(Value::Bool(true)) => {}
        Some(_) => {
            spec.remove("preserveUnknownFields");
        }
    }
    if let Some(Value::Object(conversion)) = spec.get_mut("conversion") {
        let mut webhook = Map::new();
        if let Some(client) = conversion.remove("webhookClientConfig") {
            webhook.insert("clientConfig".into(), client);
        }
        if let Some(versions) = conversion.remove("conversionReviewVersions") {
            webhook.insert("conversionReviewVersions".into(), versions);
        }
        if !webhook.is_empty() {
            conversion.insert("webhook".into(), webhook.into());
        }
    }
    crd
}

fn take_list(spec: &mut Map<String, Value>, name: &str) -> Vec<Value> {
    match spec.remove(name) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn rename_columns(version: &mut Value, from: &str, to: &str) {
    let columns = version
        .get_mut("additionalPrinterColumns")
        .and_then(Value::as_array_mut);
    for column in columns
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        if let Some(path) = column.remove(from) {
            column.insert(to.into(), path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(name: &str, schema: &Value) -> Value {
        json!({"name": name, "served": true, "storage": name == "v1", "schema": schema,
            "additionalPrinterColumns": [{"name": "c", "type": "string", "jsonPath": ".a"}]})
    }

    #[test]
    fn what_versions_agree_on_is_at_the_top_and_comes_back() {
        let (one, other) = (
            json!({"openAPIV3Schema": {"type": "object"}}),
            json!({"openAPIV3Schema": {"type": "object", "properties": {}}}),
        );
        for second in [&one, &other] {
            let v1 = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {"name": "xs.y"}, "spec": {"group": "y", "scope": "Cluster",
                    "names": {"plural": "xs", "kind": "X"},
                    "versions": [version("v1", &one), version("v2", second)],
                    "conversion": {"strategy": "Webhook", "webhook": {
                        "clientConfig": {"url": "https://a"}, "conversionReviewVersions": ["v1"]}}}});
            let stored = to_v1beta1(v1.clone());
            let spec = &stored["spec"];
            assert_eq!(spec["version"], "v1");
            assert_eq!(spec["validation"].is_object(), second == &one);
            assert_eq!(spec["additionalPrinterColumns"][0]["JSONPath"], ".a");
            assert_eq!(
                spec["conversion"]["webhookClientConfig"]["url"],
                "https://a"
            );
            assert_eq!(spec["preserveUnknownFields"], false);
            assert_eq!(from_v1beta1(stored), v1);
        }
    }
}

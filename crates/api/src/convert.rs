//! Conversion between the versions of a resource that is served in several.

use serde_json::{Map, Value, json};

use crate::resources::Resource;

/// From the stored version to the served one.
#[must_use]
pub fn from_storage(resource: &Resource, mut object: Value) -> Value {
    match (resource.group, resource.version, resource.plural) {
        ("events.k8s.io", "v1", "events") => {
            rename(&mut object, &EVENT_FIELDS, false);
            if let Some(map) = object.as_object_mut() {
                // Always written in the core group, but not here.
                let empty =
                    |name: &str, value: &Value| name.starts_with("reporting") && value == "";
                map.retain(|name, value| !empty(name, value));
            }
        }
        ("autoscaling", "v1", "horizontalpodautoscalers") => {
            autoscaler_to_v1(&mut object);
            for count in ["currentReplicas", "desiredReplicas"] {
                let status = crate::meta::child(&mut object, "status");
                status.entry(count).or_insert(0.into());
            }
        }
        _ => {}
    }
    stamp(&mut object, &resource.api_version(), resource.kind);
    object
}

/// From the served version to the stored one.
#[must_use]
pub fn to_storage(resource: &Resource, stored: &Resource, mut object: Value) -> Value {
    match (resource.group, resource.version, resource.plural) {
        ("events.k8s.io", "v1", "events") => rename(&mut object, &EVENT_FIELDS, true),
        ("autoscaling", "v1", "horizontalpodautoscalers") => autoscaler_from_v1(&mut object),
        _ => {}
    }
    stamp(&mut object, &stored.api_version(), stored.kind);
    object
}

fn stamp(object: &mut Value, api_version: &str, kind: &str) {
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
}

/// Core events and events.k8s.io events have the same content under other names: core's, then the new group's.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(object: &mut Value, fields: &[(&str, &str)], to_core: bool) {
    let Some(map) = object.as_object_mut() else {
        return;
    };
    for (core, new) in fields {
        let (from, to) = if to_core { (new, core) } else { (core, new) };
        if let Some(value) = map.remove(*from) {
            map.insert((*to).to_owned(), value);
        }
    }
}

/// The one metric that autoscaling/v1 knows.
const CPU: &str = "cpu";

fn cpu_metric(list: &Value) -> Option<&Value> {
    list.as_array()?.iter().find(|m| is_cpu_metric(m))
}

fn is_cpu_metric(metric: &Value) -> bool {
    let resource = &metric["resource"];
    metric["type"] == "Resource"
        && resource["name"] == CPU
        && (resource["target"]["averageUtilization"].is_number()
            || resource["current"]["averageUtilization"].is_number())
}

fn autoscaler_to_v1(object: &mut Value) {
    let target = cpu_metric(&object["spec"]["metrics"])
        .map(|m| m["resource"]["target"]["averageUtilization"].clone());
    let current = cpu_metric(&object["status"]["currentMetrics"])
        .map(|m| m["resource"]["current"]["averageUtilization"].clone());
    let mut kept = Map::new();
    // What v1 has no fields for travels in annotations, as upstream does it.
    for (part, field) in [
        ("spec", "metrics"),
        ("spec", "behavior"),
        ("status", "conditions"),
        ("status", "currentMetrics"),
    ] {
        if let Some(mut value) = object
            .get_mut(part)
            .and_then(Value::as_object_mut)
            .and_then(|m| m.remove(field))
        {
            // The one metric that it has a field for does not.
            if let (true, Value::Array(metrics)) = (field.ends_with("etrics"), &mut value) {
                metrics.retain(|m| !is_cpu_metric(m));
            }
            let name = if field == "currentMetrics" {
                "current-metrics"
            } else {
                field
            };
            kept.insert(
                format!("autoscaling.alpha.kubernetes.io/{name}"),
                value.to_string().into(),
            );
        }
    }
    kept.retain(|_, v| v != "[]" && v != "null");
    if let (Some(spec), Some(target)) = (
        object["spec"].as_object_mut(),
        target.filter(|t| !t.is_null()),
    ) {
        spec.insert("targetCPUUtilizationPercentage".into(), target);
    }
    if let (Some(status), Some(current)) = (
        object.get_mut("status").and_then(Value::as_object_mut),
        current.filter(|c| !c.is_null()),
    ) {
        status.insert("currentCPUUtilizationPercentage".into(), current);
    }
    if !kept.is_empty() {
        let metadata = crate::meta::metadata(object);
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.extend(kept);
        }
    }
}

fn autoscaler_from_v1(object: &mut Value) {
    let mut restored = Vec::new();
    if let Some(annotations) = object["metadata"]
        .get_mut("annotations")
        .and_then(Value::as_object_mut)
    {
        for (name, part, field) in [
            ("metrics", "spec", "metrics"),
            ("behavior", "spec", "behavior"),
            ("conditions", "status", "conditions"),
            ("current-metrics", "status", "currentMetrics"),
        ] {
            let key = format!("autoscaling.alpha.kubernetes.io/{name}");
            let value = annotations
                .remove(&key)
                .and_then(|v| serde_json::from_str(v.as_str()?).ok());
            if let Some(value) = value {
                restored.push((part, field, value));
            }
        }
    }
    for (part, field, value) in restored {
        crate::meta::child(object, part).insert(field.into(), value);
    }
    let target = object["spec"]
        .as_object_mut()
        .and_then(|s| s.remove("targetCPUUtilizationPercentage"));
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("currentCPUUtilizationPercentage");
    }
    let Some(target) = target else { return };
    let metric = json!({"type": "Resource", "resource": {"name": CPU, "target": {"type": "Utilization", "averageUtilization": target}}});
    let spec = crate::meta::child(object, "spec");
    let metrics = spec.entry("metrics").or_insert_with(|| json!([]));
    if let Some(list) = metrics.as_array_mut() {
        list.retain(|m| m["resource"]["name"] != CPU);
        list.push(metric);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;

    #[test]
    fn events_round_trip() {
        let (new, core) = (
            find("events.k8s.io", "v1", "events").unwrap(),
            find("", "v1", "events").unwrap(),
        );
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "x", "regarding": {"name": "p"}});
        let stored = to_storage(new, core, event.clone());
        assert_eq!(
            (
                &stored["message"],
                &stored["involvedObject"]["name"],
                &stored["apiVersion"]
            ),
            (&"x".into(), &"p".into(), &"v1".into())
        );
        assert_eq!(from_storage(new, stored), event);
    }

    #[test]
    fn autoscalers_round_trip() {
        let (v1, v2) = (
            find("autoscaling", "v1", "horizontalpodautoscalers").unwrap(),
            find("autoscaling", "v2", "horizontalpodautoscalers").unwrap(),
        );
        let stored = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}});
        let served = from_storage(v1, stored.clone());
        assert_eq!(served["spec"]["targetCPUUtilizationPercentage"], 50);
        let back = to_storage(v1, v2, served);
        assert_eq!(back["spec"], stored["spec"]);
    }
}

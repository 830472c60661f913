//! Conversion between the versions of a resource that is served in several.

use serde_json::{Map, Value, json};

use crate::resources::Resource;
use crate::strategy::{at_mut, items_mut};

/// One difference between a version of a resource and the version that is stored. Versions without any differ in nothing
/// but their names.
enum Step {
    /// Fields of the object have other names: those of the stored version, then those of this one.
    Renamed(&'static [(&'static str, &'static str)]),
    /// Each item of the list at a path has the fields itself that the stored version keeps in an object.
    Flat {
        list: &'static [&'static str],
        fields: &'static [&'static str],
        object: &'static str,
    },
    /// Each item of the list at a path keeps the fields in an object that the stored version has in the item itself.
    Nested {
        list: &'static [&'static str],
        fields: &'static [&'static str],
        object: &'static str,
    },
    /// Fields of the object at a path whose zero value means that there is none, which the stored version tells apart.
    ZeroIsNothing {
        at: &'static [&'static str],
        fields: &'static [&'static str],
    },
    /// What is like nothing else.
    Own {
        from_storage: fn(&mut Value),
        to_storage: fn(&mut Value),
    },
}

/// How a version differs from the stored one.
fn steps(resource: &Resource) -> &'static [Step] {
    match (resource.group, resource.version, resource.plural) {
        ("events.k8s.io", "v1", "events") => EVENT,
        ("autoscaling", "v1", "horizontalpodautoscalers") => AUTOSCALER_V1,
        ("resource.k8s.io", "v1beta1", "resourceclaims") => CLAIM_V1BETA1,
        ("resource.k8s.io", "v1beta1", "resourceclaimtemplates") => CLAIM_TEMPLATE_V1BETA1,
        ("resource.k8s.io", "v1beta1", "resourceslices") => SLICE_V1BETA1,
        _ => &[],
    }
}

/// From the stored version to the served one.
#[must_use]
pub fn from_storage(resource: &Resource, mut object: Value) -> Value {
    for step in steps(resource) {
        step.take_from_storage(&mut object);
    }
    stamp(&mut object, &resource.api_version(), resource.kind);
    object
}

/// From the served version to the stored one.
#[must_use]
pub fn to_storage(resource: &Resource, stored: &Resource, mut object: Value) -> Value {
    for step in steps(resource) {
        step.bring_to_storage(&mut object);
    }
    stamp(&mut object, &stored.api_version(), stored.kind);
    object
}

impl Step {
    fn take_from_storage(&self, object: &mut Value) {
        match self {
            Self::Renamed(fields) => rename(object, fields, false),
            Self::Flat {
                list,
                object: inner,
                ..
            } => items_mut(object, list).for_each(|item| lift(item, inner)),
            Self::Nested {
                list,
                fields,
                object: inner,
            } => {
                for item in items_mut(object, list) {
                    let sunk = taken(item, fields);
                    set(item, inner, sunk);
                }
            }
            Self::ZeroIsNothing { .. } => {}
            Self::Own { from_storage, .. } => from_storage(object),
        }
    }

    fn bring_to_storage(&self, object: &mut Value) {
        match self {
            Self::Renamed(fields) => rename(object, fields, true),
            Self::Flat {
                list,
                fields,
                object: inner,
            } => {
                for item in items_mut(object, list) {
                    let mut sunk = taken(item, fields);
                    sunk.retain(|_, value| !is_zero(value));
                    if !sunk.is_empty() {
                        set(item, inner, sunk);
                    }
                }
            }
            Self::Nested {
                list,
                object: inner,
                ..
            } => items_mut(object, list).for_each(|item| lift(item, inner)),
            Self::ZeroIsNothing { at, fields } => {
                if let Some(Value::Object(map)) = at_mut(object, at) {
                    map.retain(|name, value| {
                        !(fields.contains(&name.as_str())
                            && (is_zero(value) || *value == Value::Bool(false)))
                    });
                }
            }
            Self::Own { to_storage, .. } => to_storage(object),
        }
    }
}

/// What a field that is not there holds in Go, unless it points to its value.
fn is_zero(value: &Value) -> bool {
    value.is_null() || value == "" || value == 0
}

/// Takes fields out of an object.
fn taken(item: &mut Value, fields: &[&str]) -> Map<String, Value> {
    let Some(map) = item.as_object_mut() else {
        return Map::new();
    };
    fields
        .iter()
        .filter_map(|field| map.remove_entry(*field))
        .collect()
}

fn set(item: &mut Value, field: &str, value: Map<String, Value>) {
    if let Some(map) = item.as_object_mut() {
        map.insert(field.to_owned(), value.into());
    }
}

/// Puts the fields of an object that an item has into the item itself.
fn lift(item: &mut Value, field: &str) {
    if let Some(map) = item.as_object_mut()
        && let Some(Value::Object(inner)) = map.remove(field)
    {
        map.extend(inner);
    }
}

/// What is asked for of exactly one kind of device.
const EXACT_REQUEST: &[&str] = &[
    "adminAccess",
    "allocationMode",
    "capacity",
    "count",
    "deviceClassName",
    "selectors",
    "tolerations",
];

const CLAIM_V1BETA1: &[Step] = &[Step::Flat {
    list: &["spec", "devices", "requests"],
    fields: EXACT_REQUEST,
    object: "exactly",
}];

const CLAIM_TEMPLATE_V1BETA1: &[Step] = &[Step::Flat {
    list: &["spec", "spec", "devices", "requests"],
    fields: EXACT_REQUEST,
    object: "exactly",
}];

const SLICE_V1BETA1: &[Step] = &[
    Step::ZeroIsNothing {
        at: &["spec"],
        fields: &["allNodes", "nodeName"],
    },
    Step::Nested {
        list: &["spec", "devices"],
        fields: &[
            "allNodes",
            "allowMultipleAllocations",
            "attributes",
            "bindingConditions",
            "bindingFailureConditions",
            "bindsToNode",
            "capacity",
            "consumesCounters",
            "nodeAllocatableResourceMappings",
            "nodeName",
            "nodeSelector",
            "taints",
        ],
        object: "basic",
    },
];

const EVENT: &[Step] = &[
    Step::Renamed(&EVENT_FIELDS),
    Step::Own {
        from_storage: |object| {
            if let Some(map) = object.as_object_mut() {
                // Always written in the core group, but not here.
                let empty =
                    |name: &str, value: &Value| name.starts_with("reporting") && value == "";
                map.retain(|name, value| !empty(name, value));
            }
        },
        to_storage: |_| {},
    },
];

const AUTOSCALER_V1: &[Step] = &[Step::Own {
    from_storage: |object| {
        autoscaler_to_v1(object);
        for count in ["currentReplicas", "desiredReplicas"] {
            let status = crate::meta::child(object, "status");
            status.entry(count).or_insert(0.into());
        }
    },
    to_storage: autoscaler_from_v1,
}];

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

    fn there_and_back(version: &str, plural: &str, object: &Value) -> Value {
        let served = find("resource.k8s.io", version, plural).unwrap();
        let stored = to_storage(served, served.hub(), object.clone());
        let back = from_storage(served, stored.clone());
        assert_eq!(back["spec"], object["spec"]);
        stored
    }

    #[test]
    fn device_requests_round_trip() {
        let requests = json!([
            {"name": "a", "deviceClassName": "c", "allocationMode": "ExactCount", "count": 2, "adminAccess": false},
            {"name": "b", "firstAvailable": [{"name": "x", "deviceClassName": "d"}]},
        ]);
        let claim = json!({"metadata": {"name": "a"}, "spec": {"devices": {"requests": requests}}});
        let stored = there_and_back("v1beta1", "resourceclaims", &claim);
        assert_eq!(stored["apiVersion"], "resource.k8s.io/v1");
        let requests = &stored["spec"]["devices"]["requests"];
        assert_eq!(
            requests[0],
            json!({"name": "a", "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 2, "adminAccess": false}})
        );
        assert!(requests[1].get("exactly").is_none());
        let template = json!({"metadata": {"name": "a"}, "spec": {"spec": claim["spec"]}});
        let stored = there_and_back("v1beta1", "resourceclaimtemplates", &template);
        assert_eq!(
            stored["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"],
            2
        );
    }

    #[test]
    fn devices_round_trip() {
        let slice = json!({"metadata": {"name": "a"}, "spec": {"driver": "d", "nodeName": "n", "devices": [
            {"name": "a", "basic": {"attributes": {"x": {"int": 1}}, "allNodes": false}}, {"name": "b", "basic": {}}]}});
        let stored = there_and_back("v1beta1", "resourceslices", &slice);
        assert_eq!(
            stored["spec"]["devices"],
            json!([{"name": "a", "attributes": {"x": {"int": 1}}, "allNodes": false}, {"name": "b"}])
        );
        let nowhere = json!({"spec": {"nodeName": "", "allNodes": false}});
        let served = find("resource.k8s.io", "v1beta1", "resourceslices").unwrap();
        assert_eq!(to_storage(served, served.hub(), nowhere)["spec"], json!({}));
    }
}

//! Pods.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::{Strategy, copy_field, default_at, template, text};
use crate::quantity::Quantity;
use crate::validation::Errors;

pub(super) struct Pod;

impl Strategy for Pod {
    fn default(&self, object: &mut Value) {
        template::default_spec(&mut object["spec"]);
        if object["spec"].is_object() {
            template::default_requests(&mut object["spec"]);
            default_at(object, &["spec", "enableServiceLinks"], true);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Pending", "qosClass": qos_class(object)});
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "status");
    }

    /// Being bound to a node is no change of what was asked for.
    fn changes_generation(&self, object: &Value, old: &Value) -> bool {
        let (new, before) = (object["spec"].as_object(), old["spec"].as_object());
        let was_bound = before.is_some_and(|spec| spec.contains_key("nodeName"));
        let asked = |spec: Option<&Map<String, Value>>| -> Vec<(String, Value)> {
            let fields = spec.into_iter().flatten();
            let asked = fields.filter(|(name, _)| was_bound || *name != "nodeName");
            asked
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        };
        new != before && asked(new) != asked(before)
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        template::validate_spec(&object["spec"], "spec", errors);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        if frozen(object) != frozen(old) {
            errors.forbidden(
                "spec",
                "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
            );
        }
        let before = old["spec"]["tolerations"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let after = object["spec"]["tolerations"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        if before.iter().any(|t| !after.contains(t)) {
            errors.forbidden(
                "spec.tolerations",
                "existing toleration can not be modified except its tolerationSeconds",
            );
        }
    }

    fn selectable_fields(&self) -> &'static [&'static str] {
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ]
    }

    fn field<'a>(&self, object: &'a Value, field: &str) -> Option<Cow<'a, str>> {
        Some(match field {
            "spec.nodeName" => text(object, "/spec/nodeName"),
            "spec.restartPolicy" => text(object, "/spec/restartPolicy"),
            "spec.schedulerName" => text(object, "/spec/schedulerName"),
            "spec.serviceAccountName" => text(object, "/spec/serviceAccountName"),
            "spec.hostNetwork" => match text(object, "/spec/hostNetwork") {
                Cow::Borrowed("") => Cow::Borrowed("false"),
                set => set,
            },
            "status.phase" => text(object, "/status/phase"),
            "status.podIP" => text(object, "/status/podIP"),
            "status.podIPs" => text(object, "/status/podIPs/0/ip"),
            "status.nominatedNodeName" => text(object, "/status/nominatedNodeName"),
            _ => return None,
        })
    }

    fn grace_period(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        // A pod that never reached a node, or has ended, has nothing to shut down.
        let unscheduled = object["spec"]["nodeName"]
            .as_str()
            .unwrap_or_default()
            .is_empty();
        let ended = matches!(
            object["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed")
        );
        if unscheduled || ended {
            return Some(0);
        }
        let own = object["spec"]["terminationGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(30);
        Some(match requested.unwrap_or(own) {
            negative if negative < 0 => 1,
            seconds => seconds,
        })
    }
}

/// The part of a pod's spec that an update may not touch.
fn frozen(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    if let Some(map) = spec.as_object_mut() {
        for open in [
            "activeDeadlineSeconds",
            "tolerations",
            "ephemeralContainers",
            "schedulingGates",
        ] {
            map.remove(open);
        }
        let gated = pod["spec"]["schedulingGates"]
            .as_array()
            .is_some_and(|g| !g.is_empty());
        if gated {
            map.remove("nodeSelector");
            map.remove("affinity");
        }
    }
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if let Some(map) = container.as_object_mut() {
                map.remove("image");
            }
        }
    }
    spec
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from requests and limits of CPU and memory.
#[must_use]
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let containers = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| spec[*list].as_array().into_iter().flatten());
    let (mut any, mut guaranteed) = (false, true);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let amount = |which: &str| {
                container["resources"][which][resource]
                    .as_str()
                    .and_then(|q| q.parse::<Quantity>().ok())
                    .filter(|q| !q.is_zero())
            };
            let (request, limit) = (amount("requests"), amount("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.or(limit) == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qos() {
        let pod = |resources: Value| json!({"spec": {"containers": [{"resources": resources}]}});
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(
            qos_class(&pod(json!({"requests": {"cpu": "1"}}))),
            "Burstable"
        );
        let both = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}});
        assert_eq!(qos_class(&pod(both)), "Guaranteed");
    }

    #[test]
    fn only_some_fields_may_change() {
        let old = json!({"spec": {"nodeName": "a", "containers": [{"name": "c", "image": "1"}]}});
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = "2".into();
        let mut errors = Errors::default();
        Pod.validate_update(&new, &old, &mut errors);
        assert!(errors.is_empty());
        new["spec"]["nodeName"] = "b".into();
        Pod.validate_update(&new, &old, &mut errors);
        assert_eq!(errors.0[0].field, "spec");
    }

    #[test]
    fn grace() {
        let pod = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}, "status": {"phase": "Running"}});
        assert_eq!(Pod.grace_period(&pod, None), Some(5));
        assert_eq!(Pod.grace_period(&pod, Some(0)), Some(0));
        assert_eq!(Pod.grace_period(&json!({"spec": {}}), None), Some(0));
    }
}

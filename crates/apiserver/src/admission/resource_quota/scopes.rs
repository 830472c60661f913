//! Which objects a scope is about.

use fluyt_api::strategy;
use serde_json::{Value, json};

/// The requirements that a quota's scopes make.
pub(super) fn of_quota(quota: &Value) -> Vec<Value> {
    let spec = &quota["spec"];
    let scopes = spec["scopes"].as_array().into_iter().flatten();
    let plain = scopes.map(|scope| json!({"scopeName": scope, "operator": "Exists"}));
    let selector = spec["scopeSelector"]["matchExpressions"].as_array();
    plain
        .chain(selector.into_iter().flatten().cloned())
        .collect()
}

/// Whether an object meets a requirement. Only pods and claims have scopes.
pub(super) fn is_met(requirement: &Value, plural: &str, object: &Value) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let spec = &object["spec"];
    match (plural, requirement["scopeName"].as_str()) {
        ("pods", Some("Terminating")) => has_deadline(spec),
        ("pods", Some("NotTerminating")) => !has_deadline(spec),
        ("pods", Some("BestEffort")) => strategy::qos_class(object) == "BestEffort",
        ("pods", Some("NotBestEffort")) => strategy::qos_class(object) != "BestEffort",
        ("pods", Some("CrossNamespacePodAffinity")) => looks_elsewhere(&spec["affinity"]),
        ("pods", Some("PriorityClass")) => {
            selects(requirement, &[text(&spec["priorityClassName"])])
        }
        ("persistentvolumeclaims", Some("VolumeAttributesClass")) => {
            let status = &object["status"];
            let classes = [
                &spec["volumeAttributesClassName"],
                &status["currentVolumeAttributesClassName"],
                &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
            ];
            selects(requirement, &classes.map(text))
        }
        _ => false,
    }
}

fn has_deadline(spec: &Value) -> bool {
    spec["activeDeadlineSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds >= 0)
}

/// Whether one of an object's classes is what a requirement asks for. Empty names are none.
fn selects(requirement: &Value, classes: &[String]) -> bool {
    let listed = |class: &String| {
        let mut values = requirement["values"].as_array().into_iter().flatten();
        values.any(|v| *v == class.as_str())
    };
    let mut named = classes.iter().filter(|class| !class.is_empty()).peekable();
    let none = named.peek().is_none();
    match requirement["operator"].as_str() {
        Some("In") => named.any(listed),
        Some("NotIn") => none || named.any(|class| !listed(class)),
        Some("Exists") => !none,
        Some("DoesNotExist") => none,
        _ => false,
    }
}

/// Whether a pod's affinity is to pods of other namespaces.
fn looks_elsewhere(affinity: &Value) -> bool {
    let terms = |list: &'static str| {
        ["podAffinity", "podAntiAffinity"]
            .into_iter()
            .flat_map(move |kind| affinity[kind][list].as_array().into_iter().flatten())
    };
    let required = terms("requiredDuringSchedulingIgnoredDuringExecution");
    let preferred = terms("preferredDuringSchedulingIgnoredDuringExecution");
    let mut all = required.chain(preferred.map(|weighted| &weighted["podAffinityTerm"]));
    all.any(|term| {
        let named = term["namespaces"].as_array().is_some_and(|n| !n.is_empty());
        named || term["namespaceSelector"].is_object()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_and_claims_have_scopes() {
        let pod = |spec: Value| json!({"spec": spec});
        let required = "requiredDuringSchedulingIgnoredDuringExecution";
        let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
        let elsewhere = json!({"affinity": {"podAntiAffinity": {preferred: [{"weight": 1, "podAffinityTerm": {"namespaceSelector": {}}}]}}});
        let here = json!({"affinity": {"podAffinity": {required: [{"topologyKey": "k"}]}}});
        let exists = |scope: &str| json!({"scopeName": scope, "operator": "Exists"});
        for (scope, object, expected) in [
            (
                "Terminating",
                pod(json!({"activeDeadlineSeconds": 5})),
                true,
            ),
            (
                "NotTerminating",
                pod(json!({"activeDeadlineSeconds": 5})),
                false,
            ),
            ("BestEffort", pod(json!({"containers": [{}]})), true),
            ("CrossNamespacePodAffinity", pod(elsewhere), true),
            ("CrossNamespacePodAffinity", pod(here), false),
            (
                "PriorityClass",
                pod(json!({"priorityClassName": "high"})),
                true,
            ),
            ("PriorityClass", pod(json!({})), false),
            (
                "VolumeAttributesClass",
                pod(json!({"volumeAttributesClassName": "a"})),
                false,
            ),
            ("Weather", pod(json!({})), false),
        ] {
            let met = is_met(&exists(scope), "pods", &object);
            assert_eq!(met, expected, "{scope} {object}");
        }
        let claim = json!({"spec": {}, "status": {"currentVolumeAttributesClassName": "a"}});
        assert!(is_met(
            &exists("VolumeAttributesClass"),
            "persistentvolumeclaims",
            &claim
        ));
        assert!(!is_met(
            &exists("Terminating"),
            "persistentvolumeclaims",
            &claim
        ));
    }

    #[test]
    fn classes_are_selected_by_name() {
        let requirement = |operator: &str| json!({"operator": operator, "values": ["a", "b"]});
        let selects =
            |operator: &str, class: &str| selects(&requirement(operator), &[class.into()]);
        for (operator, a, c, none) in [
            ("In", true, false, false),
            ("NotIn", false, true, true),
            ("Exists", true, true, false),
            ("DoesNotExist", false, false, true),
            ("Near", false, false, false),
        ] {
            let found = (
                selects(operator, "a"),
                selects(operator, "c"),
                selects(operator, ""),
            );
            assert_eq!(found, (a, c, none), "{operator}");
        }
    }

    #[test]
    fn a_quota_has_scopes_of_both_forms() {
        let quota = json!({"spec": {"scopes": ["Terminating"], "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["a"]}]}}});
        assert_eq!(
            of_quota(&quota),
            [
                json!({"scopeName": "Terminating", "operator": "Exists"}),
                json!({"scopeName": "PriorityClass", "operator": "In", "values": ["a"]}),
            ]
        );
        assert!(of_quota(&json!({"spec": {}})).is_empty());
    }
}

//! Horizontal pod autoscalers, in their stored version v2.

use serde_json::Value;

use super::Strategy;
use crate::validation::Errors;

pub(super) struct HorizontalPodAutoscaler;

impl Strategy for HorizontalPodAutoscaler {
    fn default(&self, object: &mut Value) {
        let none = object["spec"]["metrics"]
            .as_array()
            .is_none_or(Vec::is_empty);
        if none && object["spec"].is_object() {
            object["spec"]["metrics"] = serde_json::json!([{"type": "Resource", "resource":
                {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        let (min, max) = (
            spec["minReplicas"].as_i64().unwrap_or(1),
            spec["maxReplicas"].as_i64().unwrap_or(0),
        );
        if min < 1 {
            errors.invalid(
                "spec.minReplicas",
                &spec["minReplicas"],
                "must be greater than or equal to 1",
            );
        }
        if max < 1 {
            errors.invalid(
                "spec.maxReplicas",
                &spec["maxReplicas"],
                "must be greater than 0",
            );
        }
        if max < min {
            errors.invalid(
                "spec.maxReplicas",
                &spec["maxReplicas"],
                "must be greater than or equal to `minReplicas`",
            );
        }
        for field in ["kind", "name"] {
            if spec["scaleTargetRef"][field]
                .as_str()
                .unwrap_or_default()
                .is_empty()
            {
                errors.required(&format!("spec.scaleTargetRef.{field}"), "");
            }
        }
    }
}

//! Deployments.

use serde_json::Value;

use super::{Strategy, default_at, keep_all_but_status, template};
use crate::validation::Errors;

pub(super) struct Deployment;

impl Strategy for Deployment {
    fn default(&self, object: &mut Value) {
        template::default_spec(&mut object["spec"]["template"]["spec"]);
        if object["spec"]["strategy"]["type"] == "RollingUpdate" {
            default_at(
                object,
                &["spec", "strategy", "rollingUpdate", "maxUnavailable"],
                "25%",
            );
            default_at(
                object,
                &["spec", "strategy", "rollingUpdate", "maxSurge"],
                "25%",
            );
        }
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        keep_all_but_status(object, old);
        crate::meta::set(object, "labels", old["metadata"]["labels"].clone());
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        errors.non_negative("spec.replicas", &spec["replicas"]);
        errors.non_negative("spec.minReadySeconds", &spec["minReadySeconds"]);
        errors.non_negative("spec.revisionHistoryLimit", &spec["revisionHistoryLimit"]);
        template::validate_selector(object, errors);
        template::validate_template(&spec["template"], "spec.template", &["Always"], errors);
        errors.one_of(
            "spec.strategy.type",
            &spec["strategy"]["type"],
            &["Recreate", "RollingUpdate"],
        );
        if spec["strategy"]["type"] == "Recreate" && spec["strategy"]["rollingUpdate"].is_object() {
            errors.forbidden(
                "spec.strategy.rollingUpdate",
                "may not be specified when strategy `type` is 'Recreate'",
            );
        }
        let rolling = &spec["strategy"]["rollingUpdate"];
        let zero = |v: &Value| v == 0 || v == "0%" || v == "0";
        if zero(&rolling["maxUnavailable"]) && zero(&rolling["maxSurge"]) {
            errors.invalid(
                "spec.strategy.rollingUpdate.maxUnavailable",
                &rolling["maxUnavailable"],
                "may not be 0 when `maxSurge` is 0",
            );
        }
        let (deadline, ready) = (
            &spec["progressDeadlineSeconds"],
            spec["minReadySeconds"].as_i64().unwrap_or(0),
        );
        if deadline.as_i64().is_some_and(|d| d <= ready) {
            errors.invalid(
                "spec.progressDeadlineSeconds",
                deadline,
                "must be greater than minReadySeconds",
            );
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable(
            "spec.selector",
            &object["spec"]["selector"],
            &old["spec"]["selector"],
        );
    }
}

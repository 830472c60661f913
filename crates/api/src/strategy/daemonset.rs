//! Daemon sets.

use serde_json::Value;

use super::{Strategy, default_at, template};
use crate::validation::Errors;

pub(super) struct DaemonSet;

impl Strategy for DaemonSet {
    fn default(&self, object: &mut Value) {
        template::default_spec(&mut object["spec"]["template"]["spec"]);
        if object["spec"]["updateStrategy"]["type"] == "RollingUpdate" {
            default_at(
                object,
                &["spec", "updateStrategy", "rollingUpdate", "maxUnavailable"],
                1,
            );
            default_at(
                object,
                &["spec", "updateStrategy", "rollingUpdate", "maxSurge"],
                0,
            );
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        template::validate_selector(object, errors);
        template::validate_template(
            &object["spec"]["template"],
            "spec.template",
            &["Always"],
            errors,
        );
        errors.one_of(
            "spec.updateStrategy.type",
            &object["spec"]["updateStrategy"]["type"],
            &["RollingUpdate", "OnDelete"],
        );
        errors.non_negative("spec.minReadySeconds", &object["spec"]["minReadySeconds"]);
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable(
            "spec.selector",
            &object["spec"]["selector"],
            &old["spec"]["selector"],
        );
    }
}

//! Pod disruption budgets.

use serde_json::Value;

use super::Strategy;
use crate::validation::{self, Errors};

pub(super) struct PodDisruptionBudget;

impl Strategy for PodDisruptionBudget {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        let spec = &object["spec"];
        if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
            errors.invalid(
                "spec",
                &Value::Null,
                "minAvailable and maxUnavailable cannot be both set",
            );
        }
        errors.non_negative(&validation::At::named(
            &spec["minAvailable"],
            "spec.minAvailable",
        ));
        errors.non_negative(&validation::At::named(
            &spec["maxUnavailable"],
            "spec.maxUnavailable",
        ));
        validation::label_selector(
            errors,
            &validation::At::named(&spec["selector"], "spec.selector"),
        );
    }
}

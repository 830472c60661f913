//! Priority classes.

use serde_json::Value;

use super::Strategy;
use crate::meta;
use crate::validation::Errors;

/// Highest value of a class that users define; higher ones are the system's.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

pub(super) struct PriorityClass;

impl Strategy for PriorityClass {
    fn default(&self, object: &mut Value) {
        super::default_at(object, &["preemptionPolicy"], "PreemptLowerPriority");
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let system = meta::name(object).starts_with("system-");
        if !system
            && object["value"]
                .as_i64()
                .is_some_and(|v| v > HIGHEST_USER_PRIORITY)
        {
            errors.forbidden(
                "value",
                &format!(
                    "maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"
                ),
            );
        }
        errors.one_of(
            "preemptionPolicy",
            &object["preemptionPolicy"],
            &["Never", "PreemptLowerPriority"],
        );
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let value = |o: &Value| o["value"].as_i64().unwrap_or(0);
        if value(object) != value(old) {
            errors.forbidden("value", "may not be changed in an update.");
        }
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }
}

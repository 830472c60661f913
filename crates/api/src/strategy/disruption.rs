//! Pod disruption budgets.

use serde_json::Value;

use super::{MetaCheck, Strategy};
use crate::validation::{
    At, Errors, SelectorOptions, conditions, has_invalid_values, int_or_percent, internal,
    label_selector_with, percent_at_most_100,
};

pub(super) struct PodDisruptionBudget;

impl PodDisruptionBudget {
    fn validate_with(object: &Value, options: SelectorOptions, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let bounds = ["minAvailable", "maxUnavailable"].map(|field| spec.field(field));
        if bounds.iter().all(At::is_set) {
            let shown = internal("io.k8s.api.policy.v1.PodDisruptionBudgetSpec", spec.value());
            let detail = "minAvailable and maxUnavailable cannot be both set";
            errors.invalid_as(spec, &shown, detail);
        }
        for bound in bounds.iter().filter(|bound| bound.is_set()) {
            int_or_percent(errors, bound);
            percent_at_most_100(errors, bound);
        }
        label_selector_with(errors, &spec.field("selector"), options);
        let policy = spec.field("unhealthyPodEvictionPolicy");
        if policy.is_set() {
            errors.member(&policy, &["AlwaysAllow", "IfHealthyBudget"]);
        }
    }
}

impl Strategy for PodDisruptionBudget {
    fn has_standard_finalizers(&self) -> bool {
        false
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        Self::validate_with(object, SelectorOptions::default(), errors);
    }

    fn validate_on_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let options = SelectorOptions {
            allow_invalid_values: has_invalid_values(&old["spec"]["selector"]),
        };
        Self::validate_with(object, options, errors);
    }

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let status = root.field("status");
        conditions(errors, &status.field("conditions"));
        let counts = [
            "disruptionsAllowed",
            "currentHealthy",
            "desiredHealthy",
            "expectedPods",
        ];
        errors.non_negative_fields(&status, &counts);
    }

    fn metadata_on_update(&self) -> &'static [MetaCheck] {
        &[]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

//! Leases.

use serde_json::Value;

use super::{Strategy, at_mut};
use crate::validation::{At, Errors};

pub(super) struct Lease;

impl Lease {
    /// Fields of coordinated leader election, which is off.
    fn drop_disabled(object: &mut Value, old: Option<&Value>) {
        let Some(spec) = at_mut(object, &["spec"]).and_then(Value::as_object_mut) else {
            return;
        };
        for field in ["strategy", "preferredHolder"] {
            if old.is_none_or(|old| old["spec"][field].is_null()) {
                spec.remove(field);
            }
        }
    }
}

impl Strategy for Lease {
    fn has_standard_finalizers(&self) -> bool {
        false
    }

    fn prepare_create(&self, object: &mut Value) {
        Self::drop_disabled(object, None);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        Self::drop_disabled(object, Some(old));
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let root = At::root(object);
        let spec = root.field("spec");
        let duration = spec.field("leaseDurationSeconds");
        if duration.int().is_some_and(|seconds| seconds <= 0) {
            errors.bad(&duration, "must be greater than 0");
        }
        errors.non_negative(&spec.field("leaseTransitions"));
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

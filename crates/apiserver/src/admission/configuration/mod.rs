//! Validation of what configures admission: webhooks and policies, with their expressions.

mod bindings;
mod conditions;
mod matching;
mod policies;
mod reading;
mod webhooks;

use fluyt_api::resources::Resource;
use fluyt_api::validation::{At, Errors};
use serde_json::Value;

pub(super) use reading::authorize;

/// How often a policy fails, when it cannot be evaluated.
const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore"];

/// Whether what other mutations changed is shown again.
const REINVOCATION_POLICIES: &[&str] = &["IfNeeded", "Never"];

/// Checks a webhook configuration, a policy or a binding. Nothing is said of other resources.
pub fn validate(resource: &Resource, object: &Value, old: Option<&Value>, errors: &mut Errors) {
    if resource.group != "admissionregistration.k8s.io" {
        return;
    }
    let root = At::root(object);
    let spec = root.field("spec");
    let old_spec = old.map(|old| &old["spec"]);
    match resource.kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => {
            let before = old.map(|old| &old["webhooks"]);
            webhooks::validate(&root.field("webhooks"), before, errors);
        }
        "ValidatingAdmissionPolicy" => policies::validating(&root, &spec, old_spec, errors),
        "MutatingAdmissionPolicy" => policies::mutating(&spec, old_spec, errors),
        "ValidatingAdmissionPolicyBinding" => bindings::validating(&spec, errors),
        "MutatingAdmissionPolicyBinding" => bindings::mutating(&spec, errors),
        _ => {}
    }
}

//! Names of resources and lists of them.

use super::{At, Errors, non_negative_quantity, qualified_name, quantity_of};

const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const QUOTA_ONLY: [&str; 7] = [
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];

#[must_use]
pub fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// A resource of Kubernetes itself.
#[must_use]
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

#[must_use]
pub fn is_overcommit_allowed(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

#[must_use]
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && qualified_name(&format!("requests.{name}")).is_empty()
}

#[must_use]
pub fn is_standard_for_quota(name: &str) -> bool {
    COMPUTE.contains(&name)
        || QUOTA_ONLY.contains(&name)
        || COUNTED.contains(&name)
        || is_huge_page(name)
        || name.starts_with("requests.hugepages-")
}

fn is_standard(name: &str) -> bool {
    name == "storage" || is_standard_for_quota(name)
}

fn is_integer(name: &str) -> bool {
    COUNTED.contains(&name) || is_extended(name)
}

/// The name of any resource; errors are about `at`.
pub fn any_name(errors: &mut Errors, at: &At<'_, '_>, name: &str) {
    let problems = qualified_name(name);
    if problems.is_empty() {
        if !name.contains('/') && !is_standard(name) {
            let detail = "must be a standard resource type or fully qualified";
            errors.invalid_text(at, name, detail);
        }
        return;
    }
    for problem in problems {
        errors.invalid_text(at, name, &problem);
    }
}

/// The name of a resource that containers have.
pub fn container_name(errors: &mut Errors, at: &At<'_, '_>, name: &str) {
    any_name(errors, at, name);
    if !name.contains('/') {
        if !COMPUTE.contains(&name) && !is_huge_page(name) {
            errors.invalid_text(at, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        let detail = "doesn't follow extended resource name standard";
        errors.invalid_text(at, name, detail);
    }
}

/// The name of a resource that pods have as a whole.
pub fn pod_name(errors: &mut Errors, at: &At<'_, '_>, name: &str) {
    let before = errors.len();
    any_name(errors, at, name);
    let supported = ["cpu", "memory"].contains(&name) || is_huge_page(name);
    if errors.len() == before && !supported {
        errors.not_supported_as(at, &super::quote(name), &["cpu", "hugepages-", "memory"]);
    }
}

/// The name of a resource that quotas limit.
pub fn quota_name(errors: &mut Errors, at: &At<'_, '_>, name: &str) {
    any_name(errors, at, name);
    if !name.contains('/') && !is_standard_for_quota(name) {
        errors.invalid_text(at, name, "must be a standard resource for quota");
    }
}

/// The amount of a resource: not negative, and whole where only whole ones make sense.
pub fn amount(errors: &mut Errors, at: &At<'_, '_>, name: &str) {
    non_negative_quantity(errors, at);
    if is_integer(name) && quantity_of(at.value()).is_some_and(|q| q.millis() % 1000 != 0) {
        errors.bad(at, "must be an integer");
    }
}

/// An amount that is not negative, as upstream's oldest check says it.
pub fn basic_amount(errors: &mut Errors, at: &At<'_, '_>) {
    if let Some(quantity) = quantity_of(at.value())
        && quantity.value() < 0
    {
        errors.invalid(
            at,
            &quantity.value().into(),
            "must be a valid resource quantity",
        );
    }
}

/// The amounts that quotas limit or count.
pub fn quota_list(errors: &mut Errors, at: &At<'_, '_>) {
    for (name, quantity) in at.entries() {
        quota_name(errors, &quantity, name);
        amount(errors, &quantity, name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_resources() {
        assert!(is_native("cpu") && is_native("kubernetes.io/x") && !is_native("example.com/gpu"));
        assert!(is_extended("example.com/gpu") && !is_extended("requests.example.com/gpu"));
        assert!(is_overcommit_allowed("memory") && !is_overcommit_allowed("hugepages-2Mi"));
        assert!(is_standard("storage") && !is_standard_for_quota("storage"));
    }
}

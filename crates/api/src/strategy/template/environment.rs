//! Environment variables and what they refer to.

use crate::validation::{
    At, Errors, as_prefix, config_map_key, dns_label, dns_subdomain, env_var_name, no_backsteps,
    qualified_name, quantity_of,
};

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
pub(super) const VOLUME_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];
/// All fields that have ever been selectable.
const KNOWN_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const BYTE_DIVISORS: &[&str] = &[
    "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
];

pub(super) fn validate_env(vars: &At<'_, '_>, errors: &mut Errors) {
    for var in vars.items() {
        errors.required_name(&var.field("name"), env_var_name);
        let source = var.field("valueFrom");
        if source.is_set() {
            validate_source(&source, !var.field("value").is_empty(), errors);
        }
    }
}

type Check = fn(&At<'_, '_>, &mut Errors);

fn validate_source(source: &At<'_, '_>, has_value: bool, errors: &mut Errors) {
    let mut count = 0;
    let kinds: [(&str, Check); 5] = [
        ("fieldRef", |at, e| validate_field_ref(at, ENV_FIELDS, e)),
        ("resourceFieldRef", |at, e| {
            validate_resource_field_ref(at, false, e);
        }),
        ("configMapKeyRef", validate_key_ref),
        ("secretKeyRef", validate_key_ref),
        ("fileKeyRef", validate_file_key_ref),
    ];
    for (name, validate) in kinds {
        let at = source.field(name);
        if at.is_set() {
            count += 1;
            validate(&at, errors);
        }
    }
    if count == 0 {
        errors.invalid_text(source, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`");
    } else if has_value {
        errors.invalid_text(source, "", "may not be specified when `value` is not empty");
    } else if count > 1 {
        errors.invalid_text(
            source,
            "",
            "may not have more than one field specified at a time",
        );
    }
}

/// `metadata.labels['key']` in its parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (base, key) = path.strip_suffix("']")?.split_once("['")?;
    (!base.is_empty()).then_some((base, key))
}

/// A field of the pod; `supported` is in the order that messages list it in.
pub(super) fn validate_field_ref(at: &At<'_, '_>, supported: &[&str], errors: &mut Errors) {
    let (version, path) = (at.field("apiVersion"), at.field("fieldPath"));
    if version.is_empty() {
        errors.required(version, "");
        return;
    }
    if path.is_empty() {
        errors.required(path, "");
        return;
    }
    let label = path.str();
    let problem = match (version.str(), subscript(label)) {
        ("v1", Some(("metadata.annotations" | "metadata.labels", _))) => None,
        ("v1", Some(_)) => Some(format!("field label does not support subscript: {label}")),
        ("v1", None) if label == "spec.host" || KNOWN_FIELDS.contains(&label) => None,
        ("v1", None) => Some(format!("field label not supported: {label}")),
        (other, _) => Some(format!("unsupported pod version: {other}")),
    };
    if let Some(problem) = problem {
        errors.bad(&path, &format!("error converting fieldPath: {problem}"));
        return;
    }
    let field = if label == "spec.host" {
        "spec.nodeName"
    } else {
        label
    };
    match subscript(field) {
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            for problem in qualified_name(&key) {
                errors.invalid_text(at, &key, &problem);
            }
        }
        Some((_, key)) => {
            for problem in qualified_name(key) {
                errors.invalid_text(at, key, &problem);
            }
        }
        None if !supported.contains(&field) => {
            errors.not_supported(path, &field.into(), supported);
        }
        None => {}
    }
}

/// A request or limit of a container; volumes must say which container's.
pub(super) fn validate_resource_field_ref(at: &At<'_, '_>, in_volume: bool, errors: &mut Errors) {
    let (container, resource) = (at.field("containerName"), at.field("resource"));
    let is_huge = ["requests.hugepages-", "limits.hugepages-"]
        .iter()
        .any(|prefix| resource.str().starts_with(prefix));
    if in_volume && container.is_empty() {
        errors.required(container, "");
    } else if resource.is_empty() {
        errors.required(resource, "");
    } else if !RESOURCES.contains(&resource.str()) && !is_huge {
        errors.unsupported(&resource, RESOURCES);
    }
    let divisor = at.field("divisor");
    let Some(written) = quantity_of(divisor.value()).filter(|q| !q.is_zero()) else {
        return;
    };
    let written = written.to_string();
    let (allowed, detail): (&[&str], &str) = match resource.str() {
        "limits.cpu" | "requests.cpu" => (
            &["1m", "1"],
            "only divisor's values 1m and 1 are supported with the cpu resource",
        ),
        "limits.memory" | "requests.memory" => (
            BYTE_DIVISORS,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource",
        ),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => (
            BYTE_DIVISORS,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local ephemeral storage resource",
        ),
        _ if is_huge => (
            BYTE_DIVISORS,
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the hugepages resource",
        ),
        _ => return,
    };
    if !allowed.contains(&written.as_str()) {
        errors.invalid_text(divisor, resource.str(), detail);
    }
}

fn validate_key_ref(at: &At<'_, '_>, errors: &mut Errors) {
    let name = at.field("name");
    errors.problems(&name, dns_subdomain(name.str()));
    errors.required_name(&at.field("key"), config_map_key);
}

fn validate_file_key_ref(at: &At<'_, '_>, errors: &mut Errors) {
    errors.required_name(&at.field("key"), env_var_name);
    errors.required_name(&at.field("volumeName"), dns_label);
    let path = at.field("path");
    if path.is_empty() {
        errors.required(path, "");
    } else {
        no_backsteps(errors, &path);
    }
}

pub(super) fn validate_env_from(sources: &At<'_, '_>, errors: &mut Errors) {
    for source in sources.items() {
        errors.optional_name(&source.field("prefix"), env_var_name);
        let mut count = 0;
        for kind in ["configMapRef", "secretRef"] {
            let at = source.field(kind);
            if at.is_set() {
                count += 1;
                errors.required_name(&at.field("name"), |n| as_prefix(dns_subdomain, n));
            }
        }
        // Errors are about the list.
        match count {
            0 => errors.invalid_text(
                sources,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            ),
            1 => {}
            _ => errors.invalid_text(
                sources,
                "",
                "may not have more than one field specified at a time",
            ),
        }
    }
}

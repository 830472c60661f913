//! Privileged containers, where the server does not allow them at all (`--allow-privileged`).

use fluyt_api::validation::Errors;
use serde_json::Value;

use super::Location;
use crate::admission::template_path;

/// Refuses containers that are privileged. What a pod has already is not looked at again: it cannot change.
pub(super) fn refuse(at: Location<'_>, object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let (template, kinds): (&[&str], &[&str]) = match (at.resource.kind, at.subresource, old) {
        ("Pod", "", None) => (&[], &["initContainers", "containers"]),
        ("Pod", "ephemeralcontainers", _) => (&[], &["ephemeralContainers"]),
        (kind, "", _) => match template_path(at.resource.group, kind) {
            Some(path) => (path, &["initContainers", "containers"]),
            None => return,
        },
        _ => return,
    };
    let mut path = template.iter().chain(&["spec"]);
    let Some(spec) = path.try_fold(object, |at, name| at.get(*name)) else {
        return;
    };
    let place: String = template.iter().map(|name| format!("{name}.")).collect();
    for kind in kinds {
        let containers = spec[*kind].as_array().into_iter().flatten();
        for (i, container) in containers.enumerate() {
            if container["securityContext"]["privileged"] == true {
                let field = format!("{place}spec.{kind}[{i}].securityContext.privileged");
                errors.forbidden(field, "disallowed by cluster policy");
            }
        }
    }
}

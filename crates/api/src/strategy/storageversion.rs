//! Which versions API servers store a resource in. Only its status says anything.

use std::collections::HashSet;

use serde_json::Value;

use super::{Strategy, copy_field, keep_metadata};
use crate::validation::{At, Errors, Problems, dns_1035_label, dns_subdomain, qualified_name};

pub(super) struct StorageVersion;

/// A group and a resource.
fn name_problems(name: &str) -> Problems {
    let Some((group, resource)) = name.rsplit_once('.') else {
        return vec!["name must be in the form of <group>.<resource>".to_owned()];
    };
    let of = |segment: &str, problems: Problems| {
        let prefixed = problems.into_iter();
        prefixed
            .map(|problem| format!("the {segment} segment {problem}"))
            .collect::<Vec<_>>()
    };
    let mut problems = of("group", dns_subdomain(group));
    problems.extend(of("resource", dns_1035_label(resource)));
    problems
}

/// What is wrong with a version that may have a group.
fn version_problems(text: &str) -> Problems {
    const EMPTY: &str = "must be non-empty";
    let parts: Vec<&str> = text.split('/').collect();
    let (group, version) = match parts.as_slice() {
        [version] => (None, *version),
        [group, version] => (Some(*group), *version),
        _ => {
            return vec!["an apiVersion is a DNS-1035 label, which must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyVersion')".to_owned()];
        }
    };
    let of = |part: &str, text: &str, rule: fn(&str) -> Problems| {
        let problems = if text.is_empty() {
            vec![EMPTY.to_owned()]
        } else {
            rule(text)
        };
        let prefixed = problems.into_iter();
        prefixed
            .map(|problem| format!("{part} part: {problem}"))
            .collect::<Vec<_>>()
    };
    let mut problems = group.map_or_else(Vec::new, |group| of("group", group, dns_subdomain));
    problems.extend(of("version", version, dns_1035_label));
    problems
}

fn version(at: &At<'_, '_>, errors: &mut Errors) {
    let problems = version_problems(at.str());
    if !problems.is_empty() {
        errors.bad(at, &problems.join(","));
    }
}

fn validate_server(server: &At<'_, '_>, errors: &mut Errors) {
    let id = server.field("apiServerID");
    errors.problems(&id, dns_subdomain(id.str()));
    let (encoding, decodable) = (
        server.field("encodingVersion"),
        server.field("decodableVersions"),
    );
    version(&encoding, errors);
    for at in decodable.items() {
        version(&at, errors);
    }
    if !decodable.list().iter().any(|v| v == encoding.str()) {
        let detail = format!(
            "decodableVersions must include encodingVersion {}",
            encoding.str()
        );
        errors.bad(&decodable, &detail);
    }
    for at in server.field("servedVersions").items() {
        version(&at, errors);
        if !decodable.list().contains(at.value()) {
            let all: Vec<&str> = decodable.list().iter().filter_map(Value::as_str).collect();
            let detail = format!(
                "individual served version : {} must be included in decodableVersions : [{}]",
                at.str(),
                all.join(" ")
            );
            errors.bad(&at, &detail);
        }
    }
}

/// The version that all servers encode in, if there is one.
fn common_version(status: &At<'_, '_>, errors: &mut Errors) {
    let at = status.field("commonEncodingVersion");
    let servers = status.get("storageVersions").as_array();
    let mut versions = servers.into_iter().flatten().map(|s| &s["encodingVersion"]);
    let first = versions.next().and_then(Value::as_str);
    let common = first.filter(|first| versions.all(|v| v == first));
    match common {
        None if at.is_set() => errors.bad(&at, "should be nil if servers do not agree on the same encoding version, or if there is no server reporting the supported versions yet"),
        Some(common) if !at.is_set() => errors.invalid(at, &Value::Null, &format!("the common encoding version is {common}")),
        Some(common) if at.str() != common => errors.bad(&at, &format!("the actual common encoding version is {common}")),
        _ => {}
    }
}

/// Upstream places conditions in the status itself.
fn validate_conditions(status: &At<'_, '_>, errors: &mut Errors) {
    let conditions = status.get("conditions").as_array();
    let conditions: Vec<&Value> = conditions.into_iter().flatten().collect();
    for (i, condition) in conditions.iter().enumerate() {
        let place = status.index(i);
        let at = place.place("", condition);
        let ty = at.field("type");
        let same = |other: &&&Value| other["type"] == *ty.value();
        if let Some(first) = conditions[..i].iter().rposition(|c| same(&c)) {
            let detail = format!(
                "the type of the condition is not unique, it also appears in conditions[{first}]"
            );
            errors.bad(&ty, &detail);
        }
        errors.problems(&ty, qualified_name(ty.str()));
        let state = at.field("status");
        errors.problems(&state, qualified_name(state.str()));
        errors.required_text(&at.field("reason"));
        errors.required_text(&at.field("message"));
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    let root = At::root(object);
    let status = root.field("status");
    let servers = status.field("storageVersions");
    let mut seen = HashSet::new();
    for server in servers.items() {
        let id = server.field("apiServerID");
        if !seen.insert(id.str()) {
            errors.duplicate(id, id.value());
        }
        validate_server(&server, errors);
    }
    common_version(&status, errors);
    validate_conditions(&status, errors);
}

impl Strategy for StorageVersion {
    fn name_rule(&self) -> fn(&str) -> Problems {
        name_problems
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        copy_field(object, old, "spec");
        keep_metadata(object, old);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate(object, errors);
    }

    fn validate_on_update(&self, _object: &Value, _old: &Value, _errors: &mut Errors) {}

    fn validate_status(&self, object: &Value, _old: &Value, errors: &mut Errors) {
        validate(object, errors);
    }

    fn generation_of(&self) -> &'static [&'static str] {
        &[]
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_servers_say_must_fit() {
        let mut errors = Errors::default();
        let object = json!({"status": {"storageVersions": [
            {"apiServerID": "a", "encodingVersion": "v1", "decodableVersions": ["v1", "v2"], "servedVersions": ["v3"]},
            {"apiServerID": "a", "encodingVersion": "g/v2", "decodableVersions": ["v1"]},
        ], "commonEncodingVersion": "v1", "conditions": [{"type": "A", "status": "True", "reason": "r"}]}});
        validate(&object, &mut errors);
        let found: Vec<String> = errors
            .0
            .into_iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect();
        assert_eq!(
            found,
            [
                "status.storageVersions[0].servedVersions[0]: Invalid value: \"v3\": individual served version : v3 must be included in decodableVersions : [v1 v2]",
                "status.storageVersions[1].apiServerID: Duplicate value: \"a\"",
                "status.storageVersions[1].decodableVersions: Invalid value: [\"v1\"]: decodableVersions must include encodingVersion g/v2",
                "status.commonEncodingVersion: Invalid value: \"v1\": should be nil if servers do not agree on the same encoding version, or if there is no server reporting the supported versions yet",
                "status[0].message: Required value",
            ]
        );
        assert_eq!(
            name_problems("pods"),
            ["name must be in the form of <group>.<resource>"]
        );
        assert!(name_problems("apps.deployments").is_empty());
    }
}

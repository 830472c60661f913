//! Nobody grants what they do not have, unless they may `escalate` the role or `bind` it.

use std::collections::{BTreeMap, BTreeSet};

use fluyt_api::{Error, meta};
use serde_json::Value;

use super::Call;
use crate::authz::{Question, Rule, rules_cover};
use crate::user::MASTERS;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a role or binding that is about to be written; `old` is what it replaces.
///
/// # Errors
/// 403 naming the rights that the author lacks; 404 for a binding to a role that does not exist.
pub(super) fn check_escalation(
    call: &Call,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Error> {
    if call.resource.group != GROUP || call.user.is_in(MASTERS) {
        return Ok(());
    }
    if old.is_some_and(|old| is_garbage_collection(object, old)) {
        return Ok(());
    }
    match call.resource.kind {
        "Role" | "ClusterRole" => check_role(call, object, old),
        _ => check_binding(call, object),
    }
}

fn check_role(call: &Call, object: &Value, old: Option<&Value>) -> Result<(), Error> {
    let question = Question {
        verb: "escalate".into(),
        group: GROUP.into(),
        version: "*".into(),
        resource: call.resource.plural.into(),
        namespace: call.target.namespace.clone(),
        name: call.target.name.clone(),
        ..Question::default()
    };
    if call
        .server
        .authorizer
        .allows(&call.user, &question)
        .is_some()
    {
        return Ok(());
    }
    let rules = object["rules"].as_array().into_iter().flatten();
    let rules: Vec<Rule> = rules.map(Rule::from_json).collect();
    check_held(call, object, &rules)?;
    let aggregates = |role: &Value| {
        let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array();
        selectors.is_some_and(|s| !s.is_empty())
    };
    if aggregates(object) || old.is_some_and(aggregates) {
        // It gathers whatever others grant.
        let everything: Vec<Rule> = Rule::everything().iter().map(|r| (**r).clone()).collect();
        if !missing(call, &everything).is_empty() {
            let why = "must have cluster-admin privileges to use the aggregationRule";
            return Err(forbidden(call, object, why));
        }
    }
    Ok(())
}

fn check_binding(call: &Call, object: &Value) -> Result<(), Error> {
    let reference = &object["roleRef"];
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let plural = match text("kind") {
        "ClusterRole" => "clusterroles",
        "Role" => "roles",
        // What is no role fails validation.
        _ => return Ok(()),
    };
    let question = Question {
        verb: "bind".into(),
        group: text("apiGroup").into(),
        version: "*".into(),
        resource: plural.into(),
        namespace: call.target.namespace.clone(),
        name: text("name").into(),
        ..Question::default()
    };
    if call
        .server
        .authorizer
        .allows(&call.user, &question)
        .is_some()
    {
        return Ok(());
    }
    let authorizer = &call.server.authorizer;
    let rules = authorizer
        .rules_of(text("kind"), &call.target.namespace, text("name"))
        .ok_or_else(|| Error::not_found(GROUP, plural, text("name")))?;
    let rules: Vec<Rule> = rules.iter().map(|r| (**r).clone()).collect();
    check_held(call, object, &rules)
}

fn missing(call: &Call, wanted: &[Rule]) -> Vec<Rule> {
    let held = call
        .server
        .authorizer
        .granted(&call.user, &call.target.namespace);
    rules_cover(&held, wanted)
}

fn check_held(call: &Call, object: &Value, wanted: &[Rule]) -> Result<(), Error> {
    let missing = missing(call, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = describe(missing).into_iter().collect();
    let why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        call.user.name,
        quoted(&call.user.groups),
        list.join("\n")
    );
    Err(forbidden(call, object, &why))
}

fn forbidden(call: &Call, object: &Value, why: &str) -> Error {
    Error::forbidden(GROUP, call.resource.plural, meta::name(object), why)
}

/// Rules of one right each as lines: those about the same resource are one.
fn describe(missing: Vec<Rule>) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let mut by_resource: BTreeMap<[Vec<String>; 3], Vec<String>> = BTreeMap::new();
    for rule in missing {
        if rule.urls.is_empty() {
            let verbs = by_resource
                .entry([rule.groups, rule.resources, rule.names])
                .or_default();
            verbs.extend(rule.verbs);
        } else {
            let (urls, verbs) = (quoted(&rule.urls), quoted(&rule.verbs));
            lines.insert(format!("{{NonResourceURLs:{urls}, Verbs:{verbs}}}"));
        }
    }
    for ([groups, resources, names], verbs) in by_resource {
        let mut parts = vec![
            format!("APIGroups:{}", quoted(&groups)),
            format!("Resources:{}", quoted(&resources)),
        ];
        if !names.is_empty() {
            parts.push(format!("ResourceNames:{}", quoted(&names)));
        }
        parts.push(format!("Verbs:{}", quoted(&verbs)));
        lines.insert(format!("{{{}}}", parts.join(", ")));
    }
    lines
}

/// `["a" "b"]`.
fn quoted(list: &[String]) -> String {
    let list: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", list.join(" "))
}

/// Whether nothing changes but owners and finalizers, as the garbage collector does it.
fn is_garbage_collection(object: &Value, old: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            for field in [
                "ownerReferences",
                "finalizers",
                "managedFields",
                "resourceVersion",
            ] {
                metadata.remove(field);
            }
        }
        object
    };
    let changes = ["ownerReferences", "finalizers"]
        .iter()
        .any(|field| object["metadata"][*field] != old["metadata"][*field]);
    changes && without(object) == without(old)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rights_about_one_resource_are_one_line() {
        let rule = |verb: &str, resource: &str| Rule {
            verbs: vec![verb.into()],
            groups: vec![String::new()],
            resources: vec![resource.into()],
            ..Rule::default()
        };
        let url = Rule {
            verbs: vec!["get".into()],
            urls: vec!["/x".into()],
            ..Rule::default()
        };
        let lines = describe(vec![rule("get", "pods"), url, rule("list", "pods")]);
        let lines: Vec<_> = lines.into_iter().collect();
        assert_eq!(
            lines,
            [
                "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\" \"list\"]}",
                "{NonResourceURLs:[\"/x\"], Verbs:[\"get\"]}"
            ]
        );
    }

    #[test]
    fn the_garbage_collector_may_touch_what_it_could_not_grant() {
        let old = json!({"metadata": {"name": "a", "finalizers": ["x"]}, "rules": [1]});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!([]);
        assert!(is_garbage_collection(&new, &old));
        new["rules"] = json!([]);
        assert!(!is_garbage_collection(&new, &old));
        assert!(!is_garbage_collection(&old, &old));
    }
}

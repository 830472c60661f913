//! Nobody lets a policy read for them what they may not read themselves.

use fluyt_api::resources;
use fluyt_api::validation::Errors;
use serde_json::Value;

use super::super::{Attributes, Shared};
use crate::authz::Question;
use crate::user::{MASTERS, User};

const GROUP: &str = "admissionregistration.k8s.io";

/// What could not be found out of the kind of a policy's parameters, so that all kinds count.
enum Unknown {
    Policy,
    Version(Value),
    Kind(Value),
}

/// Asks whether the author of a policy may read its parameters' kind, or that of a binding the object that it names.
pub async fn authorize(
    shared: &Shared,
    attributes: &Attributes<'_>,
    object: &Value,
    errors: &mut Errors,
) {
    let resource = attributes.at.resource;
    if resource.group != GROUP || attributes.cx.user.is_in(MASTERS) {
        return;
    }
    let (spec, old) = (&object["spec"], attributes.old.map(|old| &old["spec"]));
    let same = |field: &str| old.is_some_and(|old| old[field] == spec[field]);
    match resource.plural {
        "validatingadmissionpolicies" | "mutatingadmissionpolicies" => {
            let kind = &spec["paramKind"];
            if kind.is_object()
                && !same("paramKind")
                && let Err(why) = may_read_kind(shared, &attributes.cx.user, kind).await
            {
                errors.forbidden("spec.paramKind", &why);
            }
        }
        "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings" => {
            if spec["paramRef"].is_object()
                && !(same("paramRef") && same("policyName"))
                && let Err(why) = may_read_object(shared, attributes, spec).await
            {
                errors.forbidden("spec.paramRef", &why);
            }
        }
        _ => {}
    }
}

async fn may_read_kind(shared: &Shared, user: &User, kind: &Value) -> Result<(), String> {
    let question = Question {
        verb: "get".into(),
        namespace: "*".into(),
        name: "*".into(),
        ..about(shared, kind).0
    };
    if shared.authorizer.decide(user, &question).await.allows() {
        return Ok(());
    }
    Err(format!(
        "user {} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
        shown(user),
        text(kind, "kind"),
        text(kind, "apiVersion")
    ))
}

async fn may_read_object(
    shared: &Shared,
    attributes: &Attributes<'_>,
    spec: &Value,
) -> Result<(), String> {
    let policies = match attributes.at.resource.plural {
        "validatingadmissionpolicybindings" => "validatingadmissionpolicies",
        _ => "mutatingadmissionpolicies",
    };
    let name = text(spec, "policyName");
    let policy = resources::find(GROUP, "v1", policies)
        .and_then(|policies| shared.caches.of(policies).get(name))
        .map(|entry| entry.object());
    let (asked, unknown) = match &policy {
        None => (everything(), Some(Unknown::Policy)),
        Some(policy) if policy["spec"]["paramKind"].is_object() => {
            about(shared, &policy["spec"]["paramKind"])
        }
        Some(_) => (everything(), None),
    };
    let reference = &spec["paramRef"];
    let verb = match text(reference, "name") {
        "" => "list",
        _ => "get",
    };
    let question = Question {
        verb: verb.into(),
        namespace: text(reference, "namespace").into(),
        name: text(reference, "name").into(),
        ..asked
    };
    let user = &attributes.cx.user;
    if shared.authorizer.decide(user, &question).await.allows() {
        return Ok(());
    }
    let user = shown(user);
    let unable = match unknown {
        None => {
            return Err(format!(
                "user {user} does not have \"{verb}\" permission on the object referenced by paramRef"
            ));
        }
        Some(Unknown::Policy) => format!("get policy {name}"),
        Some(Unknown::Version(kind)) => format!("parse paramKind {}", shown_kind(&kind)),
        Some(Unknown::Kind(kind)) => format!("resolve paramKind {}", shown_kind(&kind)),
    };
    Err(format!(
        "unable to {unable} to determine minimum required permissions and user {user} does not have \"{verb}\" permission for all groups, versions and resources"
    ))
}

/// A question about every resource.
fn everything() -> Question {
    Question {
        group: "*".into(),
        version: "*".into(),
        resource: "*".into(),
        ..Question::default()
    }
}

/// A question about the resource of a kind, as narrow as what is known of it allows.
fn about(shared: &Shared, kind: &Value) -> (Question, Option<Unknown>) {
    let api_version = text(kind, "apiVersion");
    if api_version.matches('/').count() > 1 {
        return (everything(), Some(Unknown::Version(kind.clone())));
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let served = shared.caches.served();
    let found = served.find_kind(group, version, text(kind, "kind"));
    let question = Question {
        group: group.into(),
        version: version.into(),
        resource: found.as_ref().map_or("*", |r| r.plural).into(),
        ..Question::default()
    };
    let unknown = match found {
        Some(_) => None,
        None => Some(Unknown::Kind(kind.clone())),
    };
    (question, unknown)
}

/// A user as upstream prints one.
fn shown(user: &User) -> String {
    let extra = user
        .extra
        .iter()
        .map(|(key, values)| format!("{key}:[{}]", values.join(" ")));
    format!(
        "&{{{} {} [{}] map[{}]}}",
        user.name,
        user.uid,
        user.groups.join(" "),
        extra.collect::<Vec<_>>().join(" ")
    )
}

/// A kind as upstream prints one.
fn shown_kind(kind: &Value) -> String {
    format!("&{{{} {}}}", text(kind, "apiVersion"), text(kind, "kind"))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

//! The variables of expressions in webhooks and policies.

use std::sync::Arc;

use fluyt_api::resources::Resource;
use fluyt_cel::{
    Activation, Authorize, Authorizer as CelAuthorizer, Environment, MATCH_CONDITIONS_BUDGET,
    PER_CALL_LIMIT, Program, Query, Type, Value,
};
use serde_json::{Value as Json, json};

use super::Attributes;
use crate::authz::{Authorizer, Question};
use crate::cel_types::{object, user_info};
use crate::user::User;

const AUTHORIZER: Type = Type::Opaque("kubernetes.authorization.Authorizer");
const RESOURCE_CHECK: Type = Type::Opaque("kubernetes.authorization.ResourceCheck");

/// What every expression sees; `params` and `namespaceObject` are for policies.
#[must_use]
pub fn environment(policy: bool) -> Environment {
    let mut environment = Environment::default();
    for name in ["object", "oldObject"] {
        environment.declare(name, Type::Dyn);
    }
    environment.declare("request", request_type());
    environment.declare("authorizer", AUTHORIZER);
    environment.declare("authorizer.requestResource", RESOURCE_CHECK);
    if policy {
        environment.declare("params", Type::Dyn);
        environment.declare("namespaceObject", Type::Dyn);
    }
    environment
}

fn request_type() -> Type {
    let strings = |name: &str, fields: &[&str]| {
        let fields: Vec<(&str, Type)> = fields.iter().map(|f| (*f, Type::String)).collect();
        object(name, &fields)
    };
    let kind = strings("kubernetes.GroupVersionKind", &["group", "version", "kind"]);
    let resource = strings(
        "kubernetes.GroupVersionResource",
        &["group", "version", "resource"],
    );
    object(
        "kubernetes.AdmissionRequest",
        &[
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", Type::String),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", Type::String),
            ("name", Type::String),
            ("namespace", Type::String),
            ("operation", Type::String),
            ("userInfo", user_info()),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    )
}

/// The `AdmissionRequest` of a request, without its objects.
#[must_use]
pub fn request(attributes: &Attributes<'_>, matched: &Resource) -> Json {
    let (at, requested) = (attributes.at, attributes.requested());
    let user = &attributes.cx.user;
    let kind = |r: &Resource| json!({"group": r.group, "version": r.version, "kind": r.kind});
    let resource =
        |r: &Resource| json!({"group": r.group, "version": r.version, "resource": r.plural});
    let mut request = json!({
        "kind": kind(matched), "resource": resource(matched), "requestKind": kind(requested),
        "requestResource": resource(requested), "operation": attributes.operation.word(), "userInfo": crate::user::user_info(user),
        "dryRun": attributes.cx.dry_run, "options": attributes.options(),
    });
    if !at.name.is_empty() {
        request["name"] = at.name.into();
    }
    if !at.namespace.is_empty() {
        request["namespace"] = at.namespace.into();
    } else if at.resource.plural == "namespaces" && at.resource.group.is_empty() {
        request["namespace"] = at.name.into();
    }
    if !at.subresource.is_empty() {
        request["subResource"] = at.subresource.into();
        request["requestSubResource"] = at.subresource.into();
    }
    request
}

/// Variables for one evaluation.
#[must_use]
pub fn activation(
    attributes: &Attributes<'_>,
    authorizer: &Arc<Authorizer>,
    request: &Json,
    object: &Json,
    old: Option<&Json>,
) -> Activation {
    let typed = |value: &Json| Value::from_json(value);
    let asked: CelAuthorizer = Arc::new(Asker {
        authorizer: authorizer.clone(),
        user: attributes.cx.user.clone(),
    });
    let at = attributes.at;
    let query = Query {
        group: at.resource.group.to_owned(),
        resource: at.resource.plural.to_owned(),
        subresource: at.subresource.to_owned(),
        namespace: at.namespace.to_owned(),
        name: at.name.to_owned(),
        ..Query::default()
    };
    Activation::default()
        .with("object", typed(object))
        .with("oldObject", old.map_or(Value::Null, typed))
        .with("request", Value::typed(request, &request_type()))
        .with(
            "authorizer.requestResource",
            Value::resource_check(asked.clone(), query),
        )
        .with("authorizer", Value::authorizer(asked))
}

/// Asks the server's authorizer on behalf of the request's user.
struct Asker {
    authorizer: Arc<Authorizer>,
    user: User,
}

impl Authorize for Asker {
    fn check(&self, account: Option<(&str, &str)>, query: &Query) -> (bool, String) {
        let account = account.map(|(namespace, name)| User::service_account(namespace, name, ""));
        let user = account.as_ref().unwrap_or(&self.user);
        let question = Question {
            verb: query.verb.clone(),
            group: query.group.clone(),
            resource: query.resource.clone(),
            subresource: query.subresource.clone(),
            namespace: query.namespace.clone(),
            name: query.name.clone(),
            path: query.path.clone(),
            ..Question::default()
        };
        match self.authorizer.allows(user, &question) {
            Some(reason) => (true, reason),
            None => (false, String::new()),
        }
    }
}

/// A named condition.
pub struct Condition {
    pub name: String,
    pub program: Result<Program, String>,
}

/// Compiles match conditions.
#[must_use]
pub fn conditions(environment: &Environment, list: &Json) -> Vec<Condition> {
    list.as_array()
        .into_iter()
        .flatten()
        .map(|condition| Condition {
            name: condition["name"].as_str().unwrap_or_default().to_owned(),
            program: boolean(
                environment,
                condition["expression"].as_str().unwrap_or_default(),
            ),
        })
        .collect()
}

/// Compiles an expression that must be true or false.
///
/// # Errors
/// What is wrong with it.
pub fn boolean(environment: &Environment, text: &str) -> Result<Program, String> {
    match environment.compile(text) {
        Ok(program) if matches!(program.result, Type::Bool | Type::Dyn) => Ok(program),
        Ok(_) => Err("must evaluate to bool".into()),
        Err(error) => Err(format!("compilation failed: {error}")),
    }
}

/// Whether all conditions hold.
///
/// # Errors
/// The first error, if no condition is false.
pub fn hold(conditions: &[Condition], activation: &Activation) -> Result<bool, String> {
    let (mut budget, mut failed) = (MATCH_CONDITIONS_BUDGET, None);
    for condition in conditions {
        let (result, cost) = match &condition.program {
            Ok(program) => program.run(activation, PER_CALL_LIMIT.min(budget)),
            Err(why) => {
                failed.get_or_insert_with(|| why.clone());
                continue;
            }
        };
        budget = budget.saturating_sub(cost);
        match result {
            Ok(Value::Bool(true)) => {}
            Ok(_) => return Ok(false),
            Err(error) => {
                failed.get_or_insert_with(|| error.to_string());
            }
        }
    }
    failed.map_or(Ok(true), Err)
}

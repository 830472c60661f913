//! The variables of expressions in webhooks and policies.

use std::sync::Arc;

use fluyt_api::resources::Resource;
use fluyt_cel::{
    Activation, Authorize, Authorizer as CelAuthorizer, Environment, MATCH_CONDITIONS_BUDGET,
    PER_CALL_LIMIT, Program, Query, Type, Value,
};
use serde_json::{Value as Json, json};

use super::Attributes;
use crate::authz::{Authorizer, Question, Selectors};
use crate::cel_types::{object, user_info};
use crate::user::User;

const AUTHORIZER: Type = Type::Opaque("kubernetes.authorization.Authorizer");
const RESOURCE_CHECK: Type = Type::Opaque("kubernetes.authorization.ResourceCheck");

/// What not every expression sees.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sees {
    /// `params`, in policies that have parameters.
    pub params: bool,
    pub authorizer: bool,
}

impl Sees {
    /// What the expressions of webhooks see.
    pub const WEBHOOK: Self = Self {
        params: false,
        authorizer: true,
    };

    /// What the expressions of a policy see, but for those of its messages.
    #[must_use]
    pub fn of_policy(spec: &Json) -> Self {
        Self {
            params: spec["paramKind"].is_object(),
            authorizer: true,
        }
    }
}

/// The variables of an expression.
#[must_use]
pub fn environment(sees: Sees) -> Environment {
    let mut environment = Environment::default();
    for name in ["object", "oldObject"] {
        environment.declare(name, Type::Dyn);
    }
    environment.declare("namespaceObject", namespace_type());
    environment.declare("request", request_type());
    if sees.params {
        environment.declare("params", Type::Dyn);
    }
    if sees.authorizer {
        environment.declare("authorizer", AUTHORIZER);
        environment.declare("authorizer.requestResource", RESOURCE_CHECK);
    }
    environment
}

/// The types of what the mutations of a policy result in.
#[must_use]
pub fn patch_types() -> [(&'static str, Type); 2] {
    let operation = object(
        "JSONPatch",
        &[
            ("op", Type::String),
            ("path", Type::String),
            ("from", Type::String),
            ("value", Type::Dyn),
        ],
    );
    [
        ("Object", Type::Dynamic("Object".into())),
        ("JSONPatch", operation),
    ]
}

/// The namespace of an object, without what is of no use to expressions.
fn namespace_type() -> Type {
    let strings = || Type::list(Type::String);
    let words = || Type::map(Type::String, Type::String);
    let metadata = object(
        "kubernetes.NamespaceMetadata",
        &[
            ("name", Type::String),
            ("generateName", Type::String),
            ("namespace", Type::String),
            ("labels", words()),
            ("annotations", words()),
            ("UID", Type::String),
            ("creationTimestamp", Type::Timestamp),
            ("deletionGracePeriodSeconds", Type::Int),
            ("deletionTimestamp", Type::Timestamp),
            ("generation", Type::Int),
            ("resourceVersion", Type::String),
            ("finalizers", strings()),
        ],
    );
    let condition = object(
        "kubernetes.NamespaceCondition",
        &[
            ("status", Type::String),
            ("type", Type::String),
            ("lastTransitionTime", Type::Timestamp),
            ("message", Type::String),
            ("reason", Type::String),
        ],
    );
    let status = [
        ("conditions", Type::list(condition)),
        ("phase", Type::String),
    ];
    object(
        "kubernetes.Namespace",
        &[
            ("metadata", metadata),
            (
                "spec",
                object("kubernetes.NamespaceSpec", &[("finalizers", strings())]),
            ),
            ("status", object("kubernetes.NamespaceStatus", &status)),
        ],
    )
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
    namespace: Option<&Json>,
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
        .with(
            "namespaceObject",
            namespace.map_or(Value::Null, |n| Value::typed(n, &namespace_type())),
        )
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
            selectors: Selectors::of_text(&query.field_selector, &query.label_selector)
                .map(Arc::new),
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
    typed(environment, text, &[Type::Bool])
}

/// Compiles an expression whose value must be of one of some types; of any when none is named.
///
/// # Errors
/// What is wrong with it.
pub fn typed(environment: &Environment, text: &str, types: &[Type]) -> Result<Program, String> {
    let program = environment
        .compile(text)
        .map_err(|error| format!("compilation failed: {error}"))?;
    if types.is_empty() || types.contains(&program.result) {
        return Ok(program);
    }
    let wanted: Vec<String> = types.iter().map(Type::runtime_name).collect();
    let wanted = match wanted.as_slice() {
        [one] => one.clone(),
        several => format!("one of [{}]", several.join(" ")),
    };
    let found = program.result.runtime_name();
    Err(format!("must evaluate to {wanted} but got {found}"))
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

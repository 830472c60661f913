//! Authorization by a service that is asked with a `SubjectAccessReview`.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use fluyt_cel::{
    Activation, Environment, MATCH_CONDITIONS_BUDGET, PER_CALL_LIMIT, Program, Type,
    Value as CelValue,
};
use serde_json::{Map, Value, json};

use super::{Decision, Question, Verdict, aggregate};
use crate::cel_types::object;
use crate::dial::ControlPlane;
use crate::expiring::Expiring;
use crate::remote::{self, Backoff, Remote};
use crate::user::User;

/// Answers kept.
const CACHE: usize = 8192;

/// Longer questions are asked anew each time: whoever makes them up could fill the memory.
const MAX_CACHED: usize = 10_000;

/// How a webhook is asked.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    pub name: String,
    pub kubeconfig: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: &'static str,
    pub timeout: Duration,
    pub authorized_ttl: Duration,
    pub unauthorized_ttl: Duration,
    /// Whether a failure refuses, instead of leaving the decision to the next authorizer.
    pub deny_on_failure: bool,
    /// Expressions that all have to hold for the webhook to be asked.
    pub match_conditions: Vec<String>,
}

pub(super) struct WebhookAuthorizer {
    settings: WebhookSettings,
    remote: Remote,
    conditions: Vec<Program>,
    answers: Expiring<Box<str>, Decision>,
}

static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(|| {
    let mut environment = Environment::default();
    environment.declare("request", review_type());
    environment
});

/// The `SubjectAccessReviewSpec` as match conditions see it.
fn review_type() -> Type {
    let strings = || Type::list(Type::String);
    let requirement = object(
        "kubernetes.SelectorRequirement",
        &[
            ("key", Type::String),
            ("operator", Type::String),
            ("values", strings()),
        ],
    );
    let selector = |name: &str| {
        object(
            name,
            &[
                ("rawSelector", Type::String),
                ("requirements", Type::list(requirement.clone())),
            ],
        )
    };
    let resource = object(
        "kubernetes.ResourceAttributes",
        &[
            ("namespace", Type::String),
            ("verb", Type::String),
            ("group", Type::String),
            ("version", Type::String),
            ("resource", Type::String),
            ("subresource", Type::String),
            ("name", Type::String),
            (
                "fieldSelector",
                selector("kubernetes.FieldSelectorAttributes"),
            ),
            (
                "labelSelector",
                selector("kubernetes.LabelSelectorAttributes"),
            ),
        ],
    );
    let path = object(
        "kubernetes.NonResourceAttributes",
        &[("path", Type::String), ("verb", Type::String)],
    );
    object(
        "kubernetes.SubjectAccessReviewSpec",
        &[
            ("resourceAttributes", resource),
            ("nonResourceAttributes", path),
            ("user", Type::String),
            ("groups", strings()),
            ("extra", Type::map(Type::String, strings())),
            ("uid", Type::String),
        ],
    )
}

/// Compiles a match condition.
///
/// # Errors
/// What is wrong with it.
pub(super) fn compile(expression: &str) -> Result<Program, String> {
    match ENVIRONMENT.compile(expression) {
        Ok(program) if program.result == Type::Bool => Ok(program),
        Ok(_) => Err("must evaluate to bool".into()),
        Err(error) => Err(format!("compilation failed: {error}")),
    }
}

impl WebhookAuthorizer {
    pub(super) fn new(settings: &WebhookSettings, network: &ControlPlane) -> anyhow::Result<Self> {
        let compiled = settings.match_conditions.iter().map(|e| compile(e));
        Ok(Self {
            conditions: compiled
                .collect::<Result<_, _>>()
                .map_err(|why| anyhow::anyhow!("matchConditions: {why}"))?,
            remote: remote::load(&settings.kubeconfig)?.through(network),
            settings: settings.clone(),
            answers: Expiring::new(CACHE),
        })
    }

    pub(super) async fn decide(&self, user: &User, question: &Question) -> Decision {
        let spec = spec(user, question);
        match self.known(&spec) {
            Ok(decision) => decision,
            Err(key) => self.ask(key, &spec).await,
        }
    }

    /// The decision for a caller that cannot wait: this thread does.
    pub(super) fn decide_here(&self, user: &User, question: &Question) -> Decision {
        let spec = spec(user, question);
        let key = match self.known(&spec) {
            Ok(decision) => return decision,
            Err(key) => key,
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return self.failed("there is no runtime to ask in".into());
        };
        if runtime.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread {
            let asking = || runtime.block_on(self.ask(key, &spec));
            return tokio::task::block_in_place(asking);
        }
        self.failed("a webhook cannot be asked here".into())
    }

    /// What is known without asking, or the key under which an answer is kept.
    fn known(&self, spec: &Value) -> Result<Decision, Box<str>> {
        match self.matches(spec) {
            Ok(true) => {}
            Ok(false) => return Ok(Decision::default()),
            Err(why) => return Ok(self.failed(why)),
        }
        let key = spec.to_string().into_boxed_str();
        self.answers.get(&*key).ok_or(key)
    }

    fn failed(&self, why: String) -> Decision {
        Decision {
            verdict: if self.settings.deny_on_failure {
                Verdict::Deny
            } else {
                Verdict::NoOpinion
            },
            reason: String::new(),
            error: Some(why),
        }
    }

    async fn ask(&self, key: Box<str>, spec: &Value) -> Decision {
        let review = json!({
            "apiVersion": format!("authorization.k8s.io/{}", self.settings.version),
            "kind": "SubjectAccessReview",
            "metadata": {},
            "spec": versioned(spec, self.settings.version),
            "status": {"allowed": false},
        });
        let body = Bytes::from(review.to_string());
        let asked = Backoff::default()
            .post(&self.remote, "", &body, self.settings.timeout)
            .await;
        let decision = match asked {
            Ok(reply) if reply.status.is_success() => {
                match serde_json::from_slice::<Value>(&reply.body) {
                    Ok(answer) => judge(&answer["status"]),
                    Err(error) => return self.failed(error.to_string()),
                }
            }
            Ok(reply) => {
                return self.failed(format!(
                    "webhook {:?} answered with status {}",
                    self.settings.name, reply.status
                ));
            }
            Err(error) => {
                tracing::error!(%error, "Failed to make webhook authorizer request");
                return self.failed(error.to_string());
            }
        };
        if key.len() <= MAX_CACHED {
            let lasting = if decision.allows() {
                self.settings.authorized_ttl
            } else {
                self.settings.unauthorized_ttl
            };
            self.answers.put(key, decision.clone(), lasting);
        }
        decision
    }

    /// Whether the conditions want this to be asked.
    ///
    /// # Errors
    /// The conditions that could not be evaluated, when none is false.
    fn matches(&self, spec: &Value) -> Result<bool, String> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let request = CelValue::typed(&filled(spec), &review_type());
        let activation = Activation::default().with("request", request);
        let (mut budget, mut errors) = (MATCH_CONDITIONS_BUDGET, Vec::new());
        for (program, expression) in self.conditions.iter().zip(&self.settings.match_conditions) {
            let (result, cost) = program.run(&activation, PER_CALL_LIMIT.min(budget));
            budget = budget.saturating_sub(cost);
            match result {
                Ok(CelValue::Bool(true)) => {}
                Ok(_) => return Ok(false),
                Err(error) => errors.push(format!(
                    "cel evaluation error: expression '{expression}' resulted in error: {error}"
                )),
            }
        }
        aggregate(errors).map_or(Ok(true), Err)
    }
}

fn judge(status: &Value) -> Decision {
    let (allowed, denied) = (status["allowed"] == true, status["denied"] == true);
    let reason = status["reason"].as_str().unwrap_or_default();
    let both = "webhook subject access review returned both allow and deny response";
    Decision {
        verdict: match (allowed, denied) {
            (_, true) => Verdict::Deny,
            (true, false) => Verdict::Allow,
            (false, false) => Verdict::NoOpinion,
        },
        reason: reason.to_owned(),
        error: (allowed && denied).then(|| both.to_owned()),
    }
}

/// The `spec` of the review, as v1 has it.
fn spec(user: &User, question: &Question) -> Value {
    let mut spec = Map::new();
    if question.resource.is_empty() {
        let attributes = json!({"path": question.path, "verb": question.verb});
        spec.insert("nonResourceAttributes".into(), attributes);
    } else {
        let mut attributes = Map::new();
        for (name, value) in [
            ("namespace", &question.namespace),
            ("verb", &question.verb),
            ("group", &question.group),
            ("version", &question.version),
            ("resource", &question.resource),
            ("subresource", &question.subresource),
            ("name", &question.name),
        ] {
            if !value.is_empty() {
                attributes.insert(name.into(), value.clone().into());
            }
        }
        if let Some(selectors) = &question.selectors {
            for (name, list) in [
                ("fieldSelector", &selectors.fields),
                ("labelSelector", &selectors.labels),
            ] {
                if !list.is_empty() {
                    let list: Vec<Value> = list.iter().map(super::Requirement::to_json).collect();
                    attributes.insert(name.into(), json!({"requirements": list}));
                }
            }
        }
        spec.insert("resourceAttributes".into(), attributes.into());
    }
    if !user.name.is_empty() {
        spec.insert("user".into(), user.name.clone().into());
    }
    if !user.groups.is_empty() {
        spec.insert("groups".into(), user.groups.clone().into());
    }
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
    if !user.uid.is_empty() {
        spec.insert("uid".into(), user.uid.clone().into());
    }
    spec.into()
}

/// v1beta1 calls the groups `group`.
fn versioned(spec: &Value, version: &str) -> Value {
    let mut spec = spec.clone();
    if version == "v1beta1"
        && let Some(map) = spec.as_object_mut()
        && let Some(groups) = map.remove("groups")
    {
        map.insert("group".into(), groups);
    }
    spec
}

/// With every plain field, so that conditions need not ask which are there.
fn filled(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let Some(map) = spec.as_object_mut() else {
        return spec;
    };
    for name in ["user", "uid"] {
        map.entry(name).or_insert_with(|| "".into());
    }
    map.entry("groups").or_insert_with(|| json!([]));
    map.entry("extra").or_insert_with(|| json!({}));
    if let Some(attributes) = map
        .get_mut("resourceAttributes")
        .and_then(Value::as_object_mut)
    {
        for name in [
            "namespace",
            "verb",
            "group",
            "version",
            "resource",
            "subresource",
            "name",
        ] {
            attributes.entry(name).or_insert_with(|| "".into());
        }
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_see_the_review() {
        assert!(compile("request.user == 'a'").is_ok());
        assert!(compile("request.user").unwrap_err().contains("bool"));
        assert!(compile("request.nothing == 'a'").is_err());
        let program =
            compile("has(request.resourceAttributes) && request.resourceAttributes.namespace != 'kube-system'")
                .unwrap();
        let question = Question {
            verb: "get".into(),
            resource: "pods".into(),
            ..Question::default()
        };
        let spec = filled(&spec(&User::new("a", &[]), &question));
        let activation =
            Activation::default().with("request", CelValue::typed(&spec, &review_type()));
        let (result, _) = program.run(&activation, PER_CALL_LIMIT);
        assert!(matches!(result, Ok(CelValue::Bool(true))));
    }

    #[test]
    fn answers() {
        let verdict = |status: Value| judge(&status).verdict;
        assert_eq!(verdict(json!({"allowed": true})), Verdict::Allow);
        assert_eq!(verdict(json!({"allowed": false})), Verdict::NoOpinion);
        assert_eq!(verdict(json!({"denied": true})), Verdict::Deny);
        let both = judge(&json!({"denied": true, "allowed": true}));
        assert!(both.verdict == Verdict::Deny && both.error.is_some());
        let old = versioned(&json!({"groups": ["a"]}), "v1beta1");
        assert_eq!(old, json!({"group": ["a"]}));
    }
}

//! Admission webhooks: which are asked, what they are sent, and what their answer means.

mod configuration;
mod mutating;
mod validating;

use std::sync::Arc;
use std::time::Duration;

use fluyt_api::resources::Handle;
use fluyt_api::{Cause, Error, Reason, meta};
use serde_json::{Value, json};

use super::expressions::{self, Condition};
use super::plugins::Setup;
use super::static_manifests::{Kind, Manifests};
use super::{Attributes, Compiled, Shared, matching};
use crate::cache::Caches;
use crate::remote::Users;
use crate::spans;

pub use mutating::Mutating;
#[cfg(test)]
pub(super) use validating::KIND as VALIDATING;
pub use validating::Validating;

/// Where upstream's decoder of manifests is from.
const SCHEME: &str = "k8s.io/kubernetes/pkg/admission/plugin/webhook/manifest/loader/loader.go:41";

/// How long a webhook may take that does not say, in seconds.
const TIMEOUT: u64 = 10;

/// One webhook of a configuration.
pub(super) struct Webhook {
    configuration: String,
    name: String,
    spec: Value,
    conditions: Vec<Condition>,
    /// Who is presented to webhooks.
    users: Arc<Users>,
}

/// A webhook that a request matches, and the version it wants to see.
pub(super) struct Matched {
    webhook: Arc<Webhook>,
    resource: Handle,
}

/// What a webhook said.
pub(super) struct Answer {
    patch: Option<Vec<u8>>,
}

/// Where a plugin's webhooks come from.
pub(super) struct Source {
    kind: &'static Kind,
    manifests: Manifests<Arc<Vec<Arc<Webhook>>>>,
    compiled: Compiled<Vec<Arc<Webhook>>>,
    users: Arc<Users>,
}

impl Source {
    /// # Errors
    /// When what the plugin is configured with makes no sense.
    fn new(kind: &'static Kind, setup: &Setup<'_>) -> anyhow::Result<Self> {
        let configured = configuration::read(setup.configuration, setup.features)?;
        let users = configured.users;
        let of = users.clone();
        let manifests = Manifests::follow(kind, &configured.directory, setup, move |loaded| {
            let objects = loaded.objects.iter();
            objects.map(|o| Arc::new(Webhook::of(o, &of))).collect()
        });
        Ok(Self {
            kind,
            manifests: manifests?,
            compiled: Compiled::default(),
            users,
        })
    }

    /// The webhooks of each configuration that may have to do with a request: first those of files.
    fn all(&self, caches: &Caches, attributes: &Attributes<'_>) -> Vec<Arc<Vec<Arc<Webhook>>>> {
        let mut all = self.manifests.all().to_vec();
        if !matching::is_exempt(attributes) {
            let configurations = matching::configurations(caches, self.kind.plural);
            all.extend(configurations.into_iter().map(|(name, revision, entry)| {
                let compile = || Webhook::of(&entry.object(), &self.users);
                self.compiled.get(&name, revision, compile)
            }));
        }
        all
    }
}

impl Webhook {
    /// The webhooks of a configuration, compiled.
    fn of(object: &Value, users: &Arc<Users>) -> Vec<Arc<Self>> {
        let environment = expressions::environment(expressions::Sees::WEBHOOK);
        object["webhooks"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|spec| {
                Arc::new(Self {
                    configuration: meta::name(object).to_owned(),
                    name: spec["name"].as_str().unwrap_or_default().to_owned(),
                    conditions: expressions::conditions(&environment, &spec["matchConditions"]),
                    spec: spec.clone(),
                    users: users.clone(),
                })
            })
            .collect()
    }

    fn ignores_failure(&self) -> bool {
        self.spec["failurePolicy"] == "Ignore"
    }

    /// Whether a request is this webhook's business.
    fn matches(
        self: &Arc<Self>,
        shared: &Shared,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<Option<Matched>, Error> {
        let spec = &self.spec;
        let equivalent = spec["matchPolicy"] != "Exact";
        let Some(resource) =
            matching::matched(&shared.caches, attributes, &spec["rules"], equivalent)
        else {
            return Ok(None);
        };
        let namespace = matching::namespace(&shared.caches, attributes, object);
        if !matching::namespace_matches(&spec["namespaceSelector"], namespace.as_ref())
            || !matching::object_matches(&spec["objectSelector"], object, attributes.old)
        {
            return Ok(None);
        }
        if !self.conditions.is_empty() {
            let request = expressions::request(attributes, &resource);
            let activation = expressions::activation(
                attributes,
                &shared.authorizer,
                &request,
                object,
                attributes.old,
                None,
            );
            match expressions::hold(&self.conditions, &activation) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(_) if self.ignores_failure() => return Ok(None),
                Err(why) => {
                    let name = self.conditions.first().map_or("", |c| &c.name);
                    tracing::debug!(
                        webhook = self.name,
                        condition = name,
                        why,
                        "a match condition failed"
                    );
                    return Err(attributes.forbidden(why));
                }
            }
        }
        Ok(Some(Matched {
            webhook: self.clone(),
            resource,
        }))
    }
}

impl Matched {
    /// Asks the webhook. `None`: it failed, and that is to be ignored. `step` is the call as traces
    /// name it, `place` its key in the audit log.
    ///
    /// # Errors
    /// Its refusal, or its failure.
    pub(super) async fn ask(
        &self,
        shared: &Shared,
        attributes: &Attributes<'_>,
        object: &Value,
        step: &'static str,
        place: &str,
    ) -> Result<Option<Answer>, Error> {
        let (name, spec) = (&self.webhook.name, &self.webhook.spec);
        let safe = matches!(spec["sideEffects"].as_str(), Some("None" | "NoneOnDryRun"));
        if attributes.cx.dry_run && !safe {
            return Err(Error::bad_request(format!(
                "admission webhook {name:?} does not support dry run"
            )));
        }
        match self.call(shared, attributes, object, step).await {
            Ok(answer) => self.judge(attributes, &answer).map(Some),
            Err(error) if self.webhook.ignores_failure() => {
                tracing::warn!(webhook = name, %error, "a failing webhook is ignored");
                let key = format!("failed-open.{place}");
                attributes.cx.record.annotate(&key, name);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The `response` of the webhook.
    async fn call(
        &self,
        shared: &Shared,
        attributes: &Attributes<'_>,
        object: &Value,
        step: &'static str,
    ) -> Result<Value, Error> {
        let (name, spec) = (&self.webhook.name, &self.webhook.spec);
        let failed =
            |why: String| Error::internal(format!("failed calling webhook {name:?}: {why}"));
        let mut request = expressions::request(attributes, &self.resource);
        let uid = uuid::Uuid::new_v4().to_string();
        request["uid"] = uid.clone().into();
        let convert =
            |value| matching::versioned(&shared.converter, attributes, &self.resource, value);
        request["object"] = convert(object).await?;
        request["oldObject"] = match attributes.old {
            Some(old) => convert(old).await?,
            None => Value::Null,
        };
        let versions = spec["admissionReviewVersions"].as_array();
        let version = versions
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .find(|v| matches!(*v, "v1" | "v1beta1"))
            .unwrap_or("v1");
        let step = spans::start(step, |span| {
            let resource = attributes.requested();
            let (group, version, plural) = (resource.group, resource.version, resource.plural);
            span.set("configuration", &*self.webhook.configuration);
            span.set("webhook", &**name);
            span.set("resource", format!("{group}/{version}, Resource={plural}"));
            span.set("subresource", attributes.at.subresource);
            let operation = request["operation"].as_str();
            span.set("operation", operation.unwrap_or_default());
            span.set("UID", &*uid);
        });
        let review = json!({
            "kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request,
        });
        let timeout = Duration::from_secs(spec["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT));
        let (config, users) = (&spec["clientConfig"], &self.webhook.users);
        let calling = shared.webhooks.call(config, &review, timeout, users);
        let mut answer = spans::within(step.clone(), calling)
            .await
            .map_err(|e| failed(format!("failed to call webhook: {e}")))?;
        if let Some(step) = step {
            step.event("Request completed", Vec::new());
        }
        let response = answer["response"].take();
        if !response.is_object() {
            return Err(failed("webhook response is missing".into()));
        }
        if response["uid"] != uid.as_str() {
            let why = format!(
                "received invalid webhook response: expected response.uid={uid:?}, got {}",
                response["uid"]
            );
            return Err(failed(why));
        }
        Ok(response)
    }

    fn judge(&self, attributes: &Attributes<'_>, response: &Value) -> Result<Answer, Error> {
        let name = &self.webhook.name;
        for (key, value) in response["auditAnnotations"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let value = value.as_str().unwrap_or_default();
            attributes
                .cx
                .record
                .annotate(&format!("{name}/{key}"), value);
        }
        for warning in response["warnings"].as_array().into_iter().flatten() {
            attributes
                .cx
                .warnings
                .add(warning.as_str().unwrap_or_default());
        }
        if response["allowed"] != true {
            return Err(denied(name, &response["status"]));
        }
        let patch = match response["patch"].as_str().filter(|p| !p.is_empty()) {
            None => None,
            Some(text) => {
                use base64::Engine as _;
                let decoded = base64::engine::general_purpose::STANDARD.decode(text);
                let failed = |why: &str| {
                    Error::internal(format!(
                        "failed calling webhook {name:?}: received invalid webhook response: {why}"
                    ))
                };
                if response["patchType"] != "JSONPatch" {
                    return Err(failed(
                        "webhook returned response.patch but not response.patchType",
                    ));
                }
                Some(decoded.map_err(|_| failed("patch is not base64"))?)
            }
        };
        Ok(Answer { patch })
    }
}

/// A refusal, with the status that the webhook gave.
fn denied(webhook: &str, status: &Value) -> Error {
    let text = |field: &str| status[field].as_str().filter(|t| !t.is_empty());
    let by = format!("admission webhook {webhook:?} denied the request");
    let message = match (text("message"), text("reason")) {
        (Some(message), _) => format!("{by}: {message}"),
        (None, Some(reason)) => format!("{by}: {reason}"),
        (None, None) => format!("{by} without explanation"),
    };
    let reason = text("reason").map_or(Reason::Unknown, Reason::parse);
    let mut error = Error::new(reason, message);
    let code = status["code"].as_u64().and_then(|c| u16::try_from(c).ok());
    error.code = code.filter(|c| *c >= 400).unwrap_or(400);
    error.causes = status["details"]["causes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|cause| Cause {
            reason: "",
            message: cause["message"].as_str().unwrap_or_default().to_owned(),
            field: cause["field"].as_str().unwrap_or_default().to_owned(),
        })
        .collect();
    error
}

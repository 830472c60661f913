//! A service outside of the cluster is asked about the images of pods, with an `ImageReview`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use bytes::Bytes;
use fluyt_api::Error;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;
use crate::expiring::Expiring;
use crate::go_duration;
use crate::remote::{self, Backoff, Remote};

/// Answers kept.
const CACHE: usize = 1024;

const TIMEOUT: Duration = Duration::from_secs(30);

/// What begins the keys of the audit log.
const PREFIX: &str = "imagepolicywebhook.image-policy.k8s.io/";

/// What is part of the keys of the annotations that the service sees.
const SHOWN: &str = ".image-policy.k8s.io/";

const SECOND: Duration = Duration::from_secs(1);
const HALF_AN_HOUR: Duration = Duration::from_secs(30 * 60);

/// The plugin.
pub(super) struct ImagePolicyWebhook {
    remote: Remote,
    backoff: Backoff,
    allowed_for: Duration,
    denied_for: Duration,
    /// Whether pods are let through while the service cannot be asked.
    allows_by_default: bool,
    /// The `status` of reviews, by their `spec`.
    answers: Expiring<String, Value>,
}

#[derive(Default, Deserialize)]
struct Configuration {
    #[serde(default, rename = "imagePolicy")]
    image_policy: ImagePolicy,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ImagePolicy {
    #[serde(rename = "kubeConfigFile")]
    kubeconfig: PathBuf,
    /// Seconds.
    #[serde(rename = "allowTTL")]
    allow_ttl: i64,
    /// Seconds.
    #[serde(rename = "denyTTL")]
    deny_ttl: i64,
    /// Milliseconds.
    #[serde(rename = "retryBackoff")]
    retry_backoff: i64,
    #[serde(rename = "defaultAllow")]
    default_allow: bool,
}

/// What a number of a unit may be. 0 stands for the default, and -1 for nothing.
struct Span {
    unit: Duration,
    default: Duration,
    least: Duration,
    most: Duration,
}

const BACKOFF: Span = Span {
    unit: Duration::from_millis(1),
    default: Duration::from_millis(500),
    least: Duration::from_nanos(1),
    most: Duration::from_secs(5 * 60),
};

const ALLOWED: Span = Span {
    unit: SECOND,
    default: Duration::from_secs(5 * 60),
    least: SECOND,
    most: HALF_AN_HOUR,
};

const DENIED: Span = Span {
    default: Duration::from_secs(30),
    ..ALLOWED
};

impl Span {
    fn of(&self, number: i64) -> anyhow::Result<Duration> {
        let show = go_duration::show;
        let refuse = |got: String| {
            let (least, most) = (show(self.least), show(self.most));
            anyhow::anyhow!("valid value is between {least} and {most}, got {got}")
        };
        let count = u32::try_from(number.unsigned_abs()).unwrap_or(u32::MAX);
        let length = self.unit.saturating_mul(count);
        match number {
            -1 => Ok(Duration::ZERO),
            0 => Ok(self.default),
            ..0 => Err(refuse(format!("-{}", show(length)))),
            _ if length < self.least || length > self.most => Err(refuse(show(length))),
            _ => Ok(length),
        }
    }
}

impl ImagePolicyWebhook {
    /// # Errors
    /// Without a configuration, and with one that makes no sense.
    pub(super) fn new(configuration: Option<&str>) -> anyhow::Result<Self> {
        let text = configuration.context("no config specified")?;
        let policy = serde_saphyr::from_str::<Configuration>(text)?.image_policy;
        let initial = BACKOFF.of(policy.retry_backoff)?;
        let allowed_for = ALLOWED.of(policy.allow_ttl)?;
        let denied_for = DENIED.of(policy.deny_ttl)?;
        Ok(Self {
            remote: remote::load(&policy.kubeconfig)?,
            backoff: Backoff {
                initial,
                ..Backoff::default()
            },
            allowed_for,
            denied_for,
            allows_by_default: policy.default_allow,
            answers: Expiring::new(CACHE),
        })
    }

    /// The `status` of the review: what is known, or what the service says now.
    async fn review(&self, spec: Value) -> anyhow::Result<Value> {
        let key = spec.to_string();
        if let Some(known) = self.answers.get(&key) {
            return Ok(known);
        }
        let review = json!({
            "kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "metadata": {},
            "spec": spec, "status": {"allowed": false},
        });
        let body = Bytes::from(review.to_string());
        let query = format!("timeout={}s", TIMEOUT.as_secs());
        let asking = self.backoff.post(&self.remote, &query, &body, TIMEOUT);
        let reply = asking.await?;
        if !reply.status.is_success() {
            bail!(
                "the server responded with the status code {} but did not return more information",
                reply.status.as_u16()
            );
        }
        let status = serde_json::from_slice::<Value>(&reply.body)?["status"].take();
        let lasting = match status["allowed"] == true {
            true => self.allowed_for,
            false => self.denied_for,
        };
        self.answers.put(key, status.clone(), lasting);
        Ok(status)
    }

    fn failed(&self, attributes: &Attributes<'_>, error: &anyhow::Error) -> Result<(), Error> {
        let why = format!("{error:#}");
        tracing::debug!(why, "the service that judges images cannot be asked");
        if !self.allows_by_default {
            return Err(attributes.forbidden(why));
        }
        let key = format!("{PREFIX}failed-open");
        attributes.cx.record.annotate(&key, "true");
        Ok(())
    }
}

/// What the service is told of a pod.
fn spec(attributes: &Attributes<'_>, pod: &Value) -> Value {
    let lists: &[&str] = match attributes.at.subresource {
        "" => &["containers", "initContainers"],
        _ => &["ephemeralContainers"],
    };
    let containers: Vec<Value> = lists
        .iter()
        .flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten())
        .map(|container| json!({"image": container["image"]}))
        .collect();
    let annotations = pod["metadata"]["annotations"].as_object();
    let shown = annotations.into_iter().flatten();
    let shown: Map<String, Value> = shown
        .filter(|(key, _)| key.contains(SHOWN))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut spec = json!({"namespace": attributes.at.namespace});
    if !containers.is_empty() {
        spec["containers"] = containers.into();
    }
    if !shown.is_empty() {
        spec["annotations"] = shown.into();
    }
    spec
}

#[async_trait]
impl Plugin for ImagePolicyWebhook {
    async fn validate(
        &self,
        _caches: &Caches,
        attributes: &Attributes<'_>,
        pod: &Value,
    ) -> Result<(), Error> {
        let at = attributes.at;
        let is_pod = at.resource.group.is_empty() && at.resource.plural == "pods";
        let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
        if !is_pod || !writes || !matches!(at.subresource, "" | "ephemeralcontainers") {
            return Ok(());
        }
        let status = match self.review(spec(attributes, pod)).await {
            Ok(status) => status,
            Err(error) => return self.failed(attributes, &error),
        };
        let annotations = status["auditAnnotations"].as_object();
        for (key, value) in annotations.into_iter().flatten() {
            let (key, value) = (format!("{PREFIX}{key}"), value.as_str());
            attributes
                .cx
                .record
                .annotate(&key, value.unwrap_or_default());
        }
        if status["allowed"] == true {
            return Ok(());
        }
        Err(match status["reason"].as_str().unwrap_or_default() {
            "" => attributes.forbidden("one or more images rejected by webhook backend"),
            why => attributes.forbidden(format!(
                "image policy webhook backend denied one or more images: {why}"
            )),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_in_a_range() {
        let of = |span: &Span, number| span.of(number).map_err(|e| e.to_string());
        assert_eq!(of(&ALLOWED, 0), Ok(Duration::from_secs(300)));
        assert_eq!(of(&DENIED, 0), Ok(Duration::from_secs(30)));
        assert_eq!(of(&DENIED, -1), Ok(Duration::ZERO));
        assert_eq!(of(&BACKOFF, 20), Ok(Duration::from_millis(20)));
        assert_eq!(
            of(&ALLOWED, 1801),
            Err("valid value is between 1s and 30m0s, got 30m1s".into())
        );
        assert_eq!(
            of(&ALLOWED, -2),
            Err("valid value is between 1s and 30m0s, got -2s".into())
        );
        assert_eq!(
            of(&BACKOFF, 300_001),
            Err("valid value is between 1ns and 5m0s, got 5m0.001s".into())
        );
    }

    #[test]
    fn a_configuration_is_needed() {
        let refused = |text| ImagePolicyWebhook::new(text).err().unwrap().to_string();
        assert_eq!(refused(None), "no config specified");
        let bad = "imagePolicy: {allowTTL: 4000}";
        assert_eq!(
            refused(Some(bad)),
            "valid value is between 1s and 30m0s, got 1h6m40s"
        );
        assert!(refused(Some("imagePolicy: {kubeConfigFile: /absent}")).contains("/absent"));
    }
}

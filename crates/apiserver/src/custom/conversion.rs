//! Conversion between the versions of a custom resource: by name, or by a webhook.

use std::sync::Arc;
use std::time::Duration;

use fluyt_api::custom::Conversion;
use fluyt_api::resources::{Handle, Resource};
use fluyt_api::{Error, meta};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::cache::Entry;
use crate::remote::Users;
use crate::spans;
use crate::webhook::Client;

/// How long a conversion webhook may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Makes objects of one version those of another.
pub struct Converter {
    webhooks: Arc<Client>,
}

impl Converter {
    #[must_use]
    pub fn new(webhooks: Arc<Client>) -> Self {
        Self { webhooks }
    }

    /// Objects of a custom resource in the version of `to`, as that version shows them. Others come back as they are.
    ///
    /// # Errors
    /// When the resource's webhook fails, or answers with something else than it was asked for.
    pub fn convert<'a>(
        &'a self,
        objects: Vec<Value>,
        to: &'a Resource,
    ) -> BoxFuture<'a, Result<Vec<Value>, Error>> {
        Box::pin(async move {
            let Some(definition) = &to.definition else {
                return Ok(objects);
            };
            let wanted = to.api_version();
            if objects.iter().all(|o| o["apiVersion"] == wanted.as_str()) {
                return Ok(objects);
            }
            let mut converted = match &definition.conversion {
                Conversion::None => {
                    let mut objects = objects;
                    for object in &mut objects {
                        object["apiVersion"] = wanted.clone().into();
                    }
                    objects
                }
                Conversion::Webhook(webhook) => self.ask(webhook, objects, &wanted, to).await?,
            };
            for object in &mut converted {
                definition.refresh(object);
            }
            Ok(converted)
        })
    }

    /// One object; see [`Converter::convert`].
    ///
    /// # Errors
    /// As for many.
    pub fn one<'a>(
        &'a self,
        object: Value,
        to: &'a Resource,
    ) -> BoxFuture<'a, Result<Value, Error>> {
        Box::pin(async move {
            let mut converted = self.convert(vec![object], to).await?;
            converted
                .pop()
                .ok_or_else(|| Error::internal("no object after conversion"))
        })
    }

    /// Entries of a cache in the version of `to`.
    ///
    /// # Errors
    /// As for objects.
    pub fn entries<'a>(
        &'a self,
        entries: Vec<Arc<Entry>>,
        to: &'a Handle,
    ) -> BoxFuture<'a, Result<Vec<Arc<Entry>>, Error>> {
        Box::pin(async move {
            if entries.iter().all(|entry| entry.is_in_version_of(to)) {
                return Ok(entries);
            }
            let objects = entries.iter().map(|e| e.object()).collect();
            let converted = self.convert(objects, to).await?;
            Ok(entries
                .iter()
                .zip(converted)
                .map(|(entry, object)| {
                    let arrived = entry.arrived;
                    Arc::new(Entry::new(to, &entry.key, entry.revision, arrived, &object))
                })
                .collect())
        })
    }

    async fn ask(
        &self,
        webhook: &Value,
        objects: Vec<Value>,
        wanted: &str,
        to: &Resource,
    ) -> Result<Vec<Value>, Error> {
        let failed = |why: String| {
            Error::internal(format!(
                "conversion webhook for {wanted}, Kind={} failed: {why}",
                to.kind
            ))
        };
        let uid = uuid::Uuid::new_v4().to_string();
        let versions = webhook["conversionReviewVersions"].as_array();
        let version = versions
            .into_iter()
            .flatten()
            .find(|v| *v == "v1" || *v == "v1beta1")
            .and_then(Value::as_str)
            .unwrap_or("v1");
        // What is in the wanted version already stays at home.
        let (at_home, away): (Vec<_>, Vec<_>) = objects
            .into_iter()
            .enumerate()
            .partition(|(_, o)| o["apiVersion"] == wanted);
        let sent: Vec<&Value> = away.iter().map(|(_, o)| o).collect();
        let review = json!({
            "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{version}"),
            "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": sent},
        });
        let span = spans::start("Call conversion webhook", |span| {
            span.set(
                "custom-resource-definition",
                format!("{}.{}", to.plural, to.group),
            );
            span.set("desired-api-version", wanted);
            span.set("object-count", sent.len() as u64);
            span.set("UID", &*uid);
        });
        let (config, nobody) = (&webhook["clientConfig"], Users::default());
        let asking = self.webhooks.call(config, &review, TIMEOUT, &nobody);
        let answer = spans::within(span, asking)
            .await
            .map_err(|e| failed(e.to_string()))?;
        let response = &answer["response"];
        if response["uid"] != uid.as_str() {
            return Err(failed(format!(
                "expected response.uid={uid:?}, got {}",
                response["uid"]
            )));
        }
        if response["result"]["status"] != "Success" {
            let message = response["result"]["message"]
                .as_str()
                .unwrap_or("response.result.status was not success");
            return Err(failed(message.to_owned()));
        }
        let converted = response["convertedObjects"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        if converted.len() != away.len() {
            return Err(failed(format!(
                "invalid conversion webhook response: expected {} converted objects, got {}",
                away.len(),
                converted.len()
            )));
        }
        let mut all = at_home;
        for ((at, original), new) in away.into_iter().zip(converted) {
            all.push((at, accept(&original, new, wanted).map_err(failed)?));
        }
        all.sort_by_key(|(at, _)| *at);
        Ok(all.into_iter().map(|(_, object)| object).collect())
    }
}

/// A converted object may differ in everything but its identity; of metadata only labels and annotations are taken.
fn accept(original: &Value, mut new: Value, wanted: &str) -> Result<Value, String> {
    if new["apiVersion"] != wanted {
        return Err(format!(
            "invalid converted object: expected apiVersion {wanted}, got {}",
            new["apiVersion"]
        ));
    }
    if new["kind"] != original["kind"] {
        return Err(format!(
            "invalid converted object: expected kind {}, got {}",
            original["kind"], new["kind"]
        ));
    }
    for field in ["name", "namespace", "uid"] {
        if new["metadata"][field] != original["metadata"][field] {
            return Err(format!(
                "invalid metadata of converted object: metadata.{field}: must not be changed"
            ));
        }
    }
    let (labels, annotations) = (
        new["metadata"]["labels"].take(),
        new["metadata"]["annotations"].take(),
    );
    new["metadata"] = original["metadata"].clone();
    meta::set(&mut new, "labels", labels);
    meta::set(&mut new, "annotations", annotations);
    Ok(new)
}

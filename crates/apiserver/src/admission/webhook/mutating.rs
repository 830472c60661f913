//! Mutating webhooks: one after the other, each sees what those before it made.

use async_trait::async_trait;
use fluyt_api::Error;
use serde_json::Value;

use super::{Matched, Webhook};
use crate::admission::{Attributes, Compiled, Plugin, Shared, matching};
use crate::cache::Caches;

/// The plugin `MutatingAdmissionWebhook`.
pub struct Mutating {
    shared: Shared,
    compiled: Compiled<Vec<std::sync::Arc<Webhook>>>,
}

impl Mutating {
    #[must_use]
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            compiled: Compiled::default(),
        }
    }

    async fn one(
        &self,
        matched: &Matched,
        attributes: &Attributes<'_>,
        object: &mut Value,
    ) -> Result<(), Error> {
        let Some(answer) = matched.ask(&self.shared, attributes, object).await? else {
            return Ok(());
        };
        let Some(patch) = answer.patch else {
            return Ok(());
        };
        let mut versioned = matching::versioned(
            &self.shared.converter,
            attributes,
            &matched.resource,
            object,
        )
        .await?;
        fluyt_api::patch::json_patch(&mut versioned, &patch).map_err(|e| {
            Error::internal(format!(
                "failed calling webhook {:?}: {}",
                matched.webhook.name, e.message
            ))
        })?;
        let own = attributes.at.resource;
        *object = if own.definition.is_some() {
            let mut object = self.shared.converter.one(versioned, own).await?;
            if let Some(definition) = &own.definition {
                // What a webhook adds is pruned like anything else.
                definition
                    .conform(own.ty, &mut object)
                    .map_err(Error::bad_request)?;
            }
            object
        } else if std::ptr::eq(&*matched.resource, own) {
            versioned
        } else {
            fluyt_api::convert::to_storage(&matched.resource, own, versioned)
        };
        Ok(())
    }
}

#[async_trait]
impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        object: &mut Value,
    ) -> Result<(), Error> {
        if matching::is_exempt(attributes) {
            return Ok(());
        }
        let mut called: Vec<(Matched, Value)> = Vec::new();
        for (name, revision, entry) in
            matching::configurations(caches, "mutatingwebhookconfigurations")
        {
            let webhooks = self.compiled.get(&name, revision, || Webhook::of(&entry));
            for webhook in webhooks.iter() {
                let Some(matched) = webhook.matches(&self.shared, attributes, object)? else {
                    continue;
                };
                self.one(&matched, attributes, object).await?;
                called.push((matched, object.clone()));
            }
        }
        // Those who want to see what others made of it later are asked once more.
        for (matched, left) in called {
            if matched.webhook.spec["reinvocationPolicy"] == "IfNeeded" && left != *object {
                self.one(&matched, attributes, object).await?;
            }
        }
        Ok(())
    }
}

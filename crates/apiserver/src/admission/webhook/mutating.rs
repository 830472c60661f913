//! Mutating webhooks: one after the other, each sees what those before it made.

use async_trait::async_trait;
use fluyt_api::Error;
use fluyt_api::json_patch::Patch;
use serde_json::{Value, json};

use super::{Matched, SCHEME, Source};
use crate::admission::plugins::Setup;
use crate::admission::static_manifests::Kind;
use crate::admission::{Attributes, Plugin, Shared, matching};
use crate::audit::Layer;
use crate::cache::Caches;

/// A call of one, as traces name it.
const CALL: &str = "Call mutating webhook";

/// The plugin `MutatingAdmissionWebhook`.
pub struct Mutating {
    shared: Shared,
    source: Source,
}

const KIND: Kind = Kind {
    plugin: "MutatingAdmissionWebhook",
    what: "webhook",
    plural: "mutatingwebhookconfigurations",
    bindings: None,
    scheme: SCHEME,
};

impl Mutating {
    /// # Errors
    /// When what it is configured with makes no sense.
    pub(in crate::admission) fn new(setup: &Setup<'_>) -> anyhow::Result<Self> {
        Ok(Self {
            shared: setup.shared.clone(),
            source: Source::new(&KIND, setup)?,
        })
    }

    async fn one(
        &self,
        matched: &Matched,
        attributes: &Attributes<'_>,
        object: &mut Value,
        (round, index): (usize, usize),
    ) -> Result<(), Error> {
        let place = format!("mutation.webhook.admission.k8s.io/round_{round}_index_{index}");
        let record = &attributes.cx.record;
        let asked = matched.ask(&self.shared, attributes, object, CALL, &place);
        let Some(answer) = record.timed(Layer::MutatingWebhooks, asked).await? else {
            return Ok(());
        };
        if record.is_audited() {
            let (configuration, webhook) = (&matched.webhook.configuration, &matched.webhook.name);
            let mutated = answer.patch.is_some();
            let said =
                json!({"configuration": configuration, "webhook": webhook, "mutated": mutated});
            record.annotate(&place, said.to_string());
            let patch = answer.patch.as_deref().filter(|_| record.wants_request());
            if let Some(patch) = patch.and_then(|p| serde_json::from_slice::<Value>(p).ok()) {
                let said = json!({"configuration": configuration, "webhook": webhook, "patch": patch, "patchType": "JSONPatch"});
                let place = format!("patch.webhook.admission.k8s.io/round_{round}_index_{index}");
                record.annotate(&place, said.to_string());
            }
        }
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
        let patch = Patch::decode(&patch).map_err(|refused| Error::internal(refused.why()))?;
        patch.apply(&mut versioned).map_err(Error::internal)?;
        let converter = &self.shared.converter;
        let mut changed =
            matching::worked_in(converter, attributes, &matched.resource, versioned).await?;
        let own = attributes.at.resource;
        if let Some(definition) = &own.definition {
            // What a webhook adds is pruned like anything else.
            definition
                .conform(own.ty, &mut changed)
                .map_err(Error::bad_request)?;
        }
        *object = changed;
        Ok(())
    }
}

#[async_trait]
impl Plugin for Mutating {
    fn mutations(&self) -> Option<&'static str> {
        Some(KIND.plural)
    }

    fn has_manifests(&self) -> bool {
        !self.source.manifests.is_empty()
    }

    async fn admit(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        object: &mut Value,
    ) -> Result<(), Error> {
        let mut called: Vec<(Matched, Value)> = Vec::new();
        for webhooks in self.source.all(caches, attributes) {
            for webhook in webhooks.iter() {
                let Some(matched) = webhook.matches(&self.shared, attributes, object)? else {
                    continue;
                };
                let place = (0, called.len());
                self.one(&matched, attributes, object, place).await?;
                called.push((matched, object.clone()));
            }
        }
        // Those who want to see what others made of it later are asked once more.
        for (index, (matched, left)) in called.into_iter().enumerate() {
            if matched.webhook.spec["reinvocationPolicy"] == "IfNeeded" && left != *object {
                self.one(&matched, attributes, object, (1, index)).await?;
            }
        }
        Ok(())
    }
}

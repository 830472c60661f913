//! Validating webhooks: all at once; any of them may refuse.

use async_trait::async_trait;
use fluyt_api::Error;
use futures::future::join_all;
use serde_json::Value;

use super::{SCHEME, Source};
use crate::admission::plugins::Setup;
use crate::admission::static_manifests::Kind;
use crate::admission::{Attributes, Plugin, Shared};
use crate::audit::Layer;
use crate::cache::Caches;

/// A call of one, as traces name it.
const CALL: &str = "Call validating webhook";

/// The plugin `ValidatingAdmissionWebhook`.
pub struct Validating {
    shared: Shared,
    source: Source,
}

pub(in crate::admission) const KIND: Kind = Kind {
    plugin: "ValidatingAdmissionWebhook",
    what: "webhook",
    plural: "validatingwebhookconfigurations",
    bindings: None,
    scheme: SCHEME,
};

impl Validating {
    /// # Errors
    /// When what it is configured with makes no sense.
    pub(in crate::admission) fn new(setup: &Setup<'_>) -> anyhow::Result<Self> {
        Ok(Self {
            shared: setup.shared.clone(),
            source: Source::new(&KIND, setup)?,
        })
    }
}

#[async_trait]
impl Plugin for Validating {
    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        let mut matched = Vec::new();
        for webhooks in self.source.all(caches, attributes) {
            for webhook in webhooks.iter() {
                matched.extend(webhook.matches(&self.shared, attributes, object)?);
            }
        }
        let places: Vec<String> = (0..matched.len())
            .map(|i| format!("validating.webhook.admission.k8s.io/round_0_index_{i}"))
            .collect();
        let asked = matched
            .iter()
            .zip(&places)
            .map(|(m, place)| m.ask(&self.shared, attributes, object, CALL, place));
        if matched.is_empty() {
            return Ok(());
        }
        // They are asked at the same time, so that it takes as long as the slowest does.
        let record = &attributes.cx.record;
        let asked = record.timed(Layer::ValidatingWebhooks, join_all(asked));
        for answer in asked.await {
            answer?;
        }
        Ok(())
    }
}

//! Validating webhooks: all at once; any of them may refuse.

use std::sync::Arc;

use async_trait::async_trait;
use fluyt_api::Error;
use futures::future::join_all;
use serde_json::Value;

use super::Webhook;
use crate::admission::{Attributes, Compiled, Plugin, Shared, matching};
use crate::audit::Layer;
use crate::cache::Caches;
use crate::remote::Users;

/// A call of one, as traces name it.
const CALL: &str = "Call validating webhook";

/// The plugin `ValidatingAdmissionWebhook`.
pub struct Validating {
    shared: Shared,
    compiled: Compiled<Vec<Arc<Webhook>>>,
    users: Arc<Users>,
}

impl Validating {
    #[must_use]
    pub fn new(shared: Shared, users: Arc<Users>) -> Self {
        Self {
            shared,
            compiled: Compiled::default(),
            users,
        }
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
        if matching::is_exempt(attributes) {
            return Ok(());
        }
        let mut matched = Vec::new();
        for (name, revision, entry) in
            matching::configurations(caches, "validatingwebhookconfigurations")
        {
            let compile = || Webhook::of(&entry, &self.users);
            let webhooks = self.compiled.get(&name, revision, compile);
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

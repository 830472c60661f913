//! A service that is sent lists of events.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::json;

use super::backend::Sink;
use super::event::Event;
use crate::dial::ControlPlane;
use crate::remote::{self, Backoff, Remote};

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How the service is reached.
#[derive(Clone, Debug)]
pub struct WebhookSettings {
    pub kubeconfig: PathBuf,
    /// The pause before a failed call is repeated for the first time.
    pub initial_backoff: Duration,
}

pub(super) struct Webhook {
    remote: Remote,
    backoff: Backoff,
}

impl Webhook {
    pub(super) fn new(settings: &WebhookSettings, network: &ControlPlane) -> anyhow::Result<Self> {
        Ok(Self {
            remote: remote::load(&settings.kubeconfig)?.through(network),
            backoff: Backoff {
                initial: settings.initial_backoff,
                ..Backoff::default()
            },
        })
    }
}

impl Sink for Webhook {
    fn name(&self) -> &'static str {
        "webhook"
    }

    fn write(&self, events: Vec<Event>) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let list = json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": events});
            let body = Bytes::from(list.to_string());
            let mut delays = self.backoff.delays();
            loop {
                let why = match self.remote.post("", body.clone(), TIMEOUT).await {
                    Ok(reply) if reply.status.is_success() => return Ok(()),
                    Ok(reply) => format!("the audit webhook answered with status {}", reply.status),
                    Err(error) => error.to_string(),
                };
                // Whatever the reason: events are worth another attempt.
                match delays.next() {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => return Err(why),
                }
            }
        })
    }
}

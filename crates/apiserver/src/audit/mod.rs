//! Audit: what has been asked of the server, by whom, and what became of it. A policy decides for each request how much is
//! recorded; back ends take the records. A request that is not audited carries nothing and pays nothing.

mod answer;
mod backend;
mod batch;
mod event;
mod exchange;
mod latency;
mod log;
mod metrics;
mod policy;
mod record;
mod webhook;

use std::sync::Arc;
use std::time::Instant;

use ::http::request::Parts;
use fluyt_api::Error;
use tokio_util::sync::CancellationToken;

use crate::authz::Question;
use crate::dial::ControlPlane;
use crate::request::RequestInfo;
use crate::user::User;

pub(crate) use answer::complete;
pub use backend::{Delivery, Mode, Truncation};
pub use batch::Batching;
pub use event::AuditId;
pub(crate) use event::{source_ips, user_agent};
pub use exchange::Exchange;
pub use latency::Layer;
pub use log::{Format, LogSettings};
pub use policy::Policy;
pub use record::Record;
pub use webhook::WebhookSettings;

use backend::Backend;
use event::{Event, Stage};
use exchange::bounded;
use policy::{Level, Scope};

/// What is audited, and where it goes. Without a policy nothing is.
#[derive(Clone, Default)]
pub struct Settings {
    pub policy: Option<Policy>,
    pub log: Option<(LogSettings, Delivery)>,
    pub webhook: Option<(WebhookSettings, Delivery)>,
}

/// The policy at work, and the back ends.
pub struct Auditor {
    policy: Option<Policy>,
    backends: Vec<Backend>,
    metrics: metrics::Metrics,
}

impl Auditor {
    /// # Errors
    /// When a back end cannot be set up.
    pub fn new(
        settings: &Settings,
        network: &ControlPlane,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let mut backends = Vec::new();
        if let Some((log, delivery)) = &settings.log {
            backends.push(Backend::log(log, delivery, shutdown)?);
        }
        if let Some((webhook, delivery)) = &settings.webhook {
            backends.push(Backend::webhook(webhook, network, delivery, shutdown)?);
        }
        // A policy without a back end, or the other way round, audits nothing.
        let policy = settings.policy.clone().filter(|_| !backends.is_empty());
        Ok(Arc::new(Self {
            policy,
            backends,
            metrics: metrics::Metrics::default(),
        }))
    }

    /// Whether anything may be recorded.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.policy.is_some()
    }

    /// Begins to record a request of a user; what the policy wants to know about it is decided here.
    pub fn begin(
        self: &Arc<Self>,
        info: &RequestInfo,
        parts: &mut Parts,
        user: &User,
        question: &Question,
        received: Instant,
    ) -> Exchange {
        let Some(policy) = &self.policy else {
            return Exchange::unaudited();
        };
        let scope = policy.scope(Some(user), question);
        self.metrics.level(scope.level);
        if scope.level == Level::None {
            return Exchange::unaudited();
        }
        let event = Event::of(info, parts, Some(user), question, scope.level);
        let record = Record::new(self.clone(), scope, event, received);
        parts.extensions.insert(record.clone());
        Exchange::new(record, info)
    }

    /// Records a request whose sender was not recognised.
    pub async fn refused(
        self: &Arc<Self>,
        info: &RequestInfo,
        parts: &Parts,
        question: &Question,
        error: &Error,
    ) {
        let Some(policy) = &self.policy else { return };
        let scope = policy.scope(None, question);
        self.metrics.level(scope.level);
        if scope.level == Level::None {
            return;
        }
        let event = Event::of(info, parts, None, question, scope.level);
        let record = Record::new(self.clone(), scope, event, Instant::now());
        let status = error.to_status();
        record.response_status(bounded(&status));
        if record.wants_response() {
            record.response_object(status);
        }
        record.emit(Stage::ResponseStarted).await;
    }

    /// Hands an event to every back end; whether all have taken it.
    async fn emit(&self, scope: &Scope, event: &Event) -> bool {
        if scope.omits(event.stage) {
            return true;
        }
        self.metrics.event();
        let mut taken = true;
        for backend in &self.backends {
            let stage = event.stage;
            if let Err(error) = backend.take(event.clone()).await {
                self.metrics.error(backend.name());
                tracing::error!(%error, plugin = backend.name(), "Error in audit plugin");
                taken &= !(backend.is_strict() && stage == Stage::RequestReceived);
            }
        }
        taken
    }

    /// The Prometheus text format.
    pub fn render_metrics(&self, out: &mut String) {
        if self.is_active() {
            self.metrics.render(out);
        }
    }
}

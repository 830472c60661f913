//! What starts traces and collects their spans.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::config::TracingConfiguration;
use super::context::SpanContext;
use super::export::Exporter;
use super::otlp::{self, KeyValue, SpanKind};
use super::sampler::Sampler;
use super::span::{Carried, Span, Start};
use crate::dial::ControlPlane;

/// The service that the spans are of.
const SERVICE: &str = "apiserver";

/// How long the end of the server may wait for the collector.
const FLUSHING: Duration = Duration::from_secs(5);

pub struct Tracer {
    sampler: Sampler,
    exporter: Exporter,
}

/// A span that has no parent here.
pub(super) struct Root<'a> {
    pub scope: &'static str,
    pub name: String,
    pub kind: SpanKind,
    /// The span of which this is a part.
    pub parent: Option<&'a SpanContext>,
    /// A span that this has to do with, without being a part of it.
    pub link: Option<&'a SpanContext>,
    pub started: Instant,
    pub carried: Carried,
    pub outer: Option<Span>,
}

impl Tracer {
    /// # Errors
    /// When the collector's address makes no sense.
    pub fn new(
        config: &TracingConfiguration,
        instance: &str,
        network: ControlPlane,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let resource = vec![
            KeyValue::new("service.name", SERVICE),
            KeyValue::new("service.instance.id", instance),
            KeyValue::new("telemetry.sdk.language", "rust"),
            KeyValue::new("telemetry.sdk.name", env!("CARGO_PKG_NAME")),
            KeyValue::new("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ];
        Ok(Arc::new(Self {
            sampler: config.sampler(),
            exporter: Exporter::spawn(&config.address(), resource, network, shutdown)?,
        }))
    }

    /// Starts a span. What is part of a trace is sampled if the trace is; else the sampler decides.
    pub(super) fn root(self: &Arc<Self>, root: Root<'_>) -> Span {
        let trace_id = match root.parent {
            Some(parent) => parent.trace_id,
            None => some(),
        };
        let context = SpanContext {
            trace_id,
            span_id: some(),
            sampled: match root.parent {
                Some(parent) => parent.sampled,
                None => self.sampler.samples(trace_id),
            },
            remote: false,
            state: root.parent.and_then(|parent| parent.state.clone()),
        };
        if !context.sampled {
            return Span::unrecorded(context, root.carried, root.outer);
        }
        let start = Start {
            scope: root.scope,
            name: root.name,
            kind: root.kind,
            context,
            parent: root.parent,
            link: root.link,
            started: root.started,
            carried: root.carried,
            outer: root.outer,
        };
        Span::recorded(self, start)
    }

    pub(super) fn export(&self, scope: &'static str, span: otlp::Span) {
        self.exporter.push(scope, span);
    }

    /// Sends what has not been sent, for the end of the server.
    pub async fn flush(&self) {
        let flushing = tokio::time::timeout(FLUSHING, self.exporter.flush());
        if flushing.await.is_err() {
            tracing::warn!("spans are left that could not be exported in time");
        }
    }
}

/// Random bytes that are not all zero, which would name nothing.
fn some<const N: usize>() -> [u8; N] {
    loop {
        let bytes: [u8; N] = std::array::from_fn(|_| rand::random());
        if bytes != [0; N] {
            return bytes;
        }
    }
}

//! Spans, and which of them is the current one. A future runs [`within`] a span; what it starts are that span's children.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::http::{HeaderMap, HeaderValue};
use futures::future::Either;
use parking_lot::Mutex;
use tokio::task::futures::TaskLocalFuture;

use super::context::{self, SpanContext};
use super::otlp::{self, HAS_IS_REMOTE, IS_REMOTE, KeyValue, SpanKind, StatusCode, Value};
use super::tracer::Tracer;

/// The scopes of spans, by upstream's names: what has started them.
pub const STEPS: &str = "k8s.io/component-base/tracing";
/// Upstream's spelling.
pub const FILTERS: &str = "k8s.op/apiserver/pkg/endpoints/filterlatency";
pub const HTTP: &str = "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp";

tokio::task_local! {
    static CURRENT: Span;
}

/// A span, which ends with its last handle. One that is not sampled only knows where it is.
#[derive(Clone)]
pub struct Span(Arc<Inner>);

struct Inner {
    context: SpanContext,
    carried: Carried,
    recording: Option<Recording>,
    /// Spans end from the inside out.
    _outer: Option<Span>,
}

/// What a request's spans have in common.
#[derive(Clone)]
pub struct Carried {
    pub baggage: Option<HeaderValue>,
    pub audit_id: Arc<str>,
    pub clock: Clock,
}

/// Tells the time in nanoseconds since 1970. It is set once, so that spans are in order whatever happens to the system's.
#[derive(Clone, Copy)]
pub struct Clock {
    set: Instant,
    nanoseconds: u64,
}

impl Clock {
    #[must_use]
    pub fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            set: Instant::now(),
            nanoseconds: nanoseconds(since.unwrap_or_default()),
        }
    }

    fn at(self, instant: Instant) -> u64 {
        let before = nanoseconds(self.set.saturating_duration_since(instant));
        let after = nanoseconds(instant.saturating_duration_since(self.set));
        (self.nanoseconds + after).saturating_sub(before)
    }

    fn now(self) -> u64 {
        self.at(Instant::now())
    }
}

struct Recording {
    tracer: Arc<Tracer>,
    scope: &'static str,
    data: Mutex<otlp::Span>,
}

/// What a span is when it starts.
pub(super) struct Start<'a> {
    pub scope: &'static str,
    pub name: String,
    pub kind: SpanKind,
    pub context: SpanContext,
    /// Whose child it is.
    pub parent: Option<&'a SpanContext>,
    pub link: Option<&'a SpanContext>,
    pub started: Instant,
    pub carried: Carried,
    pub outer: Option<Span>,
}

impl Span {
    pub(super) fn recorded(tracer: &Arc<Tracer>, start: Start<'_>) -> Self {
        let remote = start.parent.is_some_and(|parent| parent.remote);
        let data = otlp::Span {
            trace_id: start.context.trace_id.to_vec(),
            span_id: start.context.span_id.to_vec(),
            trace_state: start.context.state.as_deref().unwrap_or_default().into(),
            parent_span_id: start.parent.map(|p| p.span_id.to_vec()).unwrap_or_default(),
            name: start.name,
            kind: start.kind.into(),
            start_time_unix_nano: start.carried.clock.at(start.started),
            links: start.link.map(link).into_iter().collect(),
            status: Some(otlp::Status::default()),
            flags: flags(&start.context, remote),
            ..otlp::Span::default()
        };
        Self(Arc::new(Inner {
            context: start.context,
            carried: start.carried,
            recording: Some(Recording {
                tracer: tracer.clone(),
                scope: start.scope,
                data: Mutex::new(data),
            }),
            _outer: start.outer,
        }))
    }

    /// One that nobody collects.
    pub(super) fn unrecorded(context: SpanContext, carried: Carried, outer: Option<Self>) -> Self {
        Self(Arc::new(Inner {
            context,
            carried,
            recording: None,
            _outer: outer,
        }))
    }

    pub(super) fn context(&self) -> &SpanContext {
        &self.0.context
    }

    /// Whether anybody will see it.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.0.recording.is_some()
    }

    /// Which request it is about.
    #[must_use]
    pub fn audit_id(&self) -> &str {
        &self.0.carried.audit_id
    }

    fn change(&self, change: impl FnOnce(&mut otlp::Span)) {
        if let Some(recording) = &self.0.recording {
            change(&mut recording.data.lock());
        }
    }

    pub fn set(&self, key: &str, value: impl Into<Value>) {
        self.change(|data| data.attributes.push(KeyValue::new(key, value)));
    }

    /// Something that happens now.
    pub fn event(&self, name: &str, attributes: Vec<KeyValue>) {
        let now = || self.0.carried.clock.now();
        self.change(|data| {
            data.events.push(otlp::Event {
                time_unix_nano: now(),
                name: name.to_owned(),
                attributes,
            });
        });
    }

    /// Something that goes wrong now.
    pub fn failing(&self, name: &str, why: &dyn std::fmt::Display) {
        self.event(name, vec![KeyValue::new("err", why.to_string())]);
    }

    pub fn fail(&self, message: &str) {
        self.change(|data| {
            data.status = Some(otlp::Status {
                message: message.to_owned(),
                code: StatusCode::Error.into(),
            });
        });
    }

    /// A step of this one; `None` if nobody collects it.
    #[must_use]
    pub fn child(&self, scope: &'static str, name: &str, kind: SpanKind) -> Option<Self> {
        let recording = self.0.recording.as_ref()?;
        Some(Self::recorded(
            &recording.tracer,
            Start {
                scope,
                name: name.to_owned(),
                kind,
                context: SpanContext {
                    span_id: rand::random(),
                    remote: false,
                    ..self.0.context.clone()
                },
                parent: Some(&self.0.context),
                link: None,
                started: Instant::now(),
                carried: self.0.carried.clone(),
                outer: Some(self.clone()),
            },
        ))
    }

    /// Tells whoever gets these headers whose work it does.
    pub fn inject(&self, headers: &mut HeaderMap) {
        self.0.context.inject(headers);
        context::inject_baggage(self.0.carried.baggage.as_ref(), headers);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(recording) = self.recording.take() {
            let mut data = recording.data.into_inner();
            data.end_time_unix_nano = self.carried.clock.now();
            recording.tracer.export(recording.scope, data);
        }
    }
}

/// The span that this is done in.
#[must_use]
pub fn current() -> Option<Span> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Starts a step of the current span and describes it; `None`, without any of that, if nobody collects it.
pub fn start(name: &str, describe: impl FnOnce(&Span)) -> Option<Span> {
    let step = CURRENT
        .try_with(|span| span.child(STEPS, name, SpanKind::Internal))
        .ok()??;
    describe(&step);
    Some(step)
}

/// Starts a filter, which everything after it is in. What nobody collects goes on in the outer span.
#[must_use]
pub fn filter(outer: Option<Span>, name: &str) -> Option<Span> {
    let outer = outer?;
    let filter = outer.child(FILTERS, name, SpanKind::Internal);
    Some(filter.unwrap_or(outer))
}

/// Does something in a span, if there is one.
pub fn within<F: Future>(span: Option<Span>, future: F) -> Either<TaskLocalFuture<Span, F>, F> {
    match span {
        Some(span) => Either::Left(CURRENT.scope(span, future)),
        None => Either::Right(future),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn flags(context: &SpanContext, remote: bool) -> u32 {
    u32::from(context.sampled) | HAS_IS_REMOTE | if remote { IS_REMOTE } else { 0 }
}

fn link(to: &SpanContext) -> otlp::Link {
    otlp::Link {
        trace_id: to.trace_id.to_vec(),
        span_id: to.span_id.to_vec(),
        trace_state: to.state.as_deref().unwrap_or_default().into(),
        flags: flags(to, to.remote),
    }
}

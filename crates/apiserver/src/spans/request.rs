//! The spans of a request: what it is when it comes, who may say that it is part of another trace, and when it is over.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use ::http::header::CONTENT_TYPE;
use ::http::request::Parts;
use ::http::{HeaderMap, HeaderValue, Request, Response};
use bytes::Bytes;
use fluyt_api::Error;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::context::{self, SpanContext};
use super::describe;
use super::otlp::{KeyValue, SpanKind};
use super::span::{Carried, Clock, FILTERS, HTTP, STEPS, Span};
use super::tracer::{Root, Tracer};
use crate::http::{Body, BoxError};
use crate::request::RequestInfo;
use crate::user::{MASTERS, MONITORING, User};

/// What is kept of a longer name that a client gave its request.
const MAX_AUDIT_ID: usize = 64;

/// A request that is part of a trace.
pub struct Arrival {
    /// `None`: nothing is collected, and what the client says is only passed on.
    tracer: Option<Arc<Tracer>>,
    /// The client's span.
    remote: Option<SpanContext>,
    carried: Carried,
    authentication: Option<Span>,
    /// The request itself, once it is known whose it is.
    serving: OnceLock<Span>,
    /// Bytes of its body that were read.
    received: Arc<AtomicU64>,
}

/// A span that goes on until the answer has been sent; it travels with the response.
#[derive(Clone)]
pub struct Held {
    pub span: Span,
    /// Whether the answer is an object, which is yet to be brought into its form.
    pub is_object: bool,
}

impl Arrival {
    /// `None` for a request that has nothing to do with traces.
    #[must_use]
    pub fn of(
        tracer: Option<&Arc<Tracer>>,
        headers: &HeaderMap,
        audit_id: &HeaderValue,
        started: Instant,
    ) -> Option<Arc<Self>> {
        let remote = SpanContext::of(headers);
        if tracer.is_none() && remote.is_none() {
            return None;
        }
        let audit_id = String::from_utf8_lossy(audit_id.as_bytes());
        let carried = Carried {
            baggage: context::baggage(headers),
            audit_id: truncated(&audit_id).into(),
            clock: Clock::new(),
        };
        let authentication = tracer.map(|tracer| {
            tracer.root(Root {
                scope: FILTERS,
                name: "authentication".into(),
                kind: SpanKind::Internal,
                parent: None,
                link: None,
                started,
                carried: carried.clone(),
                outer: None,
            })
        });
        Some(Arc::new(Self {
            tracer: tracer.cloned(),
            remote,
            carried,
            authentication,
            serving: OnceLock::new(),
            received: Arc::default(),
        }))
    }

    /// The request, which from now on knows about this.
    pub fn accompany(self: &Arc<Self>, request: Request<Body>) -> Request<Body> {
        let mut request = match &self.tracer {
            None => request,
            Some(_) => request.map(|body| {
                let read = self.received.clone();
                let counted = body.map_frame(move |frame| {
                    read.fetch_add(length(&frame), Ordering::Relaxed);
                    frame
                });
                counted.boxed_unsync()
            }),
        };
        request.extensions_mut().insert(self.clone());
        request
    }

    #[must_use]
    pub fn authentication(&self) -> Option<Span> {
        self.authentication.clone()
    }

    /// Starts the request's own span. Only some users' requests are part of the traces that they say: for everybody else
    /// a trace begins here, with a link to theirs.
    pub fn serve(&self, info: &RequestInfo, parts: &Parts, user: &User) -> Option<Span> {
        let span = match &self.tracer {
            None => {
                let remote = self.remote.clone()?;
                Span::unrecorded(remote, self.carried.clone(), None)
            }
            Some(tracer) => {
                let trusted = user.groups.iter().any(|g| g == MASTERS || g == MONITORING);
                let outer = self.authentication.as_ref().map(Span::context);
                let (parent, link) = match trusted {
                    true => (self.remote.as_ref().or(outer), None),
                    false => (None, self.remote.as_ref()),
                };
                let span = tracer.root(Root {
                    scope: HTTP,
                    name: describe::name(info, &parts.method),
                    kind: SpanKind::Server,
                    parent,
                    link,
                    started: Instant::now(),
                    carried: self.carried.clone(),
                    outer: self.authentication.clone(),
                });
                if span.is_recorded() {
                    describe::request(&span, parts);
                }
                span
            }
        };
        Some(self.serving.get_or_init(|| span).clone())
    }

    /// The request's span, if it is collected.
    fn recorded(&self) -> Option<&Span> {
        self.serving.get().filter(|span| span.is_recorded())
    }

    /// Starts the step that brings an object into its form; what a filter refuses is one, too.
    pub fn serialize(&self, response: &Response<Body>) -> Option<Span> {
        let serving = self.recorded()?;
        let held = response.extensions().get::<Held>();
        let is_refusal = response.extensions().get::<Error>().is_some();
        if !is_refusal && !held.is_some_and(|held| held.is_object) {
            return None;
        }
        let outer = held.map_or(serving, |held| &held.span);
        outer.child(STEPS, "SerializeObject", SpanKind::Internal)
    }

    /// The answer, with whose last byte the request's spans end.
    pub fn answer(
        &self,
        mut response: Response<Body>,
        serializing: Option<Span>,
    ) -> Response<Body> {
        let held = response.extensions_mut().remove::<Held>();
        let Some(serving) = self.recorded() else {
            return response;
        };
        let status = response.status();
        serving.set("http.response.status_code", status.as_u16());
        if status.is_server_error() {
            serving.fail("");
        }
        if let Some(step) = &serializing {
            let media_type = response.headers().get(CONTENT_TYPE);
            step.set("audit-id", step.audit_id());
            step.set("mediaType", describe::text(media_type));
            let size = response.body().size_hint().exact();
            let size = size.map(|size| KeyValue::new("size", size));
            step.event("About to start writing response", Vec::from_iter(size));
        }
        response.map(|body| {
            let answering = Answering {
                body,
                serializing,
                _held: held,
                serving: serving.clone(),
                received: self.received.clone(),
                sent: 0,
                broken: None,
                over: false,
            };
            answering.boxed_unsync()
        })
    }
}

fn truncated(audit_id: &str) -> &str {
    let end = audit_id.char_indices().nth(MAX_AUDIT_ID);
    end.map_or(audit_id, |(end, _)| &audit_id[..end])
}

fn length(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}

/// The body of an answer. Its spans end from the first to the last.
struct Answering {
    body: Body,
    serializing: Option<Span>,
    _held: Option<Held>,
    serving: Span,
    received: Arc<AtomicU64>,
    sent: u64,
    broken: Option<String>,
    over: bool,
}

impl http_body::Body for Answering {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.sent += length(frame),
            Poll::Ready(Some(Err(error))) => self.broken = Some(error.to_string()),
            Poll::Ready(None) => self.over = true,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if let Some(step) = &self.serializing {
            let over = self.over || self.body.is_end_stream();
            let size = KeyValue::new("size", self.sent);
            match &self.broken {
                None if over => step.event("Write call succeeded", vec![size]),
                why => {
                    let why = why.as_deref().unwrap_or("the client went away");
                    let why = KeyValue::new("err", why);
                    step.event("Write call failed", vec![size, why]);
                }
            }
        }
        let received = self.received.load(Ordering::Relaxed);
        for (name, bytes) in [
            ("http.request.body.size", received),
            ("http.response.body.size", self.sent),
        ] {
            if bytes > 0 {
                self.serving.set(name, bytes);
            }
        }
    }
}

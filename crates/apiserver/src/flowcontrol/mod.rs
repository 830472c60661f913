//! Priority and fairness: requests are sorted into flows, each level of priority serves as many at a time as it has seats,
//! and the rest wait in queues in which no flow can crowd out the others.

mod allocation;
mod controller;
mod debug;
mod demand;
mod inflight;
mod levels;
mod metrics;
mod queueset;
mod retry_after;
mod schema;
mod shuffle;
mod width;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::header::RETRY_AFTER;
use ::http::{HeaderValue, Response, StatusCode};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt as _;
use parking_lot::RwLock;
use serde_json::Value;

use crate::authz::Question;
use crate::cache::Caches;
use crate::http::{self, Body, BoxError};
use crate::request::RequestInfo;
use crate::user::{MASTERS, User};

pub use controller::{bootstrap, run};

use inflight::{InFlight, Place};
use levels::Digest;
use metrics::Flows;
use queueset::{Arrival, Details, Outcome, Permit, Refusal};
use retry_after::RetryAfter;
use schema::Schema;

/// How many requests are served at a time.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// `--enable-priority-and-fairness`.
    pub enabled: bool,
    /// Requests that only read; together with the others these are the seats of all levels.
    pub max_requests: u64,
    pub max_mutating: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            max_requests: 400,
            max_mutating: 200,
        }
    }
}

/// A request that names no shorter one may take this long; a quarter of that it may wait.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The gate that requests go through.
pub struct FlowControl {
    caches: Arc<Caches>,
    settings: Settings,
    digest: RwLock<Arc<Digest>>,
    flows: Flows,
    retry_after: RetryAfter,
    reading: InFlight,
    mutating: InFlight,
}

/// A request that may be served, and what keeps its seats.
#[derive(Default)]
pub struct Admission {
    schema: Option<Arc<Schema>>,
    permit: Option<Permit>,
    _place: Option<Place>,
}

impl FlowControl {
    #[must_use]
    pub fn new(caches: Arc<Caches>, settings: Settings) -> Self {
        let flows = Flows::default();
        let total = settings.max_requests + settings.max_mutating;
        let digest = Digest::new(&[], &[], total, &flows, None);
        Self {
            caches,
            digest: RwLock::new(Arc::new(digest)),
            flows,
            retry_after: RetryAfter::default(),
            reading: InFlight::new(settings.max_requests),
            mutating: InFlight::new(settings.max_mutating),
            settings,
        }
    }

    /// Takes over the objects there are.
    fn install(&self, levels: &[Value], schemas: &[Value]) {
        let total = self.settings.max_requests + self.settings.max_mutating;
        let mut digest = self.digest.write();
        let fresh = Digest::new(levels, schemas, total, &self.flows, Some(&digest));
        fresh.adjust();
        *digest = Arc::new(fresh);
        drop(digest);
        self.flows.clear();
    }

    fn adjust(&self) {
        self.digest.read().clone().adjust();
    }

    fn has_leftovers(&self) -> bool {
        self.digest.read().has_leftovers()
    }

    fn has_level(&self, name: &str) -> bool {
        self.digest.read().has_level(name)
    }

    /// Lets a request pass, at once or in its turn.
    ///
    /// # Errors
    /// The answer to one that cannot be served.
    pub async fn admit(
        &self,
        info: &RequestInfo,
        user: &User,
        question: &Question,
        uri: &::http::Uri,
    ) -> Result<Admission, Response<Body>> {
        // What lasts as long as its client likes takes no seat, but for the beginning of a watch.
        if info.is_long_running() && info.verb != "watch" {
            return Ok(Admission::default());
        }
        if !self.settings.enabled {
            return self.admit_by_number(info, user);
        }
        let schema = self.classify(user, question);
        let level = &schema.level;
        let distinguisher = schema.distinguisher(user, question);
        let arrival = Arrival {
            flow: schema.flow.clone(),
            hash: match level.queuing {
                queueset::Queuing::Queue { .. } => shuffle::flow_hash(&schema.name, distinguisher),
                _ => 0,
            },
            width: width::estimate(&self.caches, info, level.max_seats),
            details: Details {
                distinguisher: distinguisher.to_owned(),
                user: user.name.clone(),
                verb: info.verb,
                path: uri.path().to_owned(),
            },
        };
        let admitted = match level.set.arrive(arrival) {
            Outcome::Admitted(permit) => Ok(permit),
            Outcome::Queued(ticket) => {
                let until = tokio::time::Instant::now() + patience(info);
                ticket.wait(until).await
            }
            Outcome::Refused(refusal) => Err(refusal),
        };
        match admitted {
            Ok(permit) => Ok(Admission {
                schema: Some(schema),
                permit: Some(permit),
                _place: None,
            }),
            Err(refusal) => Err(self.refuse(&schema, refusal)),
        }
    }

    fn classify(&self, user: &User, question: &Question) -> Arc<Schema> {
        let digest = self.digest.read();
        let matching = digest.schemas.iter().find(|s| s.matches(user, question));
        // The last one catches what is in no group at all.
        match matching.or(digest.schemas.last()) {
            Some(schema) => schema.clone(),
            None => unreachable!("the mandatory schemas are always there"),
        }
    }

    fn admit_by_number(
        &self,
        info: &RequestInfo,
        user: &User,
    ) -> Result<Admission, Response<Body>> {
        let is_reading = matches!(info.verb, "get" | "list" | "watch" | "head");
        let counter = if is_reading {
            &self.reading
        } else {
            &self.mutating
        };
        match counter.enter() {
            Some(place) => Ok(Admission {
                _place: Some(place),
                ..Admission::default()
            }),
            // Whoever has to repair an overloaded cluster is let in.
            None if user.is_in(MASTERS) => Ok(Admission::default()),
            None => Err(too_many_requests(1)),
        }
    }

    fn refuse(&self, schema: &Schema, refusal: Refusal) -> Response<Body> {
        schema.flow.refused(refusal);
        let seconds = self.retry_after.note(&schema.level.name);
        let mut response = too_many_requests(seconds);
        label(&mut response, schema);
        response
    }

    /// The dump that a path below `/debug/api_priority_and_fairness/` asks for.
    #[must_use]
    pub fn debug(&self, info: &RequestInfo) -> Option<String> {
        if !self.settings.enabled {
            return None;
        }
        let digest = self.digest.read().clone();
        debug::answer(&self.caches, &digest, &info.path, &info.query)
    }

    /// The Prometheus text format; with what is not to be used any more if `hidden`.
    pub fn render_metrics(&self, out: &mut String, hidden: bool) {
        if self.settings.enabled {
            let (levels, fair_fraction) = self.digest.read().gauges();
            self.flows.render(out, &levels, fair_fraction);
            if hidden {
                self.flows.render_hidden(out, &levels);
            }
        }
    }

    /// Whether objects take effect.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.settings.enabled
    }
}

/// How long a request waits for its turn.
fn patience(info: &RequestInfo) -> Duration {
    let own = info
        .query
        .get("timeout")
        .filter(|_| info.verb != "watch")
        .and_then(|text| crate::go_duration::parse(text).ok())
        .filter(|timeout| !timeout.is_zero());
    own.map_or(REQUEST_TIMEOUT, |timeout| timeout.min(REQUEST_TIMEOUT)) / 4
}

fn too_many_requests(seconds: u32) -> Response<Body> {
    let mut response = http::text(
        StatusCode::TOO_MANY_REQUESTS,
        "Too many requests, please try again later.\n",
    );
    response.headers_mut().insert(RETRY_AFTER, seconds.into());
    response
}

/// Says which schema and level a request was sorted into, by their uids: their names are nobody's business.
fn label(response: &mut Response<Body>, schema: &Schema) {
    for (name, uid) in [
        ("x-kubernetes-pf-flowschema-uid", &schema.uid),
        ("x-kubernetes-pf-prioritylevel-uid", &schema.level.uid),
    ] {
        if let Ok(value) = HeaderValue::from_str(uid) {
            response.headers_mut().insert(name, value);
        }
    }
}

impl Admission {
    /// The request has been handled. A list keeps its seats until it is sent: that is where its work is.
    #[must_use]
    pub fn finish(self, mut response: Response<Body>, is_list: bool) -> Response<Body> {
        if let Some(schema) = &self.schema {
            label(&mut response, schema);
        }
        match self.permit {
            Some(permit) if is_list => response.map(|body| {
                Seated {
                    body,
                    _permit: permit,
                }
                .boxed_unsync()
            }),
            _ => response,
        }
    }
}

/// A body that keeps seats while it is sent.
struct Seated {
    body: Body,
    _permit: Permit,
}

impl http_body::Body for Seated {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

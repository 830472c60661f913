//! WATCH: what there is, if that is asked for, and then every change, from the cache.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use fluyt_api::Error;
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream};
use http::Response;
use tokio::time::{Instant, Sleep};

use super::Call;
use super::options::ListOptions;
use super::read::{in_version, parse_version};
use super::selection::Selection;
use super::shape::Shape;
use super::websocket::PieceByPiece;
use crate::cache::{Change, Nothing, Subscription, WatchEvent, storage_resource};
use crate::http::{self as responses, Body};
use crate::metrics::{EventSizes, Labels, LongRunning};

/// How often a watch hears how far it has got.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);

/// It hears that once more before its time is over, so that the next one begins where this one ends.
const BEFORE_THE_END: Duration = Duration::from_secs(2);

pub(super) async fn serve(call: &Call) -> Result<Response<Body>, Error> {
    let accepted = Shape::accepted(call)?;
    let options = ListOptions::of_watch(&call.info.query)?;
    let selection = Selection::of(call)?;
    let cache = call.server.caches.of(storage_resource(&call.resource));
    let version = options.resource_version.as_str();
    let initial = options.send_initial_events == Some(true);
    let from_state =
        initial || (options.send_initial_events.is_none() && ["", "0"].contains(&version));
    let feed = call.server.caches.feed(&call.resource);
    let since = if version.is_empty() {
        feed.consistent().await?
    } else {
        let version = parse_version(version)?;
        feed.wait_for(version).await?;
        version
    };
    let shape = Shape::new(&call.resource, accepted, call);
    let content_type = shape.watch_content_type();
    let (present, as_of, subscription) = if from_state {
        let (present, revision, subscription) =
            cache.subscribe_with_state(selection.filter.clone());
        (present, revision.max(feed.applied()), subscription)
    } else {
        match cache.subscribe(selection.filter.clone(), since) {
            Some(subscription) => (Vec::new(), since, subscription),
            // Upstream reports this inside the stream.
            None => {
                let line = shape.gone(since);
                return Ok(stream_response(content_type, responses::full(line)));
            }
        }
    };
    let seconds = match options.timeout_seconds {
        Some(seconds) if seconds > 0 => seconds,
        _ => {
            let least = call.server.config.limits.min_request_timeout.max(1);
            least + rand::random_range(0..least)
        }
    };
    let mut present = in_version(call, present).await?;
    present.retain(|entry| selection.selects(&call.resource, entry));
    let mut lead: Vec<_> = present
        .iter()
        .map(|entry| shape.event(Change::Added, entry))
        .collect();
    if initial && options.bookmarks {
        lead.push(shape.bookmark(as_of, true));
    }
    let labels = Labels::of(&call.info, &call.parts.headers);
    let metrics = &call.server.metrics;
    let turn = call.server.drain.watch();
    let watch = Watch {
        lead: lead.into_iter(),
        held: None,
        together: call.parts.extensions.get::<PieceByPiece>().is_none(),
        subscription,
        converted: None,
        at: as_of,
        clock: Clock::new(Duration::from_secs(seconds), options.bookmarks),
        turn: async move { turn.ended().await }.boxed(),
        over: false,
        sizes: metrics.event_sizes(&call.resource),
        _running: labels.map(|labels| metrics.long_running(labels)),
        subject: Arc::new(Subject {
            server: call.server.clone(),
            shape,
            selection,
        }),
    };
    Ok(stream_response(content_type, responses::streamed(watch)))
}

fn stream_response(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(content_type),
    );
    response.headers_mut().insert(
        http::header::CACHE_CONTROL,
        http::HeaderValue::from_static("no-cache, private"),
    );
    response
}

/// Lines that are there at the same time are sent together, up to so many bytes, unless they are longer than `SHORT`: what
/// fits into a frame and a TLS record.
const TOGETHER: usize = 14 << 10;
const SHORT: usize = 3 << 10;

/// A watch being sent: a line is an event.
struct Watch {
    subject: Arc<Subject>,
    /// What comes before everything that happens.
    lead: std::vec::IntoIter<Bytes>,
    /// A line that is sent before any other.
    held: Option<Bytes>,
    /// Whether several may be sent as one piece.
    together: bool,
    subscription: Subscription,
    /// The line of an event that has to be converted; none when it is nothing that the client wants to see.
    converted: Option<BoxFuture<'static, Result<Option<Bytes>, Error>>>,
    clock: Clock,
    /// Ready when the server stops, and it is the turn of this watch to end.
    turn: BoxFuture<'static, ()>,
    over: bool,
    /// The client has seen everything up to here.
    at: i64,
    sizes: EventSizes,
    _running: Option<LongRunning>,
}

/// What is watched, and how it is shown.
struct Subject {
    server: Arc<crate::Server>,
    shape: Shape,
    selection: Selection,
}

/// When a watch hears how far it has got, and when it ends. Events do not touch the timer.
struct Clock {
    timer: Pin<Box<Sleep>>,
    deadline: Instant,
    bookmarks: bool,
}

enum Due {
    Bookmark,
    End,
}

// === impl Watch ===

impl Stream for Watch {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let watch = self.get_mut();
        let first = ready!(watch.poll_line(context));
        Poll::Ready(match first {
            Some(first) if watch.together => Some(watch.with_others(first, context)),
            first => first,
        })
    }
}

impl Watch {
    /// A line, with those that can be sent with it: each piece costs the connection more than a copy of a short line.
    fn with_others(&mut self, first: Bytes, context: &mut Context<'_>) -> Bytes {
        let mut together = Vec::new();
        let mut length = first.len();
        while length <= TOGETHER - SHORT {
            match self.poll_line(context) {
                Poll::Ready(Some(line)) if line.len() <= SHORT => {
                    if together.is_empty() {
                        together.reserve_exact(TOGETHER);
                        together.extend_from_slice(&first);
                    }
                    together.extend_from_slice(&line);
                    length = together.len();
                }
                Poll::Ready(line) => {
                    self.held = line;
                    break;
                }
                Poll::Pending => break,
            }
        }
        if together.is_empty() {
            first
        } else {
            together.into()
        }
    }

    fn poll_line(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(held) = self.held.take() {
            return Poll::Ready(Some(held));
        }
        let line = match self.lead.next() {
            Some(line) => Some(line),
            None => ready!(self.poll_event(context)),
        };
        if let Some(line) = &line {
            self.sizes.observe(line.len());
        }
        Poll::Ready(line)
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while !self.over {
            if let Some(converted) = &mut self.converted {
                let line = ready!(converted.poll_unpin(context));
                self.converted = None;
                match line {
                    Ok(Some(line)) => return Poll::Ready(Some(line)),
                    Ok(None) => {}
                    Err(error) => {
                        let error = self.subject.shape.event_of("ERROR", &error.to_status());
                        return self.end_with(error);
                    }
                }
            }
            let event = match self.subscription.events.poll_recv(context) {
                Poll::Ready(Some(event)) => event,
                Poll::Ready(None) => {
                    let gone = self.subject.shape.gone(self.at);
                    return self.end_with(gone);
                }
                Poll::Pending => {
                    if self.turn.poll_unpin(context).is_ready() {
                        break;
                    }
                    let Due::Bookmark = ready!(self.clock.poll_due(context)) else {
                        break;
                    };
                    // Read first: what is applied by now has been queued before.
                    let applied = self.subject.applied();
                    match self.subscription.events.try_recv() {
                        Ok(event) => event,
                        Err(Nothing::Yet) => {
                            self.at = self.at.max(applied);
                            self.clock.wind();
                            return Poll::Ready(Some(self.subject.shape.bookmark(self.at, false)));
                        }
                        // It has been ended, and what is applied may be what it has missed.
                        Err(Nothing::AnyMore) => continue,
                    }
                }
            };
            if let Some(line) = self.line(event.0, event.1) {
                return Poll::Ready(Some(line));
            }
        }
        self.over = true;
        Poll::Ready(None)
    }

    fn end_with(&mut self, line: Bytes) -> Poll<Option<Bytes>> {
        self.over = true;
        Poll::Ready(Some(line))
    }

    /// The line of an event, unless it has to be converted first.
    fn line(&mut self, change: Change, event: Arc<WatchEvent>) -> Option<Bytes> {
        self.at = event.revision;
        let Subject {
            shape, selection, ..
        } = &*self.subject;
        if !selection.needs_conversion() {
            // An object that stopped matching is reported in its last matching state, at the revision of the change.
            let last = (change == Change::Deleted).then(|| event.last());
            let entry = last.as_ref().unwrap_or(&event.entry);
            if entry.is_in_version_of(&shape.resource) {
                return Some(shape.event(change, entry));
            }
        }
        let subject = self.subject.clone();
        self.converted = Some(async move { subject.converted(change, &event).await }.boxed());
        None
    }
}

// === impl Subject ===

impl Subject {
    /// The revision up to which the cache is complete.
    fn applied(&self) -> i64 {
        let caches = &self.server.caches;
        caches.feed(&self.shape.resource).applied()
    }

    /// The line of an event in the version of the watch; none when only there it is not what the client wants to see.
    async fn converted(&self, change: Change, event: &WatchEvent) -> Result<Option<Bytes>, Error> {
        let (resource, converter) = (&self.shape.resource, &self.server.registry.converter);
        if self.selection.needs_conversion() {
            let seen = self.selection.sees(converter, resource, change, event);
            let seen = seen.await?;
            return Ok(seen.map(|(change, entry)| self.shape.event(change, &entry)));
        }
        let entry = match change {
            Change::Deleted => event.last(),
            _ => event.entry.clone(),
        };
        let mut entries = converter.entries(vec![entry], resource).await?;
        Ok(Some(self.shape.event(change, &entries.remove(0))))
    }
}

// === impl Clock ===

impl Clock {
    fn new(length: Duration, bookmarks: bool) -> Self {
        let deadline = Instant::now() + length;
        let mut clock = Self {
            timer: Box::pin(tokio::time::sleep_until(deadline)),
            deadline,
            bookmarks,
        };
        clock.wind();
        clock
    }

    /// Sets the timer to what is next.
    fn wind(&mut self) {
        let now = Instant::now();
        let last = self.deadline.checked_sub(BEFORE_THE_END);
        let next = match last.filter(|last| *last > now) {
            Some(last) if self.bookmarks => last.min(now + BOOKMARK_PERIOD),
            _ => self.deadline,
        };
        self.timer.as_mut().reset(next);
    }

    /// What it is time for; a bookmark until the clock is wound again.
    fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<Due> {
        ready!(self.timer.as_mut().poll(context));
        Poll::Ready(if Instant::now() >= self.deadline {
            Due::End
        } else {
            Due::Bookmark
        })
    }
}

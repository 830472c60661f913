//! The end of an answer, which is the end of what is recorded of its request: an answer is whole for its client when the
//! event is with the back ends, unless the client goes before.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use ::http::Response;
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;

use super::Record;
use super::event::Stage;
use super::latency::Layer;
use crate::http::{Body, BoxError};

/// Bytes that are handed to a connection at once: it takes as many as it can send, and how long that takes is told.
const PIECE: usize = 64 * 1024;

/// A record that ends with its answer. One that is dropped ends as well.
pub(super) struct Completion {
    record: Record,
    /// Since when an object is brought into the client's format, and written.
    serializing: Option<Instant>,
}

/// Goes with an answer through the steps that change it.
#[derive(Clone)]
struct Pending(Arc<Mutex<Option<Completion>>>);

/// A body with whose end its request's record is complete.
struct Answer {
    body: Body,
    completion: Option<Completion>,
    /// Of a frame, what was not handed out yet.
    rest: Bytes,
    /// When the connection was given something that it may still be sending.
    writing: Option<Instant>,
    wrote: Duration,
    /// While the record is handed to the back ends.
    emitting: Option<BoxFuture<'static, ()>>,
}

/// Has the record of an answer's request end with the answer.
pub(crate) fn complete(mut response: Response<Body>) -> Response<Body> {
    let pending = response.extensions_mut().remove::<Pending>();
    let completion = pending.and_then(|pending| pending.0.lock().take());
    if completion.is_none() {
        return response;
    }
    response.map(|body| {
        let answer = Answer {
            body,
            completion,
            rest: Bytes::new(),
            writing: None,
            wrote: Duration::ZERO,
            emitting: None,
        };
        answer.boxed_unsync()
    })
}

// === impl Completion ===

impl Completion {
    /// Of an answer that is made from now on; whether it is an object.
    pub fn new(record: Record, is_object: bool) -> Self {
        Self {
            record,
            serializing: is_object.then(Instant::now),
        }
    }

    /// Leaves it with the answer, for [`complete`].
    pub fn with(self, response: &mut Response<Body>) {
        let pending = Pending(Arc::new(Mutex::new(Some(self))));
        response.extensions_mut().insert(pending);
    }

    /// The record, with how long writing has taken.
    fn finish(&mut self, wrote: Duration) -> Record {
        let record = std::mem::take(&mut self.record);
        record.took(Layer::Write, wrote);
        if let Some(since) = self.serializing {
            record.took(Layer::Serialization, since.elapsed());
        }
        record
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if self.record.is_audited() {
            super::exchange::emit_later(self.finish(Duration::ZERO), Stage::ResponseComplete);
        }
    }
}

// === impl Answer ===

impl Answer {
    /// Begins to hand the record over, once.
    fn end(&mut self) {
        if let Some(mut completion) = self.completion.take() {
            let record = completion.finish(self.wrote);
            self.emitting = Some(Box::pin(async move {
                record.emit(Stage::ResponseComplete).await;
            }));
        }
    }

    /// The next piece, when everything that has to be done before has been.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.rest.is_empty() && self.emitting.is_none() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()? {
                Some(frame) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                None => self.end(),
            }
        }
        if self.rest.len() <= PIECE && self.body.is_end_stream() {
            self.end();
        }
        if let Some(emitting) = &mut self.emitting {
            ready!(emitting.as_mut().poll(cx));
            self.emitting = None;
        }
        if self.rest.is_empty() {
            return match self.completion {
                // An empty frame in the middle.
                Some(_) => Poll::Ready(Some(Ok(Frame::data(Bytes::new())))),
                None => Poll::Ready(None),
            };
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(since) = self.writing.take() {
            self.wrote += since.elapsed();
        }
        let piece = ready!(self.poll_piece(cx));
        if matches!(piece, Some(Ok(_))) {
            self.writing = Some(Instant::now());
        }
        Poll::Ready(piece)
    }

    fn is_end_stream(&self) -> bool {
        let is_told = self.completion.is_none() && self.emitting.is_none();
        is_told && self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let body = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

impl Drop for Answer {
    /// A client that goes takes the end with it.
    fn drop(&mut self) {
        if let Some(since) = self.writing {
            self.wrote += since.elapsed();
        }
        if let Some(mut completion) = self.completion.take() {
            let record = completion.finish(self.wrote);
            super::exchange::emit_later(record, Stage::ResponseComplete);
        } else if let Some(emitting) = self.emitting.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(emitting);
        }
    }
}

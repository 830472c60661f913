//! One request and its answer.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Body;
use pin_project_lite::pin_project;

use crate::date;

/// Headers that are about a connection of HTTP/1, and are an error in HTTP/2.
const OF_CONNECTIONS: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
];

pin_project! {
    /// Waits for the answer, then sends it; ends early when the client does not want it any more.
    pub struct Exchange<F, B> {
        respond: SendResponse<Bytes>,
        date: bool,
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, B> {
        Answering {
            #[pin]
            answer: F,
        },
        Sending {
            stream: SendStream<Bytes>,
            // What waits for the client's window.
            held: Option<Bytes>,
            #[pin]
            body: B,
        },
    }
}

/// Pieces of an answer that are sent before the connection's other requests have their turn.
const PIECES: usize = 32;

/// The client has reset the stream, or the answer is not one.
struct Broken;

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        tracing::debug!(%error, "an answer is not sent to its end");
        Self
    }
}

impl<F, B> Exchange<F, B> {
    pub fn new(answer: F, respond: SendResponse<Bytes>, date: bool) -> Self {
        Self {
            respond,
            date,
            state: State::Answering { answer },
        }
    }
}

impl<F, B> Future for Exchange<F, B>
where
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes>,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.poll_sent(context).map(drop)
    }
}

impl<F, B> Exchange<F, B>
where
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes>,
{
    fn poll_sent(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let mut this = self.project();
        if let StateProjection::Answering { answer } = this.state.as_mut().project() {
            let Poll::Ready(response) = answer.poll(context) else {
                ready!(this.respond.poll_reset(context))?;
                return Poll::Ready(Err(Broken));
            };
            let (mut head, body) = response.into_parts();
            let ended = body.is_end_stream();
            let length = (!ended).then(|| body.size_hint().exact()).flatten();
            prepare(&mut head.headers, length, *this.date);
            let head = Response::from_parts(head, ());
            let stream = match this.respond.send_response(head, ended) {
                Ok(stream) => stream,
                Err(error) => {
                    this.respond.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(Err(error.into()));
                }
            };
            if ended {
                return Poll::Ready(Ok(()));
            }
            this.state.set(State::Sending {
                stream,
                held: None,
                body,
            });
        }
        match this.state.project() {
            StateProjection::Sending { stream, held, body } => {
                poll_body(stream, held, body, context)
            }
            StateProjection::Answering { .. } => Poll::Pending,
        }
    }
}

/// Sends a body, a piece when the client has room for some of the one before.
fn poll_body<B: Body<Data = Bytes>>(
    stream: &mut SendStream<Bytes>,
    held: &mut Option<Bytes>,
    mut body: Pin<&mut B>,
    context: &mut Context<'_>,
) -> Poll<Result<(), Broken>> {
    for _ in 0..PIECES {
        if held.is_some() {
            while stream.capacity() == 0 {
                match stream.poll_capacity(context) {
                    Poll::Ready(Some(room)) => room.map(drop)?,
                    Poll::Ready(None) => return Poll::Ready(Err(Broken)),
                    Poll::Pending => return poll_reset(stream, context),
                }
            }
            if let Some(data) = held.take() {
                stream.send_data(data, false)?;
            }
        }
        let Poll::Ready(frame) = body.as_mut().poll_frame(context) else {
            return poll_reset(stream, context);
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => {
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Poll::Ready(Err(Broken));
            }
            None => {
                stream.send_data(Bytes::new(), true)?;
                return Poll::Ready(Ok(()));
            }
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => {
                    stream.send_trailers(trailers)?;
                    return Poll::Ready(Ok(()));
                }
                Err(_) => continue,
            },
        };
        if body.is_end_stream() {
            // It waits for the client's window wherever it is.
            stream.send_data(data, true)?;
            return Poll::Ready(Ok(()));
        }
        if !data.is_empty() {
            // No more than that: what one stream has reserved no other can use.
            stream.reserve_capacity(1);
            *held = Some(data);
        }
    }
    context.waker().wake_by_ref();
    Poll::Pending
}

/// Nothing can be sent now: unless the client has reset the stream, something will wake this.
fn poll_reset(
    stream: &mut SendStream<Bytes>,
    context: &mut Context<'_>,
) -> Poll<Result<(), Broken>> {
    ready!(stream.poll_reset(context))?;
    Poll::Ready(Err(Broken))
}

/// Makes headers those of an answer in HTTP/2.
fn prepare(headers: &mut HeaderMap, length: Option<u64>, dated: bool) {
    for name in &OF_CONNECTIONS {
        headers.remove(name);
    }
    if let Some(named) = headers.remove(CONNECTION) {
        for name in named.to_str().unwrap_or_default().split(',') {
            headers.remove(name.trim());
        }
    }
    if let Some(length) = length
        && !headers.contains_key(CONTENT_LENGTH)
    {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    if dated && !headers.contains_key(DATE) {
        headers.insert(DATE, date::now());
    }
}

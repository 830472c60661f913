//! A server of HTTP/2.
//!
//! The task of a connection runs the requests that it carries. A request that is answered from memory costs no task, and
//! those that were waiting for the same thing are answered together. What computes for long has to run in a task of its
//! own, which is for the service to know: nothing else happens on the connection meanwhile.

mod exchange;

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use exchange::Exchange;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use h2::server::{Builder, Connection};
use h2::{Ping, PingPong};
use http::{Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use crate::{Incoming, in_turns};

/// A client that has not sent its first settings by then does not want anything.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A client that does not answer a ping by then is gone.
const PONG: Duration = Duration::from_secs(20);

/// What clients may send before they have to wait for it to be read, in a request and in all of a connection.
const WINDOW: u32 = 1 << 20;

/// What may wait in a request for the client's window, beyond the piece that is being sent.
const SEND_BUFFER: usize = 400 << 10;

/// Streams that the client broke, and that are remembered for that.
const BROKEN_STREAMS: usize = 1024;

/// How connections are served.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Requests at the same time; any number when `None`.
    pub streams: Option<u32>,
    /// Bytes of a request's headers; 16 KiB when `None`.
    pub headers: Option<u32>,
    /// How often the client has to show that it is there.
    pub ping: Option<Duration>,
    /// Whether answers are dated.
    pub date: bool,
}

/// Why a connection ended early.
#[derive(Debug)]
pub enum Error {
    Protocol(h2::Error),
    /// The client did not say hello, or did not answer a ping.
    Silent,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Protocol(error) => error.fmt(f),
            Self::Silent => f.write_str("the client is silent"),
        }
    }
}

impl std::error::Error for Error {}

impl From<h2::Error> for Error {
    fn from(error: h2::Error) -> Self {
        Self::Protocol(error)
    }
}

/// Serves a connection; once `stop` is ready, until the requests that it carries are answered.
///
/// # Errors
/// When the client breaks the protocol or the connection, or is gone.
pub async fn serve<S, F, B>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    settings: Settings,
    service: S,
    stop: impl Future<Output = ()>,
) -> Result<(), Error>
where
    S: FnMut(Request<Incoming>) -> F,
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes>,
{
    let (stream, turns) = in_turns(stream);
    let connection = async {
        let handshake = settings.builder().handshake(stream);
        let handshake = tokio::time::timeout(HANDSHAKE, handshake);
        let mut connection = handshake.await.map_err(|_| Error::Silent)??;
        let presence = settings
            .ping
            .and_then(|every| Some(Presence::new(connection.ping_pong()?, every)));
        let mut serving = Serving {
            connection,
            exchanges: FuturesUnordered::new(),
            presence,
            date: settings.date,
            service,
        };
        let mut stop = pin!(stop);
        let mut stopping = false;
        std::future::poll_fn(|context| {
            if !stopping && stop.as_mut().poll(context).is_ready() {
                stopping = true;
                serving.connection.graceful_shutdown();
            }
            serving.poll(context)
        })
        .await
    };
    turns.run(connection).await
}

impl Settings {
    fn builder(&self) -> Builder {
        let mut builder = Builder::new();
        builder
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_local_error_reset_streams(Some(BROKEN_STREAMS))
            .max_header_list_size(self.headers.unwrap_or(16 << 10));
        if let Some(streams) = self.streams {
            builder.max_concurrent_streams(streams);
        }
        builder
    }
}

struct Serving<I, S, F, B>
where
    B: Body,
{
    connection: Connection<I, Bytes>,
    exchanges: FuturesUnordered<Exchange<F, B>>,
    presence: Option<Presence>,
    date: bool,
    service: S,
}

impl<I, S, F, B> Serving<I, S, F, B>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: FnMut(Request<Incoming>) -> F,
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes>,
{
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(presence) = &mut self.presence
            && presence.poll_gone(context).is_ready()
        {
            return Poll::Ready(Err(Error::Silent));
        }
        loop {
            if let Poll::Ready(ended) = self.poll_accept(context) {
                return Poll::Ready(ended);
            }
            let before = self.exchanges.len();
            while let Poll::Ready(Some(())) = self.exchanges.poll_next_unpin(context) {}
            if self.exchanges.len() == before {
                return Poll::Pending;
            }
            // What was answered goes out, and makes room for more.
        }
    }

    /// Takes in requests until there are no more, for now or for ever.
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while let Some(accepted) = ready!(self.connection.poll_accept(context)) {
            let (request, respond) = accepted?;
            let (head, body) = request.into_parts();
            let body = Incoming::new(body, &head.headers);
            let answer = (self.service)(Request::from_parts(head, body));
            self.exchanges
                .push(Exchange::new(answer, respond, self.date));
        }
        Poll::Ready(Ok(()))
    }
}

/// Asks a client now and then whether it is there.
struct Presence {
    pings: PingPong,
    every: Duration,
    asked: bool,
    timer: Pin<Box<Sleep>>,
}

impl Presence {
    fn new(pings: PingPong, every: Duration) -> Self {
        Self {
            pings,
            every,
            asked: false,
            timer: Box::pin(tokio::time::sleep(every)),
        }
    }

    /// Ready when the client is gone.
    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.asked && self.pings.poll_pong(context).is_ready() {
                // Should that be an error, the connection has it as well.
                self.asked = false;
                self.timer.as_mut().reset(Instant::now() + self.every);
            }
            ready!(self.timer.as_mut().poll(context));
            // It is an error to ask again before there is an answer.
            if self.pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
            self.asked = true;
            self.timer.as_mut().reset(Instant::now() + PONG);
        }
    }
}

#[cfg(test)]
mod tests;

//! Bodies of requests.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

/// The body of a request. What is read of it makes room for the client to send more.
pub struct Incoming {
    stream: RecvStream,
    length: Option<u64>,
    /// All data was read; trailers may follow.
    read: bool,
}

impl Incoming {
    pub(crate) fn new(stream: RecvStream, headers: &HeaderMap) -> Self {
        // HTTP/2 has it checked against what comes.
        let length = headers.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Self {
            stream,
            length,
            read: false,
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.read {
            match ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    let length = data.len();
                    // Of a stream that is gone there is nothing to be released.
                    let _ = self.stream.flow_control().release_capacity(length);
                    if let Some(left) = &mut self.length {
                        *left = left.saturating_sub(length as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.read = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(context)).transpose();
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.length {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

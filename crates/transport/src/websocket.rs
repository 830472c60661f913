//! What Kubernetes carries over WebSocket: channels, whose number begins each message, and byte streams, whose pieces
//! messages are.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::SplitSink;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_util::sync::PollSender;

/// The channels of exec and attach.
pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const ERROR: u8 = 3;
pub const RESIZE: u8 = 4;
/// From v5: the message's second byte is the channel that the client closed.
pub const CLOSE: u8 = 255;

/// Bytes that one message of ours carries at most, and that may wait for the reader of a byte stream.
const BUFFER: usize = 64 * 1024;

/// How a channel's bytes become messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Binary,
    /// For clients that know text only.
    Base64,
}

/// Writes one channel.
#[derive(Debug)]
pub struct Channel {
    number: u8,
    encoding: Encoding,
    messages: PollSender<Message>,
}

/// The answer to a client that asked for a WebSocket with this key.
#[must_use]
pub fn accepted(key: &HeaderValue, protocol: Option<&str>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(protocol) = protocol.and_then(|p| HeaderValue::from_str(p).ok()) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    response
}

/// A byte stream through a WebSocket's binary messages.
pub fn tunnelled<S>(socket: WebSocketStream<S>) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let (mut from_inside, mut to_inside) = tokio::io::split(ours);
    let (mut sink, mut incoming) = socket.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = incoming.next().await {
            if let Message::Binary(bytes) = message
                && to_inside.write_all(&bytes).await.is_err()
            {
                return;
            }
        }
        let _ = to_inside.shutdown().await;
    });
    tokio::spawn(async move {
        let mut chunk = vec![0; 32 * 1024];
        while let Ok(length) = from_inside.read(&mut chunk).await {
            if length == 0 {
                break;
            }
            let message = Message::Binary(Bytes::copy_from_slice(&chunk[..length]));
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(normal_close()).await;
        let _ = sink.close().await;
    });
    theirs
}

/// Clients take an end without a status for an error.
#[must_use]
pub fn normal_close() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

/// Sends what the channels of a connection have to say, until all of them are gone.
pub async fn send_messages<S>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut messages: mpsc::Receiver<Message>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = messages.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
    let _ = sink.close().await;
}

#[must_use]
pub fn encode(encoding: Encoding, number: u8, data: &[u8]) -> Message {
    match encoding {
        Encoding::Base64 => {
            let text = format!("{}{}", char::from(b'0' + number % 10), BASE64.encode(data));
            Message::Text(text.into())
        }
        Encoding::Binary => {
            let mut bytes = BytesMut::with_capacity(data.len() + 1);
            bytes.put_u8(number);
            bytes.put_slice(data);
            Message::Binary(bytes.freeze())
        }
    }
}

/// The channel of a message and what it carries; `None` of one that carries nothing, or nothing that can be decoded.
#[must_use]
pub fn decode(encoding: Encoding, message: Message) -> Option<(u8, Bytes)> {
    let bytes = match message {
        Message::Binary(bytes) => bytes,
        Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
        _ => return None,
    };
    let (number, data) = bytes.split_first()?;
    if encoding == Encoding::Base64 {
        let number = number.checked_sub(b'0')?;
        return Some((number, BASE64.decode(data).ok()?.into()));
    }
    Some((*number, bytes.slice(1..)))
}

// === impl Channel ===

impl Channel {
    #[must_use]
    pub fn new(number: u8, encoding: Encoding, messages: &mpsc::Sender<Message>) -> Self {
        Self {
            number,
            encoding,
            messages: PollSender::new(messages.clone()),
        }
    }
}

impl AsyncWrite for Channel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.messages.poll_reserve(context)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        let length = bytes.len().min(BUFFER);
        let message = encode(self.encoding, self.number, &bytes[..length]);
        self.messages
            .send_item(message)
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // Tests fail by panicking.

    use super::*;

    #[test]
    fn messages_carry_their_channel() {
        for encoding in [Encoding::Binary, Encoding::Base64] {
            let message = encode(encoding, STDERR, b"text");
            assert_eq!(
                decode(encoding, message),
                Some((STDERR, Bytes::from_static(b"text")))
            );
        }
    }
}

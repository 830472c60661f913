//! The channel protocols over WebSocket: a message's first byte says which channel it belongs to.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role};
use tokio_util::sync::PollSender;

use super::{Body, Grant, offered, port_forward, refuse, remote_command, spdy};
use crate::runtime::{ExecStreams, Runtime};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// From v5: the message's second byte is the channel that the client closed.
const CLOSE: u8 = 255;

/// A SPDY connection inside WebSocket messages, as kubectl forwards ports.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Messages that may wait to be sent, and bytes that may wait for a process to read them.
const QUEUE: usize = 16;
const BUFFER: usize = 64 * 1024;

/// How messages look, and what the error channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Protocol {
    name: &'static str,
    base64: bool,
    status: bool,
    close: bool,
}

/// Best first. Upstream's client asks for v5.
const REMOTE_COMMAND: [Protocol; 5] = [
    Protocol {
        name: "v5.channel.k8s.io",
        base64: false,
        status: true,
        close: true,
    },
    Protocol {
        name: "v4.channel.k8s.io",
        base64: false,
        status: true,
        close: false,
    },
    Protocol {
        name: "v4.base64.channel.k8s.io",
        base64: true,
        status: true,
        close: false,
    },
    Protocol {
        name: "channel.k8s.io",
        base64: false,
        status: false,
        close: false,
    },
    Protocol {
        name: "base64.channel.k8s.io",
        base64: true,
        status: false,
        close: false,
    },
];

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Writes one channel.
struct Channel {
    number: u8,
    base64: bool,
    messages: PollSender<Message>,
}

/// Switches a connection to WebSocket and serves the grant on it.
pub fn upgrade(
    mut request: Request<Incoming>,
    grant: Grant,
    runtime: Arc<Runtime>,
) -> Response<Body> {
    let headers = request.headers();
    let Some(accept) = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .map(|key| derive_accept_key(key.as_bytes()))
    else {
        return refuse(StatusCode::BAD_REQUEST, "no Sec-WebSocket-Key header");
    };
    let offers = offered(headers, "sec-websocket-protocol");
    let is_offered = |name: &str| offers.iter().any(|offer| offer == name);
    let tunnel = matches!(grant, Grant::PortForward { .. }) && is_offered(TUNNEL);
    let protocol = REMOTE_COMMAND
        .into_iter()
        .find(|protocol| is_offered(protocol.name));
    let chosen = match protocol {
        _ if tunnel => Some(TUNNEL),
        Some(protocol) => Some(protocol.name),
        None if offers.is_empty() => None,
        None => {
            return refuse(
                StatusCode::BAD_REQUEST,
                &format!("unable to negotiate protocol: client supports {offers:?}"),
            );
        }
    };
    // Without a subprotocol a client speaks the first version.
    let protocol = protocol.unwrap_or(REMOTE_COMMAND[3]);
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => {
                tracing::debug!(%error, "upgrading to WebSocket");
                return;
            }
        };
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        match grant {
            Grant::PortForward { sandbox, .. } if tunnel => {
                let connection = spdy::Connection::server(tunnelled(socket));
                port_forward::over_spdy(connection, &sandbox, &runtime).await;
            }
            Grant::PortForward { sandbox, ports } => {
                forward_ports(socket, protocol, &sandbox, &ports, &runtime).await;
            }
            grant => remote_command(socket, protocol, grant, &runtime).await,
        }
    });
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(
        header::CONNECTION,
        header::HeaderValue::from_static("Upgrade"),
    );
    headers.insert(
        header::UPGRADE,
        header::HeaderValue::from_static("websocket"),
    );
    if let Ok(accept) = header::HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(chosen) = chosen {
        headers.insert(
            header::SEC_WEBSOCKET_PROTOCOL,
            header::HeaderValue::from_static(chosen),
        );
    }
    response
}

async fn remote_command(socket: Socket, protocol: Protocol, grant: Grant, runtime: &Arc<Runtime>) {
    let wanted = match &grant {
        Grant::Exec { streams, .. } | Grant::Attach { streams, .. } => *streams,
        Grant::PortForward { .. } => return,
    };
    let (sink, mut incoming) = socket.split();
    let (messages, to_send) = mpsc::channel(QUEUE);
    let sending = tokio::spawn(send_messages(sink, to_send));
    let channel = |number| Channel::new(number, protocol, &messages);
    let (stdin, mut to_stdin) = match wanted.stdin {
        true => {
            let (ours, theirs) = duplex(BUFFER);
            (Some(Box::new(theirs) as Box<_>), Some(ours))
        }
        false => (None, None),
    };
    let (sizes, resize) = mpsc::channel(4);
    let streams = ExecStreams {
        stdin,
        stdout: wanted.stdout.then(|| Box::new(channel(STDOUT)) as Box<_>),
        stderr: (wanted.stderr && !wanted.tty).then(|| Box::new(channel(STDERR)) as Box<_>),
        resize,
    };
    // An empty message tells the client that it is connected.
    let first = if wanted.stdout { STDOUT } else { ERROR };
    let _ = messages.send(encode(protocol, first, &[])).await;

    let receive = async {
        while let Some(Ok(message)) = incoming.next().await {
            let Some((number, data)) = decode(protocol, message) else {
                continue;
            };
            match number {
                STDIN => {
                    if let Some(stdin) = &mut to_stdin
                        && stdin.write_all(&data).await.is_err()
                    {
                        to_stdin = None;
                    }
                }
                RESIZE => {
                    if let Some(size) = remote_command::parse_size(&data) {
                        let _ = sizes.send(size).await;
                    }
                }
                CLOSE if protocol.close && data.first() == Some(&STDIN) => to_stdin = None,
                _ => {}
            }
        }
    };
    let result = tokio::select! {
        result = remote_command::run(grant, streams, runtime) => result,
        // The client went, and its process's streams with it.
        () = receive => return,
    };
    let status = remote_command::status(&result, protocol.status);
    let _ = messages.send(encode(protocol, ERROR, &status)).await;
    let _ = messages.send(normal_close()).await;
    drop(messages);
    let _ = sending.await;
}

/// The old way of forwarding ports over WebSocket: two channels per port, which the request named.
async fn forward_ports(
    socket: Socket,
    protocol: Protocol,
    sandbox: &str,
    ports: &[u16],
    runtime: &Arc<Runtime>,
) {
    let (sink, mut incoming) = socket.split();
    let (messages, to_send) = mpsc::channel(QUEUE);
    let sending = tokio::spawn(send_messages(sink, to_send));
    let mut to_pods = Vec::new();
    let mut connections = JoinSet::new();
    for (index, port) in ports.iter().copied().enumerate() {
        let Ok(data) = u8::try_from(index * 2) else {
            break;
        };
        for number in [data, data + 1] {
            let _ = messages
                .send(encode(protocol, number, &port.to_le_bytes()))
                .await;
        }
        let (to_pod, input) = duplex(BUFFER);
        to_pods.push(Some(to_pod));
        let client = tokio::io::join(input, Channel::new(data, protocol, &messages));
        let mut error = Channel::new(data + 1, protocol, &messages);
        let runtime = Arc::clone(runtime);
        let sandbox = sandbox.to_owned();
        connections.spawn(async move {
            match port_forward::connect(&runtime, &sandbox, port).await {
                Ok(pod) => port_forward::relay(client, pod).await,
                Err(reason) => {
                    let _ = error.write_all(reason.to_string().as_bytes()).await;
                }
            }
        });
    }
    let receive = async {
        while let Some(Ok(message)) = incoming.next().await {
            let Some((number, data)) = decode(protocol, message) else {
                continue;
            };
            if number % 2 == 0
                && let Some(slot) = to_pods.get_mut(usize::from(number / 2))
                && let Some(to_pod) = slot
                && to_pod.write_all(&data).await.is_err()
            {
                *slot = None;
            }
        }
    };
    let all_done = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        // The client cannot tell that one port of several is done, only that all are.
        () = all_done => {
            let _ = messages.send(normal_close()).await;
        }
        // The client went.
        () = receive => {}
    }
    drop(connections);
    drop(messages);
    let _ = sending.await;
}

/// A byte stream through a WebSocket's binary messages.
fn tunnelled(socket: Socket) -> DuplexStream {
    let (ours, theirs) = duplex(BUFFER);
    let (mut from_spdy, mut to_spdy) = tokio::io::split(ours);
    let (mut sink, mut incoming) = socket.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = incoming.next().await {
            if let Message::Binary(bytes) = message
                && to_spdy.write_all(&bytes).await.is_err()
            {
                return;
            }
        }
        let _ = to_spdy.shutdown().await;
    });
    tokio::spawn(async move {
        let mut chunk = vec![0; 32 * 1024];
        while let Ok(length) = from_spdy.read(&mut chunk).await {
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
fn normal_close() -> Message {
    Message::Close(Some(CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    }))
}

async fn send_messages(
    mut sink: futures::stream::SplitSink<Socket, Message>,
    mut messages: mpsc::Receiver<Message>,
) {
    while let Some(message) = messages.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
    let _ = sink.close().await;
}

fn encode(protocol: Protocol, number: u8, data: &[u8]) -> Message {
    if protocol.base64 {
        let text = format!("{}{}", char::from(b'0' + number % 10), BASE64.encode(data));
        return Message::Text(text.into());
    }
    let mut bytes = BytesMut::with_capacity(data.len() + 1);
    bytes.put_u8(number);
    bytes.put_slice(data);
    Message::Binary(bytes.freeze())
}

fn decode(protocol: Protocol, message: Message) -> Option<(u8, Bytes)> {
    let bytes = match message {
        Message::Binary(bytes) => bytes,
        Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
        _ => return None,
    };
    let (number, data) = bytes.split_first()?;
    if protocol.base64 {
        let number = number.checked_sub(b'0')?;
        return Some((number, BASE64.decode(data).ok()?.into()));
    }
    Some((*number, bytes.slice(1..)))
}

// === impl Channel ===

impl Channel {
    fn new(number: u8, protocol: Protocol, messages: &mpsc::Sender<Message>) -> Self {
        Self {
            number,
            base64: protocol.base64,
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
        let protocol = Protocol {
            base64: self.base64,
            ..REMOTE_COMMAND[0]
        };
        let message = encode(protocol, self.number, &bytes[..length]);
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
    use super::*;

    #[test]
    fn messages_carry_their_channel() {
        for protocol in REMOTE_COMMAND {
            let message = encode(protocol, STDERR, b"text");
            assert_eq!(
                decode(protocol, message),
                Some((STDERR, Bytes::from_static(b"text")))
            );
        }
    }
}

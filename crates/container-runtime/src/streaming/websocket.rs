//! The channel protocols over WebSocket.

use std::sync::Arc;

use fluyt_transport::spdy;
use fluyt_transport::websocket::{
    self, CLOSE, Channel, ERROR, Encoding, RESIZE, STDERR, STDIN, STDOUT, decode, encode,
    normal_close, send_messages, tunnelled,
};
use futures::StreamExt;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{Body, Grant, offered, port_forward, refuse, remote_command};
use crate::runtime::{ExecStreams, Runtime};

/// A SPDY connection inside WebSocket messages, as kubectl forwards ports.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Messages that may wait to be sent, and bytes that may wait for a process to read them.
const QUEUE: usize = 16;
const BUFFER: usize = 64 * 1024;

/// How messages look, and what the error channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Protocol {
    name: &'static str,
    encoding: Encoding,
    status: bool,
    close: bool,
}

/// Best first. Upstream's client asks for v5.
const REMOTE_COMMAND: [Protocol; 5] = [
    Protocol {
        name: "v5.channel.k8s.io",
        encoding: Encoding::Binary,
        status: true,
        close: true,
    },
    Protocol {
        name: "v4.channel.k8s.io",
        encoding: Encoding::Binary,
        status: true,
        close: false,
    },
    Protocol {
        name: "v4.base64.channel.k8s.io",
        encoding: Encoding::Base64,
        status: true,
        close: false,
    },
    Protocol {
        name: "channel.k8s.io",
        encoding: Encoding::Binary,
        status: false,
        close: false,
    },
    Protocol {
        name: "base64.channel.k8s.io",
        encoding: Encoding::Base64,
        status: false,
        close: false,
    },
];

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Switches a connection to WebSocket and serves the grant on it.
pub fn upgrade(
    mut request: Request<Incoming>,
    grant: Grant,
    runtime: Arc<Runtime>,
) -> Response<Body> {
    let headers = request.headers();
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY).cloned() else {
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
    websocket::accepted(&key, chosen).map(|()| Body::default())
}

async fn remote_command(socket: Socket, protocol: Protocol, grant: Grant, runtime: &Arc<Runtime>) {
    let wanted = match &grant {
        Grant::Exec { streams, .. } | Grant::Attach { streams, .. } => *streams,
        Grant::PortForward { .. } => return,
    };
    let (sink, mut incoming) = socket.split();
    let (messages, to_send) = mpsc::channel(QUEUE);
    let sending = tokio::spawn(send_messages(sink, to_send));
    let channel = |number| Channel::new(number, protocol.encoding, &messages);
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
    let _ = messages.send(encode(protocol.encoding, first, &[])).await;

    let receive = async {
        while let Some(Ok(message)) = incoming.next().await {
            let Some((number, data)) = decode(protocol.encoding, message) else {
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
    let _ = messages
        .send(encode(protocol.encoding, ERROR, &status))
        .await;
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
                .send(encode(protocol.encoding, number, &port.to_le_bytes()))
                .await;
        }
        let (to_pod, input) = duplex(BUFFER);
        to_pods.push(Some(to_pod));
        let client = tokio::io::join(input, Channel::new(data, protocol.encoding, &messages));
        let mut error = Channel::new(data + 1, protocol.encoding, &messages);
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
            let Some((number, data)) = decode(protocol.encoding, message) else {
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

//! The newest channel protocol over WebSocket, translated to SPDY: exec and attach.
//!
//! The client's connection is accepted first, as upstream does it: what goes wrong with the kubelet is told on the error
//! channel.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fluyt_api::Error;
use fluyt_transport::spdy;
use fluyt_transport::websocket::{
    self, CLOSE, Channel, ERROR, Encoding, RESIZE, STDERR, STDIN, STDOUT, decode, encode,
    normal_close, send_messages,
};
use futures::stream::SplitStream;
use futures::{StreamExt as _, future};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};
use tokio_util::io::InspectWriter;

use super::super::kubelet::Kubelet;
use super::super::{Call, throttle};
use super::{VERSION, is_spdy};
use crate::Server;
use crate::http::Body;

/// The protocol of WebSocket that can close single channels, and so cannot be passed on to who does not know it.
const V5: &str = "v5.channel.k8s.io";
/// Those of SPDY, best first.
const PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
/// How long a connection may carry nothing.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);
/// How long a client may take to take the last message.
const PARTING: Duration = Duration::from_secs(10);
/// How often the kubelet hears of us.
const PING: Duration = Duration::from_secs(5);
/// Messages that may wait to be sent, and bytes that may wait for the kubelet.
const QUEUE: usize = 16;
const BUFFER: usize = 64 * 1024;
/// Bytes of what a kubelet says that refuses, and of how a command ended.
const LONGEST_REASON: usize = 64 * 1024;

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Which streams the client asked for.
#[derive(Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// What is done for a client once it is connected.
struct Session {
    server: Arc<Server>,
    kubelet: Kubelet,
    /// Path and query for the kubelet.
    path: String,
    wanted: Wanted,
    idle: Idle,
}

/// What comes from the client.
struct Inputs {
    stdin: Option<DuplexStream>,
    resize: Option<DuplexStream>,
}

/// How a command did not end well.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    Exit(u8),
    Other(String),
}

/// Since when a connection has carried nothing.
#[derive(Clone)]
struct Idle(Arc<Mutex<Instant>>);

/// Whether a protocol has to be translated.
pub(super) fn closes(protocol: &str) -> Option<()> {
    (protocol == V5).then_some(())
}

pub(super) fn answer(call: Call, kubelet: Kubelet, path: String) -> Result<Response<Body>, Error> {
    let server = call.server.clone();
    let Some(key) = super::handshake(&call.parts) else {
        server.metrics.streams.translated(StatusCode::BAD_REQUEST);
        return Ok(super::bad_handshake());
    };
    let flag = |name| call.info.query.flag(name);
    let wanted = Wanted {
        stdin: flag("stdin"),
        stdout: flag("stdout"),
        stderr: flag("stderr") && !flag("tty"),
        tty: flag("tty"),
    };
    let mut request = call.into_request();
    let upgrade = hyper::upgrade::on(&mut request);
    let session = Session {
        server,
        kubelet,
        path,
        wanted,
        idle: Idle(Arc::new(Mutex::new(Instant::now()))),
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => {
                let stream = TokioIo::new(stream);
                let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
                Box::pin(session.serve(socket)).await;
            }
            Err(error) => tracing::debug!(%error, "upgrading to WebSocket"),
        }
    });
    Ok(websocket::accepted(&key, Some(V5)).map(|()| crate::http::full("")))
}

// === impl Session ===

impl Session {
    async fn serve(self, socket: Socket) {
        let (sink, incoming) = socket.split();
        let (messages, to_send) = mpsc::channel(QUEUE);
        let sending = tokio::spawn(send_messages(sink, to_send));
        let channel = |number| Channel::new(number, Encoding::Binary, &messages);
        let pipe = |is_there: bool| is_there.then(|| duplex(BUFFER)).unzip();
        let (to_stdin, stdin) = pipe(self.wanted.stdin);
        let (to_resize, resize) = pipe(self.wanted.tty);
        let inputs = Inputs { stdin, resize };
        // An empty message to the first channel that may be written tells the client that it is connected.
        let first = match self.wanted {
            Wanted { stdout: true, .. } => STDOUT,
            Wanted { stderr: true, .. } => STDERR,
            _ => ERROR,
        };
        let _ = messages.send(encode(Encoding::Binary, first, &[])).await;
        let outcome = tokio::select! {
            outcome = self.run(inputs, channel(STDOUT), channel(STDERR)) => outcome,
            // The client went, and what it had started has nobody to talk to.
            () = receive(incoming, to_stdin, to_resize, &self.idle) => return,
            () = self.idle.passed() => return,
        };
        let code = match &outcome {
            Ok(()) | Err(Failure::Exit(_)) => StatusCode::OK,
            Err(Failure::Other(_)) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        self.server.metrics.streams.translated(code);
        let status = status(&outcome).to_string();
        let parting = async {
            for message in [
                encode(Encoding::Binary, ERROR, status.as_bytes()),
                normal_close(),
            ] {
                let _ = messages.send(message).await;
            }
            drop(messages);
            let _ = sending.await;
        };
        let _ = tokio::time::timeout(PARTING, parting).await;
    }

    /// Has the kubelet do it, with the client's streams.
    async fn run(&self, inputs: Inputs, stdout: Channel, stderr: Channel) -> Result<(), Failure> {
        let (connection, protocol) = self.dial().await.map_err(Failure::Other)?;
        connection.keep_alive(PING);
        let open = async |kind: &str| {
            let headers = vec![("streamtype".to_owned(), kind.to_owned())];
            let opened = connection.open(headers).await;
            opened.map_err(|error| Failure::Other(error.to_string()))
        };
        let error = open("error").await?;
        let to_stdin = match inputs.stdin {
            Some(stdin) => Some((stdin, open("stdin").await?)),
            None => None,
        };
        let from_stdout = match self.wanted.stdout {
            true => Some((open("stdout").await?, stdout)),
            false => None,
        };
        let from_stderr = match self.wanted.stderr {
            true => Some((open("stderr").await?, stderr)),
            false => None,
        };
        let resizes = matches!(
            protocol.as_str(),
            "v5.channel.k8s.io" | "v4.channel.k8s.io" | "v3.channel.k8s.io"
        );
        let to_resize = match inputs.resize.filter(|_| resizes) {
            Some(resize) => Some((resize, open("resize").await?)),
            None => None,
        };
        let rate = self.server.config.limits.max_connection_bytes_per_sec;
        // The command's end does not wait for more input.
        let input = async {
            future::join(feed(to_stdin, rate), feed(to_resize, 0)).await;
            future::pending().await
        };
        let output = future::join3(
            read_end(error),
            self.show(from_stdout, rate),
            self.show(from_stderr, rate),
        );
        let (end, (), ()) = tokio::select! {
            output = output => output,
            never = input => never,
        };
        connection.close().await;
        outcome(&protocol, &end?)
    }

    /// Passes on what a command puts out.
    async fn show(&self, stream: Option<(spdy::Stream, Channel)>, rate: u64) {
        let Some((mut from, channel)) = stream else {
            return;
        };
        let idle = self.idle.clone();
        let to = InspectWriter::new(channel, move |_| idle.ended());
        // Without a reader the connection would stop as a whole.
        if throttle::copy(&mut from, to, rate).await.is_err() {
            let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
        }
    }

    /// A connection to the kubelet that speaks SPDY, and which protocol it carries.
    async fn dial(&self) -> Result<(spdy::Connection, String), String> {
        let address = self.kubelet.address;
        let url = format!("https://{address}{}", self.path);
        let sending =
            |why: &dyn std::fmt::Display| format!("error sending request: Post \"{url}\": {why}");
        let stream = self.kubelet.connect(&self.server).await;
        let stream = TokioIo::new(stream.map_err(|why| sending(&why))?);
        let handshake = http1::handshake(stream).await;
        let (mut sender, connection) = handshake.map_err(|error| sending(&error))?;
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::post(&self.path)
            .header(header::HOST, address.to_string())
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "SPDY/3.1");
        for protocol in PROTOCOLS {
            request = request.header(VERSION, protocol);
        }
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|error| format!("error creating request: {error}"))?;
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|error| sending(&error))?;
        let text = |name: &str| {
            let value = answer.headers().get(name);
            value.and_then(|v| v.to_str().ok()).unwrap_or_default()
        };
        if answer.status().is_redirection() && !text("location").is_empty() {
            let location = text("location");
            return Err(format!(
                "error sending request: Post \"{location}\": redirect not allowed"
            ));
        }
        if !is_spdy(answer.status(), answer.headers()) {
            let body = Limited::new(answer.into_body(), LONGEST_REASON);
            let why = match body.collect().await {
                Ok(body) => refusal(&body.to_bytes()),
                Err(_) => "unable to read error from server response".to_owned(),
            };
            return Err(format!("unable to upgrade connection: {why}"));
        }
        let protocol = text(VERSION).to_owned();
        let upgraded = hyper::upgrade::on(answer).await;
        let upgraded = upgraded.map_err(|error| sending(&error))?;
        let connection = spdy::Connection::client(TokioIo::new(upgraded));
        Ok((connection, protocol))
    }
}

/// Why a kubelet does not switch, by the body of its answer.
fn refusal(body: &[u8]) -> String {
    let status = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let text = String::from_utf8_lossy(body);
    let said = [&status["message"], &status["error"]].into_iter();
    let said = said.filter_map(Value::as_str).chain([&*text]);
    let mut said = said.map(str::trim).filter(|text| !text.is_empty());
    said.next().unwrap_or("empty server response").to_owned()
}

/// Takes the client's messages apart until it goes.
async fn receive(
    mut incoming: SplitStream<Socket>,
    mut stdin: Option<DuplexStream>,
    mut resize: Option<DuplexStream>,
    idle: &Idle,
) {
    while let Some(Ok(message)) = incoming.next().await {
        if matches!(message, Message::Ping(_) | Message::Pong(_)) {
            continue;
        }
        idle.ended();
        let Some((number, data)) = decode(Encoding::Binary, message) else {
            continue;
        };
        let input = match (number, &data[..]) {
            (STDIN, _) => &mut stdin,
            (RESIZE, _) => &mut resize,
            (CLOSE, [STDIN]) => {
                stdin = None;
                continue;
            }
            (CLOSE, [RESIZE]) => {
                resize = None;
                continue;
            }
            (CLOSE, [STDOUT | STDERR | ERROR]) => continue,
            // No client of this protocol says that.
            (CLOSE, _) => return,
            _ => continue,
        };
        if let Some(to) = input
            && to.write_all(&data).await.is_err()
        {
            *input = None;
        }
    }
}

/// Passes on what a client puts in, until it ends or nobody wants more.
async fn feed(stream: Option<(DuplexStream, spdy::Stream)>, rate: u64) {
    let Some((from, to)) = stream else { return };
    let (mut ended, mut to) = tokio::io::split(to);
    let mut sink = tokio::io::sink();
    tokio::select! {
        _ = throttle::copy(from, &mut to, rate) => {}
        _ = tokio::io::copy(&mut ended, &mut sink) => {}
    }
    let _ = to.shutdown().await;
    // Whatever else is said on it is of no interest, but has to be read.
    let _ = tokio::io::copy(&mut ended, &mut sink).await;
}

/// What a kubelet says at the end.
async fn read_end(error: spdy::Stream) -> Result<Vec<u8>, Failure> {
    let mut end = Vec::new();
    let mut error = error.take(LONGEST_REASON as u64);
    let read = error.read_to_end(&mut end).await;
    read.map_err(|why| Failure::Other(format!("error reading from error stream: {why}")))?;
    Ok(end)
}

/// How a command ended, by what was said of it.
fn outcome(protocol: &str, end: &[u8]) -> Result<(), Failure> {
    if end.is_empty() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(end);
    let failed = |why: String| Err(Failure::Other(why));
    match protocol {
        "v5.channel.k8s.io" | "v4.channel.k8s.io" => {}
        "v3.channel.k8s.io" | "v2.channel.k8s.io" => {
            return failed(format!("error executing remote command: {text}"));
        }
        _ => return failed(format!("Error executing remote command: {text}")),
    }
    let status: Value = match serde_json::from_slice(end) {
        Ok(status) => status,
        Err(error) => return failed(format!("error stream protocol error: {error} in {text:?}")),
    };
    match status["status"].as_str() {
        Some("Success") => return Ok(()),
        Some("Failure") => {}
        _ => return failed("error stream protocol error: unknown error".to_owned()),
    }
    if status["reason"] != "NonZeroExitCode" {
        let message = status["message"].as_str().unwrap_or_default();
        return failed(message.to_owned());
    }
    if status["details"].is_null() {
        return failed("error stream protocol error: details must be set".to_owned());
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes
        .and_then(|causes| causes.iter().find(|cause| cause["reason"] == "ExitCode"))
        .map(|cause| cause["message"].as_str().unwrap_or_default());
    match code.map(|code| (code, code.parse())) {
        Some((_, Ok(code))) => Err(Failure::Exit(code)),
        Some((code, Err(_))) => failed(format!(
            "error stream protocol error: invalid exit code value {code:?}"
        )),
        None => failed("error stream protocol error: no ExitCode cause given".to_owned()),
    }
}

/// The same as clients are told it.
fn status(outcome: &Result<(), Failure>) -> Value {
    match outcome {
        Ok(()) => json!({"metadata": {}, "status": "Success"}),
        Err(Failure::Exit(code)) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!(
                "command terminated with non-zero exit code: command terminated with exit code {code}"
            ),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(Failure::Other(why)) => {
            let mut status = Error::internal(why).to_status();
            if let Some(status) = status.as_object_mut() {
                status.remove("kind");
                status.remove("apiVersion");
            }
            status
        }
    }
}

// === impl Idle ===

impl Idle {
    fn ended(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Returns once nothing was carried for too long.
    async fn passed(&self) {
        loop {
            let until = *self.0.lock() + IDLE;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubelets_say_at_the_end() {
        let v4 = |end: &str| outcome("v4.channel.k8s.io", end.as_bytes());
        let failed = |why: &str| Err(Failure::Other(why.to_owned()));
        assert_eq!(v4(""), Ok(()));
        assert_eq!(v4(r#"{"status":"Success"}"#), Ok(()));
        let exit = |cause: &str| {
            v4(&format!(
                r#"{{"status":"Failure","reason":"NonZeroExitCode","details":{{"causes":[{cause}]}}}}"#
            ))
        };
        let code = r#"{"reason":"Other"},{"reason":"ExitCode","message":"7"}"#;
        assert_eq!(exit(code), Err(Failure::Exit(7)));
        assert_eq!(
            exit(r#"{"reason":"ExitCode","message":"300"}"#),
            failed("error stream protocol error: invalid exit code value \"300\"")
        );
        assert_eq!(
            exit(""),
            failed("error stream protocol error: no ExitCode cause given")
        );
        assert_eq!(
            v4(r#"{"status":"Failure","reason":"NonZeroExitCode"}"#),
            failed("error stream protocol error: details must be set")
        );
        assert_eq!(v4(r#"{"status":"Failure","message":"no"}"#), failed("no"));
        assert_eq!(
            v4("{}"),
            failed("error stream protocol error: unknown error")
        );
        assert_eq!(
            outcome("v3.channel.k8s.io", b"no"),
            failed("error executing remote command: no")
        );
        assert_eq!(
            outcome("", b"no"),
            failed("Error executing remote command: no")
        );
    }

    #[test]
    fn clients_are_told_how_it_ended() {
        assert_eq!(
            status(&Err(Failure::Exit(3))),
            json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": "command terminated with non-zero exit code: command terminated with exit code 3",
                "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}})
        );
        assert_eq!(
            status(&Err(Failure::Other("no".to_owned()))),
            json!({"metadata": {}, "status": "Failure", "message": "Internal error occurred: no",
                "reason": "InternalError", "details": {"causes": [{"message": "no"}]}, "code": 500})
        );
    }

    #[test]
    fn why_a_kubelet_refuses() {
        assert_eq!(refusal(br#"{"message":" a ","error":"b"}"#), "a");
        assert_eq!(refusal(br#"{"error":"b"}"#), "b");
        assert_eq!(refusal(b" no\n"), "no");
        assert_eq!(refusal(b""), "empty server response");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_carries_nothing_ends() {
        let idle = Idle(Arc::new(Mutex::new(Instant::now())));
        let started = Instant::now();
        let other = idle.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            other.ended();
        });
        idle.passed().await;
        assert_eq!(started.elapsed(), IDLE + Duration::from_secs(60));
    }
}

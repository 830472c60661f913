//! exec, attach and port-forward with kubelets that speak SPDY only, which kubectl does not know of.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fluyt_apiserver::{Config, User};
use fluyt_pki::Authority;
use fluyt_transport::spdy;
use futures::{SinkExt as _, StreamExt as _};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::common::service::{acceptor, eventually};
use crate::common::{Api, pod};
use crate::kubectl::Kubectl;

/// A kubelet whose pods have one program each: `cat` for all input, `size` for a terminal's size, `fail`, and on port 80 an
/// echo.
#[derive(Default)]
struct Kubelet {
    websockets: AtomicUsize,
    /// Path and query of what was asked for over SPDY.
    asked: Mutex<Vec<String>>,
    /// Sessions that go on.
    open: AtomicUsize,
}

impl Kubelet {
    async fn start() -> (Arc<Self>, u16) {
        let kubelet = Arc::new(Self::default());
        let acceptor = acceptor(&Authority::create("kubelet").unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = kubelet.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, kubelet) = (acceptor.clone(), serving.clone());
                tokio::spawn(async move {
                    let stream = acceptor.accept(stream).await.unwrap();
                    let service = service_fn(move |request| {
                        let answer = kubelet.clone().answer(request);
                        async move { Ok::<_, std::convert::Infallible>(answer) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                });
            }
        });
        (kubelet, port)
    }

    fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Full<bytes::Bytes>> {
        let refuse = |why: &'static str| {
            let mut response = Response::new(Full::from(why));
            *response.status_mut() = StatusCode::FORBIDDEN;
            response
        };
        if request.headers()[header::UPGRADE] != "SPDY/3.1" {
            self.websockets.fetch_add(1, Ordering::Relaxed);
            return refuse("no WebSockets here");
        }
        let target = request.uri().to_string();
        if target.contains("refuse") {
            return refuse("{\"message\": \"not today\"}");
        }
        let ours = ["v4.channel.k8s.io", "portforward.k8s.io"];
        let offered = request.headers().get_all("x-stream-protocol-version");
        let chosen = offered.iter().find(|o| ours.iter().any(|our| o == our));
        let chosen = chosen.unwrap().clone();
        self.asked.lock().push(target.clone());
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let stream = TokioIo::new(upgrade.await.unwrap());
            let connection = spdy::Connection::server(stream);
            self.open.fetch_add(1, Ordering::Relaxed);
            match target.starts_with("/portForward/") {
                true => echo(connection).await,
                false => run(connection, &target).await,
            }
            self.open.fetch_sub(1, Ordering::Relaxed);
        });
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, "Upgrade".parse().unwrap());
        headers.insert(header::UPGRADE, "SPDY/3.1".parse().unwrap());
        headers.insert("x-stream-protocol-version", chosen);
        response
    }
}

/// What runs in a container.
async fn run(mut connection: spdy::Connection, target: &str) {
    let (mut error, mut stdin, mut stdout, mut stderr, mut resize) = (None, None, None, None, None);
    let has = |flag: &str| usize::from(target.contains(flag));
    // A terminal has no errors of its own.
    let expected = 1 + has("input=1") + has("output=1") + has("error=1").max(has("tty=1"));
    for _ in 0..expected {
        let stream = connection.accept().await.unwrap();
        let slot = match stream.header("streamtype").unwrap() {
            "error" => &mut error,
            "stdin" => &mut stdin,
            "stdout" => &mut stdout,
            "stderr" => &mut stderr,
            "resize" => &mut resize,
            other => panic!("{other}"),
        };
        *slot = Some(stream);
    }
    let mut status = json!({"metadata": {}, "status": "Success"});
    if target.contains("command=fail") {
        let stderr = stderr.as_mut().unwrap();
        stderr.write_all(b"bad luck\n").await.unwrap();
        status = json!({"status": "Failure", "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}});
    } else if target.contains("command=size") {
        let mut size = BufReader::new(resize.take().unwrap());
        let mut line = Vec::new();
        size.read_until(b'}', &mut line).await.unwrap();
        stdout.as_mut().unwrap().write_all(&line).await.unwrap();
    } else if let (Some(mut stdin), Some(stdout)) = (stdin.take(), stdout.as_mut()) {
        tokio::io::copy(&mut stdin, stdout).await.unwrap();
        if connection_is_gone(&mut connection) {
            return;
        }
    }
    for stream in [stdout, stderr].iter_mut().flatten() {
        stream.shutdown().await.unwrap();
    }
    let mut error = error.unwrap();
    let _ = error.write_all(status.to_string().as_bytes()).await;
    let _ = error.shutdown().await;
    while connection.accept().await.is_some() {}
}

fn connection_is_gone(connection: &mut spdy::Connection) -> bool {
    use futures::FutureExt as _;
    matches!(connection.accept().now_or_never(), Some(None))
}

/// Says back whatever comes through a forwarded port.
async fn echo(mut connection: spdy::Connection) {
    while let Some(first) = connection.accept().await {
        let second = connection.accept().await.unwrap();
        assert_eq!(first.header("port"), Some("80"));
        let (error, data) = (first, second);
        assert_eq!(error.header("streamtype"), Some("error"));
        assert_eq!(data.header("streamtype"), Some("data"));
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(data);
            tokio::io::copy(&mut from, &mut to).await.unwrap();
            to.shutdown().await.unwrap();
            drop(error);
        });
    }
}

/// An API with a pod `p` on a node, whose kubelet listens on a port.
async fn with_kubelet(port: u16, declared: Value, change: impl FnOnce(&mut Config)) -> Api {
    let api = Api::configured(|config, _| change(config)).await;
    api.namespace().await;
    api.post("/api/v1/nodes", json!({"metadata": {"name": "a"}}))
        .await;
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "declaredFeatures": declared,
    }});
    let (code, node) = api
        .patch("/api/v1/nodes/a/status", "merge-patch", status)
        .await;
    assert_eq!(code, 200, "{node}");
    let mut on_node = pod("p");
    on_node["spec"]["nodeName"] = "a".into();
    let (code, made) = api.post("/api/v1/namespaces/n/pods", on_node).await;
    assert_eq!(code, 201, "{made}");
    let running = json!({"status": {"phase": "Running"}});
    let path = "/api/v1/namespaces/n/pods/p/status";
    api.patch(path, "merge-patch", running).await;
    api
}

async fn metrics(api: &Api) -> String {
    let mut request = Request::get("/metrics").body(Full::default()).unwrap();
    request.extensions_mut().insert(api.user.clone());
    let response = api.server.handle(request).await;
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_reaches_pods_of_kubelets_without_websockets() {
    let (kubelet, port) = Kubelet::start().await;
    let api = with_kubelet(port, json!([]), |_| {}).await;
    let kubectl = Kubectl::of(api.listen().await);
    let input = "0123456789abcdef".repeat(20_000);
    assert_eq!(kubectl.ok("exec -i p -- cat a+b", &input).await, input);
    assert_eq!(
        kubelet.asked.lock()[0],
        "/exec/n/p/c?command=cat&command=a%2Bb&error=1&input=1&output=1"
    );
    assert_eq!(
        kubectl.run("exec p -- fail", "").await,
        (
            false,
            "bad luck\ncommand terminated with exit code 7\n".to_owned()
        )
    );
    let (attached, text) = kubectl.run("attach -i p", "hello").await;
    assert!(attached && text.contains("hello"), "{text}");
    let (_, refused) = kubectl.run("exec p -- refuse", "").await;
    assert!(
        refused.ends_with("Internal error occurred: unable to upgrade connection: not today\n"),
        "{refused}"
    );

    let mut forwarding = kubectl.start("port-forward p :80");
    let mut lines = BufReader::new(forwarding.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").unwrap();
    let port = port.strip_suffix(" -> 80").unwrap().parse().unwrap();
    // Twice, over the same connection.
    for _ in 0..2 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut from, mut to) = stream.split();
        let sending = async {
            to.write_all(input.as_bytes()).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let mut answer = String::new();
        let reading = from.read_to_string(&mut answer);
        let ((), read) = tokio::join!(sending, reading);
        read.unwrap();
        assert_eq!(answer, input);
    }
    drop(forwarding);
    // A client that goes leaves nothing behind.
    assert!(eventually(async || kubelet.open.load(Ordering::Relaxed) == 0).await);

    // kubectl turns to SPDY by itself where WebSockets are refused: nothing above did.
    assert_eq!(kubelet.websockets.load(Ordering::Relaxed), 0);
    let metrics = metrics(&api).await;
    for line in [
        "apiserver_stream_translator_requests_total{code=\"200\"} 3",
        "apiserver_stream_translator_requests_total{code=\"500\"} 1",
        "apiserver_stream_tunnel_requests_total{code=\"101\"} 1",
        "apiserver_websocket_streaming_requests_total{proxy_type=\"translated_at_apiserver\",subresource=\"attach\"} 1",
        "apiserver_websocket_streaming_requests_total{proxy_type=\"translated_at_apiserver\",subresource=\"exec\"} 3",
        "apiserver_websocket_streaming_requests_total{proxy_type=\"translated_at_apiserver\",subresource=\"portforward\"} 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}");
    }
}

/// The messages of a client that asks with protocol v5.
async fn messages(api: &Api, query: &str, sent: &[&[u8]]) -> Vec<Vec<u8>> {
    let url = api.listen().await.replace("http://", "ws://");
    let url = format!("{url}/api/v1/namespaces/n/pods/p/{query}");
    let mut request = url.into_client_request().unwrap();
    let protocol = "v5.channel.k8s.io".parse().unwrap();
    let headers = request.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    for message in sent {
        let message = Message::Binary(message.to_vec().into());
        socket.send(message).await.unwrap();
    }
    let mut received = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(bytes) = message {
            received.push(bytes.to_vec());
        }
    }
    received
}

#[tokio::test]
async fn terminals_are_translated_and_failures_told() {
    let (kubelet, port) = Kubelet::start().await;
    let api = with_kubelet(port, json!([]), |_| {}).await;
    let success = [
        b"\x03".as_slice(),
        br#"{"metadata":{},"status":"Success"}"#.as_slice(),
    ]
    .concat();
    let size = br#"{"Width":80,"Height":24}"#.as_slice();
    let resize = [b"\x04", size].concat();
    let terminal = "exec?command=size&stdin=true&stdout=true&stderr=true&tty=true";
    let expected = [b"\x01".to_vec(), [b"\x01", size].concat(), success.clone()];
    assert_eq!(messages(&api, terminal, &[&resize]).await, expected);
    // The end of the input is a message of its own.
    let cat = "exec?command=cat&stdin=true&stdout=true";
    let expected = [b"\x01".to_vec(), b"\x01ab".to_vec(), success];
    let mut received = messages(&api, cat, &[b"\x00a", b"\x00b", &[255, 0]]).await;
    if received.len() == 4 {
        let second = received.remove(2);
        received[1].extend_from_slice(&second[1..]);
    }
    assert_eq!(received, expected);
    assert_eq!(kubelet.websockets.load(Ordering::Relaxed), 0);

    let nobody = json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}});
    let path = "/api/v1/nodes/a/status";
    api.patch(path, "merge-patch", nobody).await;
    let received = messages(&api, "exec?command=a%20b&stderr=true", &[]).await;
    assert_eq!(received[0], b"\x02");
    let status: Value = serde_json::from_slice(&received[1][1..]).unwrap();
    assert_eq!(received[1][0], 3);
    assert_eq!(
        status["message"],
        "Internal error occurred: error sending request: Post \"https://127.0.0.1:1/exec/n/p/c?command=a+b&error=1\": dial tcp 127.0.0.1:1: connect: connection refused"
    );
    assert_eq!(status["code"], 500);
}

#[tokio::test]
async fn websockets_go_to_kubelets_that_take_them() {
    let (kubelet, port) = Kubelet::start().await;
    let declared = json!(["ExtendWebSocketsToKubelet"]);
    let api = with_kubelet(port, declared, |_| {}).await;
    let ask = async |protocol: &str| {
        let url = api.listen().await.replace("http://", "ws://");
        let url = format!("{url}/api/v1/namespaces/n/pods/p/exec?command=x&stdout=1");
        let mut request = url.into_client_request().unwrap();
        let headers = request.headers_mut();
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
        tokio_tungstenite::connect_async(request).await.is_ok()
    };
    assert!(!ask("v5.channel.k8s.io").await);
    assert_eq!(kubelet.websockets.load(Ordering::Relaxed), 1);
    // As older protocols do wherever they are spoken.
    let nothing = json!({"status": {"declaredFeatures": null}});
    let path = "/api/v1/nodes/a/status";
    api.patch(path, "merge-patch", nothing).await;
    assert!(!ask("v4.channel.k8s.io").await);
    assert_eq!(kubelet.websockets.load(Ordering::Relaxed), 2);
    assert!(ask("v5.channel.k8s.io").await);
    assert_eq!(kubelet.websockets.load(Ordering::Relaxed), 2);
    let path = "/api/v1/namespaces/n/pods/p/exec?command=x&stdout=1";
    let (code, plain) = api.get(path).await;
    assert_eq!(code, 400);
    assert_eq!(plain["message"], "Upgrade request required");
}

#[tokio::test]
async fn who_may_only_look_at_pods_does_not_get_into_them() {
    let api = with_kubelet(1, json!([]), |_| {}).await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods/exec"]}]);
    let role = json!({"metadata": {"name": "looks"}, "rules": rules});
    api.post(&format!("{rbac}/clusterroles"), role).await;
    let binding = json!({"metadata": {"name": "looks"}, "subjects": [{"kind": "User", "name": "alice"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "looks"}});
    api.post(&format!("{rbac}/clusterrolebindings"), binding)
        .await;
    let path = "/api/v1/namespaces/n/pods/p/exec?command=x&stdout=1";
    let alice = User::new("alice", &[]);
    let call = api.call_as(
        &alice,
        http::Method::GET,
        path,
        "application/json",
        Value::Null,
    );
    let (code, refused) = call.await;
    assert_eq!(code, 403, "{refused}");
    assert_eq!(refused["message"], "pods \"p\" is forbidden: ");
}

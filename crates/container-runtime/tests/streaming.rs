//! Exec, attach and port-forward through the streaming server, as kubectl's clients do. Needs root.
#![allow(clippy::unwrap_used, clippy::large_futures)] // Tests fail by panicking.

mod common;

use std::net::SocketAddr;

use common::{Node, shell};
use fluyt_transport::spdy;
use futures::{SinkExt, StreamExt};
use http::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

#[test]
#[ignore = "not a test: the runtime's process of the others"]
fn runtime_process() {
    common::serve_if_asked();
}

/// Connects to the streaming server inside the node and switches protocols.
async fn upgrade(
    node: &Node,
    url: &str,
    headers: &[(&str, &str)],
) -> TokioIo<hyper::upgrade::Upgraded> {
    let (address, path) = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let stream: TcpStream = fluyt_network::netns::connect_tcp_in(&node.network(), address)
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::post(format!("/{path}"))
        .header(header::HOST, "node")
        .header(header::CONNECTION, "Upgrade");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = http_body_util::Empty::<bytes::Bytes>::new();
    let response = sender
        .send_request(request.body(body).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

async fn spdy(node: &Node, url: &str, protocol: &str) -> spdy::Connection {
    spdy::Connection::client(
        upgrade(
            node,
            url,
            &[
                ("upgrade", "SPDY/3.1"),
                ("x-stream-protocol-version", protocol),
            ],
        )
        .await,
    )
}

fn stream_type(kind: &str) -> spdy::Headers {
    vec![("streamtype".to_owned(), kind.to_owned())]
}

async fn exec_url(node: &Node, id: &str, command: &[&str], tty: bool) -> String {
    node.runtime()
        .await
        .exec(cri::ExecRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|arg| arg.to_string()).collect(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        })
        .await
        .unwrap()
        .into_inner()
        .url
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_over_spdy_and_websocket() {
    let node = Node::start().await;
    let sandbox = node.run_sandbox("exec").await;
    let id = node.run(&sandbox, "exec", "sleep 1000").await;

    let url = exec_url(
        &node,
        &id,
        &["sh", "-c", "cat; echo bad >&2; exit 4"],
        false,
    )
    .await;
    let connection = spdy(&node, &url, "v4.channel.k8s.io").await;
    let mut error = connection.open(stream_type("error")).await.unwrap();
    let mut stdin = connection.open(stream_type("stdin")).await.unwrap();
    let mut stdout = connection.open(stream_type("stdout")).await.unwrap();
    let mut stderr = connection.open(stream_type("stderr")).await.unwrap();
    let input = vec![b'x'; 300_000];
    let sent = input.clone();
    tokio::spawn(async move {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let mut output = Vec::new();
    stdout.read_to_end(&mut output).await.unwrap();
    assert_eq!(output.len(), input.len());
    let mut text = String::new();
    stderr.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "bad\n");
    let mut status = String::new();
    error.read_to_string(&mut status).await.unwrap();
    assert!(
        status.contains("NonZeroExitCode") && status.contains("\"4\""),
        "{status}"
    );

    let url = exec_url(&node, &id, &["sh"], true).await;
    let socket = upgrade(
        &node,
        &url,
        &[
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
        ],
    )
    .await;
    let mut socket = WebSocketStream::from_raw_socket(socket, Role::Client, None).await;
    socket
        .send(Message::Binary(
            b"\x04{\"Width\":123,\"Height\":45}".to_vec().into(),
        ))
        .await
        .unwrap();
    // The shell may ask before the size arrives; once it is right it stays so.
    socket
        .send(Message::Binary(
            b"\0until stty size | grep -q '45 123'; do :; done; tty; exit 6\n"
                .to_vec()
                .into(),
        ))
        .await
        .unwrap();
    let mut output = String::new();
    let mut status = String::new();
    while let Some(Ok(message)) = socket.next().await {
        let Message::Binary(bytes) = message else {
            continue;
        };
        let text = String::from_utf8_lossy(&bytes[1..]).into_owned();
        match bytes[0] {
            1 => output.push_str(&text),
            3 => status.push_str(&text),
            other => panic!("channel {other}"),
        }
    }
    assert!(output.contains("/dev/pts/"), "{output}");
    assert!(status.contains("\"6\""), "{status}");
    node.remove_sandbox(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_sends_input_and_gets_output() {
    let node = Node::start().await;
    let sandbox = node.run_sandbox("attach").await;
    let mut config = shell(
        "attach",
        "while read line; do echo got $line; done; echo end",
    );
    config.stdin = true;
    config.stdin_once = true;
    let id = node.create(&sandbox, config).await;
    node.start_container(&id).await;
    let url = node
        .runtime()
        .await
        .attach(cri::AttachRequest {
            container_id: id.clone(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        })
        .await
        .unwrap()
        .into_inner()
        .url;
    let connection = spdy(&node, &url, "v4.channel.k8s.io").await;
    let _error = connection.open(stream_type("error")).await.unwrap();
    let mut stdin = connection.open(stream_type("stdin")).await.unwrap();
    let mut stdout = connection.open(stream_type("stdout")).await.unwrap();
    let _stderr = connection.open(stream_type("stderr")).await.unwrap();
    stdin.write_all(b"one\ntwo\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    let mut output = String::new();
    stdout.read_to_string(&mut output).await.unwrap();
    assert_eq!(output, "got one\ngot two\nend\n");
    assert_eq!(node.wait_exit(&id).await.exit_code, 0);
    assert!(
        node.container_log("attach", "attach")
            .contains(" stdout F got two\n")
    );
    node.remove_sandbox(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_into_the_pod() {
    let node = Node::start().await;
    let sandbox = node.run_sandbox("forward").await;
    let script =
        "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www";
    let id = node.run(&sandbox, "forward", script).await;
    while node
        .exec(&id, &["wget", "-qO-", "http://127.0.0.1:8080/"], 5)
        .await
        .unwrap()
        .exit_code
        != 0
    {}
    let url = node
        .runtime()
        .await
        .port_forward(cri::PortForwardRequest {
            pod_sandbox_id: sandbox.clone(),
            port: vec![8080],
        })
        .await
        .unwrap()
        .into_inner()
        .url;
    let connection = spdy(&node, &url, "portforward.k8s.io").await;
    for (request, port, expected) in [("0", "8080", "hello"), ("1", "1", "refused")] {
        let headers = |kind: &str| {
            vec![
                ("streamtype".to_owned(), kind.to_owned()),
                ("port".to_owned(), port.to_owned()),
                ("requestid".to_owned(), request.to_owned()),
            ]
        };
        let mut error = connection.open(headers("error")).await.unwrap();
        let mut data = connection.open(headers("data")).await.unwrap();
        data.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        data.read_to_string(&mut answer).await.unwrap();
        error.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(expected), "{answer}");
    }
    node.remove_sandbox(&sandbox).await;
}

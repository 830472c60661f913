//! What clients see of a server that stops.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use crate::common::service::eventually;
use crate::flags::client::{Listening, request};
use crate::flags::given;

type Pieces = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// Begins to create an object; it is created once the rest has been sent.
async fn begin(
    listening: &Listening,
) -> (Pieces, tokio::task::JoinHandle<hyper::Result<StatusCode>>) {
    let stream = listening.client.connect(listening.address, "127.0.0.1");
    let stream = stream.await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (pieces, queue) = mpsc::channel(1);
    let body = futures::stream::unfold(queue, |mut queue: mpsc::Receiver<_>| async move {
        queue.recv().await.map(|piece| (piece, queue))
    });
    let request = Request::post("/api/v1/namespaces")
        .header("content-type", "application/json")
        .body(StreamBody::new(Box::pin(body)))
        .unwrap();
    let answer = tokio::spawn(async move {
        let response = sender.send_request(request).await?;
        Ok(response.status())
    });
    let piece = Bytes::from_static(b"{\"metadata\": ");
    pieces.send(Ok(Frame::data(piece))).await.unwrap();
    // It has been taken when there is room for the next one, and is in the server's hands once it is counted.
    let metrics = async || {
        let (_, _, metrics) = listening.get("/metrics").await;
        metrics.contains("apiserver_current_inflight_requests{request_kind=\"mutating\"} 1\n")
    };
    assert!(eventually(metrics).await);
    (pieces, answer)
}

async fn finish(pieces: Pieces) {
    let piece = Bytes::from_static(b"{\"name\": \"late\"}}");
    pieces.send(Ok(Frame::data(piece))).await.unwrap();
}

#[tokio::test]
async fn new_requests_are_asked_to_come_again() {
    let flags = ["--shutdown-send-retry-after"];
    let listening = Listening::start(|config, _| config.limits = given(&flags)).await;
    let (pieces, answer) = begin(&listening).await;
    listening.shutdown.cancel();
    let (status, headers, body) = listening.get("/api").await;
    assert_eq!(status, 429);
    assert_eq!(headers["retry-after"], "5");
    assert_eq!(headers["connection"], "close");
    assert_eq!(
        body,
        "The apiserver is shutting down, please try again later.\n"
    );
    // Load balancers and whoever watches over it are answered, and so are the server's own clients.
    assert_eq!(listening.get("/readyz").await.0, 500);
    assert_eq!(listening.get("/livez").await.0, 200);
    let own = request(
        Method::GET,
        "/api",
        &[("user-agent", "kube-apiserver/v1.36.0")],
    );
    let (status, _, _) = listening.client.send(listening.address, own).await.unwrap();
    assert_eq!(status, 200);
    // What was begun before is finished.
    finish(pieces).await;
    assert_eq!(answer.await.unwrap().unwrap(), 201);
    listening.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn otherwise_nobody_is_listened_to_any_more() {
    let listening = Listening::start(|_, _| {}).await;
    let (pieces, answer) = begin(&listening).await;
    listening.shutdown.cancel();
    let refused = async || {
        tokio::net::TcpStream::connect(listening.address)
            .await
            .is_err()
    };
    assert!(eventually(refused).await);
    finish(pieces).await;
    assert_eq!(answer.await.unwrap().unwrap(), 201);
    listening.ended.await.unwrap().unwrap();
}

#[tokio::test]
async fn watches_end_one_after_the_other() {
    let flags = ["--shutdown-watch-termination-grace-period=60s"];
    let listening = Listening::start(|config, _| config.limits = given(&flags)).await;
    let mut bodies = Vec::new();
    for _ in 0..3 {
        let path = "/api/v1/namespaces?watch=true&resourceVersion=0";
        let mut request = request(Method::GET, path, &[]);
        request.extensions_mut().insert(listening.api.user.clone());
        bodies.push(listening.api.server.handle(request).await.into_body());
    }
    listening.shutdown.cancel();
    // There are few, so that it does not take the whole time.
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        for mut body in bodies {
            while let Some(frame) = body.frame().await {
                frame.unwrap();
            }
        }
        listening.ended.await.unwrap().unwrap();
    });
    ended.await.unwrap();
}

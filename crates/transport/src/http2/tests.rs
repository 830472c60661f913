//! With h2's client on the other end.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;
use futures::stream;
use h2::Reason;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::io::DuplexStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;

type Whole = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

fn whole(bytes: impl Into<Bytes>) -> Response<Whole> {
    let body = Full::new(bytes.into()).map_err(|never: Infallible| match never {});
    Response::new(body.boxed_unsync())
}

/// What is answered to requests, by their paths.
#[derive(Clone, Default)]
struct Service {
    /// Lets `/wait` go on.
    go: Arc<Notify>,
    /// Requests to `/wait`, and pieces of `/endless`.
    under_way: Arc<AtomicUsize>,
    pieces: Arc<AtomicUsize>,
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(counter.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Service {
    fn call(self, request: Request<Incoming>) -> BoxFuture<'static, Response<Whole>> {
        Box::pin(async move {
            match request.uri().path() {
                "/echo" => {
                    let mut body = request.into_body();
                    let length = body.size_hint().exact();
                    let (mut bytes, mut trailers) = (Vec::new(), None);
                    while let Some(frame) = body.frame().await {
                        match frame.unwrap().into_data() {
                            Ok(data) => bytes.extend_from_slice(&data),
                            Err(frame) => trailers = frame.into_trailers().ok(),
                        }
                        let left = length.map(|length| length - bytes.len() as u64);
                        assert!(body.is_end_stream() || body.size_hint().exact() == left);
                    }
                    let bytes = Bytes::from(bytes);
                    let frames = [Ok(Frame::data(bytes))]
                        .into_iter()
                        .chain(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                    let body = StreamBody::new(stream::iter(frames.collect::<Vec<_>>()));
                    Response::new(body.boxed_unsync())
                }
                "/wait" => {
                    let _counted = Counted::new(&self.under_way);
                    self.go.notified().await;
                    whole("gone on")
                }
                "/go" => {
                    self.go.notify_one();
                    whole("")
                }
                "/connection" => {
                    let mut response = whole("x");
                    for (name, value) in [
                        ("connection", "x-own, close"),
                        ("x-own", "1"),
                        ("keep-alive", "1"),
                        ("upgrade", "h3"),
                        ("x-other", "2"),
                    ] {
                        let value = HeaderValue::from_static(value);
                        response.headers_mut().append(name, value);
                    }
                    response
                }
                "/broken" => {
                    let frames = [
                        Ok(Frame::data(Bytes::from_static(b"half"))),
                        Err(std::io::Error::other("no more")),
                    ];
                    Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync())
                }
                "/endless" => {
                    let counted = Counted::new(&self.under_way);
                    let pieces = stream::repeat_with(move || {
                        let _ = &counted;
                        self.pieces.fetch_add(1, Ordering::SeqCst);
                        Ok(Frame::data(Bytes::from(vec![0; 1000])))
                    });
                    Response::new(StreamBody::new(pieces).boxed_unsync())
                }
                "/silent" => {
                    let counted = Counted::new(&self.under_way);
                    let pieces = stream::poll_fn(move |_| {
                        let _ = &counted;
                        Poll::Pending
                    });
                    Response::new(StreamBody::new(pieces).boxed_unsync())
                }
                "/nothing" => {
                    let pieces = stream::repeat_with(|| Ok(Frame::data(Bytes::new())));
                    Response::new(StreamBody::new(pieces).boxed_unsync())
                }
                _ => {
                    let mut response = whole("");
                    *response.status_mut() = StatusCode::NOT_FOUND;
                    response
                }
            }
        })
    }
}

struct Bed {
    service: Service,
    client: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
    stop: Arc<Notify>,
    server: JoinHandle<Result<(), Error>>,
}

const DATED: Settings = Settings {
    streams: Some(100),
    headers: None,
    ping: None,
    date: true,
};

fn server(
    settings: Settings,
) -> (
    Service,
    DuplexStream,
    Arc<Notify>,
    JoinHandle<Result<(), Error>>,
) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (service, stop) = (Service::default(), Arc::new(Notify::new()));
    let (own, stopped) = (service.clone(), stop.clone());
    let serving = async move {
        let stopped = stopped.notified();
        serve(far, settings, |request| own.clone().call(request), stopped).await
    };
    (service, near, stop, tokio::spawn(serving))
}

async fn bed(settings: Settings) -> Bed {
    let (service, near, stop, server) = server(settings);
    let (client, connection) = h2::client::handshake(near).await.unwrap();
    Bed {
        service,
        client,
        connection: tokio::spawn(connection),
        stop,
        server,
    }
}

type Answering = h2::client::ResponseFuture;

impl Bed {
    fn send(&mut self, path: &str) -> Answering {
        let request = Request::get(format!("http://test{path}")).body(()).unwrap();
        self.client.send_request(request, true).unwrap().0
    }

    async fn get(&mut self, path: &str) -> (HeaderMap, Result<Bytes, h2::Error>) {
        let response = match self.send(path).await {
            Ok(response) => response,
            Err(error) => return (HeaderMap::new(), Err(error)),
        };
        let (head, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            match data {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(error) => return (head.headers, Err(error)),
            }
        }
        (head.headers, Ok(bytes.into()))
    }

    async fn until(&self, under_way: usize) {
        while self.service.under_way.load(Ordering::SeqCst) != under_way {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn what_is_sent_comes_back() {
    let mut bed = bed(DATED).await;
    // Several times what a client may send before it is read.
    let sent = Bytes::from(vec![7; 5 << 20]);
    for length in [Some(sent.len()), None] {
        let mut request = Request::post("http://test/echo").body(()).unwrap();
        if let Some(length) = length {
            let length = HeaderValue::from(length);
            request.headers_mut().insert("content-length", length);
        }
        let (answer, mut stream) = bed.client.send_request(request, false).unwrap();
        stream.send_data(sent.clone(), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", HeaderValue::from_static("yes"));
        stream.send_trailers(trailers.clone()).unwrap();
        let mut body = answer.await.unwrap().into_body();
        let mut received = 0;
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            assert!(data.iter().all(|byte| *byte == 7));
            received += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        assert_eq!(received, sent.len());
        assert_eq!(body.trailers().await.unwrap(), Some(trailers));
    }
}

#[tokio::test]
async fn headers_are_those_of_http2() {
    let mut bed = bed(DATED).await;
    let (headers, body) = bed.get("/connection").await;
    assert_eq!(body.unwrap(), "x");
    assert_eq!(headers["x-other"], "2");
    assert_eq!(headers["content-length"], "1");
    assert!(headers.contains_key("date"));
    for name in ["connection", "x-own", "keep-alive", "upgrade"] {
        assert!(!headers.contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn requests_do_not_wait_for_each_other() {
    let mut bed = bed(DATED).await;
    let first = bed.send("/wait");
    bed.until(1).await;
    assert_eq!(bed.get("/go").await.1.unwrap(), "");
    assert_eq!(first.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_request_that_is_not_wanted_any_more_ends() {
    let mut bed = bed(DATED).await;
    let answer = bed.send("/wait");
    bed.until(1).await;
    drop(answer);
    bed.until(0).await;
    // Also while it is answered, with more than the client takes or with nothing for now.
    for path in ["/endless", "/silent"] {
        let answer = bed.send(path).await.unwrap();
        bed.until(1).await;
        drop(answer);
        bed.until(0).await;
    }
    assert_eq!(bed.get("/echo").await.1.unwrap(), "");
}

#[tokio::test]
async fn what_a_client_does_not_read_is_not_made() {
    let mut bed = bed(DATED).await;
    let answer = bed.send("/endless").await.unwrap();
    // Its window is full, and that of the connection: whoever has an empty body needs none.
    let mut made = 0;
    loop {
        assert_eq!(bed.get("/missing").await.1.unwrap(), "");
        let pieces = bed.service.pieces.load(Ordering::SeqCst);
        if pieces == made {
            break;
        }
        made = pieces;
    }
    assert!((65..70).contains(&made), "{made}");
    let mut body = answer.into_body();
    let data = body.data().await.unwrap().unwrap();
    body.flow_control().release_capacity(data.len()).unwrap();
}

#[tokio::test]
async fn an_answer_that_is_always_ready_leaves_room_for_others() {
    let mut bed = bed(DATED).await;
    let endless = bed.send("/nothing").await.unwrap();
    assert_eq!(bed.get("/echo").await.1.unwrap(), "");
    drop(endless);
}

#[tokio::test]
async fn a_body_that_breaks_resets_its_stream() {
    let mut bed = bed(DATED).await;
    let (_, body) = bed.get("/broken").await;
    assert_eq!(body.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
    assert_eq!(bed.get("/echo").await.1.unwrap(), "");
}

#[tokio::test]
async fn a_stopped_connection_answers_what_it_carries() {
    let mut bed = bed(DATED).await;
    let first = bed.send("/wait");
    bed.until(1).await;
    bed.stop.notify_one();
    // The client is told, and starts nothing new.
    while bed.client.clone().ready().await.is_ok() {
        tokio::task::yield_now().await;
    }
    bed.service.go.notify_one();
    assert_eq!(first.await.unwrap().status(), 200);
    bed.connection.await.unwrap().unwrap();
    bed.server.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_given_up() {
    let settings = Settings {
        ping: Some(Duration::from_secs(30)),
        ..DATED
    };
    // No preface.
    let (_, near, _, serving) = server(settings);
    let ended = serving.await.unwrap();
    assert!(matches!(ended, Err(Error::Silent)), "{ended:?}");
    drop(near);
    // One that answers pings stays for hours.
    let mut bed = bed(settings).await;
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    assert_eq!(bed.get("/echo").await.1.unwrap(), "");
}

#[tokio::test(start_paused = true)]
async fn pings_that_nobody_answers_end_a_connection() {
    let settings = Settings {
        ping: Some(Duration::from_secs(30)),
        ..DATED
    };
    let (_, mut near, _, serving) = server(settings);
    let begin = Instant::now();
    // A preface and settings, and then no more.
    tokio::io::AsyncWriteExt::write_all(
        &mut near,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    )
    .await
    .unwrap();
    let ended = serving.await.unwrap();
    assert!(matches!(ended, Err(Error::Silent)), "{ended:?}");
    assert_eq!(begin.elapsed().as_secs(), 50);
}

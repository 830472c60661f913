//! Four connections with eight requests in flight each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::server::Access;

const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 8;

/// A request that must succeed.
pub struct Request {
    method: http::Method,
    path: String,
    content_type: &'static str,
    body: Bytes,
}

const JSON: &str = "application/json";

/// One HTTP/2 connection.
#[derive(Clone)]
pub struct Connection(SendRequest<Full<Bytes>>);

pub struct Clients(Vec<Connection>);

impl Request {
    pub fn get(path: String) -> Self {
        Self {
            method: http::Method::GET,
            path,
            content_type: JSON,
            body: Bytes::new(),
        }
    }

    pub fn post(path: &str, body: Vec<u8>) -> Self {
        Self {
            method: http::Method::POST,
            path: path.to_owned(),
            content_type: JSON,
            body: body.into(),
        }
    }

    pub fn put(path: String, body: Vec<u8>) -> Self {
        Self {
            method: http::Method::PUT,
            path,
            content_type: JSON,
            body: body.into(),
        }
    }

    /// A merge patch.
    pub fn patch(path: String, body: Vec<u8>) -> Self {
        Self {
            method: http::Method::PATCH,
            path,
            content_type: "application/merge-patch+json",
            body: body.into(),
        }
    }
}

impl Connection {
    pub async fn open(access: &Access) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", access.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let stream = TlsConnector::from(access.tls.clone())
            .connect(name, stream)
            .await?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    async fn send(&self, request: Request) -> anyhow::Result<Incoming> {
        let mut sender = self.0.clone();
        sender.ready().await?;
        let path = request.path.clone();
        let request = http::Request::builder()
            .method(request.method)
            .uri(format!("https://localhost{}", request.path))
            .header("content-type", request.content_type)
            .header("accept", JSON)
            .body(Full::new(request.body))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        ensure!(status.is_success(), "{path}: {status}");
        Ok(response.into_body())
    }

    /// Sends a request and reads its answer to the end.
    async fn finish(&self, request: Request) -> anyhow::Result<()> {
        let mut body = self.send(request).await?;
        while let Some(frame) = body.frame().await {
            frame?;
        }
        Ok(())
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<()> {
        self.finish(Request::get(path.to_owned())).await
    }
}

impl Clients {
    pub async fn connect(access: &Access) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(Connection::open(access).await?);
        }
        Ok(Self(connections))
    }

    /// Runs all requests; how long each took.
    pub async fn run(&self, requests: Vec<Request>) -> anyhow::Result<Vec<Duration>> {
        let waiting = Arc::new(Mutex::new(VecDeque::from(requests)));
        let mut workers = Vec::new();
        for connection in &self.0 {
            for _ in 0..IN_FLIGHT {
                let (connection, waiting) = (connection.clone(), waiting.clone());
                workers.push(tokio::spawn(async move {
                    let mut took = Vec::new();
                    loop {
                        let next = waiting
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .pop_front();
                        let Some(request) = next else {
                            return anyhow::Ok(took);
                        };
                        let begin = Instant::now();
                        connection.finish(request).await?;
                        took.push(begin.elapsed());
                    }
                }));
            }
        }
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.await??);
        }
        Ok(all)
    }

    /// Starts watches of what is created from now on, each until it has seen `events`; how often one had to begin again.
    pub async fn watch(
        &self,
        path: &str,
        watchers: usize,
        events: usize,
    ) -> anyhow::Result<Vec<JoinHandle<anyhow::Result<usize>>>> {
        let mut tasks = Vec::new();
        for n in 0..watchers {
            let connection = self.0[n % self.0.len()].clone();
            let version = current_version(&connection, path).await?;
            let mut watch = Watch {
                path: path.to_owned(),
                version,
                seen: 0,
            };
            let body = watch.open(&connection).await?;
            tasks.push(tokio::spawn(async move {
                let mut ends = 0;
                watch.read(body, events).await?;
                // A server may end the watch of one that is slow, which then goes on from where it was.
                while watch.seen < events {
                    ends += 1;
                    let body = watch.open(&connection).await?;
                    watch.read(body, events).await?;
                }
                Ok(ends)
            }));
        }
        Ok(tasks)
    }

    /// Opens watches that nothing happens to, on connections of their own.
    pub async fn hold(
        access: &Access,
        path: &str,
        connections: usize,
        streams: usize,
    ) -> anyhow::Result<Vec<Incoming>> {
        let mut held = Vec::new();
        for _ in 0..connections {
            let connection = Connection::open(access).await?;
            let version = current_version(&connection, path).await?;
            // One stream stays free, for the next version.
            for _ in 0..streams {
                let watch = format!("{path}?watch=1&resourceVersion={version}");
                held.push(connection.send(Request::get(watch)).await?);
            }
        }
        Ok(held)
    }
}

/// A watch, which may take several requests.
struct Watch {
    path: String,
    version: String,
    seen: usize,
}

impl Watch {
    async fn open(&self, connection: &Connection) -> anyhow::Result<Incoming> {
        let Self { path, version, .. } = self;
        let watch = format!("{path}?watch=1&resourceVersion={version}");
        connection.send(Request::get(watch)).await
    }

    /// Reads until `events` have been seen or the server ends it.
    async fn read(&mut self, mut body: Incoming, events: usize) -> anyhow::Result<()> {
        let (mut last, mut begun) = (Vec::new(), Vec::new());
        while self.seen < events
            && let Some(frame) = body.frame().await
        {
            for piece in frame?
                .into_data()
                .unwrap_or_default()
                .split_inclusive(|b| *b == b'\n')
            {
                begun.extend_from_slice(piece);
                if piece.ends_with(b"\n") {
                    std::mem::swap(&mut last, &mut begun);
                    begun.clear();
                    self.seen += 1;
                }
            }
        }
        if self.seen < events && !last.is_empty() {
            let event: serde_json::Value = serde_json::from_slice(&last)?;
            let version = event["object"]["metadata"]["resourceVersion"].as_str();
            let version = version.with_context(|| format!("a watch ended with {event}"))?;
            version.clone_into(&mut self.version);
        }
        Ok(())
    }
}

/// The version of a collection, without its objects.
async fn current_version(connection: &Connection, path: &str) -> anyhow::Result<String> {
    let list = Request::get(format!("{path}?limit=1"));
    let body = connection.send(list).await?.collect().await?.to_bytes();
    let list: serde_json::Value = serde_json::from_slice(&body)?;
    let version = list["metadata"]["resourceVersion"].as_str();
    version.map(str::to_owned).context("a list has no version")
}

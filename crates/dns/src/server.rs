//! UDP and TCP listeners, and the health endpoint.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use hickory_proto::op::{Message, OpCode, ResponseCode};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::forward::Forwarder;
use crate::records;
use crate::zone::Zone;

/// Largest UDP answer for a client that does not say what it takes.
const UDP_LIMIT: usize = 512;

/// Queries that may wait for other servers at once; more are refused.
const MAX_FORWARDS: usize = 1000;

/// A TCP client that sends nothing is dropped.
const IDLE: Duration = Duration::from_secs(10);

/// Answers queries.
pub struct Server {
    zone: Zone,
    forwarder: Forwarder,
    forwards: Semaphore,
    ready: AtomicBool,
    queries: AtomicU64,
}

impl Server {
    pub fn new(zone: Zone, forwarder: Forwarder) -> Self {
        Self {
            zone,
            forwarder,
            forwards: Semaphore::new(MAX_FORWARDS),
            ready: AtomicBool::new(false),
            queries: AtomicU64::new(0),
        }
    }

    /// The answer to a raw query; `None` when it deserves none.
    async fn answer(&self, bytes: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let request = Message::from_vec(bytes).ok()?;
        self.queries.fetch_add(1, Ordering::Relaxed);
        let response = match request.queries.as_slice() {
            _ if request.metadata.op_code != OpCode::Query => {
                records::failure(&request, ResponseCode::NotImp)
            }
            [query] => {
                let name = query.name().to_lowercase().to_ascii();
                let answer = self.zone.lookup(name.trim_end_matches('.'));
                match records::respond(&request, query, self.zone.domain(), answer) {
                    // Before the first lists are in, a name that seems missing may not be.
                    Some(_) if !self.ready.load(Ordering::Acquire) => {
                        records::failure(&request, ResponseCode::ServFail)
                    }
                    Some(response) => response,
                    None => return self.forward(&request, bytes, over_tcp).await,
                }
            }
            _ => records::failure(&request, ResponseCode::FormErr),
        };
        let limit = if over_tcp {
            usize::from(u16::MAX)
        } else {
            UDP_LIMIT.max(request.max_payload().into())
        };
        let encoded = response.to_vec().ok()?;
        if encoded.len() <= limit {
            return Some(encoded);
        }
        // Too large: the client asks again over TCP.
        response.truncate().to_vec().ok()
    }

    async fn forward(&self, request: &Message, bytes: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let Ok(_permit) = self.forwards.try_acquire() else {
            return records::failure(request, ResponseCode::Refused)
                .to_vec()
                .ok();
        };
        match self.forwarder.ask(bytes, over_tcp).await {
            Some(answer) => Some(answer),
            None => records::failure(request, ResponseCode::ServFail)
                .to_vec()
                .ok(),
        }
    }

    fn health(&self, path: &str) -> Response<Full<Bytes>> {
        let ready = self.ready.load(Ordering::Acquire);
        let (status, text) = match path {
            "/health" => (StatusCode::OK, "OK".to_owned()),
            "/ready" if ready => (StatusCode::OK, "OK".to_owned()),
            "/ready" => (StatusCode::SERVICE_UNAVAILABLE, "kubernetes".to_owned()),
            "/metrics" => {
                let queries = self.queries.load(Ordering::Relaxed);
                (
                    StatusCode::OK,
                    format!(
                        "# TYPE coredns_dns_requests_total counter\ncoredns_dns_requests_total {queries}\n"
                    ),
                )
            }
            _ => (StatusCode::NOT_FOUND, "not found".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    }
}

/// Serves until shutdown.
pub async fn run(
    server: Server,
    listen: SocketAddr,
    health: SocketAddr,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let server = Arc::new(server);
    let udp = Arc::new(
        UdpSocket::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen}/udp"))?,
    );
    let tcp = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}/tcp"))?;
    let health = TcpListener::bind(health)
        .await
        .with_context(|| format!("cannot listen on {health}"))?;
    let syncing = server.clone();
    let synced = async move {
        syncing.zone.synced().await;
        syncing.ready.store(true, Ordering::Release);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = serve_udp(server.clone(), udp) => {}
        () = serve_tcp(server.clone(), tcp) => {}
        () = serve_health(server, health) => {}
        () = synced => {}
        () = shutdown.cancelled() => {}
    }
    Ok(())
}

async fn serve_udp(server: Arc<Server>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let (server, socket, query) = (server.clone(), socket.clone(), buffer[..length].to_vec());
        tokio::spawn(async move {
            if let Some(answer) = server.answer(&query, false).await
                && let Err(error) = socket.send_to(&answer, client).await
            {
                tracing::debug!(%client, %error, "an answer was not sent");
            }
        });
    }
}

async fn serve_tcp(server: Arc<Server>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let server = server.clone();
        tokio::spawn(async move {
            if let Err(error) = serve_stream(&server, stream).await {
                tracing::debug!(%error, "a client's connection ended");
            }
        });
    }
}

async fn serve_stream(server: &Server, mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let Ok(length) = tokio::time::timeout(IDLE, stream.read_u16()).await else {
            return Ok(());
        };
        let mut query = vec![0; usize::from(length?)];
        stream.read_exact(&mut query).await?;
        let Some(answer) = server.answer(&query, true).await else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&answer).await?;
    }
}

async fn serve_health(server: Arc<Server>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let server = server.clone();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let response = server.health(request.uri().path());
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // A probe that hangs up is nobody's concern.
            let _ = connection.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use hickory_proto::rr::{Name, RData, RecordType};

    async fn ask(name: &str, ty: RecordType) -> Message {
        let server = Server::new(crate::zone::tests::zone(), Forwarder::default());
        server.ready.store(true, Ordering::Release);
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii(name).unwrap(), ty));
        let answer = server
            .answer(&request.to_vec().unwrap(), false)
            .await
            .unwrap();
        Message::from_vec(&answer).unwrap()
    }

    #[tokio::test]
    async fn queries_are_answered_whatever_their_case() {
        let response = ask("WEB.n.svc.Cluster.Local.", RecordType::A).await;
        assert!(response.metadata.authoritative);
        assert!(matches!(&response.answers[0].data, RData::A(a) if a.0.to_string() == "10.0.0.7"));
        let response = ask("web.n.svc.cluster.local.", RecordType::AAAA).await;
        assert_eq!((response.answers.len(), response.authorities.len()), (0, 1));
        assert_eq!(response.metadata.response_code, ResponseCode::NoError);
        let response = ask("nothing.n.svc.cluster.local.", RecordType::A).await;
        assert_eq!(response.metadata.response_code, ResponseCode::NXDomain);
        // Nobody to ask.
        let response = ask("example.com.", RecordType::A).await;
        assert_eq!(response.metadata.response_code, ResponseCode::ServFail);
    }

    #[tokio::test]
    async fn nonsense_gets_no_answer() {
        let server = Server::new(crate::zone::tests::zone(), Forwarder::default());
        assert!(server.answer(b"x", false).await.is_none());
    }
}

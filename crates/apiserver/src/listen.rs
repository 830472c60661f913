//! TLS listeners.

mod certificates;
mod socket;
mod tls;
mod verify;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::CONNECTION;
use ::http::{Request, Response, Version};
use fluyt_transport::Settings;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::Server;
use crate::authn::PeerCertificates;
use crate::http::{Body, BoxError};

pub use certificates::{Certificates, NamedPair, Pair, Usual};
pub use socket::Sharing;
pub use tls::TlsSettings;
pub(crate) use verify::AnyServer;

use certificates::At;
use verify::AnyClient;

/// A connection that does not finish its handshake by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// So is one that does not send its request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);

/// Longest headers of a request, in bytes.
const MAX_HEADERS: u32 = 1 << 20;

/// How often a client has to show that it is there.
const PING: Duration = Duration::from_secs(30);

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// Serves a connection; once `stopped`, until the requests that it carries are answered. No function, since the kinds of
/// connections have nothing in common that could be asked for.
macro_rules! serve_until {
    ($connection:expr, $stopped:expr) => {{
        let connection = $connection;
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = $stopped => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    }};
}

impl Server {
    /// Serves one listener until shutdown, then lets requests in flight finish.
    ///
    /// # Errors
    /// When the serving certificate is malformed.
    pub async fn listen(self: &Arc<Self>, listener: TcpListener) -> anyhow::Result<()> {
        let tls = Arc::new(self.server_tls()?);
        let (done_sender, mut done) = tokio::sync::mpsc::channel::<()>(1);
        loop {
            let (stream, address) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, most likely: let some close.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = self.drain.closed().cancelled() => break,
            };
            let (server, acceptor) = (self.clone(), self.acceptor(&tls, &stream));
            let guard = done_sender.clone();
            tokio::spawn(async move {
                server.connection(stream, address, acceptor).await;
                drop(guard);
            });
        }
        drop(done_sender);
        // What is asked takes its time; then only answers have to be sent.
        self.drain.drained.cancelled().await;
        let finished = tokio::time::timeout(Duration::from_secs(10), done.recv()).await;
        if finished.is_err() {
            tracing::warn!("connections are still open; leaving them");
        }
        if let Some(tracer) = &self.tracer {
            tracer.flush().await;
        }
        Ok(())
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        acceptor: TlsAcceptor,
    ) {
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => return,
        };
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2".as_slice());
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = PeerCertificates::new(chain.iter().map(|c| c.clone().into_owned()).collect());
        let connection = Arc::new(Connection {
            server: self,
            peer,
            address,
            goodbye: CancellationToken::new(),
        });
        let ended = if http2 {
            connection.http2(stream).await
        } else {
            connection.any(stream).await
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended");
        }
    }

    /// The settings for a connection, whose certificate may depend on the address that it was made to.
    fn acceptor(&self, tls: &Arc<ServerConfig>, stream: &TcpStream) -> TlsAcceptor {
        let address = stream.local_addr().map(|address| address.ip());
        match address {
            Ok(address) if self.certificates.knows_addresses() => {
                let certificates = self.certificates.clone();
                let mut own = ServerConfig::clone(tls);
                own.cert_resolver = Arc::new(At {
                    certificates,
                    address,
                });
                Arc::new(own).into()
            }
            _ => tls.clone().into(),
        }
    }

    fn server_tls(&self) -> anyhow::Result<ServerConfig> {
        let tls = &self.config.tls;
        let mut config = tls
            .builder()?
            .with_client_cert_verifier(Arc::new(AnyClient))
            .with_cert_resolver(self.certificates.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if tls.disable_http2_serving {
            config.alpn_protocols.remove(0);
        }
        Ok(config)
    }
}

/// What requests of a connection have in common.
struct Connection {
    server: Arc<Server>,
    peer: PeerCertificates,
    address: SocketAddr,
    /// The client shall connect anew, to whichever server there is.
    goodbye: CancellationToken,
}

impl Connection {
    async fn answer<B>(self: Arc<Self>, mut request: Request<B>) -> Response<Body>
    where
        B: ::http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        request.extensions_mut().insert(self.peer.clone());
        request.extensions_mut().insert(PeerAddress(self.address));
        let is_http2 = request.version() == Version::HTTP_2;
        if is_http2 && self.server.config.limits.says_goodbye() {
            self.goodbye.cancel();
        }
        let mut response = self.server.handle(request).await;
        // HTTP/2 has no such header, but says the same in its own way.
        if is_http2 && response.headers_mut().remove(CONNECTION).is_some() {
            self.goodbye.cancel();
        }
        response
    }

    async fn stopped(&self) {
        tokio::select! {
            () = self.server.drain.closed().cancelled() => {}
            () = self.goodbye.cancelled() => {}
        }
    }

    /// Serves a client that has chosen HTTP/2. Nothing takes such a connection over.
    async fn http2(self: Arc<Self>, stream: TlsStream<TcpStream>) -> Result<(), BoxError> {
        let settings = Settings {
            streams: Some(self.server.config.limits.streams()),
            headers: Some(MAX_HEADERS),
            ping: Some(PING),
            date: true,
        };
        let answer = |request| Box::pin(self.clone().answer(request));
        fluyt_transport::serve(stream, settings, answer, self.stopped()).await?;
        Ok(())
    }

    /// Serves a client that may speak HTTP/1, or HTTP/2 without having said so.
    async fn any(self: Arc<Self>, stream: TlsStream<TcpStream>) -> Result<(), BoxError> {
        let stopped = self.stopped();
        let service = service_fn(|request| {
            let answer = self.clone().answer(request);
            async { Ok::<_, Infallible>(answer.await) }
        });
        if self.server.config.tls.disable_http2_serving {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT);
            let connection = builder
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            return Ok(serve_until!(connection, stopped)?);
        }
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.server.config.limits.streams())
            .max_header_list_size(MAX_HEADERS)
            .keep_alive_interval(Some(PING));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        serve_until!(connection, stopped)
    }
}

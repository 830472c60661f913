//! A service on loopback that a server is configured to ask: an OpenID issuer, or a webhook.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use fluyt_pki::{Authority, Identity, Usage};
use http::header::LOCATION;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

type Answer = dyn Fn(&str, &Value) -> (u16, Value) + Send + Sync;

/// A running service; what it was sent is kept.
pub struct Service {
    pub address: SocketAddr,
    pub received: Arc<Mutex<Vec<(String, Value)>>>,
    /// The headers that came with it.
    pub headers: Arc<Mutex<Vec<HeaderMap>>>,
    /// The client certificates of the connections over which it came.
    pub certificates: Arc<Mutex<Vec<Option<CertificateDer<'static>>>>>,
    pub ca_pem: String,
    /// Who vouches for its clients, if they want to say who they are.
    pub authority: Arc<Authority>,
}

/// Accepts clients on loopback with a certificate of an authority, which vouches for them as well, if they have one.
pub fn acceptor(authority: &Authority) -> TlsAcceptor {
    let identity = Identity {
        common_name: "service".into(),
        // As API servers' certificates are for it.
        dns_names: vec!["kubernetes.default.svc".into()],
        addresses: vec!["127.0.0.1".parse().unwrap()],
        ..Identity::default()
    };
    let issued = authority.issue(&identity, Usage::Server, 1).unwrap();
    let chain = CertificateDer::pem_slice_iter(issued.certificate_pem.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
    let mut clients = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes());
    clients.add(root.unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder(clients.into()).allow_unauthenticated();
    let config = ServerConfig::builder()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

impl Service {
    /// Answers a path and a body with a status and JSON; a path that ends with `.jwt`, with a text as it is.
    pub async fn start(
        answer: impl Fn(&str, &Value) -> (u16, Value) + Send + Sync + 'static,
    ) -> Self {
        let authority = Arc::new(Authority::create("service").unwrap());
        Self::vouched_by(authority, answer).await
    }

    /// With a certificate of an authority.
    pub async fn vouched_by(
        authority: Arc<Authority>,
        answer: impl Fn(&str, &Value) -> (u16, Value) + Send + Sync + 'static,
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let acceptor = acceptor(&authority);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let headers: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
        let (log, answer): (_, Arc<Answer>) = (received.clone(), Arc::new(answer));
        let headers_log = headers.clone();
        let certificates: Arc<Mutex<Vec<Option<CertificateDer<'static>>>>> = Arc::default();
        let peers = certificates.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, log, answer) = (acceptor.clone(), log.clone(), answer.clone());
                let (headers_log, peers) = (headers_log.clone(), peers.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let (_, session) = stream.get_ref();
                    let peer = session.peer_certificates().map(|all| all[0].clone());
                    let peer = peer.map(CertificateDer::into_owned);
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (log, answer) = (log.clone(), answer.clone());
                        headers_log.lock().push(request.headers().clone());
                        peers.lock().push(peer.clone());
                        async move {
                            let path = request.uri().path().to_owned();
                            let body = request.into_body().collect().await?.to_bytes();
                            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                            let (status, value) = answer(&path, &body);
                            let text = value.as_str().filter(|_| path.ends_with(".jwt"));
                            let text = text.map(str::to_owned);
                            let text = text.unwrap_or_else(|| value.to_string());
                            let mut response = Response::new(Full::new(bytes::Bytes::from(text)));
                            log.lock().push((path, body));
                            *response.status_mut() = StatusCode::from_u16(status).unwrap();
                            // A text with a redirect is where it leads.
                            if let Some(to) = value.as_str().filter(|_| status / 100 == 3) {
                                let to = to.parse().unwrap();
                                response.headers_mut().insert(LOCATION, to);
                            }
                            Ok::<_, hyper::Error>(response)
                        }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    let _ = connection.await;
                });
            }
        });
        Self {
            address,
            received,
            headers,
            certificates,
            ca_pem: authority.certificate_pem().to_owned(),
            authority,
        }
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A kubeconfig of this service in a file.
    pub fn kubeconfig(&self, directory: &tempfile::TempDir) -> PathBuf {
        let ca = base64::engine::general_purpose::STANDARD.encode(&self.ca_pem);
        let config = json!({
            "clusters": [{"name": "c", "cluster": {"server": format!("{}/hook", self.url()), "certificate-authority-data": ca}}],
            "contexts": [{"name": "x", "context": {"cluster": "c"}}],
            "current-context": "x",
        });
        let path = directory
            .path()
            .join(format!("{}.kubeconfig", self.address.port()));
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    pub fn count(&self) -> usize {
        self.received.lock().len()
    }
}

/// Waits until something holds, for at most ten seconds.
pub async fn eventually(mut holds: impl AsyncFnMut() -> bool) -> bool {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while tokio::time::Instant::now() < deadline {
        if holds().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

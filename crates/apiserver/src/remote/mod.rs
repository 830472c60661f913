//! Services outside of the cluster that the server is configured to ask: webhooks of authentication, authorization and
//! audit, and OpenID issuers. They are told apart by a URL or a kubeconfig, and reached over connections that are kept.

mod exec;
mod kubeconfig;
mod retry;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use ::http::{HeaderValue, Method, Request, StatusCode, Uri};
use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::dial::{ControlPlane, refusal};
use crate::server::{client_tls, roots};

use exec::Program;
pub use kubeconfig::{User, Users, load};
pub use retry::Backoff;

/// Larger answers are refused.
const MAX_ANSWER: usize = 3 * 1024 * 1024;

/// Idle connections kept per service.
const IDLE: usize = 4;

/// Where distributions keep the authorities that a host trusts.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Whom to believe that they are who they say.
#[derive(Clone, Debug)]
pub enum Trust {
    /// A PEM bundle of authorities.
    Authorities(String),
    /// The host's authorities.
    System,
    /// Anybody: `insecure-skip-tls-verify`.
    Anything,
}

/// What is presented to the service.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    #[default]
    None,
    Header(HeaderValue),
    /// A bearer token in a file, read for each call since it is rotated.
    TokenFile(PathBuf),
    /// What a program says.
    Program(Arc<Program>),
}

/// Credentials as they are at a moment.
#[derive(Debug, Default)]
pub struct Presented {
    pub authorization: Option<HeaderValue>,
    /// A client certificate and its key.
    pub certificate: Option<(String, String)>,
}

/// One service.
pub struct Remote {
    url: String,
    authority: String,
    host: String,
    port: u16,
    path: String,
    trust: Trust,
    /// With the certificate that is presented whatever a program says.
    tls: Option<Arc<ClientConfig>>,
    server_name: String,
    credentials: Credentials,
    /// What programs are told of it.
    cluster: Value,
    network: ControlPlane,
    idle: Mutex<Idle>,
}

/// Connections that are kept, all made with the same certificate.
#[derive(Default)]
struct Idle {
    presented: Arc<Presented>,
    senders: Vec<Sender>,
}

type Sender = SendRequest<Full<Bytes>>;

/// What a service answered.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Bytes,
}

/// Why there is no answer, as upstream's client words it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{verb} \"{url}\": {why}")]
pub struct Unreachable {
    verb: &'static str,
    url: String,
    why: String,
    pub timed_out: bool,
}

// === impl Credentials ===

impl Credentials {
    /// What to present now to a service; `cluster` describes it as programs are told.
    ///
    /// # Errors
    /// When a token's file cannot be read, or a program does not say what it should.
    pub async fn present(&self, cluster: &Value) -> anyhow::Result<Arc<Presented>> {
        let authorization = match self {
            Self::None => None,
            Self::Header(value) => Some(value.clone()),
            Self::TokenFile(path) => {
                let token = tokio::fs::read_to_string(path)
                    .await
                    .with_context(|| path.display().to_string())?;
                let value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))?;
                Some(value)
            }
            Self::Program(program) => {
                let presented = program.present(cluster).await;
                return presented.context("getting credentials");
            }
        };
        Ok(Arc::new(Presented {
            authorization,
            certificate: None,
        }))
    }

    /// The service has answered what was presented to it: a program that is refused is run again, for the next call.
    pub async fn answered(&self, cluster: &Value, presented: &Arc<Presented>, status: StatusCode) {
        if let Self::Program(program) = self
            && status == StatusCode::UNAUTHORIZED
            && let Err(error) = program.refused(cluster, presented).await
        {
            let error = format!("{error:#}");
            tracing::error!(error, "refreshing credentials");
        }
    }
}

// === impl Remote ===

impl Remote {
    /// A service at a URL.
    ///
    /// # Errors
    /// When the URL is none, or the authorities are malformed.
    pub fn new(
        url: &str,
        trust: &Trust,
        identity: Option<&(String, String)>,
        server_name: Option<&str>,
        credentials: Credentials,
    ) -> anyhow::Result<Self> {
        let uri: Uri = url
            .parse()
            .with_context(|| format!("invalid URL {url:?}"))?;
        let host = uri
            .host()
            .with_context(|| format!("URL {url:?} has no host"))?
            .trim_matches(['[', ']'])
            .to_owned();
        let (tls, default_port) = match uri.scheme_str() {
            Some("https") => (Some(tls(trust, identity)?), 443),
            Some("http") => (None, 80),
            _ => bail!("URL {url:?} is neither http nor https"),
        };
        Ok(Self {
            url: url.to_owned(),
            authority: uri.authority().map(ToString::to_string).unwrap_or_default(),
            port: uri.port_u16().unwrap_or(default_port),
            path: uri
                .path_and_query()
                .map_or_else(|| "/".to_owned(), ToString::to_string),
            server_name: server_name.unwrap_or(&host).to_owned(),
            host,
            trust: trust.clone(),
            tls,
            credentials,
            cluster: Value::Null,
            network: ControlPlane::default(),
            idle: Mutex::default(),
        })
    }

    /// Reaches it another way than directly.
    #[must_use]
    pub fn through(mut self, network: &ControlPlane) -> Self {
        self.network = network.clone();
        self
    }

    /// Tells programs that give credentials what they are for.
    #[must_use]
    pub fn described(mut self, cluster: Value) -> Self {
        self.cluster = cluster;
        self
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Posts JSON to the service's own path, with a query if it is not empty.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub async fn post(
        &self,
        query: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Reply, Unreachable> {
        let path = if query.is_empty() {
            self.path.clone()
        } else {
            format!("{}?{query}", self.path)
        };
        self.exchange(Method::POST, &path, body, timeout).await
    }

    /// Gets the service's own path.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub async fn get(&self, timeout: Duration) -> Result<Reply, Unreachable> {
        self.exchange(Method::GET, &self.path, Bytes::new(), timeout)
            .await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Reply, Unreachable> {
        let verb = if method == Method::GET { "Get" } else { "Post" };
        let unreachable = |why: String, timed_out: bool| Unreachable {
            verb,
            url: self.url.clone(),
            why,
            timed_out,
        };
        let attempt = Box::pin(self.attempt(method, path, body));
        match tokio::time::timeout(timeout, attempt).await {
            Ok(answered) => answered.map_err(|e| unreachable(format!("{e:#}"), false)),
            Err(_) => Err(unreachable("context deadline exceeded".into(), true)),
        }
    }

    async fn attempt(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Reply> {
        let presented = self.credentials.present(&self.cluster).await?;
        let request = || {
            let mut request = Request::builder()
                .method(method.clone())
                .uri(path)
                .header(HOST, &self.authority)
                .header(ACCEPT, "application/json, */*");
            if let Some(value) = &presented.authorization {
                request = request.header(AUTHORIZATION, value);
            }
            if method == Method::POST {
                request = request.header(CONTENT_TYPE, "application/json");
            }
            request.body(Full::new(body.clone()))
        };
        // A kept connection may have been closed by the service in the meantime: that is no reason to fail.
        let kept = self.idle.lock().take(&presented);
        if let Some(mut sender) = kept
            && sender.ready().await.is_ok()
            && let Ok(response) = sender.send_request(request()?).await
        {
            return self.finish(sender, response, &presented).await;
        }
        let mut sender = self.connect(&presented).await?;
        let response = sender.send_request(request()?).await?;
        self.finish(sender, response, &presented).await
    }

    async fn finish(
        &self,
        mut sender: Sender,
        response: ::http::Response<hyper::body::Incoming>,
        presented: &Arc<Presented>,
    ) -> anyhow::Result<Reply> {
        let (parts, body) = response.into_parts();
        let collected = Limited::new(body, MAX_ANSWER).collect().await;
        let body = match collected {
            Ok(collected) => collected.to_bytes(),
            Err(error) => bail!("reading the answer: {error}"),
        };
        if sender.ready().await.is_ok() {
            self.idle.lock().keep(sender, presented);
        }
        let answering = self
            .credentials
            .answered(&self.cluster, presented, parts.status);
        answering.await;
        Ok(Reply {
            status: parts.status,
            body,
        })
    }

    async fn connect(&self, presented: &Presented) -> anyhow::Result<Sender> {
        let (host, port) = (self.host.as_str(), self.port);
        let ControlPlane(dialer) = &self.network;
        let stream = dialer
            .connect_name(host, port)
            .await
            .map_err(|e| anyhow!("dial tcp {host}:{port}: {}", refusal(&e)))?;
        let tls = match (&self.tls, &presented.certificate) {
            (Some(_), certificate @ Some(_)) => Some(tls(&self.trust, certificate.as_ref())?),
            (own, _) => own.clone(),
        };
        match tls {
            Some(tls) => {
                let name = ServerName::try_from(self.server_name.clone())?;
                let stream = TlsConnector::from(tls)
                    .connect(name, stream)
                    .await
                    .context("tls: failed to verify certificate")?;
                handshake(stream).await
            }
            None => handshake(stream).await,
        }
    }
}

// === impl Idle ===

impl Idle {
    /// A connection with the certificate that is presented now; those with another one are closed.
    fn take(&mut self, presented: &Arc<Presented>) -> Option<Sender> {
        if self.presented.certificate != presented.certificate {
            self.senders.clear();
            self.presented = presented.clone();
        }
        self.senders.pop()
    }

    fn keep(&mut self, sender: Sender, presented: &Presented) {
        if self.senders.len() < IDLE && self.presented.certificate == presented.certificate {
            self.senders.push(sender);
        }
    }
}

async fn handshake<S>(stream: S) -> anyhow::Result<Sender>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to a configured service ended");
        }
    });
    Ok(sender)
}

/// Settings for outgoing TLS.
///
/// # Errors
/// When the authorities or the identity are malformed.
pub fn tls(
    trust: &Trust,
    identity: Option<&(String, String)>,
) -> anyhow::Result<Arc<ClientConfig>> {
    match trust {
        Trust::Authorities(pem) => {
            if roots(pem)?.is_empty() {
                bail!("data does not contain any valid RSA or ECDSA certificates");
            }
            client_tls(Some(pem), identity)
        }
        Trust::Anything => client_tls(None, identity),
        Trust::System => client_tls(Some(&system_bundle()), identity),
    }
}

/// The authorities of the host; none where there is no bundle, and then nobody is believed.
fn system_bundle() -> String {
    let text = SYSTEM_BUNDLES
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
        .unwrap_or_default();
    // One that this library does not know must not spoil the others.
    let usable = crate::server::certificates(&text).unwrap_or_default();
    let mut store = RootCertStore::empty();
    if usable.into_iter().all(|c| store.add(c).is_ok()) {
        return text;
    }
    text.split_inclusive("-----END CERTIFICATE-----\n")
        .filter(|one| roots(one).is_ok())
        .collect()
}

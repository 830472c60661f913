//! Both API servers, asked the same way.

use async_trait::async_trait;
use fluyt_apiserver::Features;
use http_body_util::{BodyExt as _, Full};

use super::Api;

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub content_type: String,
    pub accept: String,
    pub body: String,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            method: "GET".into(),
            path: String::new(),
            content_type: "application/json".into(),
            accept: "application/json".into(),
            body: String::new(),
        }
    }
}

impl Request {
    fn into_http<B>(self, body: impl FnOnce(Vec<u8>) -> B) -> http::Request<B> {
        let mut request = http::Request::builder()
            .method(&*self.method)
            .uri(&self.path)
            .header("accept", &self.accept);
        if !self.body.is_empty() {
            request = request.header("content-type", &self.content_type);
        }
        request.body(body(self.body.into_bytes())).unwrap()
    }
}

/// What a server has answered.
#[derive(Debug, Default)]
pub struct Response {
    /// 0 when there was no answer.
    pub code: u16,
    pub content_type: String,
    pub warnings: Vec<String>,
    pub body: String,
}

#[async_trait]
pub trait Side: Sync {
    async fn ask(&self, request: Request) -> Response;

    /// Whether the server itself writes the status of new objects of a kind, which then has to be waited for.
    fn writes_status_of(&self, _kind: &str) -> bool {
        false
    }
}

async fn response<B>(answer: http::Response<B>) -> Response
where
    B: http_body::Body,
    B::Error: std::fmt::Debug,
{
    let (parts, body) = answer.into_parts();
    let text = |v: &http::HeaderValue| v.to_str().unwrap_or_default().to_owned();
    let content_type = parts.headers.get("content-type").map(text);
    let bytes = body.collect().await.unwrap().to_bytes();
    Response {
        code: parts.status.as_u16(),
        content_type: content_type.unwrap_or_default(),
        warnings: parts.headers.get_all("warning").iter().map(text).collect(),
        body: String::from_utf8_lossy(&bytes).into_owned(),
    }
}

/// Ours, in this process.
pub struct Ours(Api);

impl Ours {
    pub async fn start() -> Self {
        Self(Api::start_without(Features::default(), &["ServiceAccount"]).await)
    }
}

#[async_trait]
impl Side for Ours {
    async fn ask(&self, request: Request) -> Response {
        let mut request = request.into_http(|body| Full::new(bytes::Bytes::from(body)));
        request.extensions_mut().insert(self.0.user.clone());
        response(self.0.server.handle(request).await).await
    }

    fn writes_status_of(&self, kind: &str) -> bool {
        kind == "ValidatingAdmissionPolicy"
    }
}

/// Upstream's, somewhere on this machine.
pub struct Peer(kube::Client);

impl Peer {
    /// Where `FLUYT_PEER` says it is.
    pub async fn from_environment() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = std::env::var("FLUYT_PEER").expect("FLUYT_PEER");
        let token = std::env::var("FLUYT_PEER_TOKEN").expect("FLUYT_PEER_TOKEN");
        let mut config = kube::Config::new(url.parse().unwrap());
        config.accept_invalid_certs = true;
        config.default_retry = false;
        config.auth_info.token = Some(token.into());
        Self(kube::Client::try_from(config).unwrap())
    }
}

#[async_trait]
impl Side for Peer {
    async fn ask(&self, request: Request) -> Response {
        let request = request.into_http(kube::client::Body::from);
        match self.0.send(request).await {
            Ok(answer) => response(answer).await,
            // Upstream's handler has panicked.
            Err(_) => Response::default(),
        }
    }
}

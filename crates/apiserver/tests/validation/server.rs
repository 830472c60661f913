//! Both API servers, asked the same way.

use async_trait::async_trait;
use fluyt_apiserver::Features;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use crate::common::Api;

/// What a server has answered.
#[derive(Debug, Default)]
pub struct Response {
    /// 0 when there was no answer.
    pub code: u16,
    pub body: Value,
    pub warnings: Vec<String>,
}

#[async_trait]
pub trait Server: Sync {
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Response;

    /// Whether the server itself writes the status of new objects of a kind, which then has to be waited for.
    fn writes_status_of(&self, _kind: &str) -> bool {
        false
    }
}

/// The text of `Warning: 299 - "text"`.
fn warning(header: &http::HeaderValue) -> String {
    let text = header.to_str().unwrap_or_default();
    let quoted = text.split_once('"').map_or("", |(_, rest)| rest);
    quoted
        .trim_end_matches('"')
        .replace("\\\"", "\"")
        .replace("\\\\", "\\")
}

fn warnings(headers: &http::HeaderMap) -> Vec<String> {
    headers.get_all("warning").iter().map(warning).collect()
}

/// Ours, in this process.
pub struct Ours(Api);

impl Ours {
    pub async fn start() -> Self {
        Self(Api::start_without(Features::default(), &["ServiceAccount"]).await)
    }
}

#[async_trait]
impl Server for Ours {
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        let bytes = body
            .map(|b| serde_json::to_vec(b).unwrap())
            .unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(Full::new(bytes::Bytes::from(bytes)))
            .unwrap();
        request.extensions_mut().insert(self.0.user.clone());
        let response = self.0.server.handle(request).await;
        let (code, warnings) = (response.status().as_u16(), warnings(response.headers()));
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Response {
            code,
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
            warnings,
        }
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
        config.auth_info.token = Some(token.into());
        Self(kube::Client::try_from(config).unwrap())
    }
}

#[async_trait]
impl Server for Peer {
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        let bytes = body
            .map(|b| serde_json::to_vec(b).unwrap())
            .unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(kube::client::Body::from(bytes))
            .unwrap();
        let Ok(response) = self.0.send(request).await else {
            // Upstream's handler has panicked.
            return Response::default();
        };
        let (code, warnings) = (response.status().as_u16(), warnings(response.headers()));
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Response {
            code,
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
            warnings,
        }
    }
}

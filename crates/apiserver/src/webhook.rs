//! Calls to webhooks: admission and conversion. A webhook is a service in the cluster or a URL, verified against its own
//! bundle of authorities.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Method, Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;

use crate::aggregator::Routing;
use crate::cache::Caches;
use crate::dial::{Dialer, refusal};
use crate::remote::{User, Users};
use crate::spans;

/// Larger answers are refused.
const MAX_ANSWER: usize = 3 * 1024 * 1024;

/// Idle connections kept per webhook.
const IDLE: usize = 4;

/// Calls webhooks, over connections that are kept.
pub struct Client {
    caches: Arc<Caches>,
    dialer: Arc<dyn Dialer>,
    routing: Routing,
    /// The certificate with which the server calls.
    identity: Option<(String, String)>,
    idle: Mutex<HashMap<String, Vec<SendRequest<Full<Bytes>>>>>,
}

/// Where a call goes.
struct Target {
    /// `https://host:port/path`, as errors show it.
    url: String,
    host: String,
    /// The host with its port, as credentials are named by it.
    host_port: String,
    path: String,
    server_name: String,
    /// A service's endpoint, or the host and port of a URL.
    address: Address,
}

enum Address {
    Service(SocketAddr),
    Host(String, u16),
}

/// Why a webhook gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    #[error("{0}")]
    Resolve(String),
    #[error("Post \"{url}\": {why}")]
    Transport { url: String, why: String },
    #[error("the server rejected our request for an unknown reason: status {0}")]
    Status(StatusCode),
    #[error("{0}")]
    Decode(String),
}

impl Target {
    /// As programs that give credentials are told of it.
    fn described(&self, config: &Value) -> Value {
        let mut described =
            json!({"server": format!("https://{}", self.host_port), "config": null});
        if let Address::Service(_) = self.address {
            described["tls-server-name"] = self.server_name.as_str().into();
        }
        if let bundle @ Value::String(_) = &config["caBundle"] {
            described["certificate-authority-data"] = bundle.clone();
        }
        described
    }
}

impl Client {
    #[must_use]
    pub fn new(
        caches: Arc<Caches>,
        dialer: Arc<dyn Dialer>,
        routing: Routing,
        identity: Option<(String, String)>,
    ) -> Self {
        Self {
            caches,
            routing,
            dialer,
            identity,
            idle: Mutex::default(),
        }
    }

    /// Posts a review to the webhook of a `clientConfig` and returns its answer. What is presented to it is the user's who
    /// is named by its host.
    ///
    /// # Errors
    /// When it cannot be reached in time, or its answer is no JSON with status 200.
    pub async fn call(
        &self,
        config: &Value,
        review: &Value,
        timeout: Duration,
        users: &Users,
    ) -> Result<Value, CallError> {
        let target = self.target(config, timeout).await?;
        let user = users.of(&target.host_port);
        let body = Bytes::from(serde_json::to_vec(review).unwrap_or_default());
        match tokio::time::timeout(timeout, self.post(config, &target, user, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Transport {
                url: target.url,
                why: "context deadline exceeded".into(),
            }),
        }
    }

    async fn target(&self, config: &Value, timeout: Duration) -> Result<Target, CallError> {
        let query = format!("timeout={}s", timeout.as_secs());
        if let Some(url) = config["url"].as_str() {
            let invalid = || CallError::Resolve(format!("invalid webhook URL: {url}"));
            let uri: ::http::Uri = url.parse().map_err(|_| invalid())?;
            let host = uri
                .host()
                .ok_or_else(invalid)?
                .trim_matches(['[', ']'])
                .to_owned();
            let port = uri.port_u16().unwrap_or(443);
            let path = format!("{}?{query}", uri.path());
            let authority = uri
                .authority()
                .map_or_else(String::new, ToString::to_string);
            return Ok(Target {
                url: format!("{url}?{query}"),
                host_port: match uri.port_u16() {
                    Some(_) => authority.clone(),
                    None => format!("{authority}:{port}"),
                },
                host: authority,
                path,
                server_name: host.clone(),
                address: Address::Host(host, port),
            });
        }
        let service = &config["service"];
        let text = |name: &str| service[name].as_str().unwrap_or_default();
        let port = service["port"].as_i64().unwrap_or(443);
        let path = match text("path") {
            "" => "/".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        let server_name = format!("{}.{}.svc", text("name"), text("namespace"));
        let (namespace, name) = (text("namespace"), text("name"));
        let resolving = self.routing.resolve(&self.caches, namespace, name, port);
        let address = resolving
            .await
            .map_err(|e| CallError::Resolve(e.to_string()))?;
        Ok(Target {
            url: format!("https://{server_name}:{port}{path}?{query}"),
            host: server_name.clone(),
            host_port: format!("{server_name}:{port}"),
            path: format!("{path}?{query}"),
            server_name,
            address: Address::Service(address),
        })
    }

    async fn post(
        &self,
        config: &Value,
        target: &Target,
        user: Option<&User>,
        body: Bytes,
    ) -> Result<Value, CallError> {
        let transport = |why: String| CallError::Transport {
            url: target.url.clone(),
            why,
        };
        let cluster = target.described(config);
        let presented = match user {
            Some(user) => {
                let presented = user.credentials.present(&cluster).await;
                presented.map_err(|e| transport(format!("{e:#}")))?
            }
            None => Arc::default(),
        };
        let identity = user.and_then(|user| user.certificate.as_ref());
        let identity = presented.certificate.as_ref().or(identity);
        let identity = identity.or(self.identity.as_ref());
        let key = format!(
            "{}|{}|{}",
            target.url,
            config["caBundle"].as_str().unwrap_or_default(),
            identity.map_or("", |(certificate, _)| certificate)
        );
        let kept = self.idle.lock().get_mut(&key).and_then(Vec::pop);
        let mut sender = match kept {
            Some(mut sender) => match sender.ready().await {
                Ok(()) => sender,
                Err(_) => self
                    .connect(config, target, identity)
                    .await
                    .map_err(transport)?,
            },
            None => self
                .connect(config, target, identity)
                .await
                .map_err(transport)?,
        };
        let mut request = Request::post(&target.path)
            .header(header::HOST, &target.host)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .body(Full::new(body))
            .map_err(|e| transport(e.to_string()))?;
        let authorization = presented.authorization.clone();
        let headers = request.headers_mut();
        headers.extend(authorization.map(|value| (header::AUTHORIZATION, value)));
        let calling = spans::call(&Method::POST, &target.url, request.headers_mut());
        let response = sender.send_request(request).await.map_err(|e| {
            calling.failed(&e.to_string());
            transport(e.to_string())
        })?;
        let status = response.status();
        calling.answered(status);
        let content = Limited::new(response.into_body(), MAX_ANSWER);
        let collected: Result<_, _> = Box::pin(content.collect()).await;
        let bytes = collected.map_err(|e| transport(e.to_string()))?.to_bytes();
        if sender.ready().await.is_ok() {
            let mut idle = self.idle.lock();
            let senders = idle.entry(key).or_default();
            if senders.len() < IDLE {
                senders.push(sender);
            }
        }
        if let Some(user) = user {
            let credentials = &user.credentials;
            credentials.answered(&cluster, &presented, status).await;
        }
        if !status.is_success() {
            return Err(CallError::Status(status));
        }
        serde_json::from_slice(&bytes).map_err(|e| {
            CallError::Decode(format!("couldn't get version/kind; json parse error: {e}"))
        })
    }

    async fn connect(
        &self,
        config: &Value,
        target: &Target,
        identity: Option<&(String, String)>,
    ) -> Result<SendRequest<Full<Bytes>>, String> {
        let bundle = config["caBundle"].as_str().unwrap_or_default();
        let tls = crate::server::trusting(bundle, identity).map_err(|e| format!("{e:#}"))?;
        let stream = match &target.address {
            Address::Service(address) => self
                .dialer
                .connect(*address)
                .await
                .map_err(|e| format!("dial tcp {address}: {}", refusal(&e)))?,
            Address::Host(host, port) => self
                .dialer
                .connect_name(host, *port)
                .await
                .map_err(|e| format!("dial tcp {host}:{port}: {}", refusal(&e)))?,
        };
        let name = ServerName::try_from(target.server_name.clone()).map_err(|e| e.to_string())?;
        let stream = TlsConnector::from(tls)
            .connect(name, stream)
            .await
            .map_err(|e| format!("tls: failed to verify certificate: {e}"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a webhook ended");
            }
        });
        Ok(sender)
    }
}

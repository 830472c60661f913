//! A server in this process, and what tests send to it.

#![allow(dead_code, clippy::unwrap_used)]

pub mod grpc;
pub mod service;
pub mod sides;

use std::sync::Arc;

use fluyt_apiserver::{Config, Credentials, Features, MASTERS, Server, Storage, User};
use fluyt_etcd::DynStore;
use fluyt_etcd::embedded::Embedded;
use fluyt_pki::{Authority, Identity, TokenKeys, Usage};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub struct Api {
    pub server: Arc<Server>,
    pub user: User,
    pub authority: Authority,
    pub store: DynStore,
    _directory: Option<tempfile::TempDir>,
}

impl Api {
    pub async fn start() -> Self {
        Self::start_with(Features::default()).await
    }

    pub async fn start_with(features: Features) -> Self {
        Self::configured(|config, _| config.features = features).await
    }

    /// Without some admission plugins.
    pub async fn start_without(features: Features, plugins: &[&str]) -> Self {
        Self::configured(|config, _| {
            config.features = features;
            config.admission.disabled = plugins.iter().map(|p| (*p).to_owned()).collect();
        })
        .await
    }

    /// A server whose configuration is changed first; the authority is the one that vouches for clients.
    pub async fn configured(change: impl FnOnce(&mut Config, &Authority)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(directory.path()).unwrap());
        Self {
            _directory: Some(directory),
            ..Self::configured_on(store, change).await
        }
    }

    /// A server on a store that others may use as well.
    pub async fn start_on(store: DynStore, storage: Storage, features: Features) -> Self {
        Self::configured_on(store, |config, _| {
            config.storage = storage;
            config.features = features;
        })
        .await
    }

    /// A server whose configuration is changed first, on a store that others may use as well.
    pub async fn configured_on(
        store: DynStore,
        change: impl FnOnce(&mut Config, &Authority),
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authority = Authority::create("test").unwrap();
        let identity = Identity {
            common_name: "kube-apiserver".into(),
            ..Identity::default()
        };
        let serving = authority.issue(&identity, Usage::Server, 1).unwrap();
        let credentials = Credentials {
            client_ca_pem: authority.certificate_pem().to_owned(),
            tls_certificate_pem: serving.certificate_pem,
            tls_key_pem: serving.key_pem,
            service_account_key_pem: TokenKeys::create().unwrap().private_pem().to_owned(),
        };
        let mut config = Config::new(store.clone(), credentials, CancellationToken::new());
        // Of the range for documentation: nobody is to be reached there.
        config.advertise = "192.0.2.1:6443".parse().unwrap();
        change(&mut config, &authority);
        let server = Server::start(config).await.unwrap();
        Self {
            server,
            authority,
            user: User::new("admin", &[MASTERS]),
            store,
            _directory: None,
        }
    }

    pub async fn call(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        self.call_as(&self.user, method, path, "application/json", body)
            .await
    }

    pub async fn call_as(
        &self,
        user: &User,
        method: Method,
        path: &str,
        content_type: &str,
        body: Value,
    ) -> (StatusCode, Value) {
        let bytes = if body.is_null() {
            Vec::new()
        } else {
            serde_json::to_vec(&body).unwrap()
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .body(Full::new(bytes::Bytes::from(bytes)))
            .unwrap();
        request.extensions_mut().insert(user.clone());
        let response = self.server.handle(request).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (
            status,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        )
    }

    /// Sends a request as it comes over a connection: whose it is, its headers have to say.
    pub async fn send(
        &self,
        request: Request<Full<bytes::Bytes>>,
    ) -> (StatusCode, HeaderMap, Value) {
        let response = self.server.handle(request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        (parts.status, parts.headers, value)
    }

    /// Serves the API without TLS on the loopback, every request as an administrator's.
    pub async fn listen(&self) -> String {
        let (server, user) = (self.server.clone(), self.user.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (server, user) = (server.clone(), user.clone());
                tokio::spawn(async move {
                    let answer =
                        service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                            let server = server.clone();
                            request.extensions_mut().insert(user.clone());
                            async move {
                                Ok::<_, std::convert::Infallible>(server.handle(request).await)
                            }
                        });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .with_upgrades()
                        .await;
                });
            }
        });
        url
    }

    /// Who a bearer token makes its sender, as the server sees it.
    pub async fn whoami(&self, token: &str) -> (StatusCode, Value) {
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
        let request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {token}"))
            .body(Full::new(bytes::Bytes::from(review.to_string())))
            .unwrap();
        let (status, _, body) = self.send(request).await;
        (status, body["status"]["userInfo"].clone())
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::POST, path, body).await
    }

    pub async fn patch(&self, path: &str, format: &str, body: Value) -> (StatusCode, Value) {
        let content_type = format!("application/{format}+json");
        self.call_as(&self.user, Method::PATCH, path, &content_type, body)
            .await
    }

    /// Reads a watch until an object satisfies `done`, or an object of it is deleted.
    pub async fn watch_until(&self, path: &str, done: impl Fn(&Value) -> bool) {
        let mut request = Request::get(path)
            .body(Full::new(bytes::Bytes::new()))
            .unwrap();
        request.extensions_mut().insert(self.user.clone());
        let mut body = self.server.handle(request).await.into_body();
        let mut seen = Vec::new();
        while let Some(frame) = body.frame().await {
            let bytes = frame.unwrap().into_data().unwrap();
            for line in bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                let event: Value = serde_json::from_slice(line).unwrap();
                if event["type"] == "DELETED" || done(&event["object"]) {
                    return;
                }
                seen.push(event);
            }
        }
        panic!("the watch {path} ended after {seen:#?}");
    }

    /// A namespace `n` with its default service account, which controllers would make.
    pub async fn namespace(&self) {
        self.post("/api/v1/namespaces", json!({"metadata": {"name": "n"}}))
            .await;
        self.post(
            "/api/v1/namespaces/n/serviceaccounts",
            json!({"metadata": {"name": "default"}}),
        )
        .await;
    }
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "busybox:1"}]}})
}

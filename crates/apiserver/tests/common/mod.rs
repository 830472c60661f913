//! A server in this process, and what tests send to it.

#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;

use fluyt_apiserver::dial::Direct;
use fluyt_apiserver::{Config, Features, MASTERS, Server, ServiceNetwork, User};
use fluyt_etcd::embedded::Embedded;
use fluyt_pki::{Authority, Identity, TokenKeys, Usage};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub struct Api {
    pub server: Arc<Server>,
    pub user: User,
    _directory: tempfile::TempDir,
}

impl Api {
    pub async fn start() -> Self {
        Self::start_with(Features::default()).await
    }

    pub async fn start_with(features: Features) -> Self {
        Self::start_without(features, &[]).await
    }

    /// Without some admission plugins.
    pub async fn start_without(features: Features, plugins: &[&str]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create("test").unwrap();
        let identity = Identity {
            common_name: "kube-apiserver".into(),
            ..Identity::default()
        };
        let serving = authority.issue(&identity, Usage::Server, 1).unwrap();
        let config = Config {
            store: Arc::new(Embedded::open(directory.path()).unwrap()),
            dialer: Arc::new(Direct),
            advertise: "192.0.2.1:6443".parse().unwrap(),
            service_network: ServiceNetwork::default(),
            client_ca_pem: authority.certificate_pem().to_owned(),
            tls_certificate_pem: serving.certificate_pem,
            tls_key_pem: serving.key_pem,
            service_account_key_pem: TokenKeys::create().unwrap().private_pem().to_owned(),
            service_account_issuer: "https://kubernetes.default.svc".into(),
            api_audiences: vec!["https://kubernetes.default.svc".into()],
            kubelet_client: None,
            kubelet_ca_pem: None,
            proxy_client: None,
            requestheader_ca_pem: None,
            features,
            disable_admission_plugins: plugins.iter().map(|p| (*p).to_owned()).collect(),
            shutdown: CancellationToken::new(),
        };
        let server = Server::start(config).await.unwrap();
        Self {
            server,
            user: User::new("admin", &[MASTERS]),
            _directory: directory,
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

//! A server as `fluyt kube-apiserver` runs it, on etcd, with an administrator.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use clap::Parser as _;
use fluyt_etcd::external::{Config, External};
use fluyt_pki::{Authority, Identity, Usage};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common::service::eventually;
use crate::flags::Line;
use crate::flags::client::Client;
use crate::flags::process::{Process, reserve};

/// An etcd, which may be started later than its address is known.
pub struct Etcd {
    pub url: String,
    shutdown: CancellationToken,
    running: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Etcd {
    pub fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        Self {
            url: format!("http://{address}"),
            shutdown: CancellationToken::new(),
            running: None,
        }
    }

    pub fn start(&mut self, directory: &Path) {
        let line = [
            "etcd".to_owned(),
            format!("--data-dir={}", directory.display()),
            format!("--listen-client-urls={}", self.url),
        ];
        let args = Line::<fluyt_etcd::Args>::parse_from(line).args;
        let running = fluyt_etcd::run(args, self.shutdown.clone());
        self.running = Some(tokio::spawn(running));
    }

    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(running) = self.running.take() {
            running.await.unwrap().unwrap();
        }
    }

    pub async fn client(&self) -> External {
        let config = Config::new(vec![self.url.clone()]);
        External::connect(config).await.unwrap()
    }
}

/// A server and its administrator.
pub struct Cluster {
    pub process: Process,
    pub address: SocketAddr,
    pub client: Client,
    _port: TcpSocket,
}

impl Cluster {
    pub fn start(directory: &Path, flags: &[&str]) -> Self {
        Self::launch(directory, flags, Process::start)
    }

    /// Without a key for tokens.
    pub fn start_bare(directory: &Path, flags: &[&str]) -> Self {
        Self::launch(directory, flags, Process::start_bare)
    }

    fn launch(
        directory: &Path,
        flags: &[&str],
        start: impl FnOnce(&Path, &str, SocketAddr, &[&str]) -> Process,
    ) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authority = Authority::create("test").unwrap();
        let identity = Identity {
            common_name: "kube-apiserver".into(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            ..Identity::default()
        };
        let serving = authority.issue(&identity, Usage::Server, 1).unwrap();
        let file = |name: &str, content: &str| {
            let path = directory.join(name);
            std::fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let common = [
            "--permit-port-sharing".to_owned(),
            format!(
                "--client-ca-file={}",
                file("ca.crt", authority.certificate_pem())
            ),
            format!(
                "--tls-cert-file={}",
                file("tls.crt", &serving.certificate_pem)
            ),
            format!(
                "--tls-private-key-file={}",
                file("tls.key", &serving.key_pem)
            ),
        ];
        let (port, address) = reserve();
        let common = common.iter().map(String::as_str);
        let flags: Vec<&str> = common.chain(flags.iter().copied()).collect();
        Self {
            process: start(directory, "data", address, &flags),
            address,
            client: Client::administrator(&authority),
            _port: port,
        }
    }

    /// Sends a request; nothing when nobody listens.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Option<(StatusCode, http::HeaderMap, String)> {
        let content = if body.is_null() {
            Bytes::new()
        } else {
            body.to_string().into()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(Full::new(content))
            .unwrap();
        self.client.send(self.address, request).await.ok()
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let answer = self.send(Method::GET, path, &Value::Null).await;
        answer.map_or((0, String::new()), |(status, _, body)| {
            (status.as_u16(), body)
        })
    }

    pub async fn json(&self, method: Method, path: &str, body: &Value) -> (u16, Value) {
        let (status, _, body) = self.send(method, path, body).await.unwrap();
        (
            status.as_u16(),
            serde_json::from_str(&body).unwrap_or_default(),
        )
    }

    pub async fn ready(&self) {
        assert!(eventually(async || self.get("/readyz").await.0 == 200).await);
    }
}

//! A server that listens on loopback, and clients of it.

use std::net::SocketAddr;
use std::sync::Arc;

use fluyt_apiserver::Config;
use fluyt_apiserver::listen::Usual;
use fluyt_pki::{Authority, Identity, Usage};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::common::Api;

/// A server in this process, behind its listener.
pub struct Listening {
    pub api: Api,
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    pub ended: JoinHandle<anyhow::Result<()>>,
    pub client: Client,
}

/// Who trusts an authority, and may be an administrator.
pub struct Client {
    ca_pem: String,
    identity: Option<(String, String)>,
    /// Offered protocols above TLS.
    pub alpn: Vec<&'static str>,
    /// Offered key exchanges; all when empty.
    pub groups: Vec<u16>,
}

impl Listening {
    pub async fn start(change: impl FnOnce(&mut Config, &Authority)) -> Self {
        let mut shutdown = None;
        let api = Api::configured(|config, authority| {
            let identity = Identity {
                common_name: "kube-apiserver".into(),
                addresses: vec!["127.0.0.1".parse().unwrap()],
                ..Identity::default()
            };
            let serving = authority.issue(&identity, Usage::Server, 1).unwrap();
            config.certificate = Usual::Pem {
                certificate: serving.certificate_pem,
                key: serving.key_pem,
            };
            shutdown = Some(config.shutdown.clone());
            change(config, authority);
        })
        .await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = api.server.clone();
        Self {
            client: Client::administrator(&api.authority),
            api,
            address,
            shutdown: shutdown.unwrap(),
            ended: tokio::spawn(async move { server.listen(listener).await }),
        }
    }

    pub async fn get(&self, path: &str) -> (StatusCode, HeaderMap, String) {
        let request = Request::get(path).body(Full::default()).unwrap();
        self.client.send(self.address, request).await.unwrap()
    }
}

impl Client {
    /// An administrator by a certificate of the authority.
    pub fn administrator(authority: &Authority) -> Self {
        let identity = Identity {
            common_name: "admin".into(),
            organizations: vec!["system:masters".into()],
            ..Identity::default()
        };
        Self::identified(authority, &identity)
    }

    /// Somebody by a certificate of the authority.
    pub fn identified(authority: &Authority, identity: &Identity) -> Self {
        let issued = authority.issue(identity, Usage::Client, 1).unwrap();
        Self {
            identity: Some((issued.certificate_pem, issued.key_pem)),
            ..Self::trusting(authority.certificate_pem())
        }
    }

    pub fn trusting(ca_pem: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            ca_pem: ca_pem.to_owned(),
            identity: None,
            alpn: vec![],
            groups: vec![],
        }
    }

    fn tls(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca_pem) {
            roots.add(certificate).unwrap();
        }
        let mut provider = CryptoProvider::clone(CryptoProvider::get_default().unwrap());
        if !self.groups.is_empty() {
            let offered = &self.groups;
            provider
                .kx_groups
                .retain(|group| offered.contains(&u16::from(group.name())));
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                let chain = certificates(certificate);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        config
    }

    /// Connects, asking for a name unless it is an address.
    pub async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(self.tls()))
            .connect(name, stream)
            .await
    }

    /// Sends one request over a connection of its own.
    pub async fn send(
        &self,
        address: SocketAddr,
        request: Request<Full<bytes::Bytes>>,
    ) -> Result<(StatusCode, HeaderMap, String), Box<dyn std::error::Error>> {
        let stream = self.connect(address, &address.ip().to_string()).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok((parts.status, parts.headers, text))
    }
}

pub fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes());
    all.collect::<Result<_, _>>().unwrap()
}

pub fn request(
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Request<Full<bytes::Bytes>> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

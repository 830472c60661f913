//! TLS of the kubelet's API: the certificate given, issued by the cluster, or self-signed until then; client
//! certificates are asked for and checked against `--client-ca-file`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use parking_lot::RwLock;
use rcgen::SanType;
use rustls::RootCertStore;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

use crate::certificate::{self, Pair, Request};
use crate::kubelet::Kubelet;

const NAME: &str = "kubelet-server";

#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

impl Tls {
    pub fn new(kubelet: &Kubelet) -> anyhow::Result<Self> {
        let settings = &kubelet.settings;
        let pair = match &settings.tls_files {
            Some((certificate, key)) => Pair {
                certificate: read(certificate)?,
                key: read(key)?,
            },
            None => match Pair::load(&settings.cert_dir, NAME) {
                Some(pair) => pair,
                None => certificate::self_signed(&settings.node_name, names(kubelet))?,
            },
        };
        let current = Arc::new(Current(RwLock::new(certified(&pair)?)));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let builder = match &settings.client_ca_file {
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for authority in CertificateDer::pem_file_iter(file)
                    .with_context(|| format!("--client-ca-file {}", file.display()))?
                {
                    roots.add(authority?)?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .allow_unauthenticated()
                        .build()?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            current,
        })
    }

    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }
}

/// Gets the cluster to issue the certificate, and the next one before that expires.
pub async fn keep_current(kubelet: Arc<Kubelet>, tls: Tls) {
    let settings = &kubelet.settings;
    if !settings.server_tls_bootstrap || settings.tls_files.is_some() {
        return;
    }
    let mut wait =
        Pair::load(&settings.cert_dir, NAME).map_or(Duration::ZERO, |pair| pair.renew_in());
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = kubelet.shutdown.cancelled() => return,
        }
        match renew(&kubelet, &tls).await {
            Ok(next) => wait = next,
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "no serving certificate yet, trying again"
                );
                wait = Duration::from_secs(30);
            }
        }
    }
}

async fn renew(kubelet: &Kubelet, tls: &Tls) -> anyhow::Result<Duration> {
    let wanted = Request {
        signer: "kubernetes.io/kubelet-serving",
        node: &kubelet.settings.node_name,
        usages: &["digital signature", "server auth"],
        names: names(kubelet),
    };
    let pair = certificate::request(&kubelet.client, &wanted).await?;
    pair.store(&kubelet.settings.cert_dir, NAME)?;
    *tls.current.0.write() = certified(&pair)?;
    info!("serving certificate issued");
    Ok(pair.renew_in())
}

fn names(kubelet: &Kubelet) -> Vec<SanType> {
    let name = kubelet
        .settings
        .node_name
        .as_str()
        .try_into()
        .map(SanType::DnsName);
    let addresses = kubelet.node_ips.iter().map(|ip| SanType::IpAddress(*ip));
    name.into_iter().chain(addresses).collect()
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn certified(pair: &Pair) -> anyhow::Result<Arc<CertifiedKey>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pair.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .context("the serving certificate")?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).context("the serving key")?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

//! TLS listeners.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ConfigBuilder, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    SupportedCipherSuite, WantsVerifier,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::Server;
use crate::authn::PeerCertificates;
use crate::server::certificates;

/// A connection that does not finish its handshake by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// So is one that does not send its request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);

/// Longest headers of a request, in bytes.
const MAX_HEADERS: u32 = 1 << 20;

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

impl Server {
    /// Serves one listener until shutdown, then lets requests in flight finish.
    ///
    /// # Errors
    /// When the serving certificate is malformed.
    pub async fn listen(self: &Arc<Self>, listener: TcpListener) -> anyhow::Result<()> {
        let acceptor = TlsAcceptor::from(Arc::new(self.server_tls()?));
        let (done_sender, mut done) = tokio::sync::mpsc::channel::<()>(1);
        loop {
            let (stream, address) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, most likely: let some close.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = self.shutdown.cancelled() => break,
            };
            let (server, acceptor, guard) = (self.clone(), acceptor.clone(), done_sender.clone());
            tokio::spawn(async move {
                server.connection(stream, address, acceptor).await;
                drop(guard);
            });
        }
        drop(done_sender);
        // Watches end by themselves on shutdown; everything else is short.
        let finished = tokio::time::timeout(Duration::from_secs(10), done.recv()).await;
        if finished.is_err() {
            tracing::warn!("connections are still open; leaving them");
        }
        if let Some(tracer) = &self.tracer {
            tracer.flush().await;
        }
        Ok(())
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        acceptor: TlsAcceptor,
    ) {
        let _ = stream.set_nodelay(true);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => return,
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = PeerCertificates::new(chain.iter().map(|c| c.clone().into_owned()).collect());
        let shutdown = self.shutdown.clone();
        let limits = self.config.limits.clone();
        // The client shall connect anew, to whichever server there is.
        let goodbye = CancellationToken::new();
        let (chance, leaving) = (limits.clone(), goodbye.clone());
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            let (server, peer) = (self.clone(), peer.clone());
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(PeerAddress(address));
            if request.version() == hyper::Version::HTTP_2 && chance.says_goodbye() {
                leaving.cancel();
            }
            async move { Ok::<_, std::convert::Infallible>(server.handle(request).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams())
            .max_header_list_size(MAX_HEADERS)
            .keep_alive_interval(Some(Duration::from_secs(30)));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = async { tokio::select! { () = shutdown.cancelled() => {}, () = goodbye.cancelled() => {} } } => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended");
        }
    }

    fn server_tls(&self) -> anyhow::Result<ServerConfig> {
        let chain = certificates(&self.config.tls_certificate_pem)?;
        let key = PrivateKeyDer::from_pem_slice(self.config.tls_key_pem.as_bytes())?;
        let mut config = self
            .config
            .tls
            .builder()?
            .with_client_cert_verifier(Arc::new(AnyClient))
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// What a client must be able to do to connect.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct TlsSettings {
    /// The oldest version of TLS that is spoken: VersionTLS12 or VersionTLS13. Older ones never are.
    #[arg(long, value_parser = ["VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"])]
    tls_min_version: Option<String>,
    /// Cipher suites for TLS 1.2 by their names in Go, comma separated. Those of TLS 1.3 are not a matter of choice.
    #[arg(long, value_delimiter = ',', value_parser = cipher_suite)]
    tls_cipher_suites: Vec<String>,
}

impl TlsSettings {
    fn builder(&self) -> anyhow::Result<ConfigBuilder<ServerConfig, WantsVerifier>> {
        let mut provider = (*provider()).clone();
        if !self.tls_cipher_suites.is_empty() {
            let chosen = |name: &str| self.tls_cipher_suites.iter().any(|wanted| wanted == name);
            provider
                .cipher_suites
                .retain(|suite| suite.tls13().is_some() || suite_name(suite).is_some_and(chosen));
        }
        let versions: &[_] = match self.tls_min_version.as_deref() {
            Some("VersionTLS13") => &[&TLS13],
            _ => &[&TLS12, &TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::new(provider));
        Ok(builder.with_protocol_versions(versions)?)
    }
}

fn suite_name(suite: &SupportedCipherSuite) -> Option<&'static str> {
    suite.suite().as_str()
}

/// The name of a suite that there is, by Go's name.
fn cipher_suite(name: &str) -> Result<String, String> {
    // Go has an older name for these as well.
    let name = match name {
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        name => name,
    };
    let of_13 = name
        .strip_prefix("TLS_")
        .map(|rest| format!("TLS13_{rest}"));
    let known = provider()
        .cipher_suites
        .iter()
        .filter_map(suite_name)
        .any(|known| known == name || Some(known) == of_13.as_deref());
    if known {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "Cipher suite {name} not supported or doesn't exist"
        ))
    }
}

fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()))
}

/// Checks that a peer holds the key of the certificate it shows, whoever vouches for that.
macro_rules! verify_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls12_signature(
                message,
                certificate,
                signature,
                &provider().signature_verification_algorithms,
            )
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(
                message,
                certificate,
                signature,
                &provider().signature_verification_algorithms,
            )
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}

/// Takes any client certificate at the handshake, so that a bad one is answered with a `Status` by authentication, which
/// verifies it. The proof that the client holds its key is checked here.
#[derive(Debug)]
struct AnyClient;

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    verify_signatures!();
}

/// Takes any server certificate, where the API says that nobody vouches for it.
#[derive(Debug)]
pub(crate) struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    verify_signatures!();
}

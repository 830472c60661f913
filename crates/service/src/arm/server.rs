//! The HTTPS listener and the bearer tokens.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::error::ArmError;
use crate::files;
use crate::service::Service;

/// The largest request.
const MAX_BODY: usize = 1 << 20;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// The service's certificate and key.
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// Answers requests until shutdown.
///
/// # Errors
/// When the certificate is malformed.
pub async fn serve(
    service: Arc<Service>,
    listener: TcpListener,
    identity: &Identity,
    token: &str,
) -> anyhow::Result<()> {
    let shutdown = service.shutdown.clone();
    let token: Arc<[u8]> = Sha256::digest(token).to_vec().into();
    let router = Router::new()
        .fallback(
            move |State(service): State<Arc<Service>>, request: Request| async move {
                let (parts, body) = request.into_parts();
                match axum::body::to_bytes(body, MAX_BODY).await {
                    Ok(body) => {
                        super::handle(service, parts.method, parts.uri, parts.headers, body).await
                    }
                    Err(_) => ArmError::new(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        "RequestTooLarge",
                        "The request is larger than 1 MiB.",
                    )
                    .into_response(),
                }
            },
        )
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(token, authenticated))
        .with_state(service);
    let acceptor = TlsAcceptor::from(Arc::new(tls(identity)?));
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Out of descriptors, most likely: let some close.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => return Ok(()),
        };
        tokio::spawn(connection(
            stream,
            acceptor.clone(),
            router.clone(),
            shutdown.clone(),
        ));
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await
    else {
        return;
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => if let Err(error) = ended {
            tracing::debug!(error, "a connection ended");
        },
        () = shutdown.cancelled() => serving.as_mut().graceful_shutdown(),
    }
}

fn tls(identity: &Identity) -> anyhow::Result<ServerConfig> {
    let chain = CertificateDer::pem_slice_iter(identity.certificate_pem.as_bytes())
        .collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Lets through who has the token. Hashes are compared, so that the time it takes tells nothing of the token.
async fn authenticated(State(token): State<Arc<[u8]>>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok());
    let refused = match given.map(|v| v.split_once(' ').unwrap_or((v, ""))) {
        None => (
            "AuthenticationFailed",
            "Authentication failed. The 'Authorization' header is missing.",
        ),
        Some((scheme, _)) if !scheme.eq_ignore_ascii_case("bearer") => (
            "AuthenticationFailedInvalidHeader",
            "Authentication failed. The 'Authorization' header is provided in an invalid format.",
        ),
        Some((_, given)) if Sha256::digest(given.trim()).as_slice() == &*token => {
            return next.run(request).await;
        }
        Some(_) => (
            "InvalidAuthenticationToken",
            "The access token is invalid. `fluyt login` gets one.",
        ),
    };
    let mut response =
        ArmError::new(StatusCode::UNAUTHORIZED, refused.0, refused.1).into_response();
    response.headers_mut().insert(
        header::WWW_AUTHENTICATE,
        header::HeaderValue::from_static("Bearer"),
    );
    response
}

/// Loads or makes the service's authority, certificate and token in `directory`: the identity, and the token.
///
/// # Errors
/// When the disk refuses.
pub fn identity(directory: &Path, address: std::net::IpAddr) -> anyhow::Result<(Identity, String)> {
    use fluyt_pki::{Authority, Usage};
    let path = |name: &str| directory.join(name);
    if !path("ca.crt").exists() {
        let authority = Authority::create("fluyt-ca")?;
        files::write_private(&path("ca.key"), authority.key_pem().as_bytes())?;
        files::write(
            &path("ca.crt"),
            authority.certificate_pem().as_bytes(),
            0o644,
        )?;
    }
    let authority = Authority::load(
        &files::read(&path("ca.crt"))?,
        &files::read(&path("ca.key"))?,
    )
    .context("in the service's authority")?;
    // Made at every start: the address may be another one, and it never gets old.
    // It must not be named as the authority is: it would pass for one that signed itself.
    let names = fluyt_pki::Identity {
        common_name: "fluyt-service".to_owned(),
        organizations: Vec::new(),
        dns_names: vec!["localhost".to_owned()],
        addresses: vec![std::net::Ipv4Addr::LOCALHOST.into(), address],
    };
    let issued = authority.issue(&names, Usage::Server, 365)?;
    if !path("token").exists() {
        files::write_private(
            &path("token"),
            super::managed_clusters::random(48, 36).as_bytes(),
        )?;
    }
    let token = files::read(&path("token"))?.trim().to_owned();
    Ok((
        Identity {
            certificate_pem: issued.certificate_pem,
            key_pem: issued.key_pem,
        },
        token,
    ))
}

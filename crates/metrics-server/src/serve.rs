//! HTTPS for the aggregation layer. Only the API server's front proxy may ask for metrics; it has authorized the user.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::api::core::v1::ConfigMap;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::api::Api;

/// Serves until an error.
pub async fn run(api: Api, client: kube::Client, address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let acceptor = TlsAcceptor::from(Arc::new(tls(&client).await?));
    let api = Arc::new(api);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let (api, acceptor) = (api.clone(), acceptor.clone());
        tokio::spawn(async move { connection(&api, &acceptor, stream).await });
    }
}

async fn connection(api: &Arc<Api>, acceptor: &TlsAcceptor, stream: TcpStream) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    // With a certificate, the handshake has verified it.
    let front_proxy = stream.get_ref().1.peer_certificates().is_some();
    let api = api.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let response = answer(&api, front_proxy, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}

fn answer<B>(api: &Api, front_proxy: bool, request: &Request<B>) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    match request.uri().path() {
        "/healthz" | "/livez" => return plain(StatusCode::OK, "ok"),
        "/readyz" if api.is_ready() => return plain(StatusCode::OK, "ok"),
        "/readyz" => return plain(StatusCode::INTERNAL_SERVER_ERROR, "caches are not filled"),
        _ => {}
    }
    let result = if !front_proxy {
        Err(fluyt_api::Error::unauthorized())
    } else if request.method() == Method::GET {
        api.get(request.uri().path(), request.uri().query())
    } else {
        Err(fluyt_api::Error::method_not_allowed(
            "metrics.k8s.io",
            "metrics",
            request.method().as_str(),
        ))
    };
    match result {
        Ok(value) => json(StatusCode::OK, &value),
        Err(error) => json(
            StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            &error.to_status(),
        ),
    }
}

fn json(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    response
}

/// A certificate of our own making, and the front proxy's authority as the API server publishes it.
async fn tls(client: &kube::Client) -> anyhow::Result<ServerConfig> {
    let names = [
        "metrics-server.kube-system.svc".to_owned(),
        "localhost".to_owned(),
    ];
    let own = rcgen::generate_simple_self_signed(names)?;
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(client.clone(), "kube-system");
    let map = maps
        .get("extension-apiserver-authentication")
        .await
        .context("extension-apiserver-authentication")?;
    let pem = map
        .data
        .unwrap_or_default()
        .remove("requestheader-client-ca-file")
        .unwrap_or_default();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    let builder = ServerConfig::builder();
    let verified = if roots.is_empty() {
        tracing::warn!(
            "the API server publishes no front-proxy authority: no request will be answered"
        );
        builder.with_no_client_auth()
    } else {
        builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder(Arc::new(roots))
                .allow_unauthenticated()
                .build()?,
        )
    };
    let mut config = verified.with_single_cert(vec![own.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

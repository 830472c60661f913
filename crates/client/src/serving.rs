//! `/healthz`, `/livez`, `/readyz` and `/metrics` of a component that runs as a process of its own, over TLS with a
//! certificate of its own making, as upstream's components do when they are given none.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::metrics;

/// Why a component's port can't be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listening on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    #[error("making a serving certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("configuring TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Serve until `shutdown`; returns the address once the port is open.
pub async fn start(
    address: SocketAddr,
    component: &str,
    shutdown: CancellationToken,
) -> Result<SocketAddr, Error> {
    let names = vec![
        component.to_owned(),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
    ];
    let certified = rcgen::generate_simple_self_signed(names)?;
    let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| Error::Listen(address, error))?;
    let bound = listener
        .local_addr()
        .map_err(|error| Error::Listen(address, error))?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => drop(tokio::spawn(serve(acceptor.clone(), stream))),
                    // Out of file descriptors, for example: let others finish first.
                    Err(error) => {
                        debug!(%error, "accept failed");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    }
                }
            }
        }
    });
    Ok(bound)
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(
        TokioIo::new(stream),
        service_fn(|request| async move { answer(&request) }),
    );
    if let Err(error) = connection.await {
        debug!(%error, "connection failed");
    }
}

fn answer(request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (code, text) = respond(request.uri().path());
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    Ok(response)
}

fn respond(path: &str) -> (StatusCode, String) {
    match path {
        "/healthz" | "/livez" | "/readyz" => (StatusCode::OK, "ok".to_owned()),
        "/metrics" => (StatusCode::OK, metrics::render()),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(respond("/healthz"), (StatusCode::OK, "ok".to_owned()));
        assert!(respond("/metrics").1.contains("process_cpu_seconds_total"));
        assert_eq!(respond("/api").0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn listens_until_shut_down() {
        let shutdown = CancellationToken::new();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let address = start(any, "test", shutdown.clone()).await.unwrap();
        assert!(
            start(address, "test", shutdown.clone()).await.is_err(),
            "port in use"
        );
        assert!(TcpStream::connect(address).await.is_ok());
        shutdown.cancel();
    }
}

//! The streaming server: what the URLs of Exec, Attach and PortForward lead to.
//!
//! The kubelet proxies its clients' connections here, which speak SPDY/3.1 ([`spdy`](fluyt_transport::spdy)) or WebSocket ([`websocket`]);
//! both carry the same channels, so what happens with them ([`remote_command`], [`port_forward`]) is written once.

pub mod port_forward;
pub mod remote_command;
pub mod websocket;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fluyt_transport::spdy;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::runtime::Runtime;

/// How long a URL is good for, once.
const LIFETIME: Duration = Duration::from_secs(60);
/// URLs that may be waiting to be used.
const MAX_GRANTS: usize = 1000;

/// Which streams a client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// What a URL allows.
#[derive(Clone, Debug)]
pub enum Grant {
    Exec {
        container: String,
        command: Vec<String>,
        streams: Wanted,
    },
    Attach {
        container: String,
        streams: Wanted,
    },
    PortForward {
        sandbox: String,
        /// Of the request; only the WebSocket protocol needs to know them beforehand.
        ports: Vec<u16>,
    },
}

/// Hands out URLs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StreamingServer {
    address: SocketAddr,
    grants: Arc<Mutex<HashMap<String, (Instant, Grant)>>>,
}

type Body = Full<Bytes>;

// === impl StreamingServer ===

impl StreamingServer {
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            grants: Arc::new(Mutex::new(HashMap::new())),
        }
    }

    /// A URL for what is granted: valid for a minute, once, and not to be guessed.
    pub fn grant(&self, grant: Grant) -> String {
        let kind = match &grant {
            Grant::Exec { .. } => "exec",
            Grant::Attach { .. } => "attach",
            Grant::PortForward { .. } => "portforward",
        };
        let token = format!("{:032x}", rand::random::<u128>());
        let mut grants = self.grants.lock();
        grants.retain(|_, (at, _)| at.elapsed() < LIFETIME);
        if grants.len() >= MAX_GRANTS
            && let Some(oldest) = grants
                .iter()
                .min_by_key(|(_, (at, _))| *at)
                .map(|(token, _)| token.clone())
        {
            grants.remove(&oldest);
        }
        grants.insert(token.clone(), (Instant::now(), grant));
        format!("http://{}/{kind}/{token}", self.address)
    }

    fn redeem(&self, path: &str) -> Option<Grant> {
        let token = path.rsplit('/').next()?;
        let (at, grant) = self.grants.lock().remove(token)?;
        (at.elapsed() < LIFETIME).then_some(grant)
    }

    /// Serves until shutdown. Connections that run then end with the process.
    pub async fn serve(
        self,
        listener: TcpListener,
        runtime: Arc<Runtime>,
        shutdown: CancellationToken,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a stream");
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let server = self.clone();
            let runtime = Arc::clone(&runtime);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request| {
                    let response = server.handle(request, Arc::clone(&runtime));
                    async move { Ok::<_, std::convert::Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades();
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "serving a stream");
                }
            });
        }
    }

    fn handle(&self, request: Request<Incoming>, runtime: Arc<Runtime>) -> Response<Body> {
        let Some(grant) = self.redeem(request.uri().path()) else {
            return refuse(StatusCode::NOT_FOUND, "no such stream");
        };
        let upgrade = request
            .headers()
            .get(header::UPGRADE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_ascii_lowercase();
        match upgrade.as_str() {
            "spdy/3.1" => spdy_upgrade(request, grant, runtime),
            "websocket" => websocket::upgrade(request, grant, runtime),
            _ => refuse(
                StatusCode::BAD_REQUEST,
                "unable to upgrade: missing upgrade headers in request",
            ),
        }
    }
}

/// Switches a connection to SPDY and serves the grant on it.
fn spdy_upgrade(
    mut request: Request<Incoming>,
    grant: Grant,
    runtime: Arc<Runtime>,
) -> Response<Body> {
    let supported: &[&str] = match grant {
        Grant::PortForward { .. } => &[port_forward::PROTOCOL],
        _ => &remote_command::PROTOCOLS,
    };
    let offered = offered(request.headers(), "x-stream-protocol-version");
    // Clients of the first version send no header.
    let chosen = match supported
        .iter()
        .find(|protocol| offered.iter().any(|offer| offer == *protocol))
    {
        Some(chosen) => Some(*chosen),
        None if offered.is_empty() => None,
        None => {
            return refuse(
                StatusCode::FORBIDDEN,
                &format!(
                    "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {supported:?}"
                ),
            );
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => {
                tracing::debug!(%error, "upgrading to SPDY");
                return;
            }
        };
        let connection = spdy::Connection::server(TokioIo::new(upgraded));
        match grant {
            Grant::PortForward { sandbox, .. } => {
                port_forward::over_spdy(connection, &sandbox, &runtime).await;
            }
            grant => remote_command::over_spdy(connection, grant, chosen, &runtime).await,
        }
    });
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(
        header::CONNECTION,
        header::HeaderValue::from_static("Upgrade"),
    );
    headers.insert(
        header::UPGRADE,
        header::HeaderValue::from_static("SPDY/3.1"),
    );
    if let Some(chosen) = chosen {
        headers.insert(
            "x-stream-protocol-version",
            header::HeaderValue::from_static(chosen),
        );
    }
    response
}

/// The values of a header that is a list, perhaps sent several times.
fn offered(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
        .collect()
}

fn refuse(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(message.to_owned()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_good_once() {
        let server = StreamingServer::new("127.0.0.1:1".parse().unwrap());
        let url = server.grant(Grant::PortForward {
            sandbox: "s".to_owned(),
            ports: Vec::new(),
        });
        let path = url.strip_prefix("http://127.0.0.1:1").unwrap();
        assert!(path.starts_with("/portforward/"));
        assert!(server.redeem(path).is_some());
        assert!(server.redeem(path).is_none());
    }
}

//! Passing requests on to a peer that serves what is not served here.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::UPGRADE;
use ::http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use fluyt_api::Error;
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Gvr, lease};
use crate::Server;
use crate::dial::{Connection, refusal};
use crate::front_proxy;
use crate::http::{self, Body};
use crate::user::User;

/// Says that a request has been passed on once: it does not go any further.
const PROXIED: HeaderName = HeaderName::from_static("x-kubernetes-peer-proxied");

/// Every API server's certificate is for this name.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// How long it may take to reach a peer.
const DIAL: Duration = Duration::from_secs(30);

/// Passes a request on to one of those that serve its resource; `None` when nobody does.
///
/// # Errors
/// 503 when nobody knows where they are.
pub async fn pass_on(
    server: &Arc<Server>,
    gvr: Gvr,
    user: &User,
    request: Request<Body>,
) -> Result<Option<Response<Body>>, Error> {
    if request.headers().get(PROXIED).is_some_and(|v| v == "true") {
        return Ok(None);
    }
    let serving = server.peers.serving(&gvr);
    if serving.is_empty() {
        return Ok(None);
    }
    let mut endpoints = Vec::new();
    for id in &serving {
        match lease::endpoint(server, id).await {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(error) => tracing::warn!(%error, id, ?gvr, "cannot find a peer"),
        }
    }
    if endpoints.is_empty() {
        server.peers.counters.unresolved(gvr);
        let why = "Error getting ip and port info of the remote server while proxying";
        return Err(Error::unavailable(why));
    }
    let endpoint = &endpoints[rand::random_range(0..endpoints.len())];
    tracing::debug!(path = request.uri().path(), endpoint, "passed on to a peer");
    let upgrades = request.headers().contains_key(UPGRADE);
    let answer = send(server, endpoint, user, request, gvr).await;
    let response = answer.unwrap_or_else(|why| {
        let before = if upgrades {
            ""
        } else {
            "error trying to reach service: "
        };
        http::text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{before}{why}\n").into_bytes(),
        )
    });
    Ok(Some(response))
}

/// Sends a request to a peer, in a user's name.
///
/// # Errors
/// Why there is no answer.
pub(super) async fn send(
    server: &Arc<Server>,
    endpoint: &str,
    user: &User,
    mut request: Request<Body>,
    gvr: Gvr,
) -> Result<Response<Body>, String> {
    let proxied = HeaderValue::from_static("true");
    request.headers_mut().insert(PROXIED, proxied);
    let sent = match connect(server, endpoint).await {
        Ok(stream) => front_proxy::pass(request, user, endpoint, stream)
            .await
            .map_err(|error| {
                tracing::warn!(%error, endpoint, "a peer did not answer");
                "EOF".to_owned()
            }),
        Err(why) => Err(why),
    };
    let status = match &sent {
        // There is no answer to a switch of protocols that would have a status.
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => 0,
        Ok(response) => response.status().as_u16(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.as_u16(),
    };
    server.peers.counters.rerouted(status, gvr);
    sent
}

async fn connect(server: &Server, endpoint: &str) -> Result<TlsStream<Connection>, String> {
    let missing = || format!("address {endpoint}: missing port in address");
    let (host, port) = lease::split_host_port(endpoint).ok_or_else(missing)?;
    let port = port.parse().map_err(|_| missing())?;
    let tls = server.peers.tls.clone();
    let tls = tls.ok_or("requests are not passed on")?;
    let connecting = async {
        let dialing = server.config.control_plane.connect(host, port).await;
        let stream = dialing.map_err(|e| format!("dial tcp {endpoint}: {}", refusal(&e)))?;
        let name = ServerName::try_from(SERVER_NAME).map_err(|e| e.to_string())?;
        let shaking = TlsConnector::from(tls).connect(name, stream).await;
        shaking.map_err(|e| format!("tls: failed to verify certificate: {e}"))
    };
    let in_time = tokio::time::timeout(DIAL, connecting).await;
    in_time.unwrap_or_else(|_| Err(format!("dial tcp {endpoint}: i/o timeout")))
}

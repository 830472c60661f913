//! SPDY inside WebSocket messages: port-forward. The kubelet gets it without them.

use fluyt_api::Error;
use fluyt_transport::websocket::{accepted, tunnelled};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::kubelet::Kubelet;
use super::super::{Call, proxy, throttle};
use super::{VERSION, is_spdy};
use crate::http::{Body, BoxError};

/// What a protocol of SPDY is called inside of WebSocket.
const PREFIX: &str = "SPDY/3.1+";

/// The protocol that a tunnel is for.
pub(super) fn spdy_protocol(protocol: &str) -> Option<&str> {
    let inner = protocol.strip_prefix(PREFIX)?;
    protocol.ends_with(".k8s.io").then_some(inner)
}

pub(super) async fn answer(
    call: Call,
    kubelet: &Kubelet,
    path: &str,
) -> Result<Response<Body>, Error> {
    let server = call.server.clone();
    let metrics = &server.metrics.streams;
    let Some(key) = super::handshake(&call.parts) else {
        metrics.tunnelled(StatusCode::BAD_REQUEST);
        return Ok(super::bad_handshake());
    };
    let mut request = call.into_request();
    let client = hyper::upgrade::on(&mut request);
    as_spdy(request.headers_mut());
    let stream = kubelet.dial_backend(&server).await?;
    let host = kubelet.address.to_string();
    let sent = proxy::send(request, Method::POST, path, &host, HeaderMap::new(), stream);
    let mut answer = sent.await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        metrics.tunnelled(answer.status());
        return Ok(proxy::proxied(answer));
    }
    if !is_spdy(answer.status(), answer.headers()) {
        metrics.tunnelled(StatusCode::INTERNAL_SERVER_ERROR);
        return Ok(crate::http::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "unable to upgrade: missing upgrade headers in response\n",
        ));
    }
    metrics.tunnelled(StatusCode::SWITCHING_PROTOCOLS);
    let chosen = answer.headers().get(VERSION).and_then(|v| v.to_str().ok());
    let chosen = chosen.map(|protocol| format!("{PREFIX}{}", protocol.trim()));
    let backend = hyper::upgrade::on(&mut answer);
    let rate = server.config.limits.max_connection_bytes_per_sec;
    tokio::spawn(async move {
        if let Err(error) = join(client, backend, rate).await {
            tracing::debug!(%error, "a tunnel ended");
        }
    });
    Ok(accepted(&key, chosen.as_deref()).map(|()| crate::http::full("")))
}

/// The headers of a client of WebSocket as those of one of SPDY.
fn as_spdy(headers: &mut HeaderMap) {
    let offered = headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    for name in [
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_VERSION,
        header::SEC_WEBSOCKET_EXTENSIONS,
    ] {
        headers.remove(name);
    }
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.remove(VERSION);
    let offered = offered.as_ref().and_then(|value| value.to_str().ok());
    let offered = offered.unwrap_or_default().split(',').map(str::trim);
    for protocol in offered.filter_map(spdy_protocol) {
        if let Ok(protocol) = HeaderValue::from_str(protocol) {
            headers.append(VERSION, protocol);
        }
    }
}

async fn join(client: OnUpgrade, backend: OnUpgrade, rate: u64) -> Result<(), BoxError> {
    let (client, backend) = tokio::try_join!(client, backend)?;
    let client = TokioIo::new(client);
    let socket = WebSocketStream::from_raw_socket(client, Role::Server, None).await;
    throttle::copy_bidirectional(tunnelled(socket), TokioIo::new(backend), rate).await?;
    Ok(())
}

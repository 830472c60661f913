//! exec, attach and port-forward: connections of clients that end at a pod, through its kubelet.
//!
//! A kubelet whose node declares `ExtendWebSocketsToKubelet` takes whatever protocol clients speak. Others speak SPDY, and
//! old versions of the channel protocol over WebSocket: what is newer is translated here, as upstream does it.

mod translate;
mod tunnel;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluyt_api::Error;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

use super::Call;
use super::kubelet::Kubelet;
use super::proxy::{container, encode, pod};
use crate::authz::{Question, Verdict};
use crate::features::Feature;
use crate::http::Body;
use crate::metrics::Route;

/// What a node declares whose kubelet needs no translation.
const TAKES_WEBSOCKETS: &str = "ExtendWebSocketsToKubelet";
/// The header of protocols that SPDY may carry.
const VERSION: &str = "x-stream-protocol-version";

pub(super) async fn handle(call: Call) -> Result<Response<Body>, Error> {
    may_create(&call).await?;
    let forwards = call.target.subresource == "portforward";
    let pod = pod(&call, &call.target.name).await?;
    let container = match forwards {
        true => String::new(),
        false => container(&call, &pod)?,
    };
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Error::bad_request(format!(
            "pod {} does not have a host assigned",
            call.target.name
        )));
    }
    let kubelet = Kubelet::of(&call, node).await?;
    let path = path(&call, &container);
    let features = call.server.config.features;
    let translation = match forwards {
        true => Feature::PortForwardWebsockets,
        false => Feature::TranslateStreamCloseWebsocketRequests,
    };
    if features.has(translation) {
        let direct =
            features.has(Feature::ExtendWebSocketsToKubelet) && kubelet.declares(TAKES_WEBSOCKETS);
        let route = match direct {
            true => Route::ToKubelet,
            false => Route::Translated,
        };
        let streams = &call.server.metrics.streams;
        streams.routed(&call.target.subresource, route);
        if !direct && forwards && offers(&call.parts.headers, tunnel::spdy_protocol).is_some() {
            return tunnel::answer(call, &kubelet, &path).await;
        }
        if !direct && !forwards && offers(&call.parts.headers, translate::closes).is_some() {
            return translate::answer(call, kubelet, path);
        }
    }
    if !asks_to_upgrade(&call.parts.headers) {
        return Err(Error::bad_request("Upgrade request required"));
    }
    let method = call.parts.method.clone();
    kubelet.forward(call, method, &path).await
}

/// Clients of WebSocket have to use GET; what they do is no less than what others need the right to create for.
async fn may_create(call: &Call) -> Result<(), Error> {
    let features = call.server.config.features;
    if call.info.verb == "create"
        || !features.has(Feature::AuthorizePodWebsocketUpgradeCreatePermission)
    {
        return Ok(());
    }
    let target = &call.target;
    let question = Question {
        verb: "create".into(),
        group: target.group.clone(),
        version: target.version.clone(),
        resource: target.plural.clone(),
        subresource: target.subresource.clone(),
        namespace: target.namespace.clone(),
        name: target.name.clone(),
        ..Question::default()
    };
    let decision = call.server.authorizer.decide(&call.user, &question).await;
    match (decision.verdict, decision.error) {
        (Verdict::Allow, _) => Ok(()),
        (_, Some(error)) => Err(Error::internal(error)),
        (_, None) => {
            let (group, plural, name) = (&target.group, &target.plural, &target.name);
            Err(Error::forbidden(group, plural, name, decision.reason))
        }
    }
}

/// Path and query for the kubelet.
fn path(call: &Call, container: &str) -> String {
    let query = &call.info.query;
    let (namespace, name) = (&call.target.namespace, &call.target.name);
    let all = |given: &str, sent: &str| -> Vec<String> {
        let values = query.all(given);
        values.map(|v| format!("{sent}={}", encode(v))).collect()
    };
    let (path, parameters) = match call.target.subresource.as_str() {
        "portforward" => (
            format!("/portForward/{namespace}/{name}"),
            all("ports", "port"),
        ),
        operation => {
            let mut parameters = match operation {
                "exec" => all("command", "command"),
                _ => Vec::new(),
            };
            for (given, sent) in [
                ("stderr", "error"),
                ("stdin", "input"),
                ("stdout", "output"),
                ("tty", "tty"),
            ] {
                if query.flag(given) {
                    parameters.push(format!("{sent}=1"));
                }
            }
            let path = format!("/{operation}/{namespace}/{name}/{container}");
            (path, parameters)
        }
    };
    match parameters.is_empty() {
        true => path,
        false => format!("{path}?{}", parameters.join("&")),
    }
}

fn asks_to_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.to_ascii_lowercase().contains("upgrade"))
}

/// What `found` makes of the first protocol for which it makes something, of those that a client of WebSocket offers.
fn offers<'a, T>(headers: &'a HeaderMap, found: impl Fn(&'a str) -> Option<T>) -> Option<T> {
    let is_websocket = headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !is_websocket || !asks_to_upgrade(headers) {
        return None;
    }
    let offered = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    offered.split(',').map(str::trim).find_map(found)
}

/// The key of a client's handshake, if it is one.
fn handshake(parts: &Parts) -> Option<HeaderValue> {
    let version = parts.headers.get(header::SEC_WEBSOCKET_VERSION)?;
    let key = parts.headers.get(header::SEC_WEBSOCKET_KEY)?;
    let nonce = STANDARD.decode(key.as_bytes()).ok()?;
    let is_one = parts.method == Method::GET && version == "13" && nonce.len() == 16;
    is_one.then(|| key.clone())
}

/// What a client is told whose handshake is none.
fn bad_handshake() -> Response<Body> {
    let mut answer = crate::http::text(StatusCode::BAD_REQUEST, "Bad Request\n");
    let version = HeaderValue::from_static("13");
    let headers = answer.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_VERSION, version);
    answer
}

/// Whether an answer switches to SPDY.
fn is_spdy(status: StatusCode, headers: &HeaderMap) -> bool {
    let names = |name: header::HeaderName, wanted: &str| {
        let value = headers.get(name).and_then(|v| v.to_str().ok());
        value.is_some_and(|v| v.to_ascii_lowercase().contains(wanted))
    };
    status == StatusCode::SWITCHING_PROTOCOLS
        && names(header::CONNECTION, "upgrade")
        && names(header::UPGRADE, "spdy/3.1")
}

//! Requests that somebody else answers: a kubelet (logs; exec, attach and port-forward are in [`super::streaming`]), or
//! whatever a pod, service or node serves (proxy). Upgraded connections are passed through byte by byte, whatever protocol
//! they speak.

use std::net::{IpAddr, SocketAddr};

use fluyt_api::{Error, Reason};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use super::kubelet::Kubelet;
use super::transport::Proxied;
use super::{Call, streaming, throttle};
use crate::dial::{connect_tls, refusal};
use crate::http::Body;
use crate::registry::Location;

/// Headers that belong to one hop, or that say who the client is; neither goes on.
const HOP_HEADERS: [header::HeaderName; 5] = [
    header::HOST,
    header::AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::PROXY_AUTHORIZATION,
];

pub(super) async fn handle(call: Call) -> Result<Response<Body>, Error> {
    if call.target.subresource != "log" {
        connect(&call).await?;
    }
    match (call.resource.plural, call.target.subresource.as_str()) {
        ("pods", "log") => log(call).await,
        ("pods", "exec" | "attach" | "portforward") => streaming::handle(call).await,
        (_, "proxy") => through_proxy(call).await,
        _ => Err(Error::no_route()),
    }
}

/// Asks admission about a connection; what is sent are the options of the query.
async fn connect(call: &Call) -> Result<(), Error> {
    let kind = match call.target.subresource.as_str() {
        "exec" => "PodExecOptions",
        "attach" => "PodAttachOptions",
        "portforward" => "PodPortForwardOptions",
        _ => match call.resource.plural {
            "nodes" => "NodeProxyOptions",
            "services" => "ServiceProxyOptions",
            _ => "PodProxyOptions",
        },
    };
    let mut options = serde_json::json!({"kind": kind, "apiVersion": "v1"});
    for (name, value) in call.info.query.pairs() {
        match name {
            "command" => match options["command"].as_array_mut() {
                Some(words) => words.push(value.into()),
                None => options["command"] = serde_json::json!([value]),
            },
            "stdin" | "stdout" | "stderr" | "tty" => {
                options[name] = matches!(value, "true" | "1" | "").into();
            }
            _ => options[name] = value.into(),
        }
    }
    let cx = call.write_context()?;
    let registry = &call.server.registry;
    registry.admit_connect(&cx, call.location(), options).await
}

pub(super) async fn pod(call: &Call, name: &str) -> Result<Value, Error> {
    let at = Location {
        name,
        subresource: "",
        ..call.location()
    };
    Ok(call.server.registry.get(at).await?.object())
}

/// The container that the query names, or the only one.
pub(super) fn container(call: &Call, pod: &Value) -> Result<String, Error> {
    let names = |list: &str| -> Vec<String> {
        let items = pod["spec"][list].as_array().into_iter().flatten();
        items
            .filter_map(|c| c["name"].as_str().map(Into::into))
            .collect()
    };
    let (containers, init, ephemeral) = (
        names("containers"),
        names("initContainers"),
        names("ephemeralContainers"),
    );
    if let Some(name) = call.info.query.get("container").filter(|c| !c.is_empty()) {
        let known = containers
            .iter()
            .chain(&init)
            .chain(&ephemeral)
            .any(|c| c == name);
        return if known {
            Ok(name.to_owned())
        } else {
            Err(Error::bad_request(format!(
                "container {name} is not valid for pod {}",
                call.target.name
            )))
        };
    }
    if let Some(default) =
        fluyt_api::meta::annotation(pod, "kubectl.kubernetes.io/default-container")
        && containers.iter().any(|c| c == default)
    {
        return Ok(default.to_owned());
    }
    match containers.as_slice() {
        [one] => Ok(one.clone()),
        many => {
            let mut message = format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                call.target.name,
                many.join(" ")
            );
            if !init.is_empty() {
                message.push_str(&format!(
                    " or one of the init containers: [{}]",
                    init.join(" ")
                ));
            }
            Err(Error::bad_request(message))
        }
    }
}

async fn log(call: Call) -> Result<Response<Body>, Error> {
    let pod = pod(&call, &call.target.name).await?;
    let container = container(&call, &pod)?;
    for name in ["tailLines", "limitBytes", "sinceSeconds"] {
        if let Some(number) = call.info.query.integer(name)?
            && number < 0
        {
            let mut errors = fluyt_api::validation::Errors::default();
            errors.invalid(name, &number.into(), "must be greater than or equal to 0");
            let pod = &call.target.name;
            return Err(Error::invalid("", "PodLogOptions", pod, errors.0));
        }
    }
    let node = pod["spec"]["nodeName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    if node.is_empty() {
        // Not on a node yet: there is nothing to read.
        return Ok(crate::http::text(StatusCode::OK, ""));
    }
    let query: Vec<String> = [
        "follow",
        "previous",
        "tailLines",
        "limitBytes",
        "sinceSeconds",
        "sinceTime",
        "timestamps",
        "stream",
    ]
    .iter()
    .filter_map(|name| {
        call.info
            .query
            .get(name)
            .map(|value| format!("{name}={}", encode(value)))
    })
    .collect();
    let path = format!(
        "/containerLogs/{}/{}/{container}?{}",
        call.target.namespace,
        call.target.name,
        query.join("&")
    );
    let kubelet = Kubelet::of(&call, &node).await?;
    kubelet.forward(call, Method::GET, &path).await
}

/// An answer of what a pod, service or node serves, with links that work from here.
async fn through_proxy(mut call: Call) -> Result<Response<Body>, Error> {
    let path = call.parts.uri.path();
    let is_read = matches!(call.parts.method, Method::GET | Method::HEAD);
    let upgrades = call.parts.headers.contains_key(header::UPGRADE);
    if call.target.rest.is_empty() && is_read && !upgrades {
        return to_root(&call);
    }
    let prefix = path.strip_suffix(&call.target.rest).unwrap_or(path);
    let prefix = prefix.trim_end_matches('/').to_owned();
    if let Ok(uri) = path.parse() {
        call.parts.headers.insert("x-forwarded-uri", uri);
    }
    let (host, answer) = match call.resource.plural {
        "pods" => pod_proxy(call).await?,
        "services" => service_proxy(call).await?,
        _ => return node_proxy(call).await,
    };
    let host = host.to_string();
    Ok(Proxied { prefix, host }.answer(answer))
}

/// Relative links of what is served at the root would lead to the proxy's parent.
fn to_root(call: &Call) -> Result<Response<Body>, Error> {
    let uri = &call.parts.uri;
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    Response::builder()
        .status(StatusCode::MOVED_PERMANENTLY)
        .header(header::LOCATION, format!("{}/{query}", uri.path()))
        .body(crate::http::full(bytes::Bytes::new()))
        .map_err(Error::internal)
}

async fn node_proxy(call: Call) -> Result<Response<Body>, Error> {
    let node = call
        .target
        .name
        .split(':')
        .next()
        .unwrap_or_default()
        .to_owned();
    let (path, method) = (rest_and_query(&call), call.parts.method.clone());
    let kubelet = Kubelet::of(&call, &node).await?;
    kubelet.forward(call, method, &path).await
}

/// What follows the subresource, with the query.
fn rest_and_query(call: &Call) -> String {
    let path = if call.target.rest.is_empty() {
        "/"
    } else {
        &call.target.rest
    };
    match call.parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    }
}

/// `[scheme:]name[:port]`.
fn split_target(target: &str) -> (&str, &str, &str) {
    let parts: Vec<&str> = target.split(':').collect();
    match parts.as_slice() {
        [name] => ("http", name, ""),
        [name, port] => ("http", name, port),
        [scheme, name, port, ..] => (if scheme.is_empty() { "http" } else { scheme }, name, port),
        [] => ("http", "", ""),
    }
}

async fn pod_proxy(call: Call) -> Result<(SocketAddr, Response<Body>), Error> {
    let (scheme, name, port) = split_target(&call.target.name);
    let pod = pod(&call, name).await?;
    let port = if port.is_empty() {
        pod["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .find_map(|c| c["ports"][0]["containerPort"].as_u64())
            .unwrap_or(80)
    } else {
        port.parse()
            .map_err(|_| Error::bad_request(format!("invalid pod port: {port}")))?
    };
    let address = pod["status"]["podIP"]
        .as_str()
        .and_then(|ip| ip.parse::<IpAddr>().ok());
    let address = address.ok_or_else(|| {
        Error::bad_request(format!("address not allowed: pod {name} has no address"))
    })?;
    let port = u16::try_from(port).map_err(|_| Error::bad_request("invalid pod port"))?;
    let scheme = scheme.to_owned();
    let address = SocketAddr::new(address, port);
    Ok((address, to_backend(call, &scheme, address).await?))
}

async fn service_proxy(call: Call) -> Result<(SocketAddr, Response<Body>), Error> {
    let (scheme, name, port) = split_target(&call.target.name);
    let backend =
        crate::aggregator::resolve(&call.server.caches, &call.target.namespace, name, port);
    let address = backend.map_err(|_| {
        Error::new(
            Reason::ServiceUnavailable,
            format!("no endpoints available for service \"{name}\""),
        )
    })?;
    let scheme = scheme.to_owned();
    Ok((address, to_backend(call, &scheme, address).await?))
}

async fn to_backend(
    call: Call,
    scheme: &str,
    address: SocketAddr,
) -> Result<Response<Body>, Error> {
    let (path, method) = (rest_and_query(&call), call.parts.method.clone());
    let rate = call.server.config.limits.max_connection_bytes_per_sec;
    let unreachable = |e: std::io::Error| {
        Error::new(
            Reason::ServiceUnavailable,
            format!(
                "error trying to reach service: dial tcp {address}: {}",
                refusal(&e)
            ),
        )
    };
    if scheme == "https" {
        let stream = connect_tls(
            &*call.server.dialer,
            call.server.insecure_tls.clone(),
            address,
            None,
        )
        .await
        .map_err(unreachable)?;
        forward(
            call.into_request(),
            method,
            &path,
            &address.to_string(),
            HeaderMap::new(),
            stream,
            rate,
        )
        .await
    } else {
        let stream = call
            .server
            .dialer
            .connect(address)
            .await
            .map_err(unreachable)?;
        forward(
            call.into_request(),
            method,
            &path,
            &address.to_string(),
            HeaderMap::new(),
            stream,
            rate,
        )
        .await
    }
}

/// Sends a request over a fresh connection and hands back the answer; a switch of protocols joins both connections, which
/// then carry `rate` bytes a second in each direction, or as many as they can when that is 0.
pub(crate) async fn forward<S>(
    mut request: Request<Body>,
    method: Method,
    path: &str,
    host: &str,
    added: HeaderMap,
    stream: S,
    rate: u64,
) -> Result<Response<Body>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let client = request
        .headers()
        .contains_key(header::UPGRADE)
        .then(|| hyper::upgrade::on(&mut request));
    let mut response = send(request, method, path, host, added, stream).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(client) = client
    {
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let Err(error) = join(client, backend, rate).await {
                tracing::debug!(%error, "an upgraded connection ended");
            }
        });
    }
    Ok(proxied(response))
}

/// Sends a request over a fresh connection.
pub(super) async fn send<S>(
    request: Request<Body>,
    method: Method,
    path: &str,
    host: &str,
    added: HeaderMap,
    stream: S,
) -> Result<Response<Incoming>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |e: hyper::Error| Error::internal(format!("error dialing backend: {e}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    let (mut parts, body) = request.into_parts();
    parts.method = method;
    parts.uri = path
        .parse::<Uri>()
        .map_err(|e| Error::bad_request(e.to_string()))?;
    parts.version = http::Version::HTTP_11;
    for name in HOP_HEADERS {
        parts.headers.remove(name);
    }
    if !parts.headers.contains_key(header::UPGRADE) {
        parts.headers.remove(header::CONNECTION);
    }
    parts.headers.extend(added);
    if let Ok(host) = host.parse() {
        parts.headers.insert(header::HOST, host);
    }
    parts.extensions.clear();
    let request = Request::from_parts(parts, body);
    sender.send_request(request).await.map_err(broken)
}

/// A backend's answer as it goes on to the client.
pub(super) fn proxied(response: Response<Incoming>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if parts.status != StatusCode::SWITCHING_PROTOCOLS {
        parts.headers.remove(header::CONNECTION);
        parts.headers.remove(header::TRANSFER_ENCODING);
    }
    Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
}

async fn join(
    client: hyper::upgrade::OnUpgrade,
    backend: hyper::upgrade::OnUpgrade,
    rate: u64,
) -> Result<(), crate::http::BoxError> {
    let (client, backend) = tokio::try_join!(client, backend)?;
    throttle::copy_bidirectional(TokioIo::new(client), TokioIo::new(backend), rate).await?;
    Ok(())
}

/// A query value, as Go escapes it.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else if byte == b' ' {
            encoded.push('+');
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_targets() {
        assert_eq!(split_target("a"), ("http", "a", ""));
        assert_eq!(split_target("a:80"), ("http", "a", "80"));
        assert_eq!(split_target("https:a:443"), ("https", "a", "443"));
    }

    #[test]
    fn values_are_encoded() {
        assert_eq!(encode("a b&c=/é"), "a+b%26c%3D%2F%C3%A9");
    }
}

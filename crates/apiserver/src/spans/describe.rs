//! What the spans of a request are called, and what they say of it.

use ::http::header::{ACCEPT, HOST, USER_AGENT};
use ::http::request::Parts;
use ::http::{HeaderValue, Method, Version};

use super::request::Held;
use super::span::{self, Span};
use crate::audit;
use crate::listen::PeerAddress;
use crate::metrics::Labels;
use crate::request::RequestInfo;

/// How upstream names a request: by what is asked for, not by what it is called.
pub(super) fn name(info: &RequestInfo, method: &Method) -> String {
    let Some(target) = &info.target else {
        return method.to_string();
    };
    let prefix = if target.group.is_empty() {
        "api"
    } else {
        "apis"
    };
    let mut name = format!("{method} /{prefix}");
    let mut add = |part: &str| {
        name.push('/');
        name.push_str(part);
    };
    if !target.group.is_empty() {
        add(&target.group);
    }
    add(&target.version);
    // Upstream takes a namespace to be in itself.
    let is_namespace = target.plural == "namespaces" && !target.name.is_empty();
    if !target.namespace.is_empty() || is_namespace {
        add("namespaces/{:namespace}");
    }
    add(&target.plural);
    if !target.name.is_empty() {
        add("{:name}");
    }
    if !target.subresource.is_empty() {
        add(&target.subresource);
    }
    name
}

/// The attributes of an HTTP request, by OpenTelemetry's conventions.
pub(super) fn request(span: &Span, parts: &Parts) {
    let peer = parts.extensions.get::<PeerAddress>().map(|peer| peer.0);
    let host = match parts.uri.authority() {
        Some(authority) => authority.as_str(),
        None => text(parts.headers.get(HOST)),
    };
    let authority = host.parse::<::http::uri::Authority>().ok();
    let (host, port) = match &authority {
        Some(authority) => (authority.host(), authority.port_u16()),
        None => ("", None),
    };
    // Who is in this process comes without a connection.
    let (scheme, usual) = match peer {
        Some(_) => ("https", 443),
        None => ("http", 80),
    };
    span.set("server.address", host.trim_matches(['[', ']']));
    span.set("http.request.method", parts.method.as_str());
    span.set("url.scheme", scheme);
    if let Some(port) = port.filter(|port| *port != usual) {
        span.set("server.port", port);
    }
    if let Some(peer) = peer {
        span.set("network.peer.address", peer.ip().to_string());
        span.set("network.peer.port", peer.port());
    }
    let agent = text(parts.headers.get(USER_AGENT));
    if !agent.is_empty() {
        span.set("user_agent.original", agent);
    }
    let forwarded = text(parts.headers.get("x-forwarded-for"));
    let client = forwarded.split(',').next().unwrap_or_default();
    match peer {
        _ if !client.is_empty() => span.set("client.address", client),
        Some(peer) => span.set("client.address", peer.ip().to_string()),
        None => {}
    }
    span.set("url.path", parts.uri.path());
    let protocol = protocol(parts.version);
    span.set(
        "network.protocol.version",
        protocol.trim_start_matches("HTTP/"),
    );
    let target = parts.uri.path_and_query();
    span.set("http.target", target.map_or("", |target| target.as_str()));
    span.set("audit-id", span.audit_id());
}

/// Starts the step that is the handling of a verb. Connections have none, nor have watches that do not begin with a list.
#[must_use]
pub fn handling(info: &RequestInfo, parts: &Parts) -> Option<Held> {
    let name = match info.verb {
        "get" => "Get",
        "list" => "List",
        "watch" if info.query.flag_is_true("sendInitialEvents") => "WatchList",
        "create" => "Create",
        "update" => "Update",
        "patch" => "Patch",
        "delete" | "deletecollection" => "Delete",
        _ => return None,
    };
    let describe = |span: &Span| {
        let labels = Labels::of(info, &parts.headers);
        let (verb, scope) = labels.map_or(("", ""), |l| (l.verb(), l.scope()));
        let client = audit::source_ips(parts).into_iter().next();
        let target = info.target.as_ref();
        let named = |part: fn(&crate::request::Target) -> &str| target.map_or("", part);
        let agent = match parts.headers.contains_key(USER_AGENT) {
            true => audit::user_agent(&parts.headers),
            false => "unknown".to_owned(),
        };
        span.set("accept", text(parts.headers.get(ACCEPT)));
        span.set("audit-id", span.audit_id());
        span.set("client", client.unwrap_or_else(|| "unknown".into()));
        span.set("api-group", named(|target| &target.group));
        span.set("api-version", named(|target| &target.version));
        span.set("name", named(|target| &target.name));
        span.set("subresource", named(|target| &target.subresource));
        span.set("namespace", named(|target| &target.namespace));
        span.set("protocol", protocol(parts.version));
        span.set("resource", named(|target| &target.plural));
        span.set("scope", scope);
        span.set("url", parts.uri.path());
        span.set("user-agent", agent);
        span.set("verb", verb);
    };
    let connects = || Labels::of(info, &parts.headers).is_some_and(|l| l.verb() == "CONNECT");
    if span::current().is_none_or(|span| !span.is_recorded()) || connects() {
        return None;
    }
    Some(Held {
        span: span::start(name, describe)?,
        is_object: info.verb != "watch",
    })
}

pub(super) fn text(value: Option<&HeaderValue>) -> &str {
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// As Go writes it.
fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use fluyt_api::resources::Snapshot;

    use super::*;

    #[test]
    fn requests_are_named_after_what_they_ask_for() {
        let served = Snapshot::default();
        for (method, path, expected) in [
            (Method::GET, "/api/v1/pods", "GET /api/v1/pods"),
            (
                Method::POST,
                "/api/v1/namespaces/a/pods",
                "POST /api/v1/namespaces/{:namespace}/pods",
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/b/scale",
                "PATCH /apis/apps/v1/namespaces/{:namespace}/deployments/{:name}/scale",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a",
                "GET /api/v1/namespaces/{:namespace}/namespaces/{:name}",
            ),
            (
                Method::DELETE,
                "/api/v1/nodes/n",
                "DELETE /api/v1/nodes/{:name}",
            ),
            (
                Method::GET,
                "/apis/metrics.k8s.io/v1beta1/nodes",
                "GET /apis/metrics.k8s.io/v1beta1/nodes",
            ),
            (Method::GET, "/healthz", "GET"),
            (Method::GET, "/apis/apps/v1", "GET"),
        ] {
            let info = RequestInfo::parse(&served, &method, path, None);
            assert_eq!(name(&info, &method), expected);
        }
    }
}

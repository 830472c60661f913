//! Passing requests on to the server of a group.

use std::sync::Arc;

use ::http::header::{LOCATION, UPGRADE};
use ::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use fluyt_api::{Error, Reason};
use serde_json::Value;

use super::endpoint::Unavailable;
use crate::Server;
use crate::dial::{Connection, connect_tls, refusal};
use crate::handlers::forward;
use crate::http::{self, Body};
use crate::spans::{self, Held};
use crate::user::User;

/// Passes a request on, with the user's identity in the front-proxy headers.
///
/// # Errors
/// 503 when no endpoint answers.
pub async fn proxy(
    server: Arc<Server>,
    service: Value,
    user: User,
    request: Request<Body>,
) -> Result<Response<Body>, Error> {
    let (stream, host) = connect(&server, &service)
        .await
        .map_err(|why| Error::new(Reason::ServiceUnavailable, why.to_string()))?;
    let mut headers = HeaderMap::new();
    let value =
        |text: &str| HeaderValue::from_str(text).map_err(|e| Error::bad_request(e.to_string()));
    headers.insert("x-remote-user", value(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert("x-remote-uid", value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append("x-remote-group", value(group)?);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escape_key(key));
        let name = HeaderName::try_from(name).map_err(|e| Error::bad_request(e.to_string()))?;
        for text in values {
            headers.append(name.clone(), value(text)?);
        }
    }
    let method = request.method().clone();
    let path = request
        .uri()
        .path_and_query()
        .map_or_else(|| "/".to_owned(), ToString::to_string);
    let mut request = request;
    let spoofed: Vec<HeaderName> = request
        .headers()
        .keys()
        .filter(|name| name.as_str().starts_with("x-remote-"))
        .cloned()
        .collect();
    for name in spoofed {
        request.headers_mut().remove(name);
    }
    let rejects = server.config.routing.aggregator_reject_forwarding_redirect;
    let allowed = |response| {
        if rejects {
            unless_redirect(response)
        } else {
            response
        }
    };
    // Whoever switches protocols talks to the server itself.
    if request.headers().contains_key(UPGRADE) {
        let answer = forward(request, method, &path, &host, headers, stream, 0).await;
        return answer.map(allowed);
    }
    let url = format!("https://{host}{path}");
    let passing = spans::call(&method, &url, request.headers_mut());
    let mut response = forward(request, method, &path, &host, headers, stream, 0)
        .await
        .inspect_err(|error| passing.failed(&error.message))?;
    passing.answered(response.status());
    if let Some(span) = passing.into_span() {
        let is_object = false;
        response.extensions_mut().insert(Held { span, is_object });
    }
    Ok(allowed(response))
}

/// An answer, unless it would lead the client, and its credentials, somewhere else.
fn unless_redirect(response: Response<Body>) -> Response<Body> {
    if !response.status().is_redirection() || !response.headers().contains_key(LOCATION) {
        return response;
    }
    let why = "the backend attempted to redirect this request, which is not permitted";
    let mut refused = Response::new(http::full(why));
    *refused.status_mut() = StatusCode::BAD_GATEWAY;
    refused
}

/// A key of extra attributes as part of a header's name.
fn escape_key(key: &str) -> String {
    use std::fmt::Write as _;
    key.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

type Stream = tokio_rustls::client::TlsStream<Connection>;

async fn connect(server: &Server, service: &Value) -> Result<(Stream, String), Unavailable> {
    let reference = &service["spec"]["service"];
    let (namespace, name) = (
        reference["namespace"].as_str().unwrap_or_default(),
        reference["name"].as_str().unwrap_or_default(),
    );
    let port = reference["port"].as_i64().unwrap_or(443);
    let routing = server.config.routing;
    let address = routing
        .resolve(&server.caches, namespace, name, port)
        .await?;
    let host = format!("{name}.{namespace}.svc");
    let tls = if service["spec"]["insecureSkipTLSVerify"] == true {
        server.insecure_tls.clone()
    } else {
        let bundle = service["spec"]["caBundle"].as_str().unwrap_or_default();
        let trusting = server.trusting(bundle);
        trusting.map_err(|e| Unavailable::Discovery(format!("caBundle: {e:#}")))?
    };
    let stream = connect_tls(&*server.dialer, tls, address, Some(&host))
        .await
        .map_err(|e| Unavailable::Discovery(format!("dial tcp {address}: {}", refusal(&e))))?;
    Ok((stream, host))
}

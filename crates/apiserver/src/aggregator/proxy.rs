//! Passing requests on to the server of a group.

use std::sync::Arc;

use ::http::{HeaderMap, HeaderValue, Request, Response};
use fluyt_api::{Error, Reason};
use serde_json::Value;

use super::endpoint::{self, Unavailable};
use crate::Server;
use crate::dial::connect_tls;
use crate::handlers::forward;
use crate::http::Body;
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
    for group in &user.groups {
        headers.append("x-remote-group", value(group)?);
    }
    let method = request.method().clone();
    let path = request
        .uri()
        .path_and_query()
        .map_or_else(|| "/".to_owned(), ToString::to_string);
    let mut request = request;
    for spoofed in ["x-remote-user", "x-remote-group"] {
        request.headers_mut().remove(spoofed);
    }
    forward(request, method, &path, &host, headers, stream).await
}

type Stream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

async fn connect(server: &Server, service: &Value) -> Result<(Stream, String), Unavailable> {
    let reference = &service["spec"]["service"];
    let (namespace, name) = (
        reference["namespace"].as_str().unwrap_or_default(),
        reference["name"].as_str().unwrap_or_default(),
    );
    let port = reference["port"].as_i64().unwrap_or(443).to_string();
    let address = endpoint::resolve(&server.caches, namespace, name, &port)?;
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
        .map_err(|e| Unavailable::Discovery(format!("dial tcp {address}: {e}")))?;
    Ok((stream, host))
}

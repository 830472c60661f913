//! Passing requests on to the server of a group.

use std::sync::Arc;

use ::http::header::LOCATION;
use ::http::{Request, Response, StatusCode};
use fluyt_api::{Error, Reason};
use serde_json::Value;

use super::endpoint::Unavailable;
use crate::Server;
use crate::dial::{Connection, connect_tls, refusal};
use crate::front_proxy;
use crate::http::{self, Body};
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
    let rejects = server.config.routing.aggregator_reject_forwarding_redirect;
    let response = front_proxy::pass(request, &user, &host, stream).await?;
    Ok(if rejects {
        unless_redirect(response)
    } else {
        response
    })
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

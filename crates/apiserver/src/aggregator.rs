//! The aggregation layer: groups that an `APIService` says another server serves.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fluyt_api::{Error, Reason, meta, resources};
use http::{HeaderMap, HeaderValue, Request, Response};
use serde_json::{Value, json};

use crate::Server;
use crate::cache::Caches;
use crate::dial::connect_tls;
use crate::handlers::forward;
use crate::http::Body;
use crate::registry::{Change, Location, WriteContext};
use crate::user::{MASTERS, User};

/// Attempts at reaching a group's server while it starts.
const CHECK_PERIOD: Duration = Duration::from_secs(2);

/// The `APIService` of a group and version that another server serves.
#[must_use]
pub fn find(caches: &Caches, group: &str, version: &str) -> Option<Value> {
    let services = resources::find("apiregistration.k8s.io", "v1", "apiservices")?;
    let entry = caches.of(services).get(&format!("{version}.{group}"))?;
    let service = entry.object();
    service["spec"]["service"].is_object().then_some(service)
}

/// Every aggregated group and version.
#[must_use]
pub fn all(caches: &Caches) -> Vec<Value> {
    let Some(services) = resources::find("apiregistration.k8s.io", "v1", "apiservices") else {
        return Vec::new();
    };
    let entries = caches.of(services).snapshot().entries;
    entries
        .values()
        .map(|e| e.object())
        .filter(|s| s["spec"]["service"].is_object())
        .collect()
}

/// A ready address of a service's port (name, number, or empty for the first).
#[must_use]
pub fn endpoint(caches: &Caches, namespace: &str, service: &str, port: &str) -> Option<SocketAddr> {
    let services = resources::find("", "v1", "services")?;
    let spec = caches
        .of(services)
        .get(&format!("{namespace}/{service}"))?
        .object();
    let ports = spec["spec"]["ports"].as_array()?;
    let wanted = ports.iter().find(|p| {
        port.is_empty()
            || p["name"] == port
            || p["port"].as_i64().is_some_and(|n| n.to_string() == port)
    })?;
    let name = wanted["name"].as_str().unwrap_or_default();
    let slices = resources::find("discovery.k8s.io", "v1", "endpointslices")?;
    let snapshot = caches.of(slices).snapshot();
    let mut found = Vec::new();
    for entry in snapshot
        .entries
        .values()
        .filter(|e| e.namespace() == namespace)
    {
        let labels = entry.labels.as_deref();
        if labels
            .and_then(|l| l.get("kubernetes.io/service-name"))
            .and_then(Value::as_str)
            != Some(service)
        {
            continue;
        }
        let slice = entry.object();
        let port = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["name"].as_str().unwrap_or_default() == name);
        let Some(port) = port.and_then(|p| u16::try_from(p["port"].as_u64()?).ok()) else {
            continue;
        };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] == false {
                continue;
            }
            let addresses = endpoint["addresses"].as_array().into_iter().flatten();
            found.extend(
                addresses.filter_map(|a| {
                    Some(SocketAddr::new(a.as_str()?.parse::<IpAddr>().ok()?, port))
                }),
            );
        }
    }
    (!found.is_empty()).then(|| found[rand::random_range(0..found.len())])
}

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
        .map_err(|why| Error::new(Reason::ServiceUnavailable, why))?;
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

async fn connect(server: &Server, service: &Value) -> Result<(Stream, String), String> {
    let reference = &service["spec"]["service"];
    let (namespace, name) = (
        reference["namespace"].as_str().unwrap_or_default(),
        reference["name"].as_str().unwrap_or_default(),
    );
    let port = reference["port"].as_i64().unwrap_or(443).to_string();
    let address = endpoint(&server.caches, namespace, name, &port).ok_or_else(|| {
        format!("endpoints for service/{name} in \"{namespace}\" have no addresses")
    })?;
    let host = format!("{name}.{namespace}.svc");
    let tls = if service["spec"]["insecureSkipTLSVerify"] == true {
        server.insecure_tls.clone()
    } else {
        let bundle = service["spec"]["caBundle"].as_str().unwrap_or_default();
        server.trusting(bundle).map_err(|e| e.to_string())?
    };
    let stream = connect_tls(&*server.dialer, tls, address, Some(&host))
        .await
        .map_err(|e| format!("{address}: {e}"))?;
    Ok((stream, host))
}

/// Keeps the `Available` condition of every aggregated group true to what answers.
pub async fn watch_availability(server: Arc<Server>) {
    let Some(resource) = resources::find("apiregistration.k8s.io", "v1", "apiservices") else {
        return;
    };
    loop {
        for service in all(&server.caches) {
            let condition = match connect(&server, &service).await {
                Ok(_) => {
                    json!({"type": "Available", "status": "True", "reason": "Passed", "message": "all checks passed"})
                }
                Err(why) => {
                    json!({"type": "Available", "status": "False", "reason": "MissingEndpoints", "message": why})
                }
            };
            let present = service["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|c| c["type"] == "Available");
            if present.is_some_and(|p| p["status"] == condition["status"]) {
                continue;
            }
            let set: Change<'_> = Box::new(|current: &Value| {
                let mut object = current.clone();
                let mut condition = condition.clone();
                condition["lastTransitionTime"] = meta::now().into();
                object["status"]["conditions"] = json!([condition]);
                Ok(object)
            });
            let cx = WriteContext {
                user: User::new("system:apiserver", &[MASTERS]),
                dry_run: false,
            };
            let at = Location {
                resource,
                namespace: "",
                name: meta::name(&service),
                subresource: "status",
            };
            if let Err(error) = server.registry.update(&cx, at, set).await {
                tracing::debug!(%error, "cannot update the condition of an APIService");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(CHECK_PERIOD) => {}
            () = server.shutdown.cancelled() => return,
        }
    }
}

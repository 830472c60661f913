//! The aggregation layer: groups that an `APIService` says another server serves.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Request, Response};
use fluyt_api::{Error, Reason, meta, resources};
use parking_lot::RwLock;
use serde_json::{Value, json};

use crate::Server;
use crate::cache::Caches;
use crate::dial::connect_tls;
use crate::handlers::forward;
use crate::http::{self, Body};
use crate::registry::{Change, Location, WriteContext};
use crate::user::{MASTERS, User};

/// Attempts at reaching a group's server while it starts.
const CHECK_PERIOD: Duration = Duration::from_secs(2);

/// A server that does not say what it serves by then is asked again.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);

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

/// The resources of each aggregated group and version, as entries of aggregated discovery.
pub type Discovered = RwLock<HashMap<(String, String), Vec<Value>>>;

/// Asks an aggregated server once what it serves.
async fn discover(server: &Arc<Server>, service: &Value) {
    let text = |field: &str| {
        service["spec"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let key = (text("group"), text("version"));
    if server.aggregated.read().contains_key(&key) {
        return;
    }
    let mut request = Request::new(http::full(""));
    *request.uri_mut() = match format!("/apis/{}/{}", key.0, key.1).parse() {
        Ok(uri) => uri,
        Err(_) => return,
    };
    let accept = HeaderValue::from_static("application/json");
    request.headers_mut().insert(::http::header::ACCEPT, accept);
    let user = User::new("system:kube-aggregator", &[MASTERS]);
    let answer = proxy(server.clone(), service.clone(), user, request);
    let listed = match tokio::time::timeout(DISCOVERY_TIMEOUT, answer).await {
        Ok(Ok(response)) if response.status().is_success() => {
            http::collect(response.into_body()).await
        }
        _ => return,
    };
    let listed = listed.ok().and_then(|b| serde_json::from_slice(&b).ok());
    if let Some(list) = listed {
        let entries = discovery_entries(&key.0, &key.1, &list);
        server.aggregated.write().insert(key, entries);
    }
}

/// An `APIResourceList` as entries of aggregated discovery.
fn discovery_entries(group: &str, version: &str, list: &Value) -> Vec<Value> {
    let mut entries: Vec<Value> = Vec::new();
    for resource in list["resources"].as_array().into_iter().flatten() {
        let name = resource["name"].as_str().unwrap_or_default();
        let own = |field: &str, default: &str| {
            let value = resource[field].as_str().filter(|v| !v.is_empty());
            value.unwrap_or(default).to_owned()
        };
        let kind = json!({"group": own("group", group), "version": own("version", version), "kind": resource["kind"]});
        if let Some((parent, sub)) = name.split_once('/') {
            let sub = json!({"subresource": sub, "verbs": resource["verbs"], "responseKind": kind});
            if let Some(parent) = entries.iter_mut().find(|e| e["resource"] == parent) {
                match parent["subresources"].as_array_mut() {
                    Some(subs) => subs.push(sub),
                    None => parent["subresources"] = json!([sub]),
                }
            }
            continue;
        }
        let scope = if resource["namespaced"] == true {
            "Namespaced"
        } else {
            "Cluster"
        };
        let mut entry = json!({
            "resource": name, "scope": scope, "singularResource": resource["singularName"],
            "verbs": resource["verbs"], "responseKind": kind,
        });
        for field in ["shortNames", "categories"] {
            if resource[field].is_array() {
                entry[field] = resource[field].clone();
            }
        }
        entries.push(entry);
    }
    entries
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
                    discover(&server, &service).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_lists_become_entries_with_their_subresources() {
        let list = json!({"resources": [
            {"name": "pods", "singularName": "pod", "namespaced": true, "kind": "PodMetrics", "verbs": ["get"]},
            {"name": "pods/x", "singularName": "", "namespaced": true, "kind": "X", "group": "g2", "verbs": ["get"]},
        ]});
        let entries = discovery_entries("g", "v1", &list);
        assert_eq!(entries.len(), 1);
        assert_eq!(
            entries[0]["responseKind"],
            json!({"group": "g", "version": "v1", "kind": "PodMetrics"})
        );
        assert_eq!(entries[0]["subresources"][0]["responseKind"]["group"], "g2");
    }
}

//! What the servers of aggregated groups serve, for aggregated discovery.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderValue, Request};
use parking_lot::RwLock;
use serde_json::{Value, json};

use super::endpoint::{self, Unavailable};
use super::proxy;
use crate::Server;
use crate::http;
use crate::user::{MASTERS, User};

/// A server that does not say what it serves by then counts as not available.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The resources of each aggregated group and version, as entries of aggregated discovery.
pub type Discovered = RwLock<HashMap<(String, String), Vec<Value>>>;

/// Group and version of an `APIService`.
pub fn key(service: &Value) -> (String, String) {
    let text = |field: &str| {
        service["spec"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    (text("group"), text("version"))
}

/// What a server answered to the question what it serves: the entries of aggregated discovery.
///
/// # Errors
/// Why it is not available, as upstream's check says it.
pub async fn ask(server: &Arc<Server>, service: &Value) -> Result<Vec<Value>, Unavailable> {
    let spec = &service["spec"];
    let (group, version) = (
        spec["group"].as_str().unwrap_or_default(),
        spec["version"].as_str().unwrap_or_default(),
    );
    let reference = &spec["service"];
    // Known before anything is sent, and named for what it is.
    endpoint::resolve(
        &server.caches,
        reference["namespace"].as_str().unwrap_or_default(),
        reference["name"].as_str().unwrap_or_default(),
        &reference["port"].as_i64().unwrap_or(443).to_string(),
    )?;
    let path = format!("/apis/{group}/{version}");
    let failing = |why: String| {
        Unavailable::Discovery(format!("failing or missing response from {path}: {why}"))
    };
    let mut request = Request::new(http::full(""));
    *request.uri_mut() = path
        .parse()
        .map_err(|e: ::http::uri::InvalidUri| failing(e.to_string()))?;
    let accept = HeaderValue::from_static("application/json");
    request.headers_mut().insert(::http::header::ACCEPT, accept);
    let user = User::new("system:kube-aggregator", &[MASTERS]);
    let answer = proxy(server.clone(), service.clone(), user, request);
    let response = tokio::time::timeout(TIMEOUT, answer)
        .await
        .map_err(|_| failing("it took too long".into()))?
        .map_err(|e| failing(e.to_string()))?;
    let status = response.status();
    if !status.is_success() {
        let why = format!("bad status from {path}: {}", status.as_u16());
        return Err(failing(why));
    }
    let body = tokio::time::timeout(TIMEOUT, http::collect(response.into_body()))
        .await
        .map_err(|_| failing("it took too long".into()))?
        .map_err(|e| failing(e.to_string()))?;
    let list: Value = serde_json::from_slice(&body).map_err(|e| failing(e.to_string()))?;
    Ok(entries(group, version, &list))
}

/// An `APIResourceList` as entries of aggregated discovery.
fn entries(group: &str, version: &str, list: &Value) -> Vec<Value> {
    let mut listed: Vec<Value> = Vec::new();
    for resource in list["resources"].as_array().into_iter().flatten() {
        let name = resource["name"].as_str().unwrap_or_default();
        let own = |field: &str, default: &str| {
            let value = resource[field].as_str().filter(|v| !v.is_empty());
            value.unwrap_or(default).to_owned()
        };
        let kind = json!({"group": own("group", group), "version": own("version", version), "kind": resource["kind"]});
        if let Some((parent, sub)) = name.split_once('/') {
            let sub = json!({"subresource": sub, "verbs": resource["verbs"], "responseKind": kind});
            if let Some(parent) = listed.iter_mut().find(|e| e["resource"] == parent) {
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
        listed.push(entry);
    }
    listed
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
        let entries = entries("g", "v1", &list);
        assert_eq!(entries.len(), 1);
        assert_eq!(
            entries[0]["responseKind"],
            json!({"group": "g", "version": "v1", "kind": "PodMetrics"})
        );
        assert_eq!(entries[0]["subresources"][0]["responseKind"]["group"], "g2");
    }
}

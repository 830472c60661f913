//! Discovery: which groups, versions and resources there are, in the plain and the aggregated form.

use std::sync::Arc;

use base64::Engine as _;
use fluyt_api::resources::{self, Resource};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::Server;
use crate::aggregator;
use crate::http::{self as responses, Body};

/// Answers `/api`, `/apis` and what is directly below them; `None` for other paths.
pub fn handle(server: &Arc<Server>, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    let path = path.trim_end_matches('/');
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let aggregated = wants_aggregated(headers);
    let value = match segments.as_slice() {
        ["api"] if aggregated => {
            return Some(aggregated_response(
                &groups_aggregated(server, true),
                headers,
            ));
        }
        ["apis"] if aggregated => {
            return Some(aggregated_response(
                &groups_aggregated(server, false),
                headers,
            ));
        }
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server.config.external_address()}],
        }),
        ["apis"] => {
            let groups: Vec<Value> = groups(server).iter().map(|(g, v)| group(g, v)).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", name] => {
            let (name, versions) = groups(server).into_iter().find(|(g, _)| g == name)?;
            let mut value = group(&name, &versions);
            value["kind"] = "APIGroup".into();
            value["apiVersion"] = "v1".into();
            value
        }
        ["api", version] => resource_list(server, "", version)?,
        ["apis", name, version] => resource_list(server, name, version)?,
        _ => return None,
    };
    Some(responses::json(StatusCode::OK, &value))
}

/// Every path that there is something at, for who looks around.
pub fn paths(server: &Arc<Server>) -> Value {
    const OTHERS: [&str; 13] = [
        "/.well-known/openid-configuration",
        "/api",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/",
        "/openid/v1/jwks",
        "/readyz",
        "/statusz",
        "/version",
    ];
    let mut paths: Vec<String> = OTHERS.iter().map(|p| (*p).to_owned()).collect();
    paths.extend(["/api/v1".to_owned(), "/apis/".to_owned()]);
    for (group, versions) in groups(server) {
        paths.push(format!("/apis/{group}"));
        paths.extend(
            versions
                .iter()
                .map(|version| format!("/apis/{group}/{version}")),
        );
    }
    paths.sort_unstable();
    json!({"paths": paths})
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    accept.split(',').any(|range| {
        range.contains("g=apidiscovery.k8s.io")
            && range.contains("v=v2")
            && !range.contains("v=v2beta1")
    })
}

/// Groups with their versions, the preferred one first.
fn groups(server: &Arc<Server>) -> Vec<(String, Vec<String>)> {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    let mut add = |group: &str, version: &str| match groups.iter_mut().find(|(g, _)| g == group) {
        Some((_, versions)) if versions.iter().any(|v| v == version) => {}
        Some((_, versions)) => {
            versions.push(version.to_owned());
            versions.sort_by(|a, b| b.cmp(a));
        }
        None => groups.push((group.to_owned(), vec![version.to_owned()])),
    };
    for resource in server.caches.served().all().filter(|r| !r.group.is_empty()) {
        add(resource.group, resource.version);
    }
    for service in aggregator::all(&server.caches) {
        add(
            service["spec"]["group"].as_str().unwrap_or_default(),
            service["spec"]["version"].as_str().unwrap_or_default(),
        );
    }
    groups
}

fn group(name: &str, versions: &[String]) -> Value {
    let list: Vec<Value> = versions
        .iter()
        .map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
        .collect();
    json!({"name": name, "versions": list, "preferredVersion": list.first()})
}

fn resource_list(server: &Arc<Server>, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    let served = server.caches.served();
    for resource in served
        .all()
        .filter(|r| r.group == group && r.version == version)
    {
        list.push(entry(resource));
        for sub in &resource.subresources {
            let mut item = json!({
                "name": format!("{}/{}", resource.plural, sub.name), "singularName": "", "namespaced": resource.namespaced,
                "kind": sub.kind, "verbs": sub.verbs,
            });
            if let Some((group, version)) = sub.group_version {
                item["group"] = group.into();
                item["version"] = version.into();
            }
            list.push(item);
        }
    }
    if list.is_empty() {
        return None;
    }
    let group_version = resources::api_version(group, version);
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}

fn entry(resource: &Resource) -> Value {
    let mut item = json!({
        "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
        "kind": resource.kind, "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        item["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        item["categories"] = json!(resource.categories);
    }
    if !resource.is_virtual() {
        item["storageVersionHash"] = digest(resource.storage.as_bytes()).into();
    }
    item
}

/// A short stable digest: of a stored version, or of a response for its ETag.
pub(crate) fn digest(content: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    base64::engine::general_purpose::STANDARD.encode(hasher.finish().to_be_bytes())
}

fn aggregated_response(value: &Value, headers: &HeaderMap) -> Response<Body> {
    let body = serde_json::to_vec(value).unwrap_or_default();
    let tag = format!("\"{}\"", digest(&body));
    let fresh = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        == Some(tag.as_str());
    let content_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let mut response = if fresh {
        responses::bytes(StatusCode::NOT_MODIFIED, content_type, "")
    } else {
        responses::bytes(StatusCode::OK, content_type, body)
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn groups_aggregated(server: &Arc<Server>, core: bool) -> Value {
    let served = server.caches.served();
    let groups = if core {
        vec![(String::new(), vec!["v1".to_owned()])]
    } else {
        groups(server)
    };
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> = served
                        .all()
                        .filter(|r| r.group == group && r.version == version)
                        .map(entry_aggregated)
                        .collect();
                    let key = (group.clone(), version.clone());
                    let resources = match server.aggregated.read().get(&key) {
                        Some(entries) if resources.is_empty() => entries.clone(),
                        _ => resources,
                    };
                    // Nobody has said yet what another server serves.
                    let freshness = if resources.is_empty() {
                        "Stale"
                    } else {
                        "Current"
                    };
                    json!({"version": version, "resources": resources, "freshness": freshness})
                })
                .collect();
            let metadata = if core {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn entry_aggregated(resource: &Resource) -> Value {
    let scope = if resource.namespaced {
        "Namespaced"
    } else {
        "Cluster"
    };
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut item = json!({
        "resource": resource.plural, "scope": scope, "singularResource": resource.singular, "verbs": resource.verbs,
        "responseKind": kind(resource.group, resource.version, resource.kind),
    });
    if !resource.short_names.is_empty() {
        item["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        item["categories"] = json!(resource.categories);
    }
    if !resource.subresources.is_empty() {
        item["subresources"] = resource
            .subresources
            .iter()
            .map(|sub| {
                let (group, version) = sub.group_version.unwrap_or((resource.group, resource.version));
                json!({"subresource": sub.name, "verbs": sub.verbs, "responseKind": kind(group, version, sub.kind)})
            })
            .collect();
    }
    item
}

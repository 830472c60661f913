//! Discovery: which groups, versions and resources there are, in the plain and the aggregated form.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use fluyt_api::resources::{self, Resource};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::Server;
use crate::aggregator;
use crate::http::{self as responses, Body, aggregated_discovery};
use crate::zpages;

/// Answers `/api`, `/apis` and what is directly below them; `None` for other paths.
pub fn handle(server: &Arc<Server>, path: &str, headers: &HeaderMap) -> Option<Response<Body>> {
    let path = path.trim_end_matches('/');
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    if let ["api" | "apis"] = segments.as_slice()
        && let Some(wanted) = aggregated_discovery(headers, server.config.features)
    {
        let is_core = segments == ["api"];
        let local = groups_aggregated(server, is_core);
        let document = if is_core {
            server.peers.core(&local, wanted)
        } else {
            server.peers.groups(&local, wanted)
        };
        return Some(aggregated_response(document, headers));
    }
    let value = match segments.as_slice() {
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server.config.external_address()}],
        }),
        ["apis"] => {
            let groups: Vec<Value> = groups(server, false)
                .iter()
                .map(|(g, v)| group(g, v))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", name] => {
            let (name, versions) = groups(server, false).into_iter().find(|(g, _)| g == name)?;
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
    json!({"paths": path_list(server)})
}

/// The same as a list, in order.
pub fn path_list(server: &Arc<Server>) -> Vec<String> {
    const OTHERS: [&str; 12] = [
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
        "/version",
    ];
    let mut paths: Vec<String> = OTHERS.iter().map(|p| (*p).to_owned()).collect();
    paths.extend(zpages::paths(server.config.features).map(str::to_owned));
    paths.extend(["/api/v1".to_owned(), "/apis/".to_owned()]);
    for (group, versions) in groups(server, false) {
        paths.push(format!("/apis/{group}"));
        paths.extend(
            versions
                .iter()
                .map(|version| format!("/apis/{group}/{version}")),
        );
    }
    paths.sort_unstable();
    paths
}

/// A group and version with what decides its place: the priorities of the group and of the version.
struct Place {
    group: String,
    version: String,
    group_priority: i64,
    version_priority: i64,
}

/// The group that says which groups there are, which is before all others.
const REGISTRATION: &str = "apiregistration.k8s.io";

/// Priorities of what a CustomResourceDefinition defines.
const CUSTOM: (i64, i64) = (1_000, 100);

/// Every group and version.
fn places(server: &Arc<Server>) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    let mut add = |group: &str, version: &str, (group_priority, version_priority)| {
        if !places
            .iter()
            .any(|p| p.group == group && p.version == version)
        {
            places.push(Place {
                group: group.to_owned(),
                version: version.to_owned(),
                group_priority,
                version_priority,
            });
        }
    };
    for resource in server.caches.served().all().filter(|r| !r.group.is_empty()) {
        let priorities = if resource.definition.is_some() {
            CUSTOM
        } else if resource.group == REGISTRATION {
            (i64::MAX, 0)
        } else {
            aggregator::priorities(resource.group, resource.version)
        };
        add(resource.group, resource.version, priorities);
    }
    for service in aggregator::all(&server.caches) {
        let spec = &service["spec"];
        let text = |field: &str| spec[field].as_str().unwrap_or_default();
        let number = |field: &str| spec[field].as_i64().unwrap_or(0);
        let priorities = (number("groupPriorityMinimum"), number("versionPriority"));
        add(text("group"), text("version"), priorities);
    }
    places
}

/// Groups with their versions, the preferred one first. Groups of the same priority are in the order of what registers
/// them, which begins with the version, or by name in the aggregated form.
fn groups(server: &Arc<Server>, aggregated: bool) -> Vec<(String, Vec<String>)> {
    let mut places = places(server);
    places.sort_by(|a, b| {
        let by_name = || {
            if aggregated {
                a.group.cmp(&b.group)
            } else {
                (&a.version, &a.group).cmp(&(&b.version, &b.group))
            }
        };
        b.group_priority.cmp(&a.group_priority).then_with(by_name)
    });
    let mut groups: Vec<(String, Vec<Place>)> = Vec::new();
    for place in places {
        match groups.iter_mut().find(|(group, _)| *group == place.group) {
            Some((_, versions)) => versions.push(place),
            None => groups.push((place.group.clone(), vec![place])),
        }
    }
    let in_order = |mut versions: Vec<Place>| -> Vec<String> {
        versions.sort_by(|a, b| {
            let by_name = || resources::compare_versions(&a.version, &b.version);
            b.version_priority
                .cmp(&a.version_priority)
                .then_with(by_name)
        });
        versions.into_iter().map(|p| p.version).collect()
    };
    groups
        .into_iter()
        .map(|(group, versions)| (group, in_order(versions)))
        .collect()
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
        list.push(entry(server, resource));
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

fn entry(server: &Server, resource: &Resource) -> Value {
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
    // Whatever is stored is watched.
    if resource.supports("watch") {
        item["storageVersionHash"] = storage_version_hash(server, resource).into();
    }
    item
}

/// Tells clients when a resource is stored in another version: the beginning of a hash of the version's name and kind.
fn storage_version_hash(server: &Server, resource: &Resource) -> String {
    use sha2::{Digest as _, Sha256};
    let (group, version) = match &resource.definition {
        Some(definition) => {
            let stored = definition.stored.as_deref().unwrap_or(resource);
            (stored.group, stored.version)
        }
        // Definitions are stored in the form of their first version.
        None if resource.group == "apiextensions.k8s.io" => (resource.group, "v1beta1"),
        None => {
            let written = server.caches.codec.written_as(resource);
            (written.group, written.version)
        }
    };
    let hash = Sha256::digest(format!("{group}/{version}/{}", resource.kind));
    base64::engine::general_purpose::STANDARD.encode(&hash[..8])
}

/// A short stable digest of a response for its ETag.
pub(crate) fn digest(content: &[u8]) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    base64::engine::general_purpose::STANDARD.encode(hasher.finish().to_be_bytes())
}

fn aggregated_response(body: Bytes, headers: &HeaderMap) -> Response<Body> {
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
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    let public = HeaderValue::from_static("public");
    headers.insert(header::CACHE_CONTROL, public);
    response
}

fn groups_aggregated(server: &Arc<Server>, core: bool) -> Value {
    let served = server.caches.served();
    let groups = if core {
        vec![(String::new(), vec!["v1".to_owned()])]
    } else {
        groups(server, true)
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
                json!({})
            } else {
                json!({"name": group})
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
    // Of built-in kinds the group and version go without saying, unless they are others.
    let (group, version) = if resource.definition.is_some() {
        (resource.group, resource.version)
    } else {
        ("", "")
    };
    let mut item = json!({
        "resource": resource.plural, "scope": scope, "singularResource": resource.singular, "verbs": resource.verbs,
        "responseKind": kind(group, version, resource.kind),
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
                let (group, version) = sub.group_version.unwrap_or((group, version));
                json!({"subresource": sub.name, "verbs": sub.verbs, "responseKind": kind(group, version, sub.kind)})
            })
            .collect();
    }
    item
}

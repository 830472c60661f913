//! The documents of aggregated servers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderValue, Request, header};
use futures::future::join_all;
use serde_json::{Map, Value};

use crate::Server;
use crate::aggregator;
use crate::http;
use crate::user::{MASTERS, User};

/// A server that has not answered by then is left out.
const TIMEOUT: Duration = Duration::from_secs(3);

/// No document is larger.
const LIMIT: usize = 32 * 1024 * 1024;

/// The path of a group and version that another server serves, with its `APIService`.
type Served = (String, Value);

/// What is served by others and available.
fn available(server: &Server) -> Vec<Served> {
    let is_available = |service: &Value| {
        let conditions = service["status"]["conditions"].as_array();
        conditions.is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == "Available" && c["status"] == "True")
        })
    };
    let path = |service: &Value| {
        let text = |field: &str| service["spec"][field].as_str().map(str::to_owned);
        Some(format!("apis/{}/{}", text("group")?, text("version")?))
    };
    aggregator::all(&server.caches)
        .into_iter()
        .filter(is_available)
        .filter_map(|service| Some((path(&service)?, service)))
        .collect()
}

/// Asks a server for one of its documents.
async fn get(server: &Arc<Server>, service: &Value, path: &'static str) -> Option<Value> {
    let mut request = Request::new(http::full(""));
    *request.uri_mut() = path.parse().ok()?;
    let json = HeaderValue::from_static("application/json");
    request.headers_mut().insert(header::ACCEPT, json);
    let user = User::new("system:aggregator", &[MASTERS]);
    let answer = async {
        let response = aggregator::proxy(server.clone(), service.clone(), user, request).await;
        let response = response.ok().filter(|r| r.status().is_success())?;
        let body = http::collect_up_to(response.into_body(), LIMIT)
            .await
            .ok()?;
        serde_json::from_slice(&body).ok()
    };
    tokio::time::timeout(TIMEOUT, answer).await.ok().flatten()
}

/// The services with the paths that each serves: one server often serves several.
fn by_server(served: Vec<Served>) -> Vec<(Value, Vec<String>)> {
    let mut servers: HashMap<String, (Value, Vec<String>)> = HashMap::new();
    for (path, service) in served {
        let place = service["spec"]["service"].to_string();
        let entry = servers.entry(place).or_insert((service, Vec::new()));
        entry.1.push(path);
    }
    servers.into_values().collect()
}

/// Where the v3 documents of other servers are, by their keys.
pub async fn v3(server: &Arc<Server>) -> BTreeMap<String, Value> {
    let asked = by_server(available(server))
        .into_iter()
        .map(async |(service, paths)| {
            let index = get(server, &service, "/openapi/v3").await;
            paths.into_iter().filter_map(move |path| {
                let entry = index.as_ref()?["paths"].get(&path)?.clone();
                Some((path, entry))
            })
        });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Their v2 documents, cut down to what they are asked for.
pub async fn v2(server: &Arc<Server>) -> Vec<Value> {
    let mut servers = by_server(available(server));
    servers.sort_by_key(|(_, paths)| paths.first().cloned());
    let asked = servers.into_iter().map(async |(service, paths)| {
        let document = get(server, &service, "/openapi/v2").await?;
        Some(cut(document, &paths))
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// The part of a document that is about some paths: those, and the definitions that they refer to.
fn cut(mut document: Value, prefixes: &[String]) -> Value {
    let mut paths = match document["paths"].take() {
        Value::Object(paths) => paths,
        _ => Map::new(),
    };
    let is_ours = |path: &str| {
        prefixes.iter().any(|prefix| {
            let rest = path.trim_start_matches('/').strip_prefix(prefix.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    };
    paths.retain(|path, _| is_ours(path));
    let mut parameters = document["parameters"].take();
    paths
        .values_mut()
        .for_each(|item| resolve(item, &mut parameters));
    let mut all = match document["definitions"].take() {
        Value::Object(all) => all,
        _ => Map::new(),
    };
    let mut definitions = Map::new();
    let mut wanted = Vec::new();
    paths
        .values()
        .for_each(|item| references(item, &mut wanted));
    while let Some(name) = wanted.pop() {
        if let Some(definition) = all.remove(&name) {
            references(&definition, &mut wanted);
            definitions.insert(name, definition);
        }
    }
    serde_json::json!({"paths": paths, "definitions": definitions})
}

/// Puts shared parameters where they are referred to: their names are another document's.
fn resolve(value: &mut Value, parameters: &mut Value) {
    match value {
        Value::Array(items) => {
            for item in items {
                let shared = item["$ref"]
                    .as_str()
                    .and_then(|r| r.strip_prefix("#/parameters/"));
                match shared.map(|name| parameters[name].clone()) {
                    Some(parameter) => *item = parameter,
                    None => resolve(item, parameters),
                }
            }
        }
        Value::Object(map) => map.values_mut().for_each(|v| resolve(v, parameters)),
        _ => {}
    }
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|v| references(v, found)),
        Value::Object(map) => {
            let name = map.get("$ref").and_then(Value::as_str);
            found.extend(
                name.and_then(|n| n.strip_prefix("#/definitions/"))
                    .map(Into::into),
            );
            map.values().for_each(|v| references(v, found));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_is_cut_down_to_what_is_asked_for() {
        let document = json!({
            "paths": {
                "/apis/a/v1/things": {"get": {"parameters": [{"$ref": "#/parameters/p"}], "schema": {"$ref": "#/definitions/A"}}},
                "/apis/a/v10/things": {},
                "/version/": {"get": {"schema": {"$ref": "#/definitions/Info"}}},
            },
            "parameters": {"p": {"name": "p"}},
            "definitions": {"A": {"properties": {"b": {"$ref": "#/definitions/B"}}}, "B": {}, "Info": {}},
        });
        let cut = cut(document, &["apis/a/v1".to_owned()]);
        let names = |part: &str| {
            cut[part]
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(names("paths"), ["/apis/a/v1/things"]);
        assert_eq!(names("definitions"), ["A", "B"]);
        let parameters = &cut["paths"]["/apis/a/v1/things"]["get"]["parameters"];
        assert_eq!(parameters, &json!([{"name": "p"}]));
    }
}

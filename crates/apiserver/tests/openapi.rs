//! OpenAPI v2 and v3 as clients ask for them: forms, tags, and what becomes of custom resources.

use crate::common::Api;
use fluyt_api::protobuf::wire::{Fields, Wire};
use fluyt_apiserver::{Features, Served};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const V3_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";

async fn get(api: &Api, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, Vec<u8>) {
    let mut request = Request::get(path)
        .body(Full::new(bytes::Bytes::new()))
        .unwrap();
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request.extensions_mut().insert(api.user.clone());
    let (parts, body) = api.server.handle(request).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    (parts.status, parts.headers, body)
}

async fn json_of(api: &Api, path: &str) -> Value {
    let (status, _, body) = get(api, path, &[]).await;
    assert_eq!(status, StatusCode::OK, "{path}");
    serde_json::from_slice(&body).unwrap()
}

/// The names in a list of pairs: field `list` of the message in field `part`.
fn names(message: &[u8], part: u32, list: u32) -> Vec<String> {
    let field = |message: &[u8], number: u32| -> Vec<Vec<u8>> {
        Fields(message)
            .filter_map(|f| match f.unwrap() {
                (n, Wire::Bytes(raw)) if n == number => Some(raw.to_vec()),
                _ => None,
            })
            .collect()
    };
    let part = field(message, part).remove(0);
    field(&part, list)
        .iter()
        .map(|pair| String::from_utf8(field(pair, 1).remove(0)).unwrap())
        .collect()
}

#[tokio::test]
async fn version_2_is_whole_and_has_two_forms() {
    let api = Api::start().await;
    let document = json_of(&api, "/openapi/v2").await;
    assert_eq!(document["swagger"], "2.0");
    let create = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments"]["post"];
    assert_eq!(create["operationId"], "createAppsV1NamespacedDeployment");
    let body = &create["parameters"][0];
    assert_eq!(
        body["schema"]["$ref"],
        "#/definitions/io.k8s.api.apps.v1.Deployment"
    );
    let definitions = document["definitions"].as_object().unwrap();
    let deployment = &definitions["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        deployment["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    let containers = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    // Every reference leads somewhere.
    let text = document.to_string();
    for part in text.split("\"#/definitions/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(definitions.contains_key(name), "{name}");
    }

    for accept in [
        V2_PROTOBUF,
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    ] {
        let accept = format!("{accept}, application/json;q=0.5");
        let (status, headers, body) = get(&api, "/openapi/v2", &[("accept", &accept)]).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers["content-type"], V2_PROTOBUF);
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let keys = |part: &str| {
            document[part]
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect()
        };
        assert_eq!(sorted(names(&body, 8, 2)), sorted(keys("paths")));
        assert_eq!(sorted(names(&body, 9, 1)), sorted(keys("definitions")));
    }
    let (status, ..) = get(&api, "/openapi/v2", &[("accept", "text/html")]).await;
    assert_eq!(status, StatusCode::NOT_ACCEPTABLE);
}

#[tokio::test]
async fn tags_spare_what_is_known() {
    let api = Api::start().await;
    for path in ["/openapi/v2", "/openapi/v3", "/openapi/v3/apis/apps/v1"] {
        let (_, headers, body) = get(&api, path, &[]).await;
        assert!(!body.is_empty());
        let tag = headers["etag"].to_str().unwrap();
        let (status, _, body) = get(&api, path, &[("if-none-match", tag)]).await;
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
        let (status, ..) = get(&api, path, &[("if-none-match", "\"other\"")]).await;
        assert_eq!(status, StatusCode::OK);
    }
    let (_, headers, body) = get(&api, "/openapi/v2", &[("accept-encoding", "gzip")]).await;
    assert_eq!(headers["content-encoding"], "gzip");
    assert!(body.len() < 1_000_000, "{}", body.len());
}

#[tokio::test]
async fn documents_of_version_3_stay_while_their_hash_does() {
    let api = Api::start().await;
    let index = json_of(&api, "/openapi/v3").await;
    let paths = index["paths"].as_object().unwrap();
    for key in ["api", "api/v1", "apis/apps", "apis/apps/v1", "version"] {
        let url = paths[key]["serverRelativeURL"].as_str().unwrap();
        let (status, headers, body) = get(&api, url, &[]).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers["cache-control"], "public, immutable");
        assert!(headers.contains_key("expires"));
        let document: Value = serde_json::from_slice(&body).unwrap();
        assert!(!document["paths"].as_object().unwrap().is_empty());
        let (_, headers, body) = get(&api, url, &[("accept", V3_PROTOBUF)]).await;
        assert_eq!(headers["content-type"], V3_PROTOBUF);
        let found = names(&body, 4, 1).len();
        assert_eq!(found, document["paths"].as_object().unwrap().len());
    }
    let (status, headers, _) = get(&api, "/openapi/v3/apis/apps/v1?hash=old", &[]).await;
    assert_eq!(status, StatusCode::MOVED_PERMANENTLY);
    assert_eq!(
        headers["location"],
        paths["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap()
    );
    let (status, ..) = get(&api, "/openapi/v3/apis/none/v1", &[]).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn custom_resources_are_in_both_versions() {
    let api = Api::start().await;
    let (_, before, _) = get(&api, "/openapi/v2", &[]).await;
    let definition = json!({"metadata": {"name": "widgets.stable.example.com"}, "spec": {
        "group": "stable.example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
                "size": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true, "nullable": true}}}}}}}]}});
    api.post(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        definition,
    )
    .await;
    let crds =
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?watch=true&timeoutSeconds=20";
    api.watch_until(crds, |crd| {
        crd["status"]["conditions"].as_array().is_some_and(|c| {
            c.iter()
                .any(|c| c["type"] == "Established" && c["status"] == "True")
        })
    })
    .await;
    let (_, after, body) = get(&api, "/openapi/v2", &[]).await;
    assert_ne!(before["etag"], after["etag"]);
    let v2: Value = serde_json::from_slice(&body).unwrap();
    let name = "com.example.stable.v1.Widget";
    let size = &v2["definitions"][name]["properties"]["spec"]["properties"]["size"];
    assert!(
        size["anyOf"].is_null() && size["nullable"].is_null(),
        "{size}"
    );
    let path = "/apis/stable.example.com/v1/namespaces/{namespace}/widgets/{name}/status";
    assert_eq!(
        v2["paths"][path]["get"]["operationId"],
        "readStableExampleComV1NamespacedWidgetStatus"
    );
    assert_eq!(
        v2["definitions"][format!("{name}List")]["properties"]["items"]["items"]["$ref"],
        format!("#/definitions/{name}")
    );
    let v3 = json_of(&api, "/openapi/v3/apis/stable.example.com/v1").await;
    let schema = &v3["components"]["schemas"][name];
    assert_eq!(
        schema["properties"]["spec"]["properties"]["size"]["nullable"],
        true
    );
    assert_eq!(
        schema["x-kubernetes-group-version-kind"][0]["kind"],
        "Widget"
    );
}

#[tokio::test]
async fn what_is_not_served_is_nowhere() {
    let served =
        Served::configured("autoscaling/v1=false,batch/v1=false", Features::default()).unwrap();
    let api = Api::configured(|config, _| config.served = served).await;
    let (status, ..) = get(&api, "/apis/batch/v1/jobs", &[]).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let groups = json_of(&api, "/apis").await;
    let named = |name: &str| {
        groups["groups"]
            .as_array()
            .unwrap()
            .iter()
            .find(|g| g["name"] == name)
    };
    assert!(named("batch").is_none());
    let versions = &named("autoscaling").unwrap()["versions"];
    assert_eq!(versions.as_array().unwrap().len(), 1);
    let index = json_of(&api, "/openapi/v3").await;
    assert!(index["paths"]["apis/batch/v1"].is_null());
    assert!(index["paths"]["apis/autoscaling/v2"].is_object());
}

//! The formats of requests and answers.

use std::io::Read as _;

use crate::common::Api;
use bytes::Bytes;
use fluyt_api::resources::type_of;
use fluyt_api::{cbor, protobuf};
use fluyt_apiserver::{Feature, Features};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/n/configmaps";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const CBOR: &str = "application/cbor";

async fn send(
    api: &Api,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> (StatusCode, HeaderMap, Bytes) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Full::new(body.into())).unwrap();
    request.extensions_mut().insert(api.user.clone());
    let (parts, body) = api.server.handle(request).await.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, body)
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

fn open(body: &[u8], kind: &str) -> Value {
    let envelope = protobuf::open(body).unwrap();
    assert_eq!(envelope.kind, kind);
    let (group, version) = envelope
        .api_version
        .rsplit_once('/')
        .unwrap_or(("", envelope.api_version));
    let ty = type_of(group, version, kind).unwrap();
    protobuf::decode(ty, envelope.raw).unwrap()
}

#[tokio::test]
async fn protobuf_is_the_same_object() {
    let api = Api::start().await;
    api.namespace().await;
    let ty = type_of("", "v1", "ConfigMap").unwrap();
    let body = protobuf::seal("v1", "ConfigMap", &protobuf::encode(ty, &config_map("a")));
    let both = [("content-type", PROTOBUF), ("accept", PROTOBUF)];
    let (status, headers, created) = send(&api, Method::POST, MAPS, &both, body).await;
    assert_eq!(
        (status, headers["content-type"].to_str().unwrap()),
        (StatusCode::CREATED, PROTOBUF)
    );
    let (_, mut json) = api.get(&format!("{MAPS}/a")).await;
    json.as_object_mut()
        .unwrap()
        .retain(|k, _| k != "kind" && k != "apiVersion");
    assert_eq!(open(&created, "ConfigMap"), json);
    let accept = [(
        "accept",
        "application/vnd.kubernetes.protobuf,application/json",
    )];
    let (_, _, got) = send(&api, Method::GET, &format!("{MAPS}/a"), &accept, "").await;
    assert_eq!(open(&got, "ConfigMap"), json);
    let (status, _, missing) = send(&api, Method::GET, &format!("{MAPS}/b"), &accept, "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(
        open(&missing, "Status")["message"],
        "configmaps \"b\" not found"
    );
    // Metadata alone, as the garbage collector reads everything.
    let partial = [(
        "accept",
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    )];
    let (_, _, got) = send(&api, Method::GET, &format!("{MAPS}/a"), &partial, "").await;
    assert_eq!(protobuf::open(&got).unwrap().kind, "PartialObjectMetadata");
}

/// What a write is answered with is what a read would be, in every format; a dry run's is what would have been written.
#[tokio::test]
async fn writes_are_answered_as_reads_are() {
    let api = Api::start().await;
    api.namespace().await;
    let one = format!("{MAPS}/a");
    let json = ("content-type", "application/json");
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    for accepted in ["application/json", PROTOBUF, table] {
        let headers = [json, ("accept", accepted)];
        let comparable = |answer: Bytes| match serde_json::from_slice::<Value>(&answer) {
            // The age in it passes.
            Ok(mut table) if table["kind"] == "Table" => {
                table["rows"][0]["cells"]
                    .as_array_mut()
                    .unwrap()
                    .truncate(2);
                Bytes::from(table.to_string())
            }
            _ => answer,
        };
        let write = async |method, path: &str, headers: &[(&str, &str)], body: String| {
            let (status, _, answer) = send(&api, method, path, headers, body).await;
            assert!(status.is_success(), "{status}");
            comparable(answer)
        };
        let read = async || comparable(send(&api, Method::GET, &one, &headers, "").await.2);
        let mut object = config_map("a");
        let created = write(Method::POST, MAPS, &headers, object.to_string()).await;
        assert_eq!(created, read().await, "{accepted}");

        object["data"]["key"] = "changed".into();
        let dry = format!("{one}?dryRun=All");
        let would = write(Method::PUT, &dry, &headers, object.to_string()).await;
        if accepted != table {
            assert!(memchr::memmem::find(&would, b"changed").is_some());
            assert!(memchr::memmem::find(&read().await, b"changed").is_none());
        }
        let updated = write(Method::PUT, &one, &headers, object.to_string()).await;
        assert_eq!(updated, read().await, "{accepted}");

        let merge = [("content-type", "application/merge-patch+json"), headers[1]];
        let patch = r#"{"metadata": {"finalizers": ["example.com/kept"]}}"#;
        let patched = write(Method::PATCH, &one, &merge, patch.into()).await;
        assert_eq!(patched, read().await, "{accepted}");
        // It is still there, marked.
        let deleted = write(Method::DELETE, &one, &headers, String::new()).await;
        let (_, marked) = api.get(&one).await;
        assert!(marked["metadata"]["deletionTimestamp"].is_string());
        if accepted == "application/json" {
            assert_eq!(serde_json::from_slice::<Value>(&deleted).unwrap(), marked);
        }
        let patch = r#"{"metadata": {"finalizers": null}}"#;
        write(Method::PATCH, &one, &merge, patch.into()).await;
        let (status, _) = api.get(&one).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn lists_and_watches_in_protobuf() {
    use k8s_pb::api::core::v1::ConfigMapList;
    use k8s_pb::apimachinery::pkg::apis::meta::v1::WatchEvent;
    use prost::Message as _;
    let api = Api::start().await;
    api.namespace().await;
    for name in ["a", "b", "c"] {
        api.post(MAPS, config_map(name)).await;
    }
    let accept = [("accept", PROTOBUF)];
    let (_, headers, body) = send(&api, Method::GET, &format!("{MAPS}?limit=2"), &accept, "").await;
    assert_eq!(headers["content-type"], PROTOBUF);
    let envelope = protobuf::open(&body).unwrap();
    assert_eq!(
        (envelope.api_version, envelope.kind),
        ("v1", "ConfigMapList")
    );
    let list = ConfigMapList::decode(envelope.raw).unwrap();
    let names: Vec<_> = list
        .items
        .iter()
        .map(|i| i.metadata.as_ref().unwrap().name.clone().unwrap())
        .collect();
    assert_eq!(names, ["a", "b"]);
    let metadata = list.metadata.unwrap();
    assert_eq!(metadata.remaining_item_count, Some(1));
    assert!(!metadata.r#continue.unwrap().is_empty());

    let path = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1"
    );
    let (_, headers, body) = send(&api, Method::GET, &path, &accept, "").await;
    assert_eq!(
        headers["content-type"],
        "application/vnd.kubernetes.protobuf;stream=watch"
    );
    let (mut rest, mut seen) = (&body[..], Vec::new());
    while !rest.is_empty() {
        let (length, more) = rest.split_at(4);
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let event = WatchEvent::decode(&more[..length]).unwrap();
        let raw = event.object.unwrap().raw.unwrap();
        seen.push((
            event.r#type.unwrap(),
            protobuf::open(&raw).unwrap().kind.to_owned(),
        ));
        rest = &more[length..];
    }
    let kinds: Vec<_> = seen.iter().map(|(t, k)| (t.as_str(), k.as_str())).collect();
    assert_eq!(
        kinds,
        [
            ("ADDED", "ConfigMap"),
            ("ADDED", "ConfigMap"),
            ("ADDED", "ConfigMap"),
            ("BOOKMARK", "ConfigMap")
        ]
    );
}

#[tokio::test]
async fn discovery_in_protobuf() {
    use k8s_pb::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResourceList};
    use prost::Message as _;
    let api = Api::start().await;
    let accept = [("accept", PROTOBUF)];
    let (_, _, body) = send(&api, Method::GET, "/apis/apps/v1", &accept, "").await;
    let list = APIResourceList::decode(protobuf::open(&body).unwrap().raw).unwrap();
    let deployments = list
        .resources
        .iter()
        .find(|r| r.name() == "deployments")
        .unwrap();
    assert!(
        deployments
            .verbs
            .as_ref()
            .unwrap()
            .items
            .contains(&"watch".to_owned())
    );
    let (_, _, body) = send(&api, Method::GET, "/apis", &accept, "").await;
    let groups = APIGroupList::decode(protobuf::open(&body).unwrap().raw).unwrap();
    assert!(groups.groups.iter().any(|g| g.name() == "apps"));
}

#[tokio::test]
async fn yaml_both_ways() {
    let api = Api::start().await;
    api.namespace().await;
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  n: \"1\"\n  text: |\n    two\n    lines\n";
    let both = [
        ("content-type", "application/yaml"),
        ("accept", "application/yaml"),
    ];
    let (status, headers, body) = send(&api, Method::POST, MAPS, &both, yaml).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(headers["content-type"], "application/yaml");
    let back: Value = serde_saphyr::from_slice(&body).unwrap();
    assert_eq!(back, api.get(&format!("{MAPS}/a")).await.1);
    let twice =
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: b\ndata:\n  n: \"1\"\n  n: \"2\"\n";
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let (status, _, error) = send(&api, Method::POST, &strict, &both[..1], twice).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{error:?}");
    let (status, _, _) = send(&api, Method::POST, MAPS, &both[..1], "a: [").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn cbor_only_behind_its_gate() {
    let closed = Api::start().await;
    let both = [("content-type", CBOR), ("accept", CBOR)];
    let (status, _, error) = send(
        &closed,
        Method::POST,
        MAPS,
        &both[..1],
        cbor::encode(&json!({})),
    )
    .await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let error: Value = serde_json::from_slice(&error).unwrap();
    assert_eq!(
        error["message"],
        "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"
    );
    let (status, _, _) = send(&closed, Method::GET, "/api/v1/namespaces", &both[1..], "").await;
    assert_eq!(status, StatusCode::NOT_ACCEPTABLE);

    let api = Api::start_with(Features::default().with(Feature::Cbor)).await;
    api.namespace().await;
    let (status, headers, body) = send(
        &api,
        Method::POST,
        MAPS,
        &both,
        cbor::encode(&config_map("a")),
    )
    .await;
    assert_eq!(
        (status, headers["content-type"].to_str().unwrap()),
        (StatusCode::CREATED, CBOR)
    );
    assert!(body.starts_with(&cbor::SELF_DESCRIBED));
    assert_eq!(
        cbor::decode(&body).unwrap(),
        api.get(&format!("{MAPS}/a")).await.1
    );
    let applied = [
        ("content-type", "application/apply-patch+cbor"),
        ("accept", CBOR),
    ];
    let path = format!("{MAPS}/b?fieldManager=x");
    let (status, _, body) = send(
        &api,
        Method::PATCH,
        &path,
        &applied,
        cbor::encode(&config_map("b")),
    )
    .await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(
        cbor::decode(&body).unwrap()["metadata"]["managedFields"][0]["operation"],
        "Apply"
    );
    let path = format!("{MAPS}?watch=true&timeoutSeconds=1&fieldSelector=metadata.name=a");
    let (_, headers, body) = send(&api, Method::GET, &path, &both[1..], "").await;
    assert_eq!(headers["content-type"], "application/cbor-seq");
    assert_eq!(
        cbor::decode(&body).unwrap()["object"]["metadata"]["name"],
        "a"
    );
}

#[tokio::test]
async fn large_answers_are_compressed() {
    let api = Api::start().await;
    api.namespace().await;
    for name in ["a", "b", "c"] {
        let mut big = config_map(name);
        big["data"]["a"] = "x".repeat(60_000).into();
        api.post(MAPS, big).await;
    }
    let gzip = [("accept-encoding", "gzip, br")];
    let (_, headers, body) = send(&api, Method::GET, MAPS, &gzip, "").await;
    assert_eq!(
        (
            headers["content-encoding"].to_str().unwrap(),
            headers["vary"].to_str().unwrap()
        ),
        ("gzip", "Accept-Encoding")
    );
    let mut text = String::new();
    flate2::read::GzDecoder::new(&body[..])
        .read_to_string(&mut text)
        .unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list["items"], api.get(MAPS).await.1["items"]);
    let (_, headers, _) = send(&api, Method::GET, &format!("{MAPS}/a"), &gzip, "").await;
    assert!(!headers.contains_key("content-encoding"));
}

#[tokio::test]
async fn people_get_indented_answers() {
    let api = Api::start().await;
    api.namespace().await;
    api.post(MAPS, config_map("a")).await;
    let path = format!("{MAPS}/a");
    let is_pretty = |body: &[u8]| body.starts_with(b"{\n  \"");
    for (path, agent, pretty) in [
        (path.clone(), "kubectl/v1.36", false),
        (format!("{path}?pretty=true"), "kubectl/v1.36", true),
        (path.clone(), "curl/8.0", true),
        (path.clone(), "Mozilla/5.0 (X11)", true),
        (format!("{path}?pretty=false"), "curl/8.0", false),
        ("/api/v1/namespaces/n/none?pretty=1".into(), "x", true),
    ] {
        let (_, headers, body) = send(&api, Method::GET, &path, &[("user-agent", agent)], "").await;
        assert_eq!(is_pretty(&body), pretty, "{path} {agent}");
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["cache-control"], "no-cache, private");
    }
    let watch = format!("{MAPS}?watch=1&resourceVersion=0&timeoutSeconds=1");
    let agent = [("user-agent", "curl/8.0")];
    let (_, _, body) = send(&api, Method::GET, &watch, &agent, "").await;
    assert!(body.starts_with(b"{\"type\":\"ADDED\""));
}

#[tokio::test]
async fn requests_are_limited_and_counted() {
    let api = Api::start().await;
    api.namespace().await;
    let json = [("content-type", "application/json")];
    let large = vec![b' '; 3 * 1024 * 1024 + 1];
    let (status, _, body) = send(&api, Method::POST, MAPS, &json, large).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let refused: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        refused["message"],
        "Request entity too large: limit is 3145728"
    );
    let path = format!("{MAPS}?timeout=x");
    let (status, _, body) = send(&api, Method::GET, &path, &[], "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let refused: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        refused["message"],
        "invalid timeout specified in the request URL - time: invalid duration \"x\""
    );
    api.post(MAPS, config_map("a")).await;
    let (_, _, body) = send(&api, Method::GET, "/metrics", &[], "").await;
    let text = String::from_utf8(body.to_vec()).unwrap();
    for line in [
        "apiserver_request_total{code=\"201\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"configmaps\",scope=\"resource\",subresource=\"\",verb=\"POST\",version=\"v1\"} 1",
        "apiserver_request_total{code=\"413\",component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"configmaps\",scope=\"resource\",subresource=\"\",verb=\"POST\",version=\"v1\"} 1",
        "etcd_requests_total{group=\"\",operation=\"create\",resource=\"configmaps\"}",
        "apiserver_resource_objects{group=\"\",resource=\"namespaces\"} 5",
        "apiserver_current_inflight_requests{request_kind=\"readOnly\"}",
        "process_resident_memory_bytes ",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

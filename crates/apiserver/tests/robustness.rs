//! Requests that nobody would send: no request, however formed, makes a handler panic.
//!
//! `FLUYT_FUZZ_SECONDS=60 cargo nextest run -p fluyt-apiserver robustness` is the long form; a failure prints its seed, which
//! `FLUYT_FUZZ_SEED` runs again.

use std::time::{Duration, Instant};

use crate::common::{Api, pod};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn pick<'a>(of: &[&'a str], random: &mut StdRng) -> &'a str {
    of[random.random_range(0..of.len())]
}

fn changed(sample: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for _ in 0..random.random_range(0..4) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.random()),
            2 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            3 => {
                let word = pick(
                    &["null", "[]", "{}", "-1", "\"\"", "~1", "/", "1e999"],
                    random,
                );
                bytes.splice(at..at, word.bytes());
            }
            _ => {
                let copy = bytes[at..].to_vec();
                bytes.extend(copy.into_iter().take(32));
            }
        }
    }
    bytes
}

fn path(random: &mut StdRng) -> String {
    let mut path = pick(
        &[
            "/api/v1/namespaces/n/pods",
            "/api/v1/namespaces/n/pods/a",
            "/api/v1/namespaces/n/pods/a/status",
            "/api/v1/namespaces/n/pods/a/eviction",
            "/api/v1/namespaces/n/pods/a/binding",
            "/api/v1/namespaces/n/pods/a/log",
            "/api/v1/namespaces/n/pods/a/exec",
            "/api/v1/namespaces/n/services/a:b/proxy/x/y",
            "/api/v1/nodes/a/proxy",
            "/api/v1/namespaces",
            "/api/v1/namespaces/n/finalize",
            "/api/v1/watch/pods",
            "/apis/apps/v1/namespaces/n/deployments/a/scale",
            "/apis/apps/v1/deployments",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            "/apis/certificates.k8s.io/v1/certificatesigningrequests/a/approval",
            "/openapi/v2",
            "/openapi/v3/api/v1",
            "/api",
            "/apis",
            "/metrics",
            "/healthz/etcd",
        ],
        random,
    )
    .to_owned();
    if random.random_ratio(1, 4) {
        let bytes = changed(path.as_bytes(), random);
        path = bytes
            .iter()
            .map(|b| match b {
                b'/' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' => char::from(*b).to_string(),
                b => format!("%{b:02x}"),
            })
            .collect();
    }
    let query = pick(
        &[
            "",
            "?watch=1&timeoutSeconds=1",
            "?limit=1&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiIifQ",
            "?limit=-1&continue=%00%ff",
            "?labelSelector=a%20in%20(b,c),!d",
            "?labelSelector=((&fieldSelector=a=b%3Dc",
            "?resourceVersion=18446744073709551615",
            "?resourceVersion=1&resourceVersionMatch=Exact",
            "?fieldManager=%00&dryRun=All&force=true",
            "?pretty=true&fieldValidation=Strict",
            "?timeoutSeconds=-5&gracePeriodSeconds=abc&propagationPolicy=Foreground",
            "?sendInitialEvents=true&resourceVersionMatch=NotOlderThan&watch=1&timeoutSeconds=1",
            "?tailLines=-1&sinceTime=x&command=%ff",
        ],
        random,
    );
    format!("/{}{query}", path.trim_start_matches('/'))
}

#[tokio::test]
async fn no_request_makes_a_handler_panic() {
    let api = Api::start().await;
    api.namespace().await;
    api.post("/api/v1/namespaces/n/pods", pod("a")).await;
    let deployment = json!({"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    api.post("/apis/apps/v1/namespaces/n/deployments", deployment.clone())
        .await;
    let bodies = [
        pod("a").to_string(),
        deployment.to_string(),
        json!([{"op": "add", "path": "/metadata/labels/x~1y", "value": "z"}]).to_string(),
        json!({"spec": {"containers": [{"name": "c", "$patch": "delete"}], "$setElementOrder/containers": [{"name": "c"}]}}).to_string(),
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "x"}, "gracePeriodSeconds": -3}).to_string(),
        json!({"spec": {"group": "x.y", "names": {"plural": "zs", "kind": "Z"}, "scope": "Cluster", "versions": [{"name": "v1",
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-validations": [{"rule": "self.a[0] == 1"}]}}}]}}).to_string(),
        "a: &a [*a, {b: !!binary zz}]\n---\nx".to_owned(),
        String::new(),
    ];
    let seconds = setting("FLUYT_FUZZ_SECONDS").unwrap_or(3);
    let seed = setting("FLUYT_FUZZ_SEED").unwrap_or_else(rand::random);
    println!("FLUYT_FUZZ_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let method = pick(
            &["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"],
            &mut random,
        );
        let content = pick(
            &[
                "application/json",
                "application/yaml",
                "application/vnd.kubernetes.protobuf",
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/strategic-merge-patch+json",
                "application/apply-patch+yaml",
                "text/x;;=",
            ],
            &mut random,
        );
        let accept = pick(
            &[
                "application/json",
                "application/yaml",
                "application/vnd.kubernetes.protobuf",
                "application/json;as=Table;v=v1;g=meta.k8s.io",
                "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
                ";q=,,*/*;q=x",
            ],
            &mut random,
        );
        let path = path(&mut random);
        let body = changed(
            bodies[random.random_range(0..bodies.len())].as_bytes(),
            &mut random,
        );
        let method: Method = method.parse().unwrap();
        let request = Request::builder()
            .method(method.clone())
            .uri(&path)
            .header("content-type", content)
            .header("accept", accept)
            .body(Full::new(bytes::Bytes::from(body.clone())));
        let Ok(mut request) = request else { continue };
        request.extensions_mut().insert(api.user.clone());
        let response = api.server.handle(request).await;
        // A watch goes on for a second; its beginning will do.
        let read = response.into_body().collect();
        let Ok(Ok(collected)) = tokio::time::timeout(Duration::from_millis(20), read).await else {
            continue;
        };
        let answer = String::from_utf8_lossy(&collected.to_bytes()).into_owned();
        assert!(
            !answer.contains("caused apiserver to panic"),
            "{method} {path} {content} {:?}",
            String::from_utf8_lossy(&body)
        );
    }
}

/// What takes long in proportion to its size, and not to the square of it.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_is_huge_takes_its_size_and_no_more() {
    let api = Api::start().await;
    api.namespace().await;
    let many =
        |count: usize, one: &dyn Fn(usize) -> Value| -> Value { (0..count).map(one).collect() };
    let spec = |field: &str, value: Value| {
        let mut pod = pod("a");
        pod["spec"][field] = value;
        pod
    };
    let mut unknown = json!({"metadata": {"name": "a"}});
    for n in 0..50_000 {
        unknown[format!("u{n}")] = 1.into();
    }
    let twice: String = (0..50_000)
        .map(|n| format!(r#","k{n}":"","k{n}":"""#))
        .collect();
    let twice = format!(r#"{{"metadata":{{"name":"b"}},"data":{{"a":""{twice}}}}}"#);
    let container = |n: usize| json!({"name": format!("c{n}"), "image": "i"});
    let owner =
        |n: usize| json!({"apiVersion": "v1", "kind": "X", "name": "x", "uid": format!("u{n}")});
    let gate = |n: usize| json!({"name": format!("example.com/g{n}")});
    let variable = |_| json!({"name": "E", "value": "x"});
    let port = |n: usize| json!({"name": format!("p{n}"), "port": n + 1});
    let (pods, maps) = (
        "/api/v1/namespaces/n/pods",
        "/api/v1/namespaces/n/configmaps",
    );
    for (what, path, body, code) in [
        ("unknown fields", maps, unknown.to_string(), 201),
        ("repeated fields", maps, twice, 201),
        (
            "owners",
            maps,
            json!({"metadata": {"name": "o", "ownerReferences": many(20_000, &owner)}}).to_string(),
            201,
        ),
        (
            "gates",
            pods,
            spec("schedulingGates", many(40_000, &gate)).to_string(),
            201,
        ),
        (
            "names that are there already",
            pods,
            spec("containers", many(40_000, &|_| container(0))).to_string(),
            422,
        ),
        (
            "warnings",
            pods,
            spec(
                "containers",
                json!([{"name": "c", "image": "i", "env": many(40_000, &variable)}]),
            )
            .to_string(),
            409,
        ),
        (
            "ports",
            "/api/v1/namespaces/n/services",
            json!({"metadata": {"name": "s"}, "spec": {"ports": many(20_000, &port)}}).to_string(),
            201,
        ),
    ] {
        let begin = Instant::now();
        let mut request = Request::post(path)
            .header("content-type", "application/json")
            .body(Full::new(bytes::Bytes::from(body)))
            .unwrap();
        request.extensions_mut().insert(api.user.clone());
        let response = api.server.handle(request).await;
        assert_eq!(response.status(), code, "{what}");
        assert!(begin.elapsed() < LONG, "{what}: {:?}", begin.elapsed());
        let warnings = response.headers().get_all("warning").iter();
        assert!(
            warnings.map(http::HeaderValue::len).sum::<usize>() < 16 << 10,
            "{what}"
        );
    }
}

//! The audit log of the whole server.

use std::time::{Duration, Instant};

use crate::common::service::{Service, eventually};
use crate::common::{Api, pod};
use base64::Engine as _;
use fluyt_apiserver::User;
use fluyt_apiserver::audit::{
    Batching, Delivery, Format, LogSettings, Mode, Policy, Settings, Truncation, WebhookSettings,
};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

const BATCHING: Batching = Batching {
    buffer: 100,
    max_size: 10,
    max_wait: Duration::from_millis(20),
    throttle: None,
    concurrent: true,
};

fn policy(rules: &str) -> Policy {
    let text = format!(
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nomitManagedFields: true\nrules:\n{rules}"
    );
    Policy::parse(&text).unwrap()
}

fn delivery(mode: Mode) -> Delivery {
    Delivery {
        mode,
        batching: BATCHING,
        truncation: None,
    }
}

fn log(directory: &tempfile::TempDir, format: Format) -> LogSettings {
    LogSettings {
        path: directory.path().join("audit.log"),
        format,
        max_age: 0,
        max_backups: 0,
        max_size: 0,
        compress: false,
    }
}

/// A server that logs in blocking mode, so that a request's event is there when its answer is.
async fn logging(rules: &str) -> (Api, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        policy: Some(policy(rules)),
        log: Some((log(&directory, Format::Json), delivery(Mode::Blocking))),
        webhook: None,
    };
    let api = Api::configured(|config, _| config.audit = settings).await;
    (api, directory)
}

fn events(directory: &tempfile::TempDir) -> Vec<Value> {
    let text = std::fs::read_to_string(directory.path().join("audit.log")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn events_say_who_did_what_and_what_came_of_it() {
    let rules = "- {level: RequestResponse, resources: [{group: '', resources: [pods]}]}\n- {level: Metadata, resources: [{group: '', resources: [configmaps]}]}\n- {level: None}\n";
    let (api, directory) = logging(rules).await;
    api.namespace().await;
    let request = Request::post("/api/v1/namespaces/n/pods?fieldManager=me")
        .header("content-type", "application/json")
        .header("audit-id", "mine")
        .header("user-agent", "tester/1");
    let mut request = request.body(Full::from(pod("p").to_string())).unwrap();
    request.extensions_mut().insert(api.user.clone());
    let (status, headers, _) = api.send(request).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(headers["audit-id"], "mine");
    let all = events(&directory);
    let [event] = all.as_slice() else {
        panic!("{all:#?}")
    };
    for (pointer, value) in [
        ("/apiVersion", "audit.k8s.io/v1"),
        ("/kind", "Event"),
        ("/level", "RequestResponse"),
        ("/auditID", "mine"),
        ("/stage", "ResponseComplete"),
        ("/verb", "create"),
        ("/requestURI", "/api/v1/namespaces/n/pods?fieldManager=me"),
        ("/user/username", "admin"),
        ("/userAgent", "tester/1"),
        ("/objectRef/resource", "pods"),
        ("/objectRef/name", "p"),
        ("/objectRef/namespace", "n"),
        ("/objectRef/apiVersion", "v1"),
        ("/requestObject/kind", "Pod"),
        // As it was read: with what its sender left open.
        ("/requestObject/spec/restartPolicy", "Always"),
        ("/responseObject/status/phase", "Pending"),
        ("/annotations/authorization.k8s.io~1decision", "allow"),
        (
            "/annotations/pod-security.kubernetes.io~1enforce-policy",
            "privileged:latest",
        ),
    ] {
        assert_eq!(
            event.pointer(pointer).unwrap_or(&Value::Null),
            value,
            "{pointer} in {event:#}"
        );
    }
    assert_eq!(
        event["responseStatus"],
        json!({"metadata": {}, "code": 201})
    );
    assert!(event["responseObject"]["metadata"]["managedFields"].is_null());

    let map = json!({"metadata": {"name": "c"}, "data": {"secret": "x"}});
    api.post("/api/v1/namespaces/n/configmaps", map).await;
    let event = events(&directory).pop().unwrap();
    assert_eq!(
        (&event["level"], &event["objectRef"]["name"]),
        (&json!("Metadata"), &json!("c"))
    );
    assert!(event["requestObject"].is_null() && event["responseObject"].is_null());

    api.get("/api/v1/namespaces/n/secrets").await;
    assert_eq!(
        events(&directory).len(),
        2,
        "what the policy is not interested in is not there"
    );
}

#[tokio::test]
async fn what_is_asked_for_is_recorded_in_its_own_version() {
    let (api, directory) = logging("- {level: Request}\n").await;
    api.namespace().await;
    let hpa = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50,
        "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}});
    let path = "/apis/autoscaling/v1/namespaces/n/horizontalpodautoscalers";
    let (status, _) = api.post(path, hpa).await;
    assert_eq!(status, StatusCode::CREATED);
    let request = &events(&directory).pop().unwrap()["requestObject"];
    assert_eq!(request["apiVersion"], "autoscaling/v1");
    assert_eq!(request["spec"]["minReplicas"], 1);
    assert_eq!(request["spec"]["targetCPUUtilizationPercentage"], 50);
}

#[tokio::test]
async fn a_request_that_took_long_says_where() {
    let (api, directory) = logging("- {level: Metadata}\n").await;
    api.namespace().await;
    let hook = Service::start(|_, review| {
        std::thread::sleep(Duration::from_millis(510));
        let uid = &review["request"]["uid"];
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "response": {"uid": uid, "allowed": true}});
        (200, review)
    })
    .await;
    let ca = base64::engine::general_purpose::STANDARD.encode(&hook.ca_pem);
    let configuration = json!({"metadata": {"name": "slow"}, "webhooks": [{
        "name": "slow.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": hook.url(), "caBundle": ca},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
    }]});
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    let (status, _) = api.post(path, configuration).await;
    assert_eq!(status, StatusCode::CREATED);
    let (status, _) = api
        .post(
            "/api/v1/namespaces/n/configmaps",
            json!({"metadata": {"name": "c"}}),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED);
    let all = events(&directory);
    let [.., quick, slow] = all.as_slice() else {
        panic!("{all:#?}")
    };
    let latency = |event: &Value, layer: &str| {
        event["annotations"][format!("apiserver.latency.k8s.io/{layer}")].clone()
    };
    for layer in ["validating-webhook", "total"] {
        let took = latency(slow, layer);
        let took = took.as_str().unwrap();
        // However slow this machine is.
        let millis = took.strip_suffix("ms").map(|n| n.parse::<f64>().unwrap());
        assert!(
            millis.is_none_or(|millis| millis > 500.0),
            "{layer}: {took}"
        );
    }
    for layer in ["etcd", "authentication", "authorization"] {
        assert!(latency(slow, layer).is_string(), "{layer} of {slow:#}");
    }
    assert!(latency(slow, "mutating-webhook").is_null());
    assert!(latency(slow, "impersonation").is_null());
    assert!(latency(quick, "total").is_null());
}

#[tokio::test]
async fn the_last_piece_of_an_answer_comes_after_its_event() {
    const PATH: &str = "/api/v1/namespaces/default";
    let (api, directory) = logging("- {level: Metadata}\n").await;
    let mut request = Request::get(PATH).body(Full::default()).unwrap();
    request.extensions_mut().insert(api.user.clone());
    let mut body = api.server.handle(request).await.into_body();
    let whole = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let namespace: Value = serde_json::from_slice(&whole).unwrap();
    assert_eq!(namespace["kind"], "Namespace");
    let is_its = |e: &Value| e["requestURI"] == PATH && e["stage"] == "ResponseComplete";
    assert_eq!(events(&directory).iter().filter(|e| is_its(e)).count(), 1);
}

/// Reads an answer, but not before the threshold of what is explained has passed.
async fn slowly(api: &Api, path: &str, accept: &str) -> usize {
    let request = Request::get(path).header("accept", accept);
    let mut request = request.body(Full::default()).unwrap();
    request.extensions_mut().insert(api.user.clone());
    let mut body = api.server.handle(request).await.into_body();
    let first = body.frame().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(510)).await;
    let rest = body.collect().await.unwrap().to_bytes();
    first.into_data().unwrap().len() + rest.len()
}

#[tokio::test]
async fn an_answer_that_took_long_says_where() {
    let directory = tempfile::tempdir().unwrap();
    let store = Api::start().await;
    store.namespace().await;
    // Answered in three pieces.
    for name in ["a", "b"] {
        let map = json!({"metadata": {"name": name}, "data": {"text": "x".repeat(150_000)}});
        let path = "/api/v1/namespaces/n/configmaps";
        let (status, _) = store.post(path, map).await;
        assert_eq!(status, StatusCode::CREATED);
    }
    let (_, list) = store.get("/api/v1/namespaces/n/configmaps?limit=1").await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let later = json!({"metadata": {"name": "later"}});
    store.post("/api/v1/namespaces", later).await;
    // One that has not seen how it came about.
    let settings = Settings {
        policy: Some(policy("- {level: Metadata}\n")),
        log: Some((log(&directory, Format::Json), delivery(Mode::Blocking))),
        webhook: None,
    };
    let api = Api::configured_on(store.store.clone(), |config, _| config.audit = settings).await;
    let slow = async |path: &str, accept: &str| {
        let path = format!("/api/v1/namespaces/n/configmaps{path}");
        let length = slowly(&api, &path, accept).await;
        assert!(length > 150_000, "{path}");
        let event = events(&directory).pop().unwrap();
        assert_eq!(event["requestURI"], path.as_str());
        assert_eq!(event["stage"], "ResponseComplete");
        let annotations = event["annotations"].as_object().unwrap().clone();
        let told = annotations.into_iter().filter_map(|(name, took)| {
            let layer = name.strip_prefix("apiserver.latency.k8s.io/")?;
            Some((layer.to_owned(), took.as_str().unwrap().to_owned()))
        });
        let told: std::collections::BTreeMap<String, String> = told.collect();
        // Both include the client's part in it.
        for layer in ["serialize-response-object", "response-write"] {
            let millis = told[layer].strip_suffix("ms");
            let millis = millis.map(|n| n.parse::<f64>().unwrap());
            assert!(millis.is_none_or(|millis| millis > 500.0), "{told:?}");
        }
        told.into_keys().collect::<Vec<_>>()
    };
    let usual = [
        "authentication",
        "authorization",
        "etcd",
        "response-write",
        "serialize-response-object",
        "total",
    ];
    let with = |layers: &[&'static str]| {
        let mut all = [&usual[..], layers].concat();
        all.sort_unstable();
        all
    };
    let without_queue = |told: Vec<String>| -> Vec<String> {
        told.into_iter().filter(|l| l != "apf-queue-wait").collect()
    };
    let json = "application/json";
    assert_eq!(
        without_queue(slow("/a", json).await),
        with(&["transform-response-object"])
    );
    let exact = format!("?resourceVersion={version}&resourceVersionMatch=Exact");
    assert_eq!(
        without_queue(slow(&exact, json).await),
        with(&["decode-response-object", "transform-response-object"])
    );
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    assert_eq!(
        without_queue(slow("?includeObject=Object", table).await),
        with(&["transform-response-object"])
    );
}

#[tokio::test]
async fn failures_patches_and_deletions() {
    let (api, directory) = logging("- {level: Request}\n").await;
    api.namespace().await;
    let last = || events(&directory).pop().unwrap();
    let alice = User::new("alice", &[]);
    api.call_as(
        &alice,
        Method::GET,
        "/api/v1/namespaces/n/pods/p",
        "",
        Value::Null,
    )
    .await;
    let event = last();
    assert_eq!(event["responseStatus"]["code"], 403);
    assert_eq!(event["responseStatus"]["reason"], "Forbidden");
    assert_eq!(
        event["annotations"]["authorization.k8s.io/decision"],
        "forbid"
    );

    api.post(
        "/api/v1/namespaces/n/configmaps",
        json!({"metadata": {"name": "c"}}),
    )
    .await;
    let patch = json!({"data": {"a": "b"}});
    api.patch(
        "/api/v1/namespaces/n/configmaps/c",
        "merge-patch",
        patch.clone(),
    )
    .await;
    let event = last();
    assert_eq!(
        (&event["verb"], &event["requestObject"]),
        (&json!("patch"), &patch)
    );
    api.call(
        Method::DELETE,
        "/api/v1/namespaces/n/configmaps/c",
        json!({"propagationPolicy": "Background"}),
    )
    .await;
    let event = last();
    assert_eq!(event["requestObject"]["propagationPolicy"], "Background");
    assert_eq!(event["responseStatus"]["status"], "Success");
    assert_eq!(event["responseStatus"]["code"], 200);

    let bad = Request::get("/api/v1/pods").header("authorization", "Bearer nonsense");
    let (status, _, _) = api.send(bad.body(Full::default()).unwrap()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let event = last();
    assert_eq!(event["stage"], "ResponseStarted");
    assert_eq!(event["responseStatus"]["message"], "Unauthorized");
    assert_eq!(event["responseStatus"]["code"], 401);
    assert_eq!(event["user"], json!({}));
}

#[tokio::test]
async fn impersonation_and_watches() {
    let (api, directory) = logging("- {level: Metadata}\n").await;
    let mut request = Request::get("/api/v1/pods?watch=true&timeoutSeconds=1")
        .header("impersonate-user", "bob")
        .header("impersonate-group", "system:masters")
        .body(Full::default())
        .unwrap();
    request.extensions_mut().insert(api.user.clone());
    let (status, _, _) = api.send(request).await;
    assert_eq!(status, StatusCode::OK);
    // The end of a watch is recorded after its answer.
    let stages = || -> Vec<Value> {
        let watches = events(&directory)
            .into_iter()
            .filter(|e| e["verb"] == "watch");
        watches.map(|e| e["stage"].clone()).collect()
    };
    let complete = eventually(async || stages().len() == 2).await;
    assert!(complete);
    assert_eq!(stages(), ["ResponseStarted", "ResponseComplete"]);
    let event = events(&directory)
        .into_iter()
        .find(|e| e["verb"] == "watch")
        .unwrap();
    assert_eq!(event["user"]["username"], "admin");
    assert_eq!(event["impersonatedUser"]["username"], "bob");
}

#[tokio::test]
async fn the_legacy_format_is_a_line_for_people() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        policy: Some(policy("- {level: Metadata}\n")),
        log: Some((log(&directory, Format::Legacy), delivery(Mode::Blocking))),
        webhook: None,
    };
    let api = Api::configured(|config, _| config.audit = settings).await;
    api.get("/api/v1/namespaces/default/pods").await;
    let text = std::fs::read_to_string(directory.path().join("audit.log")).unwrap();
    let line = text.lines().last().unwrap();
    for part in [
        " AUDIT: id=\"",
        "stage=\"ResponseComplete\"",
        "method=\"list\"",
        "user=\"admin\"",
        "as=\"<self>\"",
        "namespace=\"default\"",
        "uri=\"/api/v1/namespaces/default/pods\"",
        "response=\"200\"",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[tokio::test]
async fn a_webhook_gets_batches_and_its_slowness_is_its_own() {
    let gate = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let open = gate.clone();
    let hook = Service::start(move |_, _| {
        let status = if open.load(std::sync::atomic::Ordering::SeqCst) {
            200
        } else {
            503
        };
        (status, json!({}))
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let webhook = WebhookSettings {
        kubeconfig: hook.kubeconfig(&directory),
        initial_backoff: Duration::from_millis(20),
    };
    let settings = Settings {
        policy: Some(policy("- {level: Request}\n")),
        log: None,
        webhook: Some((
            webhook,
            Delivery {
                truncation: Some(Truncation {
                    max_event: 4096,
                    max_batch: 64 * 1024,
                }),
                ..delivery(Mode::Batch)
            },
        )),
    };
    let api = Api::configured(|config, _| config.audit = settings).await;
    api.namespace().await;
    let began = Instant::now();
    let map = json!({"metadata": {"name": "large"}, "data": {"x": "y".repeat(8000)}});
    api.post("/api/v1/namespaces/n/configmaps", map).await;
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "a request does not wait for a back end"
    );
    gate.store(true, std::sync::atomic::Ordering::SeqCst);
    let event = || {
        let received = hook.received.lock();
        let mut items = received
            .iter()
            .flat_map(|(_, list)| list["items"].as_array().into_iter().flatten());
        items.rfind(|e| e["objectRef"]["name"] == "large").cloned()
    };
    let arrived = eventually(async || event().is_some()).await;
    assert!(arrived);
    let event = event().unwrap();
    assert_eq!(event["annotations"]["audit.k8s.io/truncated"], "true");
    assert!(event["requestObject"].is_null());
    let (_, list) = hook.received.lock().last().cloned().unwrap();
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("EventList"), &json!("audit.k8s.io/v1"))
    );
}

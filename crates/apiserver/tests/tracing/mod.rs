//! The spans of requests, as a collector gets them.

mod collector;
/// The messages; that they are the protocol's is tested where they are.
#[path = "../../src/spans/otlp.rs"]
#[allow(dead_code)]
mod otlp;

use std::time::{Duration, Instant};

use base64::Engine as _;
use fluyt_apiserver::{MASTERS, TracingConfiguration, User};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common::Api;
use crate::common::service::Service;
use collector::{Collected, Collector, attribute};
use otlp::{SpanKind, StatusCode as Outcome};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// A server that sends spans to an address, and its listener.
struct Traced {
    api: Api,
    shutdown: CancellationToken,
    listening: JoinHandle<anyhow::Result<()>>,
}

impl Traced {
    async fn start(endpoint: String, rate: i32) -> Self {
        let mut shutdown = None;
        let api = Api::configured(|config, _| {
            config.tracing = Some(TracingConfiguration {
                endpoint: Some(endpoint),
                sampling_rate_per_million: Some(rate),
            });
            shutdown = Some(config.shutdown.clone());
        })
        .await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = api.server.clone();
        Self {
            api,
            shutdown: shutdown.unwrap(),
            listening: tokio::spawn(async move { server.listen(listener).await }),
        }
    }

    /// Sends a request, and reads all of the answer.
    async fn send(
        &self,
        user: &User,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> (StatusCode, HeaderMap, Value) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let mut request = request
            .header("content-type", "application/json")
            .body(Full::new(bytes::Bytes::from(body)))
            .unwrap();
        request.extensions_mut().insert(user.clone());
        self.api.send(request).await
    }

    /// Ends the server, which sends what it still has.
    async fn stop(self) {
        self.shutdown.cancel();
        self.listening.await.unwrap().unwrap();
    }
}

fn admin() -> User {
    User::new("admin", &[MASTERS])
}

fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

/// The spans of a trace.
fn of_trace(spans: &[Collected], trace: &str) -> Vec<usize> {
    let is = |c: &Collected| c.traceparent()[3..35] == *trace;
    (0..spans.len()).filter(|i| is(&spans[*i])).collect()
}

fn named<'a>(spans: &'a [Collected], name: &str) -> Vec<&'a Collected> {
    spans.iter().filter(|c| c.span.name == name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_is_a_tree_of_spans() {
    let collector = Collector::start().await;
    let traced = Traced::start(collector.address.to_string(), 0).await;
    let path = format!("{CONFIG_MAPS}?fieldManager=me");
    let headers = [
        ("traceparent", SAMPLED),
        ("tracestate", "a=b"),
        ("user-agent", "test/1"),
        ("audit-id", "the-id"),
        ("host", "example.com:6443"),
    ];
    let made = traced
        .send(&admin(), Method::POST, &path, &headers, config_map("a"))
        .await;
    assert_eq!(made.0, StatusCode::CREATED, "{}", made.2);
    traced.stop().await;

    let spans = collector.spans();
    // Nothing else is sampled; authentication is before the trace is known.
    assert_eq!(of_trace(&spans, TRACE).len(), spans.len());
    let chain: Vec<&str> = spans.iter().map(|c| &*c.span.name).collect();
    let expected = [
        "POST /api/v1/namespaces/{:namespace}/configmaps",
        "audit",
        "constrainedimpersonation",
        "priorityandfairness",
        "authorization",
        "Create",
        "Create etcd3",
        "SerializeObject",
    ];
    assert_eq!(chain, expected);
    // Each is within the one before, but the last, which is a sibling.
    let parents = [
        None,
        Some(0),
        Some(1),
        Some(2),
        Some(3),
        Some(4),
        Some(5),
        Some(5),
    ];
    for (span, parent) in spans.iter().map(|c| &c.span).zip(parents) {
        let Some(parent) = parent.map(|i: usize| &spans[i].span) else {
            continue;
        };
        assert_eq!(span.parent_span_id, parent.span_id, "{}", span.name);
        assert!(span.end_time_unix_nano <= parent.end_time_unix_nano);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        assert_eq!(span.kind(), SpanKind::Internal);
        assert_eq!(
            span.flags, 0x101,
            "sampled, within a span of the same process"
        );
    }

    let request = &spans[0];
    let parent = [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31];
    assert_eq!(request.span.parent_span_id, parent);
    assert_eq!(request.span.trace_state, "a=b");
    assert_eq!(request.span.flags, 0x301, "sampled, within a client's span");
    assert_eq!(request.span.kind(), SpanKind::Server);
    assert!(request.scope.ends_with("net/http/otelhttp"));
    assert!(spans[1].scope.ends_with("endpoints/filterlatency"));
    assert_eq!(spans[5].scope, "k8s.io/component-base/tracing");
    let answer = made.2.to_string().len().to_string();
    let sent = config_map("a").to_string().len().to_string();
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.target", &*path),
        ("url.path", CONFIG_MAPS),
        ("url.scheme", "http"),
        ("server.address", "example.com"),
        ("server.port", "6443"),
        ("user_agent.original", "test/1"),
        ("network.protocol.version", "1.1"),
        ("audit-id", "the-id"),
        ("http.response.status_code", "201"),
        ("http.request.body.size", &sent),
        ("http.response.body.size", &answer),
    ] {
        assert_eq!(request.attribute(key).as_deref(), Some(value), "{key}");
    }
    for (key, value) in [
        ("audit-id", "the-id"),
        ("client", "unknown"),
        ("api-group", ""),
        ("api-version", "v1"),
        ("name", ""),
        ("namespace", "default"),
        ("protocol", "HTTP/1.1"),
        ("resource", "configmaps"),
        ("scope", "resource"),
        ("url", CONFIG_MAPS),
        ("user-agent", "test/1"),
        ("verb", "POST"),
    ] {
        assert_eq!(spans[5].attribute(key).as_deref(), Some(value), "{key}");
    }
    let key = spans[6].attribute("key");
    assert_eq!(key.as_deref(), Some("/configmaps/default/a"));
    assert_eq!(spans[6].span.events[0].name, "Txn call succeeded");
    let media_type = spans[7].attribute("mediaType");
    assert_eq!(media_type.as_deref(), Some("application/json"));
    let events: Vec<&str> = spans[7].span.events.iter().map(|e| &*e.name).collect();
    assert_eq!(
        events,
        ["About to start writing response", "Write call succeeded"]
    );

    let resource = collector.resource();
    let of = |key: &str| attribute(&resource, key).unwrap();
    assert_eq!(of("service.name"), "apiserver");
    assert!(of("service.instance.id").starts_with("apiserver-"));
    assert_eq!(of("telemetry.sdk.language"), "rust");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_has_its_steps() {
    let collector = Collector::start().await;
    let traced = Traced::start(collector.address.to_string(), 1_000_000).await;
    let send = async |method: Method, path: &str, body: Value| {
        traced.send(&admin(), method, path, &[], body).await.0
    };
    let one = format!("{CONFIG_MAPS}/a");
    send(Method::POST, CONFIG_MAPS, config_map("a")).await;
    assert_eq!(send(Method::GET, &one, Value::Null).await, StatusCode::OK);
    let changed = json!({"metadata": {"name": "a"}, "data": {"k": "v"}});
    let put = send(Method::PUT, &one, changed).await;
    assert_eq!(put, StatusCode::OK);
    send(Method::GET, CONFIG_MAPS, Value::Null).await;
    send(Method::DELETE, &one, Value::Null).await;
    let gone = send(Method::GET, &one, Value::Null).await;
    assert_eq!(gone, StatusCode::NOT_FOUND);
    assert_eq!(
        send(Method::GET, "/livez", Value::Null).await,
        StatusCode::OK
    );
    traced.stop().await;

    let spans = collector.spans();
    let by_id = |id: &[u8]| spans.iter().find(|c| c.span.span_id == id);
    let parent = |c: &Collected| by_id(&c.span.parent_span_id).map(|c| c.span.name.clone());
    for (step, outer) in [
        ("cacher.Get", "Get"),
        ("GuaranteedUpdate etcd3", "Update"),
        ("cacher.GetList", "List"),
        ("Delete", "authorization"),
    ] {
        let steps = named(&spans, step);
        let parents: Vec<_> = steps.iter().filter_map(|c| parent(c)).collect();
        assert!(parents.iter().any(|p| p == outer), "{step}: {parents:?}");
    }
    let update = named(&spans, "GuaranteedUpdate etcd3")[0];
    assert_eq!(update.span.events[0].name, "Txn call succeeded");
    let list = named(&spans, "cacher.GetList");
    let counted = list.iter().flat_map(|c| &c.span.events);
    assert!(counted.into_iter().any(|e| e.name == "Filtered items"));
    // An error of the client's is none of the server's.
    let gets = named(
        &spans,
        "GET /api/v1/namespaces/{:namespace}/configmaps/{:name}",
    );
    let missing = gets
        .iter()
        .find(|c| c.attribute("http.response.status_code").as_deref() == Some("404"))
        .unwrap();
    let status = missing.span.status.clone().unwrap_or_default();
    assert_eq!(status.code(), Outcome::Unset);
    // Paths that are no resources have names without them, and are within authentication where nobody says otherwise.
    let health = named(&spans, "GET");
    let health = health
        .iter()
        .find(|c| c.attribute("http.target").as_deref() == Some("/livez"))
        .unwrap();
    assert_eq!(parent(health).as_deref(), Some("authentication"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_some_users_say_which_trace_they_are_in() {
    let collector = Collector::start().await;
    let traced = Traced::start(collector.address.to_string(), 1_000_000).await;
    let somebody = User::new("somebody", &[]);
    let monitoring = User::new("prometheus", &["system:monitoring"]);
    for (user, path) in [
        (&somebody, "/version?by=somebody"),
        (&monitoring, "/version?by=monitoring"),
    ] {
        let headers = [("traceparent", SAMPLED)];
        let answer = traced
            .send(user, Method::GET, path, &headers, Value::Null)
            .await;
        assert_eq!(answer.0, StatusCode::OK);
    }
    traced.stop().await;
    let spans = collector.spans();
    let by = |who: &str| {
        let target = format!("/version?by={who}");
        let is = |c: &&Collected| c.attribute("http.target").as_deref() == Some(&target);
        spans.iter().find(is).unwrap()
    };
    let respected = by("monitoring");
    assert_eq!(&respected.traceparent()[3..35], TRACE);
    assert!(respected.span.links.is_empty());
    let own = by("somebody");
    assert_ne!(&own.traceparent()[3..35], TRACE);
    assert!(own.span.parent_span_id.is_empty());
    assert_eq!(own.span.flags, 0x101);
    let link = &own.span.links[0];
    assert_eq!(link.trace_id[..2], [0x0a, 0xf7]);
    assert_eq!(link.span_id[..2], [0xb7, 0xad]);
    assert_eq!(link.flags, 0x301);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sampled_is_not_sent() {
    let collector = Collector::start().await;
    let traced = Traced::start(collector.address.to_string(), 0).await;
    let somebody = User::new("somebody", &[]);
    let admin = admin();
    let requests: [(&User, &[(&str, &str)]); 4] = [
        (&admin, &[]),
        (&admin, &[("traceparent", UNSAMPLED)]),
        (&admin, &[("traceparent", "nonsense")]),
        // Nobody may make others collect its spans.
        (&somebody, &[("traceparent", SAMPLED)]),
    ];
    for (user, headers) in requests {
        traced
            .send(user, Method::GET, "/version", headers, Value::Null)
            .await;
    }
    let headers = [("traceparent", SAMPLED)];
    traced
        .send(&admin, Method::GET, "/livez", &headers, Value::Null)
        .await;
    traced.stop().await;
    let spans = collector.spans();
    let targets: Vec<_> = spans
        .iter()
        .filter_map(|c| c.attribute("http.target"))
        .collect();
    assert_eq!(targets, ["/livez"]);
}

/// A service that allows everything, and the configuration that has it asked about config maps.
async fn hook() -> (Service, Value) {
    let hook = Service::start(|_, review| {
        let uid = &review["request"]["uid"];
        let response = json!({"uid": uid, "allowed": true});
        let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        (200, review)
    })
    .await;
    let bundle = base64::engine::general_purpose::STANDARD.encode(&hook.ca_pem);
    let configuration = json!({
        "metadata": {"name": "hook"},
        "webhooks": [{
            "name": "hook.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("{}/hook", hook.url()), "caBundle": bundle},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}],
        }],
    });
    (hook, configuration)
}

const HOOKS: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_learn_which_span_calls_them() {
    let collector = Collector::start().await;
    let traced = Traced::start(collector.address.to_string(), 0).await;
    let (hook, configuration) = hook().await;
    let user = admin();
    let made = traced
        .send(&user, Method::POST, HOOKS, &[], configuration)
        .await;
    assert_eq!(made.0, StatusCode::CREATED, "{}", made.2);
    let headers = [
        ("traceparent", SAMPLED),
        ("tracestate", "a=b"),
        ("baggage", "k=v"),
    ];
    let made = traced
        .send(&user, Method::POST, CONFIG_MAPS, &headers, config_map("a"))
        .await;
    assert_eq!(made.0, StatusCode::CREATED, "{}", made.2);
    traced.stop().await;
    let spans = collector.spans();
    let step = named(&spans, "Call validating webhook")[0];
    for (key, value) in [
        ("configuration", "hook"),
        ("webhook", "hook.example.com"),
        ("resource", "/v1, Resource=configmaps"),
        ("operation", "CREATE"),
    ] {
        assert_eq!(step.attribute(key).as_deref(), Some(value), "{key}");
    }
    let call = named(&spans, "HTTP POST")[0];
    assert_eq!(call.span.kind(), SpanKind::Client);
    assert_eq!(call.span.parent_span_id, step.span.span_id);
    assert_eq!(
        call.attribute("http.response.status_code").as_deref(),
        Some("200")
    );
    let url = call.attribute("url.full").unwrap();
    assert_eq!(url, format!("{}/hook?timeout=10s", hook.url()));
    let received = hook.headers.lock()[0].clone();
    assert_eq!(received["traceparent"], call.traceparent());
    assert_eq!(received["tracestate"], "a=b");
    assert_eq!(received["baggage"], "k=v");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_flag_a_trace_is_passed_on() {
    let api = Api::start().await;
    let (hook, configuration) = hook().await;
    let (status, made) = api.post(HOOKS, configuration).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    for parent in [Some(UNSAMPLED), None] {
        let mut request = Request::post(CONFIG_MAPS).header("content-type", "application/json");
        if let Some(parent) = parent {
            request = request.header("traceparent", parent);
        }
        let body = json!({"metadata": {"generateName": "a"}}).to_string();
        let mut request = request.body(Full::new(bytes::Bytes::from(body))).unwrap();
        request.extensions_mut().insert(admin());
        assert_eq!(api.send(request).await.0, StatusCode::CREATED);
    }
    let received = hook.headers.lock();
    assert_eq!(received[0]["traceparent"], UNSAMPLED);
    assert!(!received[1].contains_key("traceparent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_hurts_nobody() {
    // One refuses connections, the other takes them and is silent.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [&refusing, &silent].map(|l| l.local_addr().unwrap().to_string());
    drop(refusing);
    for address in addresses {
        let traced = Traced::start(address, 1_000_000).await;
        let started = Instant::now();
        // More spans than the queue holds.
        for i in 0..400 {
            let name = format!("a{i}");
            let made = traced
                .send(&admin(), Method::POST, CONFIG_MAPS, &[], config_map(&name))
                .await;
            assert_eq!(made.0, StatusCode::CREATED, "{}", made.2);
        }
        let took = started.elapsed();
        assert!(took < Duration::from_secs(60), "{took:?}");
        let stopping = Instant::now();
        traced.stop().await;
        let took = stopping.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?}");
    }
    drop(silent);
}

//! Where requests go that other servers answer: groups' servers, webhooks, kubelets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fluyt_apiserver::dial::{Connection, Dialer, Direct};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};

use crate::common::service::Service;
use crate::common::{Api, pod};
use crate::flags::given;

/// Connects to one service, whatever it is asked for, and remembers that.
struct Recorder {
    service: SocketAddr,
    asked: Arc<Mutex<Vec<SocketAddr>>>,
}

#[async_trait]
impl Dialer for Recorder {
    async fn connect(&self, address: SocketAddr) -> std::io::Result<Connection> {
        self.asked.lock().push(address);
        Direct.connect(self.service).await
    }
}

/// A server whose groups' server is a service with a cluster IP and an endpoint.
async fn aggregating(service: &Service, flags: &[&str]) -> (Api, Arc<Mutex<Vec<SocketAddr>>>) {
    let asked: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
    let recorder = Recorder {
        service: service.address,
        asked: asked.clone(),
    };
    let api = Api::configured(|config, _| {
        config.dialer = Arc::new(recorder);
        config.routing = given(flags);
    })
    .await;
    api.namespace().await;
    for (path, object) in [
        (
            "/api/v1/namespaces/n/services",
            json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.0.0.77", "ports": [{"port": 443, "targetPort": 8443}]}}),
        ),
        (
            "/apis/discovery.k8s.io/v1/namespaces/n/endpointslices",
            json!({"metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
                "ports": [{"name": "", "port": 8443}], "endpoints": [{"addresses": ["192.0.2.77"]}]}),
        ),
        (
            "/apis/apiregistration.k8s.io/v1/apiservices",
            json!({"metadata": {"name": "v1.other.example"}, "spec": {"group": "other.example", "version": "v1",
                "groupPriorityMinimum": 10, "versionPriority": 10, "insecureSkipTLSVerify": true,
                "service": {"namespace": "n", "name": "s"}}}),
        ),
    ] {
        let (status, made) = api.post(path, object).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
    }
    (api, asked)
}

const THINGS: &str = "/apis/other.example/v1/things";

#[tokio::test]
async fn services_are_reached_by_their_own_address_or_by_endpoints() {
    let service = Service::start(|_, _| (200, json!({"kind": "ThingList"}))).await;
    for (flags, expected) in [
        (&[][..], "10.0.0.77:443"),
        (&["--enable-aggregator-routing"], "192.0.2.77:8443"),
    ] {
        let (api, asked) = aggregating(&service, flags).await;
        let (status, list) = api.get(THINGS).await;
        assert_eq!(
            (status, &list["kind"]),
            (StatusCode::OK, &json!("ThingList"))
        );
        let expected: SocketAddr = expected.parse().unwrap();
        let asked = asked.lock();
        assert!(
            asked.iter().all(|address| *address == expected),
            "{asked:?}"
        );
    }
}

#[tokio::test]
async fn redirects_are_not_passed_on_unless_that_is_wanted() {
    let service = Service::start(|path, _| match path {
        THINGS => (302, json!("https://elsewhere.example/")),
        _ => (200, json!({})),
    })
    .await;
    let get = async |flags: &[&str]| {
        let (api, _) = aggregating(&service, flags).await;
        let mut request = Request::get(THINGS).body(Full::default()).unwrap();
        request.extensions_mut().insert(api.user.clone());
        api.send(request).await
    };
    let (status, headers, body) = get(&[]).await;
    assert_eq!(status, 502);
    assert!(!headers.contains_key("location"));
    assert_eq!(
        body,
        "the backend attempted to redirect this request, which is not permitted"
    );
    let (status, headers, _) = get(&["--aggregator-reject-forwarding-redirect=false"]).await;
    assert_eq!(status, 302);
    assert_eq!(headers["location"], "https://elsewhere.example/");
}

#[tokio::test]
async fn kubelets_that_do_not_say_their_port_have_the_usual_one() {
    let service = Service::start(|_, _| (200, json!("line"))).await;
    let asked: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
    let recorder = Recorder {
        service: service.address,
        asked: asked.clone(),
    };
    let api = Api::configured(|config, _| {
        config.dialer = Arc::new(recorder);
        config.kubelet_port = 10999;
    })
    .await;
    api.namespace().await;
    let status = json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.5"}]});
    let node = json!({"metadata": {"name": "a"}, "status": status});
    let (code, made) = api.post("/api/v1/nodes", node).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    let mut pod = pod("p");
    pod["spec"]["nodeName"] = "a".into();
    api.post("/api/v1/namespaces/n/pods", pod).await;
    let (status, _) = api.get("/api/v1/namespaces/n/pods/p/log").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(*asked.lock(), ["192.0.2.5:10999".parse().unwrap()]);
}

/// A webhook that answers once two requests are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn objects_of_a_collection_are_deleted_at_the_same_time() {
    let (asked, both) = (Mutex::new(0), Condvar::new());
    let hook = Service::start(move |_, review| {
        let mut asked = asked.lock();
        *asked += 1;
        both.notify_all();
        both.wait_while_for(&mut asked, |asked| *asked < 2, Duration::from_secs(4));
        let response = json!({"uid": review["request"]["uid"], "allowed": *asked == 2});
        (
            200,
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}),
        )
    })
    .await;
    let api = Api::configured(|config, _| {
        config.limits = given(&["--delete-collection-workers=2"]);
    })
    .await;
    api.namespace().await;
    let maps = "/api/v1/namespaces/n/configmaps";
    for name in ["a", "b"] {
        api.post(maps, json!({"metadata": {"name": name}})).await;
    }
    let ca = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &hook.ca_pem);
    let webhook = json!({
        "name": "both.example.com", "clientConfig": {"url": hook.url(), "caBundle": ca}, "timeoutSeconds": 5,
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["configmaps"]}],
        "sideEffects": "None", "admissionReviewVersions": ["v1"],
    });
    let (status, made) = api
        .post(
            "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
            json!({"metadata": {"name": "both"}, "webhooks": [webhook]}),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let (status, deleted) = api.call(Method::DELETE, maps, Value::Null).await;
    assert_eq!(status, StatusCode::OK, "{deleted}");
    let names = deleted["items"].as_array().unwrap().iter();
    let names: Vec<_> = names.map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["a", "b"]);
}

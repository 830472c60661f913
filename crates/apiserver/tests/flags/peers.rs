//! API servers of one cluster that do not serve the same: what one lacks, another answers.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use fluyt_apiserver::dial::{Connection, ControlPlane, Dialer, Direct};
use fluyt_apiserver::listen::Usual;
use fluyt_apiserver::{Config, Feature, Features, PeerSettings, Served, Signing};
use fluyt_etcd::embedded::Embedded;
use fluyt_etcd::{DynStore, Keys, Op, Put, Range, Txn};
use fluyt_pki::{Authority, Identity, TokenKeys, Usage};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Full;
use k8s_pb::api::core::v1::Endpoints;
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::common::Api;
use crate::common::service::{Service, eventually};
use crate::flags::client::Client;

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

/// What the servers of a cluster have in common.
struct Cluster {
    store: DynStore,
    /// Vouches for servers and users.
    authority: Arc<Authority>,
    proxies: Authority,
    tokens: String,
    _directory: tempfile::TempDir,
}

struct Member {
    address: SocketAddr,
    client: Client,
    shutdown: CancellationToken,
    listening: JoinHandle<anyhow::Result<()>>,
}

impl Cluster {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            store: Arc::new(Embedded::open(directory.path()).unwrap()),
            authority: Arc::new(Authority::create("cluster").unwrap()),
            proxies: Authority::create("proxies").unwrap(),
            tokens: TokenKeys::create().unwrap().private_pem().to_owned(),
            _directory: directory,
        }
    }

    async fn server(&self, host: &str, runtime_config: &str) -> Member {
        self.configured(host, runtime_config, |_| {}).await
    }

    /// A server on a machine of its own.
    async fn configured(
        &self,
        host: &str,
        runtime_config: &str,
        change: impl FnOnce(&mut Config),
    ) -> Member {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = Identity {
            common_name: "kube-apiserver".into(),
            dns_names: vec!["kubernetes.default.svc".into()],
            addresses: vec![address.ip()],
            ..Identity::default()
        };
        let serving = self.authority.issue(&serving, Usage::Server, 1).unwrap();
        let proxy = Identity {
            common_name: "front-proxy-client".into(),
            ..Identity::default()
        };
        let proxy = self.proxies.issue(&proxy, Usage::Client, 1).unwrap();
        let shutdown = CancellationToken::new();
        let api = Api::configured_on(self.store.clone(), |config, _| {
            config.host = host.into();
            config.shares_store = true;
            config.served = Served::configured(runtime_config, Features::default()).unwrap();
            config.advertise = address;
            config.client_ca_pem = self.authority.certificate_pem().to_owned();
            config.certificate = Usual::Pem {
                certificate: serving.certificate_pem,
                key: serving.key_pem,
            };
            config.service_account_signing = Signing::Key(self.tokens.clone());
            config.requestheader_ca_pem = Some(self.proxies.certificate_pem().to_owned());
            config.proxy_client = Some((proxy.certificate_pem, proxy.key_pem));
            config.peers.ca_pem = Some(self.authority.certificate_pem().to_owned());
            config.shutdown = shutdown.clone();
            change(config);
        })
        .await;
        let server = api.server;
        Member {
            address,
            client: Client::administrator(&self.authority),
            shutdown,
            listening: tokio::spawn(async move { server.listen(listener).await }),
        }
    }

    /// The keys of the servers' endpoints.
    async fn endpoints(&self) -> Vec<(String, Vec<u8>)> {
        let keys = Keys::prefix("/registry/peerserverleases/".to_owned());
        let found = self.store.range(Range::new(keys)).await.unwrap().kvs;
        let text = |key: &[u8]| String::from_utf8(key.to_vec()).unwrap();
        found
            .iter()
            .map(|kv| (text(&kv.key), kv.value.to_vec()))
            .collect()
    }
}

impl Member {
    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> (u16, HeaderMap, String) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let content = if body.is_null() {
            Bytes::new()
        } else {
            request = request.header("content-type", "application/json");
            body.to_string().into()
        };
        let request = request.body(Full::new(content)).unwrap();
        let (status, headers, text) = self.client.send(self.address, request).await.unwrap();
        (status.as_u16(), headers, text)
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let (status, _, text) = self.send(Method::GET, path, &[], Value::Null).await;
        (status, text)
    }

    async fn answers(&self, path: &str, status: u16) -> bool {
        eventually(async || self.get(path).await.0 == status).await
    }

    /// The groups of the aggregated document and its tag.
    async fn groups(&self, accept: &str) -> (Vec<Value>, String) {
        let headers = [("accept", accept)];
        let (_, headers, text) = self.send(Method::GET, "/apis", &headers, Value::Null).await;
        let document: Value = serde_json::from_str(&text).unwrap();
        let tag = headers["etag"].to_str().unwrap().to_owned();
        (document["items"].as_array().unwrap().clone(), tag)
    }

    async fn metric(&self, name: &str) -> Option<u64> {
        let (_, text) = self.get("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.listening.await.unwrap().unwrap();
    }
}

fn names(groups: &[Value]) -> Vec<&str> {
    let names = groups.iter().map(|g| g["metadata"]["name"].as_str());
    names.map(Option::unwrap).collect()
}

fn deployment(name: &str) -> Value {
    let template = json!({"metadata": {"labels": {"a": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"a": name}}, "template": template}})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_lacks_another_serves() {
    let cluster = Cluster::new();
    let lacking = "apps/v1=false,authentication.k8s.io/v1=false";
    let a = cluster.server("a", lacking).await;
    assert_eq!(a.get(DEPLOYMENTS).await.0, 404);
    let b = cluster.server("b", "batch/v1=false").await;
    assert!(a.answers(DEPLOYMENTS, 200).await);
    assert!(b.answers("/apis/batch/v1/jobs", 200).await);

    // Written and watched through the other.
    let (status, _, made) = a
        .send(Method::POST, DEPLOYMENTS, &[], deployment("d"))
        .await;
    assert_eq!(status, 201, "{made}");
    assert_eq!(b.get(&format!("{DEPLOYMENTS}/d")).await.0, 200);
    let (_, seen) = a
        .get(&format!("{DEPLOYMENTS}?watch=true&timeoutSeconds=1"))
        .await;
    assert!(seen.contains("\"type\":\"ADDED\""), "{seen}");
    assert_eq!(upgrade(&a, &format!("{DEPLOYMENTS}?watch=true")).await, 101);
    let (status, refused) = a.get(&format!("{DEPLOYMENTS}/other")).await;
    assert_eq!(status, 404);
    assert!(refused.contains("deployments.apps \\\"other\\\" not found"));

    // The other sees the user who sent the request, whoever that says to be.
    let jane = Identity {
        common_name: "jane".into(),
        organizations: vec!["devs".into()],
        ..Identity::default()
    };
    let client = Client::identified(&cluster.authority, &jane);
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("content-type", "application/json")
        .header("x-remote-user", "admin")
        .header("x-remote-group", "system:masters")
        .header("audit-id", "mine")
        .body(Full::new(Bytes::from(review.to_string())))
        .unwrap();
    let (status, headers, text) = client.send(a.address, request).await.unwrap();
    assert_eq!(status, StatusCode::CREATED, "{text}");
    assert_eq!(headers.get_all("audit-id").iter().count(), 1);
    assert_eq!(headers["audit-id"], "mine");
    let review: Value = serde_json::from_str(&text).unwrap();
    let user = &review["status"]["userInfo"];
    assert_eq!(user["username"], "jane");
    assert_eq!(user["groups"], json!(["devs", "system:authenticated"]));
    // And jane may not what she might not there.
    let request = Request::get(DEPLOYMENTS).body(Full::default()).unwrap();
    assert_eq!(client.send(a.address, request).await.unwrap().0, 403);

    // Nobody passes on what was passed on, or what nobody serves.
    let proxied = [("x-kubernetes-peer-proxied", "true")];
    let (status, _, text) = a
        .send(Method::GET, DEPLOYMENTS, &proxied, Value::Null)
        .await;
    assert_eq!((status, &*text), (404, "404 page not found\n"));
    assert_eq!(a.get("/apis/apps/v1/nothings").await.0, 404);

    let counted = "apiserver_rerouted_request_total{code=\"201\",group=\"apps\",resource=\"deployments\",version=\"v1\"}";
    assert_eq!(a.metric(counted).await, Some(1));
    let switched = counted.replace("201", "0");
    assert_eq!(a.metric(&switched).await, Some(1));
    let asked =
        "apiserver_rerouted_request_total{code=\"200\",group=\"\",resource=\"\",version=\"\"}";
    assert!(a.metric(asked).await.unwrap() >= 2);

    // One that stops says so.
    b.stop().await;
    assert!(a.answers(DEPLOYMENTS, 404).await);
    assert!(!names(&a.groups(V2).await.0).contains(&"apps"));
    assert_eq!(cluster.endpoints().await.len(), 1);
}

/// The status of an answer to who wants a WebSocket.
async fn upgrade(member: &Member, path: &str) -> u16 {
    let host = member.address.ip().to_string();
    let mut stream = member.client.connect(member.address, &host).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The first event of the watch comes over the connection that was switched.
    while !answer.windows(7).any(|part| part == b"\"ADDED\"") {
        let reading = stream.read_buf(&mut answer);
        let patience = std::time::Duration::from_secs(10);
        if tokio::time::timeout(patience, reading)
            .await
            .unwrap()
            .unwrap()
            == 0
        {
            break;
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_shows_what_all_servers_serve() {
    let cluster = Cluster::new();
    const CLASSES: &str = "/apis/node.k8s.io/v1/runtimeclasses";
    let lacking = "apps/v1=false,node.k8s.io/v1=false,api/beta=true";
    let a = cluster.server("a", lacking).await;
    let alone = a.groups(V2).await;
    let b = cluster.server("b", "batch/v1=false,policy/v1=false").await;
    assert!(a.answers(CLASSES, 200).await);
    let whole = b.answers("/apis/policy/v1/poddisruptionbudgets", 200);
    assert!(whole.await);

    let (groups, tag) = a.groups(V2).await;
    assert_eq!(b.groups(V2).await, (groups.clone(), tag.clone()));
    let present = names(&groups);
    let place = |name: &str| present.iter().position(|n| *n == name).unwrap();
    assert!(place("apps") < place("events.k8s.io") && place("batch") < place("policy"));
    let versions = |group: &str| -> Vec<Value> {
        let versions = groups[place(group)]["versions"].as_array().unwrap();
        versions.iter().map(|v| v["version"].clone()).collect()
    };
    assert_eq!(versions("networking.k8s.io"), ["v1", "v1beta1"]);
    assert_ne!(tag, alone.1);

    // Asked for itself, a server says what it serves.
    let nopeer = format!("{V2};profile=nopeer");
    assert_eq!(a.groups(&nopeer).await, alone);
    assert!(!names(&alone.0).contains(&"apps"));
    let count = |what: &str| format!("aggregator_discovery_{what}_total ");
    // B has asked as well, for both documents.
    assert_eq!(a.metric(&count("nopeer_requests")).await, Some(3));
    let merged = async || {
        let misses = a.metric(&count("peer_aggregated_cache_misses")).await;
        let hits = a.metric(&count("peer_aggregated_cache_hits")).await;
        (misses.unwrap(), hits.unwrap())
    };
    let (misses, hits) = merged().await;
    assert_eq!(a.groups(V2).await, (groups.clone(), tag));
    assert_eq!(merged().await, (misses, hits + 1));
    // The list of groups is each server's own.
    assert!(!a.get("/apis").await.1.contains("\"apps\""));

    // What an object defines is the same everywhere, and nobody else's.
    let schema = json!({"openAPIV3Schema": {"type": "object"}});
    let approved = json!({"api-approved.kubernetes.io": "unapproved, a test"});
    let definition = json!({"metadata": {"name": "things.node.k8s.io", "annotations": approved}, "spec": {"group": "node.k8s.io", "scope": "Cluster",
        "names": {"kind": "Thing", "plural": "things"},
        "versions": [{"name": "v1", "served": false, "storage": true, "schema": schema}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let (status, _, made) = a.send(Method::POST, definitions, &[], definition).await;
    assert_eq!(status, 201, "{made}");
    assert!(a.answers(CLASSES, 404).await);
    let shown = a.groups(V2).await.0;
    assert!(!names(&shown).contains(&"node.k8s.io") && names(&shown).contains(&"apps"));
    assert_eq!(b.get(CLASSES).await.0, 200);
}

/// Leads connections somewhere else.
struct Detour(Arc<Mutex<SocketAddr>>);

#[async_trait::async_trait]
impl Dialer for Detour {
    async fn connect(&self, _: SocketAddr) -> std::io::Result<Connection> {
        let address = *self.0.lock();
        Direct.connect(address).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_asked_and_sent_requests_as_upstreams_servers_do() {
    let cluster = Cluster::new();
    // Vouched for by the cluster's authority.
    let group = |name: &str| {
        let resources = json!([{"resource": "things", "scope": "Cluster", "verbs": ["get"]}]);
        let versions = json!([{"version": "v9", "resources": resources, "freshness": "Current"}]);
        json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
            "items": [{"metadata": {"name": name}, "versions": versions}]})
    };
    let peer = Service::vouched_by(cluster.authority.clone(), move |path, _| match path {
        "/api" => (200, group("")),
        "/apis" => (200, group("new.example")),
        "/apis/new.example/v9/things" => (404, json!({"kind": "Status", "message": "mine"})),
        _ => (200, json!({"kind": "Thing"})),
    })
    .await;
    let way = Arc::new(Mutex::new(peer.address));
    let proxy = Identity {
        common_name: "proxy".into(),
        ..Identity::default()
    };
    let proxy = cluster.authority.issue(&proxy, Usage::Client, 1).unwrap();
    let a = cluster
        .configured("a", "", |config| {
            config.proxy_client = Some((proxy.certificate_pem, proxy.key_pem));
            config.control_plane = ControlPlane(Arc::new(Detour(way.clone())));
        })
        .await;
    // A server is heard of by its lease, and found by its key, which comes later.
    let lease = json!({"metadata": {"name": "apiserver-b", "labels": {"apiserver.kubernetes.io/identity": "kube-apiserver"}},
        "spec": {"holderIdentity": "apiserver-b_1", "leaseDurationSeconds": 3600, "renewTime": "2999-01-02T03:04:05.000000Z"}});
    assert_eq!(a.send(Method::POST, LEASES, &[], lease).await.0, 201);
    let missed = "apiserver_peer_discovery_sync_errors_total{type=\"hostport_resolution\"}";
    assert!(eventually(async || a.metric(missed).await.is_some()).await);
    let endpoints = json!({"kind": "Endpoints", "apiVersion": "v1", "metadata": {"labels": {"apiserverIdentity": "apiserver-b"}},
        "subsets": [{"addresses": [{"ip": "192.0.2.9"}], "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}]}]});
    let key = "/registry/peerserverleases/apiserver-b";
    let put = |value: String| Txn {
        compares: Vec::new(),
        success: vec![Op::Put(Put::new(key.to_owned(), value.into_bytes()))],
        failure: Vec::new(),
    };
    cluster.store.txn(put(endpoints.to_string())).await.unwrap();
    let things = "/apis/new.example/v9/things";
    let reaches = async || a.get(things).await.1.contains("\"mine\"");
    assert!(eventually(reaches).await);
    // The core group as well.
    assert_eq!(a.get("/api/v9/things/x").await.0, 200);
    assert!(names(&a.groups(V2).await.0).contains(&"new.example"));

    let (paths, headers): (Vec<String>, Vec<HeaderMap>) = {
        let received = peer.received.lock();
        let paths = received.iter().map(|(path, _)| path.clone());
        (paths.collect(), peer.headers.lock().clone())
    };
    let of = |path: &str| {
        let place = paths.iter().position(|p| p == path).unwrap();
        let headers = &headers[place];
        move |name: &str| {
            let values = headers.get_all(name).iter();
            let values: Vec<&str> = values.map(|v| v.to_str().unwrap()).collect();
            values.join("|")
        }
    };
    let question = of("/apis");
    assert_eq!(
        question("accept"),
        format!("{V2};profile=nopeer,{V2},application/json")
    );
    assert_eq!(question("x-kubernetes-peer-proxied"), "true");
    assert_eq!(question("x-remote-user"), "system:apiserver");
    assert_eq!(question("x-remote-uid"), "system:apiserver");
    assert_eq!(question("x-remote-group"), "system:authenticated");
    let request = of(things);
    assert_eq!(request("x-kubernetes-peer-proxied"), "true");
    assert_eq!(request("x-remote-user"), "admin");
    assert_eq!(
        request("x-remote-group"),
        "system:masters|system:authenticated"
    );
    assert_eq!(request("x-forwarded-for"), "127.0.0.1");
    assert_eq!(request("host"), "192.0.2.9:6443");
    assert!(!request("audit-id").is_empty());
    let certificates = peer.certificates.lock().clone();
    assert!(certificates.iter().all(Option::is_some));

    // One that does not listen any more, and one of which nobody knows any more where it is.
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    *way.lock() = nobody.local_addr().unwrap();
    drop(nobody);
    let (status, headers, text) = a.send(Method::GET, things, &[], Value::Null).await;
    assert_eq!(status, 503);
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(
        text,
        "error trying to reach service: dial tcp 192.0.2.9:6443: connect: connection refused\n"
    );
    cluster.store.txn(put("{}".to_owned())).await.unwrap();
    let (status, text) = a.get(things).await;
    let text: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &text["reason"]),
        (503, &json!("ServiceUnavailable"))
    );
    assert_eq!(
        text["message"],
        "Error getting ip and port info of the remote server while proxying"
    );
    let failed = "apiserver_peer_proxy_errors_total{group=\"new.example\",resource=\"things\",type=\"endpoint_resolution\",version=\"v9\"}";
    assert_eq!(a.metric(failed).await, Some(1));
    let lease = format!("{LEASES}/apiserver-b");
    assert_eq!(
        a.send(Method::DELETE, &lease, &[], Value::Null).await.0,
        200
    );
    assert!(a.answers(things, 404).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_says_where_it_is_if_there_may_be_others() {
    let cluster = Cluster::new();
    let here = cluster
        .configured("here", "", |config| {
            config.peers.advertise = Some("192.0.2.7:443".into());
        })
        .await;
    assert!(eventually(async || !cluster.endpoints().await.is_empty()).await);
    let id = {
        let (_, leases) = here.get(LEASES).await;
        let leases: Value = serde_json::from_str(&leases).unwrap();
        let lease = &leases["items"][0]["metadata"];
        let annotation = &lease["annotations"]["kubernetes.io/peer-advertise-address"];
        assert_eq!(annotation, "192.0.2.7:443");
        lease["name"].as_str().unwrap().to_owned()
    };
    let [(key, value)] = &cluster.endpoints().await[..] else {
        panic!("one key");
    };
    assert_eq!(*key, format!("/registry/peerserverleases/{id}"));
    // Upstream's envelope and message.
    let envelope = value.strip_prefix(b"k8s\0").unwrap();
    let envelope = k8s_pb::apimachinery::pkg::runtime::Unknown::decode(envelope).unwrap();
    let kind = envelope.type_meta.clone().unwrap();
    assert_eq!((kind.api_version(), kind.kind()), ("v1", "Endpoints"));
    let endpoints = Endpoints::decode(envelope.raw()).unwrap();
    let labels = endpoints.metadata.unwrap().labels;
    assert_eq!(labels["apiserverIdentity"], id);
    let subset = &endpoints.subsets[0];
    assert_eq!(subset.addresses[0].ip(), "192.0.2.7");
    let port = &subset.ports[0];
    assert_eq!(
        (port.name(), port.port(), port.protocol()),
        ("https", 443, "TCP")
    );
    here.stop().await;
    assert!(cluster.endpoints().await.is_empty());

    // Without the feature, or others, nothing of it is there.
    let off = Features::default().without(Feature::UnknownVersionInteroperabilityProxy);
    let lacking = "apps/v1=false";
    for (host, features, shares_store) in
        [("off", off, true), ("alone", Features::default(), false)]
    {
        let b = cluster.server("b", "").await;
        let a = cluster
            .configured(host, lacking, |config| {
                config.features = features;
                config.shares_store = shares_store;
                if !shares_store {
                    config.peers = PeerSettings::default();
                }
            })
            .await;
        let has_lease = async || {
            let (_, leases) = a.get(LEASES).await;
            leases.contains(&format!("\"kubernetes.io/hostname\":\"{host}\""))
        };
        assert!(eventually(has_lease).await);
        assert_eq!(a.get(DEPLOYMENTS).await.0, 404);
        assert!(!names(&a.groups(V2).await.0).contains(&"apps"));
        let nopeer = format!("{V2};profile=nopeer");
        assert_eq!(a.groups(&nopeer).await, a.groups(V2).await);
        let alone = a.metric("aggregator_discovery_nopeer_requests_total ");
        assert_eq!(alone.await, Some(u64::from(!shares_store)));
        assert_eq!(cluster.endpoints().await.len(), 1);
        let (_, leases) = a.get(LEASES).await;
        let leases: Value = serde_json::from_str(&leases).unwrap();
        let leases = leases["items"].as_array().unwrap();
        let annotated = |lease: &&Value| !lease["metadata"]["annotations"].is_null();
        let expected = if features == off { 1 } else { 2 };
        assert_eq!(leases.iter().filter(annotated).count(), expected);
        b.stop().await;
        a.stop().await;
    }
}

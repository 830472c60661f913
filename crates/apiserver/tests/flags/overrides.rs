//! Resources that are kept in an etcd of their own, and a proxy on the way to etcd.

use std::path::Path;
use std::sync::Arc;

use fluyt_etcd::external::External;
use fluyt_etcd::{KeyValue, Keys, Range, Store as _};
use http::Method;
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::UnixListener;

use crate::common::service::eventually;
use crate::flags::cluster::{Cluster, Etcd};
use crate::flags::egress::http_connect;

const EVENTS: &str = "/api/v1/namespaces/default/events";

async fn keys(store: &External, prefix: &str) -> Vec<KeyValue> {
    let range = Range::new(Keys::prefix(prefix.to_owned()));
    store.range(range).await.unwrap().kvs
}

fn event(name: &str) -> serde_json::Value {
    json!({"metadata": {"name": name, "namespace": "default"}, "involvedObject": {"namespace": "default"}})
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_kept_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (mut main, mut apart) = (Etcd::new(), Etcd::new());
    main.start(&path("main"));
    apart.start(&path("apart"));
    let servers = format!("--etcd-servers={}", main.url);
    let overrides = format!("--etcd-servers-overrides=/events#{}", apart.url);
    let flags = [
        &*servers,
        &overrides,
        "--etcd-healthcheck-timeout=200ms",
        "--show-hidden-metrics-for-version=1.35",
    ];
    let cluster = Cluster::start(directory.path(), &flags);
    cluster.ready().await;
    let (status, made) = cluster.json(Method::POST, EVENTS, &event("a")).await;
    assert_eq!(status, 201, "{made}");
    let stores = (main.client().await, apart.client().await);
    let kept = keys(&stores.1, "/registry/").await;
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].key, "/registry/events/default/a");
    assert_ne!(kept[0].lease, 0);
    assert_eq!(
        made["metadata"]["resourceVersion"],
        kept[0].mod_revision.to_string()
    );
    assert!(keys(&stores.0, "/registry/events/").await.is_empty());
    // Lists and watches of events go by the revisions of their own store.
    let (_, list) = cluster.json(Method::GET, EVENTS, &json!(null)).await;
    assert_eq!(list["items"][0]["metadata"]["name"], "a");
    assert_eq!(
        list["metadata"]["resourceVersion"],
        kept[0].mod_revision.to_string()
    );
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = format!("{EVENTS}?resourceVersion={version}&resourceVersionMatch=Exact&limit=1");
    let (status, list) = cluster.json(Method::GET, &exact, &json!(null)).await;
    assert_eq!((status, list["items"].as_array().unwrap().len()), (200, 1));
    cluster.json(Method::POST, EVENTS, &event("b")).await;
    let watch = format!("{EVENTS}?watch=true&resourceVersion={version}&timeoutSeconds=1");
    let (_, seen) = cluster.get(&watch).await;
    assert!(
        seen.contains("\"name\":\"b\"") && !seen.contains("\"name\":\"a\""),
        "{seen}"
    );
    // The other API of events is of the same objects.
    let group = "/apis/events.k8s.io/v1/namespaces/default/events/b";
    assert_eq!(cluster.get(group).await.0, 200);
    let (_, report) = cluster.get("/readyz?verbose").await;
    for check in [
        "etcd",
        "etcd-override-0",
        "etcd-readiness",
        "etcd-override-readiness-0",
    ] {
        assert!(report.contains(&format!("[+]{check} ok\n")), "{report}");
    }
    let sized = async || {
        let (_, metrics) = cluster.get("/metrics").await;
        let endpoints = [&main.url, &apart.url]
            .map(|url| format!("apiserver_storage_db_total_size_in_bytes{{endpoint=\"{url}\"}}"));
        let clusters = ["etcd-0", "etcd-1"].map(|cluster| {
            format!("apiserver_storage_size_bytes{{storage_cluster_id=\"{cluster}\"}}")
        });
        endpoints
            .iter()
            .chain(&clusters)
            .all(|name| metrics.contains(name))
    };
    assert!(eventually(sized).await);
    // Without them everything else goes on.
    apart.stop().await;
    let map = json!({"metadata": {"name": "m"}});
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(cluster.json(Method::POST, maps, &map).await.0, 201);
    let (status, report) = cluster.get("/healthz").await;
    assert_eq!(status, 500);
    assert!(
        report.contains("[+]etcd ok\n[-]etcd-override-0 failed"),
        "{report}"
    );
    assert_eq!(cluster.get("/healthz?exclude=etcd").await.0, 200);
    cluster.process.stop().await.unwrap();
    main.stop().await;
}

fn egress(directory: &Path, socket: &Path) -> String {
    let transport = json!({"uds": {"udsName": socket}});
    let connection = json!({"proxyProtocol": "HTTPConnect", "transport": transport});
    let document = json!({
        "apiVersion": "apiserver.k8s.io/v1beta1", "kind": "EgressSelectorConfiguration",
        "egressSelections": [{"name": "etcd", "connection": connection}],
    });
    let path = directory.join("egress.yaml");
    std::fs::write(&path, document.to_string()).unwrap();
    format!("--egress-selector-config-file={}", path.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_is_reached_through_a_proxy() {
    let directory = tempfile::tempdir().unwrap();
    let mut etcd = Etcd::new();
    etcd.start(&directory.path().join("etcd"));
    let socket = directory.path().join("proxy.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let address = etcd.url.trim_start_matches("http://").to_owned();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (log, backend) = (asked.clone(), address.parse().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http_connect(stream, Some(backend), log.clone()));
        }
    });
    let servers = format!("--etcd-servers={}", etcd.url);
    let flags = [&*servers, &egress(directory.path(), &socket)];
    let cluster = Cluster::start(directory.path(), &flags);
    cluster.ready().await;
    let asked = asked.lock().clone();
    assert!(
        !asked.is_empty() && asked.iter().all(|host| *host == address),
        "{asked:?}"
    );
    let kept = keys(&etcd.client().await, "/registry/namespaces/").await;
    assert_eq!(kept.len(), 4);
    cluster.process.stop().await.unwrap();
    etcd.stop().await;
}

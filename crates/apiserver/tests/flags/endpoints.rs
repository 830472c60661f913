//! The `kubernetes` service, and who is behind it.

use std::sync::Arc;

use fluyt_apiserver::Config;
use fluyt_etcd::DynStore;
use fluyt_etcd::embedded::Embedded;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::common::Api;
use crate::common::service::eventually;
use crate::flags::given;

const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints/kubernetes";

fn addresses(endpoints: &Value) -> Vec<&str> {
    let addresses = endpoints["subsets"][0]["addresses"].as_array();
    let addresses = addresses.into_iter().flatten();
    addresses.map(|a| a["ip"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_service_may_have_a_port_of_the_nodes() {
    let service = async |flags: &[&str]| {
        let api = Api::configured(|config, _| config.endpoints = given(flags)).await;
        let (_, service) = api
            .get("/api/v1/namespaces/default/services/kubernetes")
            .await;
        service["spec"].clone()
    };
    let spec = service(&[]).await;
    assert_eq!(spec["type"], "ClusterIP");
    let spec = service(&["--kubernetes-service-node-port=30443"]).await;
    assert_eq!(spec["type"], "NodePort");
    assert_eq!(spec["ports"][0]["nodePort"], 30443);
}

#[tokio::test]
async fn endpoints_may_be_left_to_others() {
    let flags = ["--endpoint-reconciler-type=none"];
    let api = Api::configured(|config, _| config.endpoints = given(&flags)).await;
    assert_eq!(api.get(ENDPOINTS).await.0, 404);
    let api = Api::start().await;
    assert_eq!(addresses(&api.get(ENDPOINTS).await.1), ["192.0.2.1"]);
}

/// One of several servers on a store.
async fn server(store: &DynStore, count: &str, address: &str) -> (Api, CancellationToken) {
    let shutdown = CancellationToken::new();
    let change = |config: &mut Config| {
        config.shares_store = true;
        config.shutdown = shutdown.clone();
        config.advertise = format!("{address}:6443").parse().unwrap();
        config.endpoints = given(&[
            "--endpoint-reconciler-type=master-count",
            "--apiserver-count",
            count,
        ]);
    };
    let api = Api::configured_on(store.clone(), |config, _| change(config)).await;
    (api, shutdown)
}

#[tokio::test]
async fn as_many_endpoints_as_there_are_servers() {
    let directory = tempfile::tempdir().unwrap();
    let store: DynStore = Arc::new(Embedded::open(directory.path()).unwrap());
    let (first, shutdown) = server(&store, "2", "192.0.2.1").await;
    assert_eq!(addresses(&first.get(ENDPOINTS).await.1), ["192.0.2.1"]);
    let (second, _) = server(&store, "2", "192.0.2.2").await;
    let both = second.get(ENDPOINTS).await.1;
    assert_eq!(addresses(&both), ["192.0.2.1", "192.0.2.2"]);
    // One that stops leaves.
    shutdown.cancel();
    let version = both["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = format!(
        "/api/v1/namespaces/default/endpoints?watch=true&resourceVersion={version}&timeoutSeconds=20"
    );
    second
        .watch_until(&watch, |e| addresses(e) == ["192.0.2.2"])
        .await;
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let left = json!([{"addresses": ["192.0.2.2"], "conditions": {"ready": true}}]);
    let has_left = async || second.get(slice).await.1["endpoints"] == left;
    assert!(eventually(has_left).await);
}

#[tokio::test]
async fn one_more_server_takes_the_place_of_another() {
    let directory = tempfile::tempdir().unwrap();
    let store: DynStore = Arc::new(Embedded::open(directory.path()).unwrap());
    let (first, _) = server(&store, "1", "192.0.2.1").await;
    let (second, _) = server(&store, "1", "192.0.2.2").await;
    assert_eq!(addresses(&second.get(ENDPOINTS).await.1), ["192.0.2.2"]);
    drop(first);
}

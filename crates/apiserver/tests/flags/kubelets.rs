//! How kubelets are reached.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fluyt_apiserver::dial::{Connection, Dialer};
use serde_json::json;

use crate::common::{Api, pod};

/// Leads nowhere.
struct Nowhere;

#[async_trait]
impl Dialer for Nowhere {
    async fn connect(&self, _: SocketAddr) -> std::io::Result<Connection> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_kubelet_that_is_not_reached_is_given_up() {
    let api = Api::configured(|config, _| {
        config.dialer = Arc::new(Nowhere);
        config.kubelet_timeout = Duration::from_millis(100);
    })
    .await;
    api.namespace().await;
    let node = json!({"metadata": {"name": "a"}});
    api.post("/api/v1/nodes", node).await;
    let addresses = json!([{"type": "InternalIP", "address": "192.0.2.7"}]);
    let status = json!({"status": {"addresses": addresses}});
    let path = "/api/v1/nodes/a/status";
    let (code, patched) = api.patch(path, "merge-patch", status).await;
    assert_eq!(code, 200, "{patched}");
    let mut on_node = pod("p");
    on_node["spec"]["nodeName"] = "a".into();
    api.post("/api/v1/namespaces/n/pods", on_node).await;
    let asking = api.get("/api/v1/namespaces/n/pods/p/log");
    let answer = tokio::time::timeout(Duration::from_secs(10), asking).await;
    let (code, failure) = answer.unwrap();
    assert_eq!(code, 500);
    let message = failure["message"].as_str().unwrap();
    assert!(
        message.ends_with("error dialing backend: dial tcp 192.0.2.7:10250: i/o timeout"),
        "{message}"
    );
}

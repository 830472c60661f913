//! Pods that the API server has bound to this node.

use fluyt_client::{Informer, Selectors};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

/// Watches the pods of `node`.
pub fn watch(client: Client, node: &str, shutdown: CancellationToken) -> Informer<Pod> {
    let selectors = Selectors {
        fields: Some(format!("spec.nodeName={node}")),
        labels: None,
    };
    Informer::start(Api::all(client), selectors, shutdown)
}

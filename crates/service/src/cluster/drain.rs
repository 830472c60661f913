//! Taking a node out of a cluster: no new pods, and those that are there go, within their disruption budgets as long as
//! there is time.

use std::time::Duration;

use fluyt_client::{Change, Informer, Selectors, is_not_found, status_code};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, EvictParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// What has not gone by then goes with the node.
const PATIENCE: Duration = Duration::from_secs(60);

/// A budget that allows no disruption now may allow one after this.
const AGAIN: Duration = Duration::from_secs(2);

/// Drains the node. Failing is no reason to keep it: the caller goes on.
pub async fn drain(client: &Client, node: &str) {
    let watching = CancellationToken::new();
    let drained = tokio::time::timeout(PATIENCE, attempt(client, node, watching.clone())).await;
    watching.cancel();
    match drained {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(node, %error, "cannot drain the node"),
        Err(_) => tracing::warn!(node, "not all pods left the node in time"),
    }
}

async fn attempt(client: &Client, node: &str, watching: CancellationToken) -> kube::Result<()> {
    let nodes = Api::<Node>::all(client.clone());
    let cordon = Patch::Strategic(json!({"spec": {"unschedulable": true}}));
    match nodes.patch(node, &PatchParams::default(), &cordon).await {
        Err(error) if is_not_found(&error) => return Ok(()),
        patched => drop(patched?),
    }
    let selectors = Selectors {
        fields: Some(format!("spec.nodeName={node}")),
        ..Selectors::default()
    };
    let pods = Informer::<Pod>::start(Api::all(client.clone()), selectors, watching);
    pods.synced().await;
    let mut changes = pods.subscribe();
    loop {
        let staying: Vec<_> = pods
            .list()
            .into_iter()
            .filter(|pod| is_to_go(pod))
            .collect();
        if staying.is_empty() {
            return Ok(());
        }
        let mut refused = false;
        for pod in staying
            .iter()
            .filter(|p| p.metadata.deletion_timestamp.is_none())
        {
            let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
            match api.evict(&pod.name_any(), &EvictParams::default()).await {
                Err(error) if status_code(&error) == Some(429) => refused = true,
                Err(error) if !is_not_found(&error) => return Err(error),
                _ => {}
            }
        }
        loop {
            let again = async {
                if refused {
                    tokio::time::sleep(AGAIN).await;
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                change = changes.recv() => match change {
                    Some(Change::Deleted(_)) => break,
                    Some(_) => {}
                    None => return Ok(()),
                },
                () = again => break,
            }
        }
    }
}

/// Whether the pod is to leave: not those that belong to the node itself, nor those that have ended.
fn is_to_go(pod: &Pod) -> bool {
    let is_mirror = pod
        .annotations()
        .contains_key("kubernetes.io/config.mirror");
    let is_daemon = pod
        .owner_references()
        .iter()
        .any(|o| o.kind == "DaemonSet" && o.controller == Some(true));
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    !is_mirror && !is_daemon && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Removes the Node object. None there is fine.
///
/// # Errors
/// What the API says.
pub async fn forget(client: &Client, node: &str) -> kube::Result<()> {
    match Api::<Node>::all(client.clone())
        .delete(node, &DeleteParams::default())
        .await
    {
        Err(error) if is_not_found(&error) => Ok(()),
        deleted => deleted.map(drop),
    }
}

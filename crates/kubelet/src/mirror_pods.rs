//! Mirror pods: API objects that show the static pods of this node to everybody else.

use fluyt_client::{is_already_exists, is_not_found};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use tracing::warn;

use crate::annotations::{CONFIG_HASH, CONFIG_MIRROR, CONFIG_SEEN, CONFIG_SOURCE};
use crate::kubelet::Kubelet;
use crate::pod::PodExt;

/// Makes the mirror what the static pod asks for: there and of the same hash, or not there.
pub async fn reconcile(kubelet: &Kubelet, own: Option<&Pod>, mirror: Option<&Pod>) {
    if let Some(mirror) = mirror {
        let fits = own.is_some_and(|own| note(own, CONFIG_HASH) == note(mirror, CONFIG_MIRROR));
        if fits && !mirror.is_being_deleted() {
            return;
        }
        delete(kubelet, mirror).await;
        // Its end comes back as a change, and with it the new one's turn.
        return;
    }
    if let Some(own) = own {
        create(kubelet, own).await;
    }
}

fn note<'a>(pod: &'a Pod, key: &str) -> Option<&'a String> {
    pod.metadata.annotations.as_ref()?.get(key)
}

async fn delete(kubelet: &Kubelet, mirror: &Pod) {
    let api: Api<Pod> = Api::namespaced(kubelet.client.clone(), mirror.namespace());
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: mirror.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(mirror.name(), &params).await {
        Err(error) if !is_not_found(&error) => {
            warn!(pod = mirror.name(), %error, "deleting the mirror pod failed");
        }
        _ => {}
    }
}

async fn create(kubelet: &Kubelet, own: &Pod) {
    kubelet.node.synced().await;
    let nodes: Api<Node> = Api::all(kubelet.client.clone());
    let name = &kubelet.settings.node_name;
    let node = match kubelet.node.get(None, name) {
        Some(node) => node.metadata.uid.clone(),
        None => nodes
            .get_opt(name)
            .await
            .ok()
            .flatten()
            .and_then(|node| node.metadata.uid),
    };
    let mut mirror = own.clone();
    mirror.status = None;
    let meta = &mut mirror.metadata;
    meta.uid = None;
    meta.owner_references = node.map(|uid| {
        vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.clone(),
            uid,
            controller: Some(true),
            block_owner_deletion: None,
        }]
    });
    let notes = meta.annotations.get_or_insert_default();
    if let Some(hash) = notes.get(CONFIG_HASH).cloned() {
        notes.insert(CONFIG_MIRROR.into(), hash);
    }
    notes.insert(CONFIG_SOURCE.into(), "file".into());
    notes.remove(CONFIG_SEEN);
    let api: Api<Pod> = Api::namespaced(kubelet.client.clone(), own.namespace());
    let mut backoff = fluyt_client::Backoff::for_requests();
    loop {
        match api.create(&PostParams::default(), &mirror).await {
            Ok(_) => return,
            Err(error) if is_already_exists(&error) => return,
            Err(error) => warn!(pod = own.name(), %error, "creating the mirror pod failed"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = kubelet.shutdown.cancelled() => return,
        }
        if !kubelet.knows(own.uid()) {
            return;
        }
    }
}

//! The node's heartbeat: a Lease in `kube-node-lease`, renewed every quarter of its duration.

use std::sync::Arc;
use std::time::Duration;

use fluyt_client::is_not_found;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tracing::warn;

use crate::kubelet::Kubelet;

const RETRY: Duration = Duration::from_millis(500);

pub async fn run(kubelet: Arc<Kubelet>) {
    let seconds = kubelet.settings.lease_seconds;
    let every = Duration::from_secs(u64::try_from(seconds / 4).unwrap_or(10).max(1));
    let api: Api<Lease> = Api::namespaced(kubelet.client.clone(), "kube-node-lease");
    let mut known: Option<Lease> = None;
    loop {
        let pause = match renew(&kubelet, &api, known.take(), seconds).await {
            Ok(lease) => {
                known = Some(lease);
                every
            }
            Err(error) => {
                warn!(%error, "renewing the node lease failed");
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = kubelet.shutdown.cancelled() => return,
        }
    }
}

async fn renew(
    kubelet: &Kubelet,
    api: &Api<Lease>,
    known: Option<Lease>,
    seconds: i32,
) -> Result<Lease, kube::Error> {
    let name = &kubelet.settings.node_name;
    let lease = match known {
        Some(lease) => Some(lease),
        None => api.get_opt(name).await?,
    };
    let mut wanted = lease.clone().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some("kube-node-lease".into()),
            ..ObjectMeta::default()
        },
        spec: None,
    });
    // The lease goes with its node.
    if wanted.metadata.owner_references.is_none()
        && let Some(node) = kubelet.node.get(None, name)
    {
        wanted.metadata.owner_references = node.metadata.uid.clone().map(|uid| {
            vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.clone(),
                uid,
                ..OwnerReference::default()
            }]
        });
    }
    let spec = wanted.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(name.clone());
    spec.lease_duration_seconds = Some(seconds);
    spec.renew_time = Some(MicroTime(Timestamp::now()));
    let params = PostParams::default();
    if lease.is_none() {
        return api.create(&params, &wanted).await;
    }
    match api.replace(name, &params, &wanted).await {
        Err(error) if is_not_found(&error) => {
            wanted.metadata.resource_version = None;
            wanted.metadata.uid = None;
            api.create(&params, &wanted).await
        }
        other => other,
    }
}

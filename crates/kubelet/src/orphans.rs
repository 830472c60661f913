//! What is left of pods that nobody knows any more: after a restart of the kubelet, once all sources have told their
//! pods.

use std::collections::BTreeSet;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use tracing::{info, warn};

use crate::kubelet::Kubelet;
use crate::kuberuntime::{kill, labels};
use crate::pod::PodExt;

/// Ends orphaned containers and removes orphaned directories and cgroups.
pub async fn clean_up(kubelet: &Kubelet) {
    let sandboxes = match kubelet
        .cri
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .await
    {
        Ok(answer) => answer.items,
        Err(error) => {
            warn!(error = error.message(), "orphans are not looked for");
            return;
        }
    };
    let mut orphans = BTreeSet::new();
    for sandbox in sandboxes {
        let label = |key: &str| sandbox.labels.get(key).cloned().unwrap_or_default();
        let uid = label(labels::POD_UID);
        if uid.is_empty() || kubelet.knows(&uid) || !orphans.insert(uid.clone()) {
            continue;
        }
        let mut pod = Pod::default();
        pod.metadata.name = Some(label(labels::POD_NAME));
        pod.metadata.namespace = Some(label(labels::POD_NAMESPACE));
        pod.metadata.uid = Some(uid.clone());
        info!(pod = pod.name(), uid, "ending an orphaned pod");
        if let Err(error) = end(kubelet, &pod).await {
            warn!(uid, error = error.message(), "an orphaned pod stays");
        }
    }
    let leftovers = fluyt_volumes::pod_dirs(&kubelet.settings.root_dir);
    for uid in leftovers.into_iter().filter(|uid| !kubelet.knows(uid)) {
        if let Err(error) = kubelet.volumes.tear_down(&uid) {
            warn!(uid, %error, "an orphaned pod's volumes stay");
        }
    }
    if let Some(cgroups) = &kubelet.cgroups {
        for uid in cgroups.pods().into_iter().filter(|uid| !kubelet.knows(uid)) {
            cgroups.remove_pod(&uid);
        }
    }
}

async fn end(kubelet: &Kubelet, pod: &Pod) -> Result<(), tonic::Status> {
    let runtime = kubelet.inspect(pod.uid()).await?;
    let grace = runtime
        .containers
        .iter()
        .filter_map(|container| container.annotation(labels::GRACE_PERIOD)?.parse().ok())
        .max()
        .unwrap_or(30);
    kill::pod(kubelet, pod, &runtime, grace).await?;
    let runtime = kubelet.inspect(pod.uid()).await?;
    kill::remove(kubelet, &runtime).await?;
    kubelet.remove_logs(pod);
    Ok(())
}

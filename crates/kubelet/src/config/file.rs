//! Static pods: manifests in a directory, run whether or not there is an API server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use k8s_openapi::api::core::v1::{Pod, Toleration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::annotations;

/// Sends the whole set of static pods, now and after each change of the directory.
pub fn watch(
    path: PathBuf,
    node: String,
    shutdown: CancellationToken,
) -> mpsc::UnboundedReceiver<Vec<Arc<Pod>>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        if let Err(error) = run(&path, &node, &sender, shutdown).await {
            warn!(path = %path.display(), error = format!("{error:#}"), "static pods are not watched");
        }
    });
    receiver
}

async fn run(
    path: &Path,
    node: &str,
    sender: &mpsc::UnboundedSender<Vec<Arc<Pod>>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(path).context("creating the directory")?;
    let inotify = Inotify::init().context("inotify")?;
    let changes = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::DELETE | WatchMask::CREATE;
    inotify.watches().add(path, changes).context("inotify")?;
    let mut events = inotify.into_event_stream(vec![0; 4096])?;
    loop {
        if sender.send(read(path, node)).is_err() {
            return Ok(());
        }
        tokio::select! {
            event = events.next() => { event.context("inotify ended")??; }
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

fn read(path: &Path, node: &str) -> Vec<Arc<Pod>> {
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    let mut pods = BTreeMap::new();
    for entry in entries.flatten() {
        let file = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden || !file.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if text.trim().is_empty() {
            // Created, not written yet: its CLOSE_WRITE is still to come.
            continue;
        }
        match parse(&text, &file, node) {
            Ok(pod) => {
                pods.insert(file, Arc::new(pod));
            }
            Err(error) => {
                warn!(file = %file.display(), error = format!("{error:#}"), "not a pod manifest");
            }
        }
    }
    pods.into_values().collect()
}

/// A manifest as the pod it stands for: uid out of its content, name with the node's appended.
fn parse(text: &str, file: &Path, node: &str) -> anyhow::Result<Pod> {
    let value: serde_json::Value = serde_saphyr::from_str(text)?;
    anyhow::ensure!(value["kind"] == "Pod", "its kind is not Pod");
    let mut pod: Pod = serde_json::from_value(value)?;
    let spec = pod.spec.as_mut().context("it has no spec")?;
    default_spec(spec);
    spec.node_name = Some(node.to_string());
    // A static pod stays whatever the node's taints say.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    });
    let meta = &mut pod.metadata;
    let name = meta.name.clone().context("it has no name")?;
    meta.name = Some(format!("{name}-{node}"));
    meta.namespace.get_or_insert_with(|| "default".into());
    let hash = crate::hash::hex128(&format!("{node}{}{text}", file.display()));
    let uid = meta.uid.get_or_insert(hash).clone();
    let notes = meta.annotations.get_or_insert_default();
    notes.insert(annotations::CONFIG_HASH.into(), uid);
    notes.insert(annotations::CONFIG_SOURCE.into(), "file".into());
    notes.insert(
        annotations::CONFIG_SEEN.into(),
        jiff::Timestamp::now().to_string(),
    );
    Ok(pod)
}

/// The defaults that the API server fills in for other pods and the kubelet relies on.
fn default_spec(spec: &mut k8s_openapi::api::core::v1::PodSpec) {
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    let containers = spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten());
    for container in containers {
        let image = container.image.as_deref().unwrap_or_default();
        let latest = crate::images::tag_is_latest(image);
        container
            .image_pull_policy
            .get_or_insert_with(|| if latest { "Always" } else { "IfNotPresent" }.into());
        for resources in container.resources.iter_mut() {
            if let Some(limits) = &resources.limits {
                let requests = resources.requests.get_or_insert_default();
                for (name, amount) in limits {
                    requests
                        .entry(name.clone())
                        .or_insert_with(|| amount.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn manifests_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let mut pods = watch(dir.path().into(), "node-0".into(), shutdown.clone());
        assert!(pods.recv().await.unwrap().is_empty());
        let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n";
        std::fs::write(dir.path().join("web.yaml"), manifest).unwrap();
        let seen = loop {
            let seen = pods.recv().await.unwrap();
            if !seen.is_empty() {
                break seen;
            }
        };
        let pod = &seen[0];
        assert_eq!(pod.metadata.name.as_deref(), Some("web-node-0"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
        assert_eq!(
            spec.containers[0].image_pull_policy.as_deref(),
            Some("Always")
        );
        std::fs::remove_file(dir.path().join("web.yaml")).unwrap();
        while !pods.recv().await.unwrap().is_empty() {}
        shutdown.cancel();
    }

    #[test]
    fn not_a_pod() {
        for text in [
            "kind: Service\nspec: {}",
            "{",
            "kind: Pod\nmetadata: {}\nspec: {containers: []}",
        ] {
            assert!(parse(text, Path::new("f"), "n").is_err(), "{text}");
        }
    }
}

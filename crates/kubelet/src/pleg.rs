//! The pod lifecycle event generator: tells which pods have changed in the runtime. CRI's event stream says so at once;
//! a full relist, at start and now and then, catches whatever an interrupted stream has missed. A runtime without the
//! stream is listed every second.

use std::collections::HashMap;
use std::time::Duration;

use k8s_cri::v1 as cri;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cri::Cri;
use crate::kuberuntime::labels;

const RELIST: Duration = Duration::from_secs(300);
const RELIST_WITHOUT_STREAM: Duration = Duration::from_secs(1);
const RECONNECT: Duration = Duration::from_secs(1);

/// State of each sandbox and container, to find what differs between two lists.
type Seen = HashMap<String, (String, i32)>;

/// Calls `changed` with the uid of each pod that something has happened to, until shutdown.
pub async fn run(cri: Cri, changed: impl Fn(&str) + Send + Sync, shutdown: CancellationToken) {
    let mut seen = Seen::new();
    let mut streams = true;
    while !shutdown.is_cancelled() {
        relist(&cri, &mut seen, &changed).await;
        if !streams {
            pause(RELIST_WITHOUT_STREAM, &shutdown).await;
            continue;
        }
        match cri.container_events().await {
            Ok(events) => {
                // What happened between the list and the stream's start.
                relist(&cri, &mut seen, &changed).await;
                follow(&cri, events, &mut seen, &changed, &shutdown).await;
            }
            Err(error) if error.code() == tonic::Code::Unimplemented => {
                info!("the runtime has no container events, listing instead");
                streams = false;
            }
            Err(error) => {
                warn!(error = error.message(), "no container events, trying again");
                pause(RECONNECT, &shutdown).await;
            }
        }
    }
}

async fn pause(time: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = shutdown.cancelled() => {}
    }
}

async fn follow(
    cri: &Cri,
    mut events: tonic::Streaming<cri::ContainerEventResponse>,
    seen: &mut Seen,
    changed: &(dyn Fn(&str) + Send + Sync),
    shutdown: &CancellationToken,
) {
    let mut relists = tokio::time::interval(RELIST);
    relists.reset();
    loop {
        tokio::select! {
            event = events.message() => match event {
                Ok(Some(event)) => match pod_of(&event) {
                    Some(uid) => changed(&uid),
                    None => relist(cri, seen, changed).await,
                },
                Ok(None) => return,
                Err(error) => {
                    // Some runtimes only say so on the first message.
                    warn!(error = error.message(), "container events ended");
                    pause(RECONNECT, shutdown).await;
                    return;
                }
            },
            _ = relists.tick() => relist(cri, seen, changed).await,
            () = shutdown.cancelled() => return,
        }
    }
}

fn pod_of(event: &cri::ContainerEventResponse) -> Option<String> {
    let sandbox = event.pod_sandbox_status.as_ref()?;
    let label = sandbox.labels.get(labels::POD_UID).cloned();
    label.or_else(|| sandbox.metadata.as_ref().map(|meta| meta.uid.clone()))
}

async fn relist(cri: &Cri, seen: &mut Seen, changed: &(dyn Fn(&str) + Send + Sync)) {
    let sandboxes = cri.list_pod_sandbox(cri::ListPodSandboxRequest::default());
    let containers = cri.list_containers(cri::ListContainersRequest::default());
    let (sandboxes, containers) = match futures::try_join!(sandboxes, containers) {
        Ok(lists) => lists,
        Err(error) => {
            warn!(error = error.message(), "listing containers failed");
            return;
        }
    };
    let uid =
        |labels: &HashMap<String, String>| labels.get(labels::POD_UID).cloned().unwrap_or_default();
    let mut now = Seen::new();
    for sandbox in sandboxes.items {
        now.insert(sandbox.id, (uid(&sandbox.labels), sandbox.state));
    }
    for container in containers.containers {
        now.insert(container.id, (uid(&container.labels), container.state));
    }
    let gone = seen.iter().filter(|(id, _)| !now.contains_key(*id));
    let differ = now
        .iter()
        .filter(|(id, state)| seen.get(*id) != Some(state));
    let mut uids: Vec<&str> = gone
        .chain(differ)
        .map(|(_, (uid, _))| uid.as_str())
        .collect();
    uids.sort_unstable();
    uids.dedup();
    for uid in uids.into_iter().filter(|uid| !uid.is_empty()) {
        changed(uid);
    }
    *seen = now;
}

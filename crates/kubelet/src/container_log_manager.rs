//! Rotation of container logs: a log that has grown too large is renamed and the runtime told to open a new one; of
//! each container a few old ones are kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_cri::v1 as cri;
use tracing::warn;

use crate::kubelet::Kubelet;

/// Upstream's `containerLogMonitorInterval`.
const EVERY: Duration = Duration::from_secs(10);

pub async fn run(kubelet: Arc<Kubelet>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = kubelet.shutdown.cancelled() => return,
        }
        for log in too_large(
            &kubelet.settings.pod_logs_dir,
            kubelet.settings.log_max_size,
        ) {
            if let Err(why) = rotate(&kubelet, &log).await {
                warn!(log = %log.display(), why, "log not rotated");
            }
        }
    }
}

/// `<dir>/<pod>/<container>/<n>.log` above the limit. Only names and sizes are looked at: no call to the runtime while
/// nothing is to be done.
fn too_large(dir: &Path, limit: i64) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let list = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    for pod in list(dir) {
        for container in list(&pod.path()) {
            for log in list(&container.path()) {
                let current = log
                    .path()
                    .extension()
                    .is_some_and(|extension| extension == "log");
                let size = log.metadata().map_or(0, |meta| meta.len());
                if current && i64::try_from(size).unwrap_or(i64::MAX) > limit {
                    found.push(log.path());
                }
            }
        }
    }
    found
}

async fn rotate(kubelet: &Kubelet, log: &Path) -> Result<(), String> {
    let running = cri::ContainerFilter {
        state: Some(cri::ContainerStateValue {
            state: cri::ContainerState::ContainerRunning.into(),
        }),
        ..Default::default()
    };
    let request = cri::ListContainersRequest {
        filter: Some(running),
    };
    let containers = kubelet
        .cri
        .list_containers(request)
        .await
        .map_err(|e| e.message().to_string())?;
    for container in containers.containers {
        let request = cri::ContainerStatusRequest {
            container_id: container.id.clone(),
            verbose: false,
        };
        let Ok(answer) = kubelet.cri.container_status(request).await else {
            continue;
        };
        if answer
            .status
            .is_none_or(|status| Path::new(&status.log_path) != log)
        {
            continue;
        }
        let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S");
        let old = log.with_extension(format!("log.{stamp}"));
        std::fs::rename(log, &old).map_err(|error| error.to_string())?;
        let request = cri::ReopenContainerLogRequest {
            container_id: container.id,
        };
        if let Err(error) = kubelet.cri.reopen_container_log(request).await {
            // The runtime still writes to the old file: give it its name back.
            std::fs::rename(&old, log).map_err(|error| error.to_string())?;
            return Err(error.message().to_string());
        }
        prune(log, kubelet.settings.log_max_files);
        return Ok(());
    }
    Ok(())
}

/// Keeps the current log and the newest of the old ones, `files` in all.
fn prune(log: &Path, files: u32) {
    let old = rotated(log);
    let keep = usize::try_from(files.saturating_sub(1)).unwrap_or(usize::MAX);
    for path in old.iter().rev().skip(keep) {
        let _ = std::fs::remove_file(path);
    }
}

/// The old logs of a container instance, oldest first.
pub fn rotated(log: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name()) else {
        return Vec::new();
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut old: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    old.sort();
    old
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_and_prunes() {
        let dir = tempfile::tempdir().unwrap();
        let container = dir.path().join("n_p_u/c");
        std::fs::create_dir_all(&container).unwrap();
        std::fs::write(container.join("0.log"), "x".repeat(100)).unwrap();
        std::fs::write(container.join("1.log"), "x").unwrap();
        for stamp in ["20260101-000000", "20260102-000000", "20260103-000000"] {
            std::fs::write(container.join(format!("0.log.{stamp}")), "x".repeat(100)).unwrap();
        }
        assert_eq!(too_large(dir.path(), 50), [container.join("0.log")]);
        prune(&container.join("0.log"), 3);
        let left = rotated(&container.join("0.log"));
        assert_eq!(
            left,
            ["20260102-000000", "20260103-000000"].map(|s| container.join(format!("0.log.{s}")))
        );
    }
}

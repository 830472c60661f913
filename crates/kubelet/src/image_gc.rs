//! Image garbage collection: above the high threshold of disk use, images that no container uses go, the one unused
//! the longest first, until use is below the low threshold.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fluyt_client::EventType;
use k8s_cri::v1 as cri;
use parking_lot::Mutex;
use tracing::{info, warn};

use crate::kubelet::Kubelet;
use crate::stats;

const EVERY: Duration = Duration::from_secs(300);

/// When each image was last seen in use (or first seen at all).
static USED: Mutex<Option<HashMap<String, Instant>>> = Mutex::new(None);

pub async fn run(kubelet: Arc<Kubelet>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = kubelet.shutdown.cancelled() => return,
        }
        free_space(&kubelet).await;
    }
}

/// One round; does nothing while there is room.
pub async fn free_space(kubelet: &Kubelet) {
    let Ok(answer) = kubelet
        .cri
        .list_images(cri::ListImagesRequest::default())
        .await
    else {
        return;
    };
    let containers = kubelet
        .cri
        .list_containers(cri::ListContainersRequest::default())
        .await;
    let Ok(containers) = containers else { return };
    let in_use: HashSet<String> = containers
        .containers
        .into_iter()
        .flat_map(|container| {
            [
                container.image_id,
                container.image_ref,
                container.image.unwrap_or_default().image,
            ]
        })
        .collect();
    let now = Instant::now();
    let mut candidates = Vec::new();
    {
        let mut used = USED.lock();
        let used = used.get_or_insert_default();
        used.retain(|id, _| answer.images.iter().any(|image| image.id == *id));
        for image in &answer.images {
            let names = [&image.id]
                .into_iter()
                .chain(&image.repo_tags)
                .chain(&image.repo_digests);
            let busy = image.pinned || names.into_iter().any(|name| in_use.contains(name));
            let last = used.entry(image.id.clone()).or_insert(now);
            if busy {
                *last = now;
            } else if now.duration_since(*last) >= kubelet.settings.image_minimum_gc_age {
                candidates.push((*last, image.id.clone(), image.size));
            }
        }
    }
    let Some(disk) = image_disk(kubelet).await else {
        return;
    };
    let percent = |percent: u8| disk.capacity / 100 * i64::from(percent);
    let taken = disk.capacity - disk.available;
    if taken < percent(kubelet.settings.image_gc_high) {
        return;
    }
    let mut excess = taken - percent(kubelet.settings.image_gc_low);
    info!(bytes = excess, "disk is filling up, removing unused images");
    candidates.sort();
    for (_, id, size) in candidates {
        if excess <= 0 {
            return;
        }
        let request = cri::RemoveImageRequest {
            image: Some(cri::ImageSpec {
                image: id.clone(),
                ..Default::default()
            }),
        };
        match kubelet.cri.remove_image(request).await {
            Ok(_) => excess -= i64::try_from(size).unwrap_or(0),
            Err(error) => warn!(id, error = error.message(), "an image stays"),
        }
    }
    if excess > 0 {
        let message = format!(
            "Attempted to free {excess} bytes more of image storage, but only found images in use"
        );
        kubelet.node_event(EventType::Warning, "FreeDiskSpaceFailed", &message);
    }
}

async fn image_disk(kubelet: &Kubelet) -> Option<stats::Filesystem> {
    let answer = kubelet
        .cri
        .image_fs_info(cri::ImageFsInfoRequest {})
        .await
        .ok()?;
    let at = answer
        .image_filesystems
        .first()?
        .fs_id
        .as_ref()?
        .mountpoint
        .clone();
    stats::filesystem(std::path::Path::new(&at))
}

//! How large the stores are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fluyt_etcd::DynStore;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::Text;
use crate::cache::Caches;

/// A store that does not say by then how large it is, is left out.
const PATIENCE: Duration = Duration::from_secs(1);

/// Members of etcd clusters by their addresses, whose sizes are asked for one by one: what upstream showed before it showed
/// the sizes of stores.
#[derive(Clone, Default)]
pub struct Members {
    pub interval: Duration,
    pub stores: Vec<(String, DynStore)>,
}

/// The last known sizes of members; -1 of those that have not said.
#[derive(Default)]
pub struct Sizes(Mutex<BTreeMap<String, i64>>);

impl Members {
    /// Asks all of them, again and again.
    pub fn follow(self, sizes: Arc<super::Metrics>, shutdown: &CancellationToken) {
        for (address, store) in self.stores {
            let (sizes, shutdown) = (sizes.clone(), shutdown.clone());
            tokio::spawn(async move {
                loop {
                    let size = store.size().await.unwrap_or(-1);
                    sizes.members.0.lock().insert(address.clone(), size);
                    tokio::select! {
                        () = tokio::time::sleep(self.interval) => {}
                        () = shutdown.cancelled() => return,
                    }
                }
            });
        }
    }
}

/// Adds the size of each store, asked now, and what is known of members.
pub async fn render(text: &mut Text, caches: &Caches, members: &Sizes) {
    let asked = caches.feeds().map(|feed| async {
        let size = tokio::time::timeout(PATIENCE, feed.store().size()).await;
        size.ok()?.ok()
    });
    let sizes = join_all(asked).await;
    let name = "apiserver_storage_size_bytes";
    text.metric(
        name,
        "gauge",
        "Size of the storage database file physically allocated in bytes.",
    );
    for (place, size) in sizes.into_iter().enumerate() {
        if let Some(size) = size {
            let cluster = format!("etcd-{place}");
            text.value(name, &[("storage_cluster_id", &cluster)], size);
        }
    }
    let members = members.0.lock();
    if members.is_empty() {
        return;
    }
    let name = "apiserver_storage_db_total_size_in_bytes";
    text.metric(
        name,
        "gauge",
        "(Deprecated since 1.28.0) Total size of the storage database file physically allocated in bytes.",
    );
    for (address, size) in members.iter() {
        text.value(name, &[("endpoint", address)], size);
    }
}

//! What the server asks of the store besides requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fluyt_etcd::embedded::Embedded;
use fluyt_etcd::{DynStore, Error, Range, RangeResult, Store, Txn, TxnResult, Watch, WatchStream};

use http::Method;
use serde_json::json;

use crate::common::Api;
use crate::flags::given;

/// A store that may stop to say how far it is.
struct Silent {
    store: DynStore,
    is_silent: Arc<AtomicBool>,
}

#[async_trait::async_trait]
impl Store for Silent {
    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        self.store.range(range).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResult, Error> {
        self.store.txn(txn).await
    }

    async fn watch(&self, watch: Watch) -> Result<WatchStream, Error> {
        self.store.watch(watch).await
    }

    async fn compact(&self, revision: i64) -> Result<(), Error> {
        self.store.compact(revision).await
    }

    async fn lease_grant(&self, id: i64, ttl: i64) -> Result<(i64, i64), Error> {
        self.store.lease_grant(id, ttl).await
    }

    async fn lease_revoke(&self, id: i64) -> Result<(), Error> {
        self.store.lease_revoke(id).await
    }

    async fn lease_keep_alive(&self, id: i64) -> Result<i64, Error> {
        self.store.lease_keep_alive(id).await
    }

    async fn revision(&self) -> Result<i64, Error> {
        if self.is_silent.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.store.revision().await
    }

    async fn size(&self) -> Result<i64, Error> {
        self.store.size().await
    }
}

#[tokio::test]
async fn a_store_that_does_not_answer_in_time_is_ill() {
    let directory = tempfile::tempdir().unwrap();
    let is_silent = Arc::new(AtomicBool::new(false));
    let store: DynStore = Arc::new(Silent {
        store: Arc::new(Embedded::open(directory.path()).unwrap()),
        is_silent: is_silent.clone(),
    });
    let flags = [
        "--etcd-healthcheck-timeout=100ms",
        "--etcd-readycheck-timeout=200ms",
    ];
    let api = Api::configured_on(store, |config, _| config.etcd_checks = given(&flags)).await;
    let paths = ["/livez/etcd", "/readyz/etcd", "/readyz/etcd-readiness"];
    for path in paths {
        assert_eq!(api.get(path).await.0, 200, "{path}");
    }
    is_silent.store(true, Ordering::Relaxed);
    for path in paths {
        let answer = tokio::time::timeout(std::time::Duration::from_secs(5), api.get(path));
        assert_eq!(answer.await.unwrap().0, 500, "{path}");
    }
}

#[tokio::test]
async fn deletion_waits_for_the_garbage_collector_only_where_there_is_one() {
    for collects in [true, false] {
        let api = Api::configured(|config, _| config.enable_garbage_collector = collects).await;
        api.namespace().await;
        let maps = "/api/v1/namespaces/n/configmaps";
        api.post(maps, json!({"metadata": {"name": "a"}})).await;
        let path = format!("{maps}/a");
        let options = json!({"propagationPolicy": "Foreground"});
        let (status, answer) = api.call(Method::DELETE, &path, options).await;
        assert_eq!(status, 200, "{answer}");
        let (status, left) = api.get(&path).await;
        if collects {
            assert_eq!(
                left["metadata"]["finalizers"],
                json!(["foregroundDeletion"])
            );
        } else {
            assert_eq!(status, 404);
        }
    }
}

//! What clients see of a server that starts.

use crate::common::service::eventually;
use crate::flags::cluster::{Cluster, Etcd};

/// A server whose etcd is not there yet.
fn waiting(directory: &std::path::Path, etcd: &Etcd, flags: &[&str]) -> Cluster {
    let servers = format!("--etcd-servers={}", etcd.url);
    let common = [
        servers.as_str(),
        "--etcd-healthcheck-timeout=100ms",
        "--etcd-readycheck-timeout=100ms",
    ];
    Cluster::start(directory, &[&common, flags].concat())
}

const NAMESPACES: &str = "/api/v1/namespaces/default";

#[tokio::test]
async fn a_server_that_starts_says_how_it_is_and_lets_requests_wait() {
    let directory = tempfile::tempdir().unwrap();
    let mut etcd = Etcd::new();
    let cluster = waiting(directory.path(), &etcd, &[]);
    let listens = async || cluster.get("/livez/ping").await.0 == 200;
    assert!(eventually(listens).await);
    let (status, report) = cluster.get("/livez?exclude=etcd").await;
    assert_eq!(status, 500, "{report}");
    for line in [
        "[+]ping ok\n",
        "[+]etcd excluded: ok\n",
        "[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\n",
        "livez check failed\n",
    ] {
        assert!(report.contains(line), "{report}");
    }
    let (status, report) = cluster.get("/readyz?exclude=etcd&exclude=x").await;
    assert_eq!(status, 500, "{report}");
    for line in [
        "[-]etcd-readiness failed",
        "[-]informer-sync failed",
        "warn: some health checks cannot be excluded: no matches for \"x\"\n",
    ] {
        assert!(report.contains(line), "{report}");
    }
    let starting = async { etcd.start(&directory.path().join("etcd")) };
    let ((status, namespace), ()) = tokio::join!(cluster.get(NAMESPACES), starting);
    assert_eq!(status, 200, "{namespace}");
    cluster.ready().await;
    assert_eq!(cluster.get("/livez").await.0, 200);
    cluster.process.stop().await.unwrap();
    etcd.stop().await;
}

#[tokio::test]
async fn a_server_that_starts_may_count_as_live() {
    let directory = tempfile::tempdir().unwrap();
    let mut etcd = Etcd::new();
    let cluster = waiting(directory.path(), &etcd, &["--livez-grace-period=1h"]);
    let listens = async || cluster.get("/livez/ping").await.0 == 200;
    assert!(eventually(listens).await);
    assert_eq!(cluster.get("/livez?exclude=etcd").await.0, 200);
    assert_eq!(cluster.get("/healthz?exclude=etcd").await.0, 500);
    etcd.start(&directory.path().join("etcd"));
    let served = async || cluster.get(NAMESPACES).await.0 == 200;
    assert!(eventually(served).await);
    cluster.process.stop().await.unwrap();
    etcd.stop().await;
}

#[tokio::test]
async fn requests_do_not_wait_longer_than_they_may() {
    let directory = tempfile::tempdir().unwrap();
    let etcd = Etcd::new();
    let flags = ["--storage-initialization-timeout=100ms"];
    let cluster = waiting(directory.path(), &etcd, &flags);
    let listens = async || cluster.get("/livez/ping").await.0 == 200;
    assert!(eventually(listens).await);
    let (status, body) = cluster.get(NAMESPACES).await;
    assert_eq!(status, 429, "{body}");
    assert!(body.contains("storage is (re)initializing"), "{body}");
    let _ = cluster.process.stop().await;
}

//! A store moves from etcd to here and back, with etcd's own tools.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::common::{Server, fluyt_etcd};
use etcd_client::{Client, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions};

/// Keys with history, deletions, leases, large values, and a compaction in between. The newest revision.
async fn fill(client: &mut Client) -> i64 {
    for (id, ttl) in [(5, 1000), (6, 2000)] {
        let options = LeaseGrantOptions::new().with_id(id);
        client.lease_grant(ttl, Some(options)).await.unwrap();
    }
    for i in 0..300 {
        let options = PutOptions::new().with_lease([0, 5, 0, 6][i % 4]);
        let value = vec![b'v'; if i % 50 == 7 { 20_000 } else { i }];
        let key = format!("k{}", i % 70);
        client.put(key, value, Some(options)).await.unwrap();
        if i % 11 == 0 {
            client.delete(format!("k{}", i % 7), None).await.unwrap();
        }
        if i == 200 {
            client.compact(150, None).await.unwrap();
        }
    }
    let last = client.delete("k1", None).await.unwrap();
    last.header().unwrap().revision()
}

/// Everything that can be seen of a store.
async fn contents(client: &mut Client, revision: i64) -> (u32, String, String) {
    let hash = client.hash_kv(revision).await.unwrap();
    assert_eq!(hash.compact_version(), 150);
    let all = GetOptions::new().with_all_keys();
    let found = client.get("", Some(all.clone())).await.unwrap();
    assert_eq!(found.header().unwrap().revision(), revision);
    let old = client.get("", Some(all.with_revision(160))).await.unwrap();
    let mut leases = Vec::new();
    for id in [5, 6] {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        let lease = client.lease_time_to_live(id, Some(options)).await.unwrap();
        let mut keys: Vec<_> = lease.keys().to_vec();
        keys.sort();
        leases.push((lease.granted_ttl(), keys));
    }
    let keys = format!("{:?} {:?}", found.kvs(), old.kvs());
    (hash.hash(), keys, format!("{leases:?}"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn etcdctl(arguments: &[&str]) -> String {
    let mut command = Command::new("/usr/bin/etcdctl");
    command.env_clear().env("ETCDCTL_API", "3").args(arguments);
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "etcdctl {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_moves_to_etcd_and_back() {
    let files = Arc::new(tempfile::tempdir().unwrap());
    let (first, second) = (
        files.path().join("first.db"),
        files.path().join("second.db"),
    );
    let ours = Server::fluyt(&[]).await;
    let revision = fill(&mut ours.client().await).await;
    let expected = contents(&mut ours.client().await, revision).await;
    ours.ctl(&["snapshot", "save", text(&first)]).await;
    let status = etcdctl(&["snapshot", "status", text(&first)]);
    assert!(status.contains(&format!(", {revision}, ")), "{status}");

    let peer = format!("http://127.0.0.1:{}", crate::common::free_port());
    let data = files.path().join("data");
    etcdctl(&[
        "snapshot",
        "restore",
        text(&first),
        "--data-dir",
        text(&data),
        "--name",
        "default",
        "--initial-cluster",
        &format!("default={peer}"),
        "--initial-advertise-peer-urls",
        &peer,
    ]);
    let theirs = Server::etcd_in(files.clone(), &peer, "http", &[]).await;
    let mut client = theirs.client().await;
    assert_eq!(contents(&mut client, revision).await, expected);
    // etcd works on with the file that was made here.
    for i in 0..500 {
        client.put(format!("new{i}"), "v", None).await.unwrap();
    }
    client.delete("new", None).await.unwrap();
    let later = client.delete("new0", None).await.unwrap();
    let later = later.header().unwrap().revision();
    assert_eq!(later, revision + 501);
    let expected = contents(&mut client, later).await;
    theirs.ctl(&["snapshot", "save", text(&second)]).await;

    let back = Arc::new(tempfile::tempdir().unwrap());
    let restore = ["snapshot", "restore", text(&second), "--data-dir"];
    let arguments = [&restore[..], &[text(back.path())]].concat();
    fluyt_etcd(&arguments).await.unwrap();
    let ours = Server::fluyt_in(
        back,
        &format!("http://127.0.0.1:{}", crate::common::free_port()),
        &[],
    )
    .await;
    let mut client = ours.client().await;
    assert_eq!(contents(&mut client, later).await, expected);
    client.compact(later, None).await.unwrap();
    assert_eq!(client.get("k2", None).await.unwrap().count(), 1);
    let next = client.put("k2", "v", None).await.unwrap();
    assert_eq!(next.header().unwrap().revision(), later + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_is_a_snapshot_too() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("empty.db");
    let ours = Server::fluyt(&[]).await;
    ours.ctl(&["snapshot", "save", text(&file)]).await;
    let data = files.path().join("data");
    fluyt_etcd(&[
        "snapshot",
        "restore",
        text(&file),
        "--data-dir",
        text(&data),
    ])
    .await
    .unwrap();
    etcdctl(&[
        "snapshot",
        "restore",
        text(&file),
        "--data-dir",
        text(&files.path().join("etcd")),
    ]);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_that_of_etcds_tool() {
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("a.db");
    for server in [Server::etcd().await, Server::fluyt(&[]).await] {
        fill(&mut server.client().await).await;
        let _ = std::fs::remove_file(&file);
        server.ctl(&["snapshot", "save", text(&file)]).await;
        let theirs = etcdctl(&["snapshot", "status", text(&file), "-w", "json"]);
        let ours = fluyt_etcd::embedded::snapshot::status(&file).unwrap();
        let expected = format!(
            "{{\"hash\":{},\"revision\":{},\"totalKey\":{},\"totalSize\":{}}}\n",
            ours.hash, ours.revision, ours.total_keys, ours.total_bytes
        );
        assert_eq!(theirs, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_snapshots_and_used_directories_are_refused() {
    let files = tempfile::tempdir().unwrap();
    let (file, bad) = (files.path().join("a.db"), files.path().join("bad.db"));
    let ours = Server::fluyt(&[]).await;
    fill(&mut ours.client().await).await;
    ours.ctl(&["snapshot", "save", text(&file)]).await;
    let data = files.path().join("data");
    let restore = async |file: &Path, data: &Path| {
        let arguments = ["snapshot", "restore", text(file), "--data-dir", text(data)];
        format!("{:#}", fluyt_etcd(&arguments).await.unwrap_err())
    };
    let content = std::fs::read(&file).unwrap();
    let mut flipped = content.clone();
    flipped[content.len() / 2] ^= 1;
    std::fs::write(&bad, flipped).unwrap();
    let error = restore(&bad, &data).await;
    assert!(error.contains("expected sha256"), "{error}");
    std::fs::write(&bad, &content[..content.len() - 32]).unwrap();
    let error = restore(&bad, &data).await;
    assert!(error.contains("snapshot missing hash"), "{error}");
    std::fs::write(&bad, "text").unwrap();
    let error = restore(&bad, &data).await;
    assert!(error.contains("missing hash"), "{error}");
    assert!(!data.exists());
    let error = restore(&file, ours.path()).await;
    assert!(error.contains("not empty"), "{error}");
}

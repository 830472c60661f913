//! What the embedded engine promises beyond the trait: its directory, its limits, and what survives.

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use fluyt_etcd::embedded::{Alarm, Embedded, OpenError};
use fluyt_etcd::{
    Compare, CompareOp, Delete, Error, Keys, Op, OpResult, Put, Range, Store, Target, Txn, Watch,
    WatchUpdate,
};

fn put(key: &str, value: impl Into<Bytes>) -> Txn {
    Txn {
        success: vec![Op::Put(Put::new(key.to_owned(), value))],
        ..Txn::default()
    }
}

fn delete(keys: Keys) -> Txn {
    let prev_kv = false;
    Txn {
        success: vec![Op::Delete(Delete { keys, prev_kv })],
        ..Txn::default()
    }
}

fn one(key: &str) -> Keys {
    Keys::One(key.to_owned().into())
}

async fn value(store: &Embedded, key: &str, revision: i64) -> Option<String> {
    let range = Range {
        revision,
        ..Range::new(one(key))
    };
    let result = store.range(range).await.unwrap();
    let kv = result.kvs.first();
    kv.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

#[tokio::test]
async fn keys_of_a_transaction_are_not_taken_for_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    for key in ["a", "b", "b"] {
        store.txn(put(key, "v")).await.unwrap();
    }
    let version = |key: &str, version| Compare {
        keys: one(key),
        target: Target::Version(version),
        op: CompareOp::Equal,
    };
    let both = Txn {
        compares: vec![version("a", 1), version("b", 2)],
        success: vec![
            Op::Put(Put::new("a", "w")),
            Op::Put(Put::new("b", "w")),
            Op::Put(Put::new("c", "w")),
        ],
        failure: Vec::new(),
    };
    assert!(store.txn(both).await.unwrap().succeeded);
    for (key, version) in [("a", 2), ("b", 3), ("c", 1)] {
        let found = store.range(Range::new(one(key))).await.unwrap();
        assert_eq!(found.kvs[0].version, version, "{key}");
    }
}

#[tokio::test]
async fn leases_expire_with_their_keys_and_survive_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let (lease, kept) = {
        let store = Embedded::open(directory.path()).unwrap();
        let (lease, _) = store.lease_grant(0, 1).await.unwrap();
        let (kept, _) = store.lease_grant(0, 1000).await.unwrap();
        for (key, lease) in [("gone", lease), ("kept", kept), ("moved", kept)] {
            let put = Op::Put(Put {
                lease,
                ..Put::new(key.to_owned(), "v")
            });
            let txn = Txn {
                success: vec![put],
                ..Txn::default()
            };
            store.txn(txn).await.unwrap();
        }
        store.txn(put("moved", "v")).await.unwrap();
        (lease, kept)
    };
    let store = Embedded::open(directory.path()).unwrap();
    let watch = Watch {
        keys: one("gone"),
        start_revision: store.revision().await.unwrap() + 1,
        prev_kv: false,
    };
    let mut stream = store.watch(watch).await.unwrap();
    let WatchUpdate::Events { events, .. } = stream.next().await.unwrap().unwrap() else {
        panic!("no event")
    };
    assert!(events[0].deleted);
    assert_eq!(store.lease_keep_alive(lease).await.unwrap(), 0);
    assert_eq!(store.lease_keep_alive(kept).await.unwrap(), 1000);
    assert_eq!(store.lease_status(kept).await.unwrap().keys, ["kept"]);
    store.lease_revoke(kept).await.unwrap();
    assert_eq!(value(&store, "kept", 0).await, None);
    assert_eq!(value(&store, "moved", 0).await.as_deref(), Some("v"));
}

/// Many neighbours in the history, many that are not, and whole revisions of others between them.
#[tokio::test]
async fn ranges_agree_with_reads_of_single_keys() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    let mut random = crate::common::random::Random(7);
    let mut current = std::collections::BTreeMap::new();
    for n in 0..600 {
        let key = format!("k{:03}", random.below(200));
        match random.below(20) {
            0 => {
                let crowd = (0..50).map(|i| Op::Put(Put::new(format!("other{i}"), "x")));
                let txn = Txn {
                    success: crowd.collect(),
                    ..Txn::default()
                };
                store.txn(txn).await.unwrap();
            }
            1 | 2 => {
                store.txn(delete(one(&key))).await.unwrap();
                current.remove(&key);
            }
            _ => {
                store.txn(put(&key, n.to_string())).await.unwrap();
                current.insert(key, n.to_string());
            }
        }
        if n % 40 != 39 {
            continue;
        }
        for limit in [0, 1, 30] {
            let keys = Keys::prefix("k");
            let range = Range {
                limit,
                ..Range::new(keys)
            };
            let result = store.range(range).await.unwrap();
            let taken = if limit == 0 { current.len() } else { limit };
            let read: Vec<_> = result
                .kvs
                .iter()
                .map(|kv| (&kv.key[..], &kv.value[..]))
                .collect();
            let wanted: Vec<_> = current
                .iter()
                .map(|(k, v)| (k.as_bytes(), v.as_bytes()))
                .collect();
            assert_eq!(read, wanted[..taken.min(wanted.len())]);
            assert_eq!(result.count, i64::try_from(current.len()).unwrap());
            assert_eq!(result.more, taken < current.len());
            for kv in result.kvs {
                let alone = store
                    .range(Range::new(Keys::One(kv.key.clone())))
                    .await
                    .unwrap();
                assert_eq!(alone.kvs, [kv]);
            }
        }
    }
}

#[tokio::test]
async fn a_closed_store_ends_its_watches() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    let watch = Watch {
        keys: Keys::prefix(""),
        start_revision: 0,
        prev_kv: false,
    };
    let mut stream = store.watch(watch).await.unwrap();
    drop(store);
    assert_eq!(stream.next().await.unwrap().unwrap_err(), Error::Stopped);
}

#[tokio::test]
async fn directories_of_others_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let refusal = || Embedded::open(path).err().unwrap().to_string();
    std::fs::write(path.join("keyspaces"), "").unwrap();
    assert!(
        refusal().contains("files that are not a store's"),
        "{}",
        refusal()
    );
    std::fs::remove_file(path.join("keyspaces")).unwrap();
    let store = Embedded::open(path).unwrap();
    assert!(refusal().contains("in use"), "{}", refusal());
    drop(store);
    let format = path.join("format");
    let text = std::fs::read_to_string(&format).unwrap();
    std::fs::write(&format, text.replace("etcd 3", "etcd 4")).unwrap();
    assert!(refusal().contains("format is damaged"), "{}", refusal());
    // As a later version would write it.
    let newer = "fluyt-etcd 4 0123456789abcdef";
    let checksum = xxhash_rust::xxh3::xxh3_64(newer.as_bytes());
    std::fs::write(&format, format!("{newer} {checksum:016x}\n")).unwrap();
    let error = Embedded::open(path).err().unwrap();
    assert!(
        matches!(error, OpenError::Format { found: 4, .. }),
        "{error}"
    );
    std::fs::write(&format, text).unwrap();
    Embedded::open(path).unwrap();
}

#[tokio::test]
async fn a_key_deleted_and_put_in_one_transaction_survives_compaction() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    store.txn(put("k", "old")).await.unwrap();
    let mut both = put("k", "new");
    let deletion = delete(Keys::Range("a".into(), "".into()));
    both.success.splice(0..0, deletion.success);
    let revision = store.txn(both).await.unwrap().revision;
    store.txn(put("k", "newest")).await.unwrap();
    store.compact(revision).await.unwrap();
    assert_eq!(value(&store, "k", revision).await.as_deref(), Some("new"));
}

#[tokio::test]
async fn compaction_leaves_what_later_reads_need_and_frees_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    let large = |i: usize| format!("{i}-").repeat(2000);
    for round in 0..40 {
        for key in ["a", "b", "c"] {
            store.txn(put(key, large(round))).await.unwrap();
        }
        if round % 10 == 5 {
            store.txn(delete(one("b"))).await.unwrap();
        }
        if round % 7 == 3 {
            store.compact(store.current_revision() - 2).await.unwrap();
            assert_eq!(value(&store, "a", 0).await.unwrap(), large(round));
        }
    }
    let (before, revision) = (store.size(), store.current_revision());
    store.txn(delete(one("c"))).await.unwrap();
    store.compact(revision).await.unwrap();
    assert_eq!(value(&store, "c", revision).await.unwrap(), large(39));
    store.compact(revision + 1).await.unwrap();
    store.defragment().await.unwrap();
    assert_eq!(value(&store, "a", revision + 1).await.unwrap(), large(39));
    assert_eq!(value(&store, "c", revision + 1).await, None);
    assert!(store.size() < before / 4, "{} < {before} / 4", store.size());
    // Of the history there is what the two keys are now, beside three entries about the store as such.
    let file = directory.path().with_extension("snapshot");
    let mut content = Vec::new();
    let mut parts = store.snapshot();
    while let Some(part) = parts.recv().await {
        content.extend_from_slice(&part.unwrap().bytes);
    }
    std::fs::write(&file, content).unwrap();
    let status = fluyt_etcd::embedded::snapshot::status(&file);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(status.unwrap().total_keys, 2 + 3);
    drop(store);
    let store = Embedded::open(directory.path()).unwrap();
    assert_eq!(store.current_revision(), revision + 1);
    assert_eq!(value(&store, "a", 0).await.unwrap(), large(39));
    assert_eq!(store.keys().await.unwrap(), 2);
}

#[tokio::test]
async fn more_than_fits_into_memory_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    let total = 3000;
    for start in (0..total).step_by(100) {
        let writes =
            (start..start + 100).map(|i| store.txn(put(&format!("k{i}"), vec![b'v'; 8 << 10])));
        futures::future::try_join_all(writes).await.unwrap();
    }
    let revision = store.current_revision();
    // A reader keeps its view while tables are written and merged.
    let old = Range {
        revision: 2,
        ..Range::new(Keys::prefix("k"))
    };
    assert_eq!(store.range(old).await.unwrap().count, 1);
    drop(store);
    let segments = std::fs::read_dir(directory.path().join("wal")).unwrap();
    assert!(
        segments.count() <= 4,
        "the log is cut off where tables have it"
    );
    let store = Embedded::open(directory.path()).unwrap();
    assert_eq!(store.current_revision(), revision);
    let all = store.range(Range::new(Keys::prefix("k"))).await.unwrap();
    assert_eq!(all.kvs.len(), total);
    assert!(all.kvs.iter().all(|kv| kv.value.len() == 8 << 10));
}

#[tokio::test]
async fn keys_that_do_not_fit_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    let long = "k".repeat(70_000);
    assert_eq!(
        store.txn(put(&long, "v")).await.unwrap_err(),
        Error::TooLarge
    );
    let zeros = "\0".repeat(33_000);
    assert_eq!(
        store.txn(put(&zeros, "v")).await.unwrap_err(),
        Error::TooLarge
    );
    let found = store.range(Range::new(one(&long))).await.unwrap();
    assert_eq!(found.count, 0);
    store.txn(put("l", "v")).await.unwrap();
    for (keys, count) in [
        (Keys::Range(long.clone().into(), "".into()), 1),
        (Keys::Range("".into(), long.clone().into()), 0),
        (Keys::Range(zeros.clone().into(), long.clone().into()), 0),
    ] {
        for revision in [0, 1] {
            let range = Range {
                revision,
                ..Range::new(keys.clone())
            };
            let found = store.range(range).await.unwrap();
            let expected = if revision == 0 { count } else { 0 };
            assert_eq!(found.count, expected);
        }
    }
    let deleted = store.txn(delete(one(&long))).await.unwrap();
    assert!(matches!(
        deleted.results[0],
        OpResult::Delete { deleted: 0, .. }
    ));
    let fits = "k".repeat(60_000);
    store.txn(put(&fits, "v")).await.unwrap();
    assert_eq!(value(&store, &fits, 0).await.as_deref(), Some("v"));
}

#[tokio::test]
async fn the_quota_raises_an_alarm_that_stays() {
    let directory = tempfile::tempdir().unwrap();
    let quota = 1 << 20;
    let store = Embedded::open_with_quota(directory.path(), quota).unwrap();
    let mut written = 0;
    let error = loop {
        match store.txn(put("k", vec![0; 10 << 10])).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Error::NoSpace);
    assert!((50..110).contains(&written), "{written}");
    assert_eq!(store.alarms(), [Alarm::NoSpace]);
    drop(store);
    let store = Embedded::open_with_quota(directory.path(), quota).unwrap();
    assert_eq!(store.alarms(), [Alarm::NoSpace]);
    assert_eq!(
        store.txn(put("k", "small")).await.unwrap_err(),
        Error::NoSpace
    );
    assert_eq!(store.lease_grant(0, 10).await.unwrap_err(), Error::NoSpace);
    // What frees space is allowed.
    let revision = store.txn(delete(one("k"))).await.unwrap().revision;
    store.compact(revision).await.unwrap();
    store.defragment().await.unwrap();
    assert_eq!(
        store.txn(put("k", "small")).await.unwrap_err(),
        Error::NoSpace
    );
    store.set_no_space(false).await.unwrap();
    store.txn(put("k", "small")).await.unwrap();
    assert!(store.alarms().is_empty());
}

/// A file system of a given size, which needs root as many tests here do.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        disk.mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        disk
    }

    fn grow(&self, size: &str) {
        self.mount(&["-o", &format!("remount,size={size}")]);
    }

    fn mount(&self, arguments: &[&str]) {
        let mut command = Command::new("mount");
        assert!(
            command
                .args(arguments)
                .arg(self.0.path())
                .status()
                .unwrap()
                .success()
        );
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_writes_until_there_is_room() {
    let disk = SmallDisk::new("12m");
    let store = Embedded::open(disk.path()).unwrap();
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    // Long enough for the log and for tables to find no room.
    for i in 0_u64..1000 {
        match store.txn(put(&format!("k{i}"), vec![b'v'; 20 << 10])).await {
            Ok(_) => acknowledged.push(i),
            Err(error) => {
                assert_eq!(error, Error::NoSpace);
                assert_eq!(store.alarms(), [Alarm::NoSpace]);
                refused += 1;
                if refused > 20 {
                    break;
                }
            }
        }
    }
    assert!(
        acknowledged.len() > 100 && refused > 20,
        "{}",
        acknowledged.len()
    );
    let check = async |store: &Embedded| {
        for i in &acknowledged {
            assert_eq!(
                value(store, &format!("k{i}"), 0).await.unwrap().len(),
                20 << 10
            );
        }
    };
    check(&store).await;
    let revision = store.current_revision();
    assert_eq!(revision, 1 + i64::try_from(acknowledged.len()).unwrap());
    disk.grow("100m");
    let resumed = store.txn(put("resumed", "v")).await.unwrap().revision;
    assert_eq!(resumed, revision + 1);
    assert!(store.alarms().is_empty());
    for i in 0..500 {
        store
            .txn(put(&format!("more{i}"), vec![b'v'; 20 << 10]))
            .await
            .unwrap();
    }
    drop(store);
    let store = Embedded::open(disk.path()).unwrap();
    check(&store).await;
    assert_eq!(store.current_revision(), revision + 501);
    assert_eq!(store.keys().await.unwrap(), acknowledged.len() + 501);
}

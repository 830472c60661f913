//! The embedded engine through its public trait.

#![allow(clippy::unwrap_used)]

use fluyt_etcd::embedded::Embedded;
use fluyt_etcd::{
    Compare, CompareOp, Delete, Error, Keys, Op, OpResult, Put, Range, Store, Target, Txn, Watch,
    WatchUpdate,
};

fn put(key: &str, value: &str) -> Txn {
    Txn {
        success: vec![Op::Put(Put::new(key.to_owned(), value.to_owned()))],
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
    result
        .kvs
        .first()
        .map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

#[tokio::test]
async fn history_is_kept_until_compaction() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    let first = store.txn(put("a", "1")).await.unwrap().revision;
    let second = store.txn(put("a", "2")).await.unwrap().revision;
    let delete = Op::Delete(Delete {
        keys: one("a"),
        prev_kv: true,
    });
    let third = store
        .txn(Txn {
            success: vec![delete],
            ..Txn::default()
        })
        .await
        .unwrap();
    assert!(
        matches!(&third.results[0], OpResult::Delete { deleted: 1, prev } if prev[0].version == 2)
    );
    assert_eq!((first, second, third.revision), (2, 3, 4));
    assert_eq!(value(&store, "a", first).await.as_deref(), Some("1"));
    assert_eq!(value(&store, "a", second).await.as_deref(), Some("2"));
    assert_eq!(value(&store, "a", 0).await, None);

    store.compact(second).await.unwrap();
    let old = Range {
        revision: first,
        ..Range::new(one("a"))
    };
    assert_eq!(
        store.range(old).await.unwrap_err(),
        Error::Compacted {
            compact_revision: second
        }
    );
    assert_eq!(value(&store, "a", second).await.as_deref(), Some("2"));
    assert_eq!(
        store.compact(second).await.unwrap_err(),
        Error::Compacted {
            compact_revision: second
        }
    );
    assert_eq!(store.compact(99).await.unwrap_err(), Error::FutureRevision);
}

#[tokio::test]
async fn compares_guard_writes_and_failures_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    let create = |value: &str| Txn {
        compares: vec![Compare {
            keys: one("a"),
            target: Target::Mod(0),
            op: CompareOp::Equal,
        }],
        success: put("a", value).success,
        failure: vec![Op::Range(Range::new(one("a")))],
    };
    assert!(store.txn(create("1")).await.unwrap().succeeded);
    let again = store.txn(create("2")).await.unwrap();
    assert!(!again.succeeded);
    assert!(matches!(&again.results[0], OpResult::Range(r) if &r.kvs[0].value[..] == b"1"));

    let bad = Txn {
        success: vec![
            Op::Put(Put::new("b", "1")),
            Op::Put(Put {
                lease: 7,
                ..Put::new("c", "1")
            }),
        ],
        ..Txn::default()
    };
    let revision = store.revision().await.unwrap();
    assert_eq!(store.txn(bad).await.unwrap_err(), Error::LeaseNotFound);
    assert_eq!(store.revision().await.unwrap(), revision);
    assert_eq!(value(&store, "b", 0).await, None);
}

#[tokio::test]
async fn ranges_count_limit_and_order() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    for i in 0..10 {
        store.txn(put(&format!("k/{i}"), "v")).await.unwrap();
    }
    store.txn(put("l", "v")).await.unwrap();
    let all = store
        .range(Range {
            limit: 3,
            ..Range::new(Keys::prefix("k/"))
        })
        .await
        .unwrap();
    assert_eq!((all.kvs.len(), all.count, all.more), (3, 10, true));
    let old = store
        .range(Range {
            revision: 6,
            ..Range::new(Keys::prefix("k/"))
        })
        .await
        .unwrap();
    assert_eq!((old.kvs.len(), old.more), (5, false));
}

#[tokio::test]
async fn watches_resume_from_history_and_see_every_revision_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    let total = 3000;
    for i in 0..total {
        store.txn(put("k", &i.to_string())).await.unwrap();
    }
    let watch = Watch {
        keys: one("k"),
        start_revision: 2,
        prev_kv: true,
    };
    let mut stream = store.watch(watch).await.unwrap();
    store.txn(put("k", "last")).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() <= total {
        match stream.next().await.unwrap().unwrap() {
            WatchUpdate::Events { events, .. } => seen.extend(events),
            WatchUpdate::Progress { .. } => {}
        }
    }
    let revisions: Vec<i64> = seen.iter().map(|e| e.kv.mod_revision).collect();
    assert_eq!(
        revisions,
        (2..=i64::try_from(total).unwrap() + 2).collect::<Vec<_>>()
    );
    assert!(seen[0].prev.is_none());
    assert_eq!(seen[1].prev.as_ref().unwrap().mod_revision, 2);

    store.compact(100).await.unwrap();
    let mut late = store
        .watch(Watch {
            keys: one("k"),
            start_revision: 5,
            prev_kv: false,
        })
        .await
        .unwrap();
    assert_eq!(
        late.next().await.unwrap().unwrap_err(),
        Error::Compacted {
            compact_revision: 100
        }
    );
}

#[tokio::test]
async fn leases_expire_with_their_keys_and_survive_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let (lease, kept) = {
        let store = Embedded::open(directory.path()).unwrap();
        let (lease, _) = store.lease_grant(0, 1).await.unwrap();
        let (kept, _) = store.lease_grant(0, 1000).await.unwrap();
        for (key, lease) in [("gone", lease), ("kept", kept)] {
            let put = Put {
                lease,
                ..Put::new(key.to_owned(), "v")
            };
            store
                .txn(Txn {
                    success: vec![Op::Put(put)],
                    ..Txn::default()
                })
                .await
                .unwrap();
        }
        (lease, kept)
    };
    let store = reopen(directory.path());
    let start_revision = store.revision().await.unwrap() + 1;
    let mut stream = store
        .watch(Watch {
            keys: one("gone"),
            start_revision,
            prev_kv: false,
        })
        .await
        .unwrap();
    let WatchUpdate::Events { events, .. } = stream.next().await.unwrap().unwrap() else {
        panic!("no event")
    };
    assert!(events[0].deleted);
    assert_eq!(store.lease_keep_alive(lease).await.unwrap(), 0);
    assert_eq!(store.lease_keep_alive(kept).await.unwrap(), 1000);
    assert_eq!(value(&store, "kept", 0).await.as_deref(), Some("v"));
    store.lease_revoke(kept).await.unwrap();
    assert_eq!(value(&store, "kept", 0).await, None);
}

#[tokio::test]
async fn a_directory_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let _store = Embedded::open(directory.path()).unwrap();
    assert!(
        Embedded::open(directory.path())
            .err()
            .unwrap()
            .to_string()
            .contains("in use")
    );
}

/// The writer thread of a dropped store lets go of the directory a moment later.
fn reopen(path: &std::path::Path) -> Embedded {
    loop {
        match Embedded::open(path) {
            Ok(store) => return store,
            Err(fluyt_etcd::embedded::OpenError::InUse { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_key_deleted_and_put_in_one_transaction_survives_compaction() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(directory.path()).unwrap();
    store.txn(put("k", "old")).await.unwrap();
    let mut both = put("k", "new");
    both.success.insert(
        0,
        Op::Delete(Delete {
            keys: Keys::Range("a".into(), "".into()),
            prev_kv: false,
        }),
    );
    let revision = store.txn(both).await.unwrap().revision;
    store.txn(put("k", "newest")).await.unwrap();
    store.compact(revision).await.unwrap();
    assert_eq!(value(&store, "k", revision).await.as_deref(), Some("new"));
}

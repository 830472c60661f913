//! What every engine promises, checked against each of them through the trait.

use std::sync::Arc;

use crate::common::Server;
use fluyt_etcd::embedded::Embedded;
use fluyt_etcd::external::{Config, External};
use fluyt_etcd::{
    Compare, CompareOp, Delete, DynStore, Error, Keys, Op, OpResult, Put, Range, Rebased, Target,
    Txn, Watch, WatchStream, WatchUpdate,
};

/// A store and what keeps it going.
struct Fixture {
    store: DynStore,
    _server: Option<Server>,
    _directory: Option<tempfile::TempDir>,
}

async fn embedded() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    Fixture {
        store: Arc::new(Embedded::open(directory.path()).unwrap()),
        _server: None,
        _directory: Some(directory),
    }
}

async fn external(server: Server) -> Fixture {
    let config = Config::new(vec![server.url.clone()]);
    Fixture {
        store: Arc::new(External::connect(config).await.unwrap()),
        _server: Some(server),
        _directory: None,
    }
}

async fn rebased() -> Fixture {
    let mut fixture = external(Server::fluyt(&[]).await).await;
    fixture.store = Arc::new(Rebased::new(fixture.store, "t/", "elsewhere/"));
    fixture
}

macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        mod on_embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() { super::$test(super::embedded().await.store).await })*
        }
        mod on_etcd {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let fixture = super::external(super::Server::etcd().await).await;
                super::$test(fixture.store.clone()).await
            })*
        }
        mod on_fluyt_etcd {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let fixture = super::external(super::Server::fluyt(&[]).await).await;
                super::$test(fixture.store.clone()).await
            })*
        }
        mod on_another_prefix {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let fixture = super::rebased().await;
                super::$test(fixture.store.clone()).await
            })*
        }
    };
}

suite!(
    history_is_kept_until_compaction,
    compares_guard_writes_and_failures_leave_nothing,
    every_target_and_operator_compares,
    ranges_count_limit_and_order,
    watches_resume_from_history_and_see_every_revision_once,
    watches_from_now_on_see_what_comes,
    transactions_nest,
    keys_go_with_their_lease,
);

fn put(key: &str, value: &str) -> Txn {
    Txn {
        success: vec![Op::Put(Put::new(key.to_owned(), value.to_owned()))],
        ..Txn::default()
    }
}

fn one(key: &str) -> Keys {
    Keys::One(key.to_owned().into())
}

async fn value(store: &DynStore, key: &str, revision: i64) -> Option<String> {
    let range = Range {
        revision,
        ..Range::new(one(key))
    };
    let result = store.range(range).await.unwrap();
    let kv = result.kvs.first();
    kv.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

/// Compacted, at whatever revision the engine tells.
fn is_compacted(error: &Error) -> bool {
    matches!(error, Error::Compacted { .. })
}

async fn history_is_kept_until_compaction(store: DynStore) {
    let first = store.txn(put("t/a", "1")).await.unwrap().revision;
    let second = store.txn(put("t/a", "2")).await.unwrap().revision;
    let delete = Op::Delete(Delete {
        keys: one("t/a"),
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
        matches!(&third.results[0], OpResult::Delete { deleted: 1, prev } if prev[0].version == 2 && prev[0].key == "t/a")
    );
    assert_eq!((first, second, third.revision), (2, 3, 4));
    assert_eq!(value(&store, "t/a", first).await.as_deref(), Some("1"));
    assert_eq!(value(&store, "t/a", second).await.as_deref(), Some("2"));
    assert_eq!(value(&store, "t/a", 0).await, None);

    store.compact(second).await.unwrap();
    let old = Range {
        revision: first,
        ..Range::new(one("t/a"))
    };
    assert!(is_compacted(&store.range(old).await.unwrap_err()));
    assert_eq!(value(&store, "t/a", second).await.as_deref(), Some("2"));
    assert!(is_compacted(&store.compact(second).await.unwrap_err()));
    assert_eq!(store.compact(99).await.unwrap_err(), Error::FutureRevision);
    let future = Range {
        revision: 99,
        ..Range::new(one("t/a"))
    };
    assert_eq!(
        store.range(future).await.unwrap_err(),
        Error::FutureRevision
    );
}

async fn compares_guard_writes_and_failures_leave_nothing(store: DynStore) {
    let create = |value: &str| Txn {
        compares: vec![Compare {
            keys: one("t/a"),
            target: Target::Mod(0),
            op: CompareOp::Equal,
        }],
        success: put("t/a", value).success,
        failure: vec![Op::Range(Range::new(one("t/a")))],
    };
    assert!(store.txn(create("1")).await.unwrap().succeeded);
    let again = store.txn(create("2")).await.unwrap();
    assert!(!again.succeeded);
    assert!(
        matches!(&again.results[0], OpResult::Range(r) if &r.kvs[0].value[..] == b"1" && r.revision == again.revision)
    );

    let bad = Txn {
        success: vec![
            Op::Put(Put::new("t/b", "1")),
            Op::Put(Put {
                lease: 7,
                ..Put::new("t/c", "1")
            }),
        ],
        ..Txn::default()
    };
    let revision = store.revision().await.unwrap();
    assert_eq!(store.txn(bad).await.unwrap_err(), Error::LeaseNotFound);
    let twice = Txn {
        success: vec![Op::Put(Put::new("t/b", "1")), Op::Put(Put::new("t/b", "2"))],
        ..Txn::default()
    };
    assert_eq!(store.txn(twice).await.unwrap_err(), Error::DuplicateKey);
    let missing = Txn {
        success: vec![Op::Put(Put {
            ignore_value: true,
            ..Put::new("t/none", "")
        })],
        ..Txn::default()
    };
    assert_eq!(store.txn(missing).await.unwrap_err(), Error::KeyNotFound);
    assert_eq!(store.revision().await.unwrap(), revision);
    assert_eq!(value(&store, "t/b", 0).await, None);
}

async fn every_target_and_operator_compares(store: DynStore) {
    let (lease, _) = store.lease_grant(0, 1000).await.unwrap();
    store.txn(put("t/a", "m")).await.unwrap();
    let leased = Put {
        lease,
        ..Put::new("t/a", "m")
    };
    let second = Txn {
        success: vec![Op::Put(leased)],
        ..Txn::default()
    };
    store.txn(second).await.unwrap();
    for (target, below, above) in [
        (Target::Version(2), Target::Version(1), Target::Version(3)),
        (Target::Create(2), Target::Create(1), Target::Create(3)),
        (Target::Mod(3), Target::Mod(2), Target::Mod(4)),
        (
            Target::Lease(lease),
            Target::Lease(lease - 1),
            Target::Lease(lease + 1),
        ),
        (
            Target::Value("m".into()),
            Target::Value("l".into()),
            Target::Value("n".into()),
        ),
    ] {
        for (op, expected) in [
            (CompareOp::Equal, [true, false, false]),
            (CompareOp::NotEqual, [false, true, true]),
            (CompareOp::Greater, [false, true, false]),
            (CompareOp::Less, [false, false, true]),
        ] {
            for (target, expected) in [&target, &below, &above].into_iter().zip(expected) {
                let compare = Compare {
                    keys: Keys::prefix("t/"),
                    target: target.clone(),
                    op,
                };
                let txn = Txn {
                    compares: vec![compare],
                    ..Txn::default()
                };
                let holds = store.txn(txn).await.unwrap().succeeded;
                assert_eq!(holds, expected, "{target:?} {op:?}");
            }
        }
    }
}

async fn ranges_count_limit_and_order(store: DynStore) {
    for i in 0..10 {
        store.txn(put(&format!("t/k/{i}"), "v")).await.unwrap();
    }
    store.txn(put("t/l", "v")).await.unwrap();
    let under = || Range::new(Keys::prefix("t/k/"));
    let all = store
        .range(Range {
            limit: 3,
            ..under()
        })
        .await
        .unwrap();
    assert_eq!((all.kvs.len(), all.count, all.more), (3, 10, true));
    assert_eq!(all.kvs[2].key, "t/k/2");
    let old = store
        .range(Range {
            revision: 6,
            ..under()
        })
        .await
        .unwrap();
    assert_eq!((old.kvs.len(), old.more, old.revision), (5, false, 12));
    // Now and in the past, with a limit that cuts something off and one that does not.
    for (revision, there) in [(0, 10), (6, 5)] {
        for limit in [3, 20] {
            let uncounted = Range {
                revision,
                limit,
                uncounted: true,
                ..under()
            };
            let part = store.range(uncounted).await.unwrap();
            let names: Vec<_> = part.kvs.iter().map(|kv| kv.key.clone()).collect();
            let expected: Vec<_> = (0..there.min(limit)).map(|i| format!("t/k/{i}")).collect();
            assert_eq!(names, expected);
            assert_eq!(part.more, limit < there);
        }
    }
    let counted = store
        .range(Range {
            count_only: true,
            ..under()
        })
        .await
        .unwrap();
    assert_eq!((counted.kvs.len(), counted.count), (0, 10));
    let keys = store
        .range(Range {
            keys_only: true,
            ..Range::new(Keys::Range("t/k/8".into(), "t/l".into()))
        })
        .await
        .unwrap();
    assert!(keys.kvs.iter().all(|kv| kv.value.is_empty()));
    assert_eq!(keys.kvs.len(), 2);
}

async fn revisions(stream: &mut WatchStream, last: i64) -> Vec<i64> {
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        if let WatchUpdate::Events { revision, events } = stream.next().await.unwrap().unwrap() {
            assert_eq!(revision, events.last().unwrap().kv.mod_revision);
            seen.extend(events.iter().map(|e| e.kv.mod_revision));
        }
    }
    seen
}

async fn watches_resume_from_history_and_see_every_revision_once(store: DynStore) {
    let total = 1500;
    let writes = (0..total).map(|i| store.txn(put("t/k", &i.to_string())));
    futures::future::try_join_all(writes).await.unwrap();
    let mut stream = store
        .watch(Watch {
            keys: one("t/k"),
            start_revision: 2,
            prev_kv: false,
        })
        .await
        .unwrap();
    let last = store.txn(put("t/k", "last")).await.unwrap().revision;
    assert_eq!(
        revisions(&mut stream, last).await,
        (2..=last).collect::<Vec<_>>()
    );
    store.compact(100).await.unwrap();
    let mut late = store
        .watch(Watch {
            keys: one("t/k"),
            start_revision: 5,
            prev_kv: false,
        })
        .await
        .unwrap();
    let expected = Error::Compacted {
        compact_revision: 100,
    };
    assert_eq!(late.next().await.unwrap().unwrap_err(), expected);
}

async fn watches_from_now_on_see_what_comes(store: DynStore) {
    store.txn(put("t/k", "before")).await.unwrap();
    let mut stream = store
        .watch(Watch {
            keys: Keys::prefix("t/"),
            start_revision: 0,
            prev_kv: true,
        })
        .await
        .unwrap();
    store.txn(put("t/k", "after")).await.unwrap();
    let delete = Op::Delete(Delete {
        keys: Keys::prefix("t/"),
        prev_kv: false,
    });
    let both = Txn {
        success: vec![delete, Op::Put(Put::new("t/l", "new"))],
        ..Txn::default()
    };
    let last = store.txn(both).await.unwrap_err();
    assert_eq!(last, Error::DuplicateKey);
    let delete = Txn {
        success: vec![Op::Delete(Delete {
            keys: Keys::prefix("t/"),
            prev_kv: false,
        })],
        ..Txn::default()
    };
    store.txn(delete).await.unwrap();
    let mut events = Vec::new();
    while events.len() < 2 {
        if let WatchUpdate::Events { events: more, .. } = stream.next().await.unwrap().unwrap() {
            events.extend(more);
        }
    }
    let prev = |i: usize| {
        let prev = events[i].prev.as_ref().unwrap();
        (&prev.key[..], &prev.value[..])
    };
    assert_eq!((events[0].deleted, events[1].deleted), (false, true));
    assert_eq!(prev(0), (&b"t/k"[..], &b"before"[..]));
    assert_eq!(prev(1), (&b"t/k"[..], &b"after"[..]));
    assert_eq!(events[1].kv.key, "t/k");
}

async fn transactions_nest(store: DynStore) {
    store.txn(put("t/p/1", "a")).await.unwrap();
    let inner = Txn {
        compares: vec![Compare {
            keys: Keys::prefix("t/p/"),
            target: Target::Value("a".into()),
            op: CompareOp::Equal,
        }],
        success: vec![
            Op::Put(Put::new("t/x", "2")),
            Op::Range(Range::new(one("t/x"))),
        ],
        failure: Vec::new(),
    };
    let outer = Txn {
        success: vec![Op::Range(Range::new(one("t/x"))), Op::Txn(inner)],
        ..Txn::default()
    };
    let result = store.txn(outer).await.unwrap();
    assert!(matches!(&result.results[0], OpResult::Range(r) if r.kvs.is_empty()));
    let OpResult::Txn(nested) = &result.results[1] else {
        panic!("no nested answer")
    };
    assert!(nested.succeeded);
    assert!(
        matches!(&nested.results[1], OpResult::Range(r) if r.kvs[0].key == "t/x" && r.kvs[0].mod_revision == result.revision)
    );
}

async fn keys_go_with_their_lease(store: DynStore) {
    let (short, _) = store.lease_grant(0, 2).await.unwrap();
    let (long, granted) = store.lease_grant(77, 1000).await.unwrap();
    assert_eq!((long, granted), (77, 1000));
    assert_eq!(
        store.lease_grant(77, 1000).await.unwrap_err(),
        Error::LeaseExists
    );
    for (key, lease) in [("t/gone", short), ("t/kept", long)] {
        let put = Put {
            lease,
            ..Put::new(key, "v")
        };
        let txn = Txn {
            success: vec![Op::Put(put)],
            ..Txn::default()
        };
        store.txn(txn).await.unwrap();
    }
    let mut stream = store
        .watch(Watch {
            keys: one("t/gone"),
            start_revision: store.revision().await.unwrap() + 1,
            prev_kv: false,
        })
        .await
        .unwrap();
    loop {
        if let WatchUpdate::Events { events, .. } = stream.next().await.unwrap().unwrap() {
            assert!(events[0].deleted);
            break;
        }
    }
    assert_eq!(store.lease_keep_alive(short).await.unwrap(), 0);
    assert_eq!(store.lease_keep_alive(long).await.unwrap(), 1000);
    store.lease_revoke(long).await.unwrap();
    assert_eq!(value(&store, "t/kept", 0).await, None);
    assert_eq!(
        store.lease_revoke(long).await.unwrap_err(),
        Error::LeaseNotFound
    );
}

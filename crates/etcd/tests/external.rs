//! The external engine when the cluster below it is away for a while.

use std::time::Duration;

use crate::common::Server;
use crate::common::proxy::Proxy;
use fluyt_etcd::external::{Config, External};
use fluyt_etcd::{Error, Keys, Op, Put, Range, Store as _, Txn, Watch, WatchStream, WatchUpdate};
use fluyt_pki::{Authority, Identity, Usage};

/// Quick to notice a break; the servers are told to allow it.
fn config(url: String) -> Config {
    Config {
        keep_alive: (Duration::from_millis(200), Duration::from_millis(300)),
        connect_timeout: Duration::from_millis(500),
        ..Config::new(vec![url])
    }
}

const ALLOW_KEEP_ALIVE: [&str; 2] = ["--grpc-keepalive-min-time", "100ms"];

async fn connect(url: &str) -> External {
    External::connect(config(url.to_owned())).await.unwrap()
}

fn put(key: &str) -> Txn {
    Txn {
        success: vec![Op::Put(Put::new(key.to_owned(), "v"))],
        ..Txn::default()
    }
}

async fn follow(store: &External, prefix: &'static str, start_revision: i64) -> WatchStream {
    let watch = Watch {
        keys: Keys::prefix(prefix),
        start_revision,
        prev_kv: false,
    };
    store.watch(watch).await.unwrap()
}

/// Reads events until the last revision, and checks that none was missed or repeated.
async fn expect(stream: &mut WatchStream, expected: std::ops::RangeInclusive<i64>) {
    let mut next = *expected.start();
    while next <= *expected.end() {
        if let WatchUpdate::Events { events, .. } = stream.next().await.unwrap().unwrap() {
            for event in events {
                assert_eq!(event.kv.mod_revision, next);
                next += 1;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_outlive_partitions() {
    let server = Server::etcd_with("http", &ALLOW_KEEP_ALIVE).await;
    let proxy = Proxy::to(server.address()).await;
    let direct = connect(&server.url).await;
    let cut_off = connect(&format!("http://{}", proxy.address)).await;
    let mut stream = follow(&cut_off, "k/", 0).await;
    let mut next = direct.revision().await.unwrap() + 1;
    for round in 0..4 {
        for _ in 0..10 {
            direct.txn(put("k/a")).await.unwrap();
        }
        expect(&mut stream, next..=next + 9).await;
        if round % 2 == 0 {
            proxy.cut();
        } else {
            proxy.silence();
        }
        for _ in 0..10 {
            direct.txn(put("k/b")).await.unwrap();
        }
        // What the watch has seen may go meanwhile.
        direct.compact(next + 5).await.unwrap();
        proxy.heal();
        expect(&mut stream, next + 10..=next + 19).await;
        // Requests find their way as well.
        assert_eq!(cut_off.revision().await.unwrap(), next + 19);
        next += 20;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_member_is_waited_for() {
    let server = Server::etcd_with("http", &ALLOW_KEEP_ALIVE).await;
    let store = connect(&server.url).await;
    let mut stream = follow(&store, "", 0).await;
    let first = store.txn(put("a")).await.unwrap().revision;
    server.signal("-STOP");
    let impatient = External::connect(Config {
        request_timeout: Duration::from_millis(700),
        ..config(server.url.clone())
    })
    .await
    .unwrap();
    let error = impatient.txn(put("a")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    let reading = {
        let store = store.clone();
        tokio::spawn(async move { store.range(Range::new(Keys::One("a".into()))).await })
    };
    server.signal("-CONT");
    // What nobody waited for may have been done all the same.
    assert_eq!(reading.await.unwrap().unwrap().kvs.len(), 1);
    let second = store.txn(put("b")).await.unwrap().revision;
    expect(&mut stream, first..=second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_that_is_gone_after_a_partition_is_told() {
    let server = Server::etcd_with("http", &ALLOW_KEEP_ALIVE).await;
    let proxy = Proxy::to(server.address()).await;
    let direct = connect(&server.url).await;
    let cut_off = connect(&format!("http://{}", proxy.address)).await;
    let first = direct.txn(put("a")).await.unwrap().revision;
    let mut stream = follow(&cut_off, "a", first).await;
    expect(&mut stream, first..=first).await;
    proxy.cut();
    for _ in 0..10 {
        direct.txn(put("a")).await.unwrap();
    }
    let compact_revision = first + 8;
    direct.compact(compact_revision).await.unwrap();
    proxy.heal();
    let error = stream.next().await.unwrap().unwrap_err();
    assert_eq!(error, Error::Compacted { compact_revision });
    assert!(stream.next().await.is_none());
}

/// In a cluster that others use too, revisions pass without an event for a watcher.
async fn progress_is_told(server: &Server) {
    let (store, other) = (connect(&server.url).await, connect(&server.url).await);
    let mut stream = follow(&store, "mine/", 0).await;
    for _ in 0..3 {
        let theirs = other.txn(put("theirs")).await.unwrap().revision;
        assert_eq!(store.revision().await.unwrap(), theirs);
        loop {
            match stream.next().await.unwrap().unwrap() {
                WatchUpdate::Progress { revision } if revision >= theirs => break,
                WatchUpdate::Progress { .. } => {}
                WatchUpdate::Events { events, .. } => panic!("{events:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_by_an_old_server() {
    let server = Server::etcd_with("http", &ALLOW_KEEP_ALIVE).await;
    Box::pin(progress_is_told(&server)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_by_a_new_server() {
    let server = Server::fluyt(&[]).await;
    Box::pin(progress_is_told(&server)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_is_passed_over() {
    let server = Server::etcd_with("http", &ALLOW_KEEP_ALIVE).await;
    let dead = format!("http://127.0.0.1:{}", crate::common::free_port());
    let mut both = config(server.url.clone());
    both.endpoints.insert(0, dead);
    let store = External::connect(both).await.unwrap();
    let mut stream = follow(&store, "a", 0).await;
    for _ in 0..20 {
        store.txn(put("a")).await.unwrap();
    }
    expect(&mut stream, 2..=21).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_on_both_sides() {
    let files = tempfile::tempdir().unwrap();
    let authority = Authority::create("etcd-ca").unwrap();
    let issue = |name: &str, usage| {
        let identity = Identity {
            common_name: name.into(),
            addresses: vec![[127, 0, 0, 1].into()],
            ..Identity::default()
        };
        authority.issue(&identity, usage, 1).unwrap()
    };
    let server_pair = issue("etcd", Usage::Server);
    let client_pair = issue("apiserver", Usage::Client);
    let write = |name: &str, content: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ca = write("ca.crt", authority.certificate_pem());
    let (crt, key) = (
        write("server.crt", &server_pair.certificate_pem),
        write("server.key", &server_pair.key_pem),
    );
    let [allow, often] = ALLOW_KEEP_ALIVE;
    let flags = [
        "--cert-file",
        &crt,
        "--key-file",
        &key,
        "--trusted-ca-file",
        &ca,
        "--client-cert-auth=true",
    ];
    let ours = Server::fluyt_at(
        &format!("https://127.0.0.1:{}", crate::common::free_port()),
        &flags,
    )
    .await;
    let flags = [&flags[..], &[allow, often]].concat();
    let theirs = Server::etcd_with("https", &flags).await;
    for server in [ours, theirs] {
        let with = |client_pem| Config {
            ca_pem: Some(authority.certificate_pem().to_owned()),
            client_pem,
            request_timeout: Duration::from_secs(5),
            ..config(server.url.clone())
        };
        let pair = (
            client_pair.certificate_pem.clone(),
            client_pair.key_pem.clone(),
        );
        let store = External::connect(with(Some(pair.clone()))).await.unwrap();
        store.txn(put("a")).await.unwrap();
        let mut stranger = with(None);
        stranger.request_timeout = Duration::from_millis(500);
        let stranger = External::connect(stranger).await.unwrap();
        let error = stranger.txn(put("a")).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
        let other = Authority::create("other").unwrap();
        let mistrusting = Config {
            ca_pem: Some(other.certificate_pem().to_owned()),
            request_timeout: Duration::from_millis(500),
            ..with(Some(pair))
        };
        let mistrusting = External::connect(mistrusting).await.unwrap();
        let error = mistrusting.txn(put("a")).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
    }
}

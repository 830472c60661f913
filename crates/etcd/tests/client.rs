//! The server through a client library: what etcdctl cannot ask for.

use crate::common::Server;
use etcd_client::{
    Compare, CompareOp, EventType, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse,
    WatchFilterType, WatchOptions,
};

fn message(error: etcd_client::Error) -> (tonic::Code, String) {
    match error {
        etcd_client::Error::GRpcStatus(status) => (status.code(), status.message().to_owned()),
        error => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_carry_etcds_codes_and_messages() {
    let server = Server::fluyt(&["--max-txn-ops", "2", "--max-request-bytes", "1000"]).await;
    let mut client = server.client().await;
    let invalid = |m: &str| (tonic::Code::InvalidArgument, format!("etcdserver: {m}"));
    let error = client.put("", "v", None).await.unwrap_err();
    assert_eq!(message(error), invalid("key is not provided"));
    let error = client.put("k", vec![0; 1001], None).await.unwrap_err();
    assert_eq!(message(error), invalid("request is too large"));
    let options = PutOptions::new().with_ignore_value();
    let error = client.put("k", "v", Some(options)).await.unwrap_err();
    assert_eq!(message(error), invalid("value is provided"));
    let three = Txn::new().and_then(vec![TxnOp::get("k", None); 3]);
    let error = client.txn(three).await.unwrap_err();
    assert_eq!(
        message(error),
        invalid("too many operations in txn request")
    );
    // A nested transaction has what the outer one leaves.
    let nested = Txn::new().and_then([
        TxnOp::get("k", None),
        TxnOp::txn(Txn::new().and_then([TxnOp::get("k", None)])),
    ]);
    let error = client.txn(nested).await.unwrap_err();
    assert_eq!(
        message(error),
        invalid("too many operations in txn request")
    );
    let error = client.compact(99, None).await.unwrap_err();
    let future = "etcdserver: mvcc: required revision is a future revision";
    assert_eq!(message(error), (tonic::Code::OutOfRange, future.into()));
    let lease = client
        .lease_grant(5, Some(etcd_client::LeaseGrantOptions::new().with_id(7)))
        .await;
    assert_eq!(lease.unwrap().id(), 7);
    let error = client
        .lease_grant(5, Some(etcd_client::LeaseGrantOptions::new().with_id(7)))
        .await
        .unwrap_err();
    let exists = "etcdserver: lease already exists";
    assert_eq!(
        message(error),
        (tonic::Code::FailedPrecondition, exists.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_transactions_see_their_own_writes() {
    let server = Server::fluyt(&[]).await;
    let mut client = server.client().await;
    client.put("p/1", "a", None).await.unwrap();
    client.put("p/2", "a", None).await.unwrap();
    let inner = Txn::new()
        .when([Compare::value("p/", CompareOp::Equal, "a").with_prefix()])
        .and_then([TxnOp::put("x", "2", None), TxnOp::get("x", None)])
        .or_else([TxnOp::get("p/1", None)]);
    let outer = Txn::new().and_then([TxnOp::get("x", None), TxnOp::txn(inner.clone())]);
    let response = client.txn(outer).await.unwrap();
    let header = response.header().unwrap();
    assert_eq!(header.revision(), 4);
    assert!(header.cluster_id() != 0 && header.member_id() != 0 && header.raft_term() > 1);
    let mut responses = response.op_responses();
    let Some(TxnOpResponse::Txn(inner_response)) = responses.pop() else {
        panic!("no nested answer")
    };
    let Some(TxnOpResponse::Get(read)) = inner_response.op_responses().pop() else {
        panic!("no read")
    };
    assert_eq!(read.kvs()[0].value(), b"2");
    client.put("p/2", "b", None).await.unwrap();
    assert!(!client.txn(inner).await.unwrap().succeeded());
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_filter_by_revision() {
    let server = Server::fluyt(&[]).await;
    let mut client = server.client().await;
    for key in ["a", "b", "c", "a"] {
        client.put(key, "v", None).await.unwrap();
    }
    let all = GetOptions::new().with_all_keys();
    let options = all.clone().with_min_mod_revision(4).with_limit(1);
    let found = client.get("", Some(options)).await.unwrap();
    assert_eq!(
        (found.kvs()[0].key(), found.more(), found.count()),
        (&b"a"[..], true, 3)
    );
    let counted = client.get("", Some(all.with_count_only())).await.unwrap();
    assert_eq!((counted.kvs().len(), counted.count()), (0, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_share_a_stream() {
    let server = Server::fluyt(&["--experimental-watch-progress-notify-interval", "100ms"]).await;
    let mut client = server.client().await;
    let options = WatchOptions::new()
        .with_filters([WatchFilterType::NoPut])
        .with_prev_key();
    let mut stream = client.watch("a", Some(options)).await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    assert!(first.created());
    let options = WatchOptions::new()
        .with_prefix()
        .with_watch_id(9)
        .with_progress_notify();
    stream.watch("b", Some(options)).await.unwrap();
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!((second.created(), second.watch_id()), (true, 9));
    client.put("a", "1", None).await.unwrap();
    client.delete("a", None).await.unwrap();
    let deleted = stream.message().await.unwrap().unwrap();
    let event = &deleted.events()[0];
    assert_eq!(
        (deleted.watch_id(), event.event_type()),
        (first.watch_id(), EventType::Delete)
    );
    assert_eq!(event.prev_kv().unwrap().value(), b"1");

    // Silence, then the revision, without being asked and when asked.
    let progress = stream.message().await.unwrap().unwrap();
    assert_eq!((progress.watch_id(), progress.events().len()), (9, 0));
    assert_eq!(progress.header().unwrap().revision(), 3);
    let last = client
        .put("c", "1", None)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision();
    stream.request_progress().await.unwrap();
    loop {
        let answer = stream.message().await.unwrap().unwrap();
        if answer.watch_id() == -1 {
            assert!(answer.header().unwrap().revision() >= last);
            break;
        }
    }

    let options = WatchOptions::new().with_watch_id(9);
    stream.watch("c", Some(options)).await.unwrap();
    let refused = next_not_progress(&mut stream).await;
    assert!(refused.canceled());
    assert!(refused.cancel_reason().contains("duplicate watch ID"));
    stream.cancel(9).await.unwrap();
    let canceled = next_not_progress(&mut stream).await;
    assert_eq!((canceled.canceled(), canceled.watch_id()), (true, 9));
    client.compact(3, None).await.unwrap();
    stream
        .watch("c", Some(WatchOptions::new().with_start_revision(1)))
        .await
        .unwrap();
    assert!(next_not_progress(&mut stream).await.created());
    let compacted = next_not_progress(&mut stream).await;
    assert_eq!(
        (compacted.canceled(), compacted.compact_revision()),
        (true, 3)
    );
}

async fn next_not_progress(stream: &mut etcd_client::WatchStream) -> etcd_client::WatchResponse {
    loop {
        let answer = stream.message().await.unwrap().unwrap();
        if answer.created() || answer.canceled() || !answer.events().is_empty() {
            return answer;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_served_beside_grpc_and_history_goes_by_itself() {
    let extra = format!("http://127.0.0.1:{}", crate::common::free_port());
    let flags = [
        "--auto-compaction-retention",
        "1s",
        "--listen-metrics-urls",
        &extra,
    ];
    let mut server = Server::fluyt(&flags).await;
    let mut client = server.client().await;
    client.put("k", "1", None).await.unwrap();
    let revision = client
        .put("k", "2", None)
        .await
        .unwrap()
        .header()
        .unwrap()
        .revision();
    let health = server.get("/health").await;
    assert!(
        health.starts_with("HTTP/1.1 200") && health.ends_with(r#"{"health":"true","reason":""}"#)
    );
    assert!(
        server
            .get("/version")
            .await
            .contains(r#""etcdserver":"3.5"#)
    );
    let compacted = format!("etcd_debugging_mvcc_compact_revision {revision}\n");
    while !server.get("/metrics").await.contains(&compacted) {}
    let page = server.get("/metrics").await;
    assert!(page.contains("etcd_mvcc_put_total 2\n"), "{page}");
    server.url = extra;
    assert!(
        server
            .get("/metrics")
            .await
            .contains("etcd_server_has_leader 1\n")
    );
    assert!(server.get("/version").await.contains("etcd"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_compares_with_what_was_there_before() {
    let server = Server::fluyt(&[]).await;
    let mut client = server.client().await;
    let nested = Txn::new()
        .when([Compare::version("k", CompareOp::Equal, 0)])
        .and_then([TxnOp::put("chosen", "", None)]);
    let outer = Txn::new().and_then([TxnOp::put("k", "1", None), TxnOp::txn(nested)]);
    client.txn(outer).await.unwrap();
    assert_eq!(client.get("chosen", None).await.unwrap().count(), 1);
    // A nested transaction writes no key that the outer one writes, and its branches exclude each other.
    let both = Txn::new()
        .and_then([TxnOp::put("a", "1", None)])
        .or_else([TxnOp::put("a", "2", None)]);
    let fine = Txn::new().and_then([TxnOp::txn(both.clone())]);
    assert!(client.txn(fine).await.is_ok());
    let twice = Txn::new().and_then([TxnOp::put("a", "3", None), TxnOp::txn(both)]);
    let duplicate = "etcdserver: duplicate key given in txn request";
    let error = message(client.txn(twice).await.unwrap_err());
    assert_eq!(error, (tonic::Code::InvalidArgument, duplicate.into()));
}

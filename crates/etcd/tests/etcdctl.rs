//! The server as etcd's own command-line client sees it (Debian's etcd-client).

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use crate::common::Server;

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_put_read_sorted_and_deleted() {
    let server = Server::fluyt(&[]).await;
    assert_eq!(server.ctl(&["put", "a", "3"]).await, "OK\n");
    server.ctl(&["put", "b", "1"]).await;
    server.ctl(&["put", "c", "2"]).await;
    assert_eq!(server.ctl(&["get", "a"]).await, "a\n3\n");
    let sorted = ["get", "", "--prefix", "--sort-by=VALUE", "--order=DESCEND"];
    assert_eq!(server.ctl(&sorted).await, "a\n3\nc\n2\nb\n1\n");
    let limited = ["get", "", "--prefix", "--limit=2", "--keys-only"];
    assert_eq!(server.ctl(&limited).await, "a\n\nb\n\n");
    assert_eq!(
        server.ctl(&["get", "b", "--from-key"]).await,
        "b\n1\nc\n2\n"
    );
    assert_eq!(
        server.ctl(&["put", "a", "4", "--prev-kv"]).await,
        "OK\na\n3\n"
    );
    assert_eq!(server.ctl(&["get", "a", "--rev=2"]).await, "a\n3\n");
    assert_eq!(
        server.ctl(&["del", "a", "c", "--prev-kv"]).await,
        "2\na\n4\nb\n1\n"
    );
    assert!(
        server
            .ctl(&["get", "", "--prefix", "-w", "json"])
            .await
            .contains("\"count\":1")
    );
    let missing = server.ctl_error(&["put", "new", "--ignore-value"]).await;
    assert!(missing.contains("etcdserver: key not found"), "{missing}");
    let future = server.ctl_error(&["get", "a", "--rev=99"]).await;
    assert!(
        future.contains("etcdserver: mvcc: required revision is a future revision"),
        "{future}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_branch_and_refuse_duplicates() {
    let server = Server::fluyt(&[]).await;
    server.ctl(&["put", "a", "1"]).await;
    assert_eq!(
        txn(
            &server,
            "value(\"a\") = \"1\"\n\nput b 2\nget a\n\nget b\n\n"
        ),
        "SUCCESS\n\nOK\n\na\n1\n"
    );
    assert_eq!(
        txn(&server, "mod(\"a\") > \"5\"\n\nput b 2\n\nget b\n\n"),
        "FAILURE\n\nb\n2\n"
    );
    let error = txn(&server, "\nput b 2\nput b 3\n\n\n");
    assert!(
        error.contains("etcdserver: duplicate key given in txn request"),
        "{error}"
    );
}

fn txn(server: &Server, input: &str) -> String {
    let mut child = server
        .etcdctl_command()
        .arg("txn")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_replay_and_follow() {
    let server = Server::fluyt(&[]).await;
    server.ctl(&["put", "k/1", "a"]).await;
    server.ctl(&["put", "k/1", "b"]).await;
    let mut child = server
        .etcdctl_command()
        .args(["watch", "--prefix", "k/", "--rev=2", "--prev-kv"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut read =
        |n: usize| -> Vec<String> { lines.by_ref().take(n).map(Result::unwrap).collect() };
    assert_eq!(read(8), ["PUT", "k/1", "a", "PUT", "k/1", "a", "k/1", "b"]);
    server.ctl(&["del", "k/1"]).await;
    assert_eq!(read(5), ["DELETE", "k/1", "b", "k/1", ""]);
    child.kill().unwrap();
    child.wait().unwrap();
    server.ctl(&["compaction", "4"]).await;
    let late = server.ctl_error(&["watch", "k/1", "--rev=2"]).await;
    assert!(
        late.contains("required revision has been compacted"),
        "{late}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_granted_kept_and_revoked() {
    let server = Server::fluyt(&[]).await;
    let granted = server.ctl(&["lease", "grant", "100"]).await;
    let id = granted.split_whitespace().nth(1).unwrap();
    assert!(granted.ends_with("granted with TTL(100s)\n"), "{granted}");
    server.ctl(&["put", "k", "v", "--lease", id]).await;
    let state = server.ctl(&["lease", "timetolive", id, "--keys"]).await;
    assert!(
        state.contains("granted with TTL(100s), remaining(")
            && state.contains("attached keys([k])"),
        "{state}"
    );
    let kept = server.ctl(&["lease", "keep-alive", "--once", id]).await;
    assert!(kept.contains("keepalived with TTL(100)"), "{kept}");
    assert!(server.ctl(&["lease", "list"]).await.contains(id));
    server.ctl(&["lease", "revoke", id]).await;
    assert_eq!(server.ctl(&["get", "k"]).await, "");
    let gone = server.ctl(&["lease", "timetolive", id]).await;
    assert!(gone.contains("already expired"), "{gone}");
    let error = server.ctl_error(&["lease", "revoke", id]).await;
    assert!(
        error.contains("etcdserver: requested lease not found"),
        "{error}"
    );
    let error = server.ctl_error(&["put", "k", "v", "--lease", id]).await;
    assert!(
        error.contains("etcdserver: requested lease not found"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_is_maintained() {
    let server = Server::fluyt(&[
        "--name",
        "one",
        "--advertise-client-urls",
        "http://one:2379",
    ])
    .await;
    for i in 0..5 {
        server.ctl(&["put", "k", &i.to_string()]).await;
    }
    assert_eq!(
        server.ctl(&["compaction", "4"]).await,
        "compacted revision 4\n"
    );
    let again = server.ctl_error(&["compaction", "4"]).await;
    assert!(
        again.contains("etcdserver: mvcc: required revision has been compacted"),
        "{again}"
    );
    let status = server.ctl(&["endpoint", "status", "-w", "json"]).await;
    assert!(
        status.contains("\"revision\":6") && status.contains("\"version\":\"3.5"),
        "{status}"
    );
    server.ctl(&["endpoint", "health"]).await;
    assert!(
        server
            .ctl(&["endpoint", "hashkv"])
            .await
            .contains("127.0.0.1")
    );
    let members = server.ctl(&["member", "list"]).await;
    assert!(
        members.contains("started, one, , http://one:2379, false"),
        "{members}"
    );
    assert_eq!(server.ctl(&["alarm", "list"]).await, "");
    assert!(
        server
            .ctl(&["defrag"])
            .await
            .contains("Finished defragmenting")
    );
    let error = server.ctl_error(&["move-leader", "1"]).await;
    assert!(error.contains("bad leader transferee"), "{error}");
    let error = server.ctl_error(&["auth", "enable"]).await;
    assert!(
        error.contains("etcdserver: root user does not exist"),
        "{error}"
    );
    assert_eq!(server.ctl(&["user", "list"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_elections_run_on_it() {
    let server = Server::fluyt(&[]).await;
    // etcdctl takes the lock, runs the command, and lets go: leases, transactions and watches together.
    assert_eq!(server.ctl(&["lock", "l", "echo", "held"]).await, "held\n");
    assert_eq!(server.ctl(&["get", "", "--prefix"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_is_told_and_disarmed() {
    let server = Server::fluyt(&["--quota-backend-bytes", "200000"]).await;
    let value = "v".repeat(10_000);
    let mut error = String::new();
    for i in 0..100 {
        let output = server.etcdctl(&["put", &format!("k{i}"), &value]).await;
        if !output.status.success() {
            error = String::from_utf8(output.stderr).unwrap();
            break;
        }
    }
    let expected = "etcdserver: mvcc: database space exceeded";
    assert!(error.contains(expected), "{error}");
    let raised = server.ctl(&["alarm", "list"]).await;
    assert!(raised.contains("alarm:NOSPACE"), "{raised}");
    let health = server.get("/health").await;
    assert!(
        health.starts_with("HTTP/1.1 503") && health.contains("ALARM NOSPACE"),
        "{health}"
    );
    server.ctl(&["get", "k1"]).await;
    server.ctl(&["del", "k", "--prefix"]).await;
    let status = server.ctl(&["endpoint", "status", "-w", "json"]).await;
    let revision = status.split("\"revision\":").nth(1).unwrap();
    let revision = revision.split(',').next().unwrap();
    server.ctl(&["compaction", revision]).await;
    server.ctl(&["defrag"]).await;
    let error = server.ctl_error(&["put", "k", "v"]).await;
    assert!(error.contains(expected), "{error}");
    let disarmed = server.ctl(&["alarm", "disarm"]).await;
    assert!(disarmed.contains("alarm:NOSPACE"), "{disarmed}");
    server.ctl(&["put", "k", "v"]).await;
    assert_eq!(server.ctl(&["alarm", "list"]).await, "");
}

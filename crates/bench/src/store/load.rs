//! Loads over gRPC.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use etcd_client::proto::{
    PbCompare, PbCompareTarget, PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse,
    PbTargetUnion, PbTxnOpRequest, PbTxnRequest, PbTxnRequestOp, PbTxnResponse, PbWatchRequest,
    PbWatchRequestUnion, PbWatchResponse,
};

use super::Measured;
use super::client::{Client, framed, on_one_connection};
use super::server::{Server, Usage};

/// Bytes of a value: about those of a small object of Kubernetes.
pub const VALUE: usize = 1024;

/// Connections that clients share.
const CONNECTIONS: usize = 8;

/// Keys in a range that is read.
const RANGE: usize = 1000;

const WATCHERS: usize = 1000;

/// How long starting to watch may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Load {
    pub name: &'static str,
    clients: usize,
    /// Of all clients together.
    operations: usize,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Put,
    GetOne,
    GetRange,
    /// What the API server does to update an object: a put if it is still the revision that was read, else a read.
    Update,
    /// Puts while many watch.
    Watch,
}

const fn load(name: &'static str, clients: usize, operations: usize, kind: Kind) -> Load {
    Load {
        name,
        clients,
        operations,
        kind,
    }
}

pub const ALL: [Load; 7] = [
    load("put, 1 client", 1, 500, Kind::Put),
    load("put, 32 clients", 32, 16_000, Kind::Put),
    load("put, 256 clients", 256, 64_000, Kind::Put),
    load("update, 32 clients", 32, 16_000, Kind::Update),
    load("get one, 32 clients", 32, 100_000, Kind::GetOne),
    load("get 1000, 8 clients", 8, 1_600, Kind::GetRange),
    load("put, 1000 watchers", 1, 300, Kind::Watch),
];

fn key(i: usize) -> Vec<u8> {
    format!("/registry/things/default/object-{i:08}").into()
}

fn put_request(i: usize) -> PbPutRequest {
    PbPutRequest {
        key: key(i),
        value: vec![b'v'; VALUE],
        ..PbPutRequest::default()
    }
}

/// Prepares a server, runs a load on it, and measures that.
///
/// # Errors
/// When a request fails.
pub async fn run(load: &Load, server: &Server) -> anyhow::Result<Measured> {
    if matches!(load.kind, Kind::GetOne | Kind::GetRange) {
        on_one_connection(&server.url, [0], |client, _| put(client, 0, RANGE)).await?;
    }
    if matches!(load.kind, Kind::Watch) {
        return watch(load, server).await;
    }
    let connections = load.clients.min(CONNECTIONS);
    let each = load.operations / load.clients;
    let (clients, kind) = (load.clients, load.kind);
    let before = server.usage()?;
    let begin = Instant::now();
    let tasks: Vec<_> = (0..connections)
        .map(|connection| {
            let url = server.url.clone();
            tokio::spawn(async move {
                let own = (connection..clients).step_by(connections);
                on_one_connection(&url, own, |client, n| work(client, kind, n, each)).await
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let seconds = begin.elapsed().as_secs_f64();
    measured(each * load.clients, seconds, before, server)
}

async fn work(client: Client, kind: Kind, n: usize, count: usize) -> anyhow::Result<()> {
    match kind {
        Kind::Put | Kind::Watch => put(client, n, count).await,
        Kind::Update => update(client, n, count).await,
        Kind::GetOne => get_one(client, n, count).await,
        Kind::GetRange => get_range(client, count).await,
    }
}

fn measured(
    operations: usize,
    seconds: f64,
    before: Usage,
    server: &Server,
) -> anyhow::Result<Measured> {
    let mut usage = server.usage()?;
    usage.cpu_seconds -= before.cpu_seconds;
    Ok(Measured {
        operations: operations as u64,
        seconds,
        usage,
    })
}

async fn put(client: Client, n: usize, count: usize) -> anyhow::Result<()> {
    let method = client.method("KV/Put")?;
    for i in 0..count {
        method
            .unary::<PbPutResponse>(&put_request(n * count + i))
            .await?;
    }
    Ok(())
}

fn get(key: Vec<u8>) -> PbRangeRequest {
    PbRangeRequest {
        key,
        ..PbRangeRequest::default()
    }
}

async fn update(client: Client, n: usize, count: usize) -> anyhow::Result<()> {
    let (range, txn) = (client.method("KV/Range")?, client.method("KV/Txn")?);
    let operation = |request| PbTxnRequestOp {
        request: Some(request),
    };
    for i in 0..count {
        // A handful of objects per client, each written often.
        let number = n * 8 + i % 8;
        let found: PbRangeResponse = range.unary(&get(key(number))).await?;
        let revision = found.kvs.first().map_or(0, |kv| kv.mod_revision);
        let request = PbTxnRequest {
            compare: vec![PbCompare {
                target: PbCompareTarget::Mod.into(),
                target_union: Some(PbTargetUnion::ModRevision(revision)),
                key: key(number),
                ..PbCompare::default()
            }],
            success: vec![operation(PbTxnOpRequest::RequestPut(put_request(number)))],
            failure: vec![operation(PbTxnOpRequest::RequestRange(get(key(number))))],
        };
        let done: PbTxnResponse = txn.unary(&request).await?;
        ensure!(done.succeeded, "lost an update");
    }
    Ok(())
}

async fn get_one(client: Client, n: usize, count: usize) -> anyhow::Result<()> {
    let range = client.method("KV/Range")?;
    for i in 0..count {
        let request = get(key((n * 37 + i) % RANGE));
        let found: PbRangeResponse = range.unary(&request).await?;
        ensure!(found.kvs.len() == 1);
    }
    Ok(())
}

async fn get_range(client: Client, count: usize) -> anyhow::Result<()> {
    let range = client.method("KV/Range")?;
    let request = PbRangeRequest {
        range_end: b"/registry/things0".into(),
        ..get(b"/registry/things/".into())
    };
    for _ in 0..count {
        let found: PbRangeResponse = range.unary(&request).await?;
        ensure!(found.kvs.len() == RANGE);
    }
    Ok(())
}

/// Watches everything several times over one stream, says so, and counts events.
async fn watch_all(
    client: Client,
    watches: usize,
    events: usize,
    created: &tokio::sync::Barrier,
) -> anyhow::Result<()> {
    // Its type has no public name.
    let mut create = PbWatchRequestUnion::CreateRequest(Default::default());
    if let PbWatchRequestUnion::CreateRequest(create) = &mut create {
        create.key = b"/registry/".into();
        create.range_end = b"/registry0".into();
    }
    let request = PbWatchRequest {
        request_union: Some(create),
    };
    let mut calling = client.method("Watch/Watch")?.open(&request).await?;
    for _ in 1..watches {
        calling.requests.send_data(framed(&request)?, false)?;
    }
    for _ in 0..watches {
        let answer: Option<PbWatchResponse> = calling.next().await?;
        ensure!(answer.is_some_and(|answer| answer.created));
    }
    created.wait().await;
    let mut seen = 0;
    while seen < events {
        let answer: PbWatchResponse = calling.next().await?.context("a watch ended")?;
        seen += answer.events.len();
    }
    Ok(())
}

/// An operation is an event that reached a watcher.
async fn watch(load: &Load, server: &Server) -> anyhow::Result<Measured> {
    let each = WATCHERS / CONNECTIONS;
    let events = load.operations * each;
    let created = Arc::new(tokio::sync::Barrier::new(CONNECTIONS + 1));
    let tasks: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (url, created) = (server.url.clone(), created.clone());
            tokio::spawn(async move {
                let run = |client, _| watch_all(client, each, events, &created);
                on_one_connection(&url, [0], run).await
            })
        })
        .collect();
    // One that failed does not come.
    tokio::time::timeout(PATIENCE, created.wait()).await?;
    let before = server.usage()?;
    let begin = Instant::now();
    on_one_connection(&server.url, [0], |client, _| {
        put(client, 0, load.operations)
    })
    .await?;
    for task in tasks {
        task.await??;
    }
    let seconds = begin.elapsed().as_secs_f64();
    measured(load.operations * WATCHERS, seconds, before, server)
}

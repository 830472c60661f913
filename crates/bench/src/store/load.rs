//! Loads over gRPC.

use std::time::Instant;

use anyhow::ensure;
use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp, WatchOptions};
use futures::future::try_join_all;

use super::Measured;
use super::server::{Server, Usage};

/// Bytes of a value: about those of a small object of Kubernetes.
pub const VALUE: usize = 1024;

/// Connections that clients share.
const CONNECTIONS: usize = 8;

/// Keys in a range that is read.
const RANGE: usize = 1000;

const WATCHERS: usize = 1000;

pub struct Load {
    pub name: &'static str,
    clients: usize,
    /// Of all clients together.
    operations: usize,
    kind: Kind,
}

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

fn key(i: usize) -> String {
    format!("/registry/things/default/object-{i:08}")
}

/// Prepares a server, runs a load on it, and measures that.
///
/// # Errors
/// When a request fails.
pub async fn run(load: &Load, server: &Server) -> anyhow::Result<Measured> {
    let clients = try_join_all((0..load.clients.min(CONNECTIONS)).map(|_| server.client())).await?;
    if matches!(load.kind, Kind::GetOne | Kind::GetRange) {
        let puts = (0..RANGE).map(|i| {
            let mut client = clients[i % clients.len()].clone();
            async move { client.put(key(i), vec![b'v'; VALUE], None).await }
        });
        try_join_all(puts).await?;
    }
    if matches!(load.kind, Kind::Watch) {
        return watch(load, server).await;
    }
    let each = load.operations / load.clients;
    let before = server.usage()?;
    let begin = Instant::now();
    let tasks: Vec<_> = (0..load.clients)
        .map(|n| {
            let client = clients[n % clients.len()].clone();
            tokio::spawn(match load.kind {
                Kind::Put => futures::future::Either::Left(futures::future::Either::Left(put(
                    client, n, each,
                ))),
                Kind::Update => futures::future::Either::Left(futures::future::Either::Right(
                    update(client, n, each),
                )),
                Kind::GetOne => futures::future::Either::Right(futures::future::Either::Left(
                    get_one(client, n, each),
                )),
                Kind::GetRange | Kind::Watch => futures::future::Either::Right(
                    futures::future::Either::Right(get_range(client, each)),
                ),
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let seconds = begin.elapsed().as_secs_f64();
    measured(each * load.clients, seconds, before, server)
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

async fn put(mut client: Client, n: usize, count: usize) -> anyhow::Result<()> {
    for i in 0..count {
        client
            .put(key(n * count + i), vec![b'v'; VALUE], None)
            .await?;
    }
    Ok(())
}

async fn update(mut client: Client, n: usize, count: usize) -> anyhow::Result<()> {
    let mut revision = 0;
    for i in 0..count {
        // A handful of objects per client, each written often.
        let key = key(n * 8 + i % 8);
        if i % 8 == 0 {
            revision = 0;
        }
        let current = client.get(key.clone(), None).await?;
        if let Some(kv) = current.kvs().first() {
            revision = kv.mod_revision();
        }
        let txn = Txn::new()
            .when([Compare::mod_revision(
                key.clone(),
                CompareOp::Equal,
                revision,
            )])
            .and_then([TxnOp::put(key.clone(), vec![b'v'; VALUE], None)])
            .or_else([TxnOp::get(key, None)]);
        ensure!(client.txn(txn).await?.succeeded(), "lost an update");
        revision = 0;
    }
    Ok(())
}

async fn get_one(mut client: Client, n: usize, count: usize) -> anyhow::Result<()> {
    for i in 0..count {
        let found = client.get(key((n * 37 + i) % RANGE), None).await?;
        ensure!(found.kvs().len() == 1);
    }
    Ok(())
}

async fn get_range(client: Client, count: usize) -> anyhow::Result<()> {
    let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
    for _ in 0..count {
        let options = GetOptions::new().with_prefix();
        let found = kv.get("/registry/things/", Some(options)).await?;
        ensure!(found.kvs().len() == RANGE);
    }
    Ok(())
}

/// An operation is an event that reached a watcher.
async fn watch(load: &Load, server: &Server) -> anyhow::Result<Measured> {
    let mut tasks = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = server.client().await?;
        let mut stream = None;
        for _ in 0..WATCHERS / CONNECTIONS {
            let options = WatchOptions::new().with_prefix();
            let stream = match &mut stream {
                None => stream.insert(client.watch("/registry/", Some(options)).await?),
                Some(stream) => {
                    stream.watch("/registry/", Some(options)).await?;
                    stream
                }
            };
            ensure!(stream.message().await?.is_some_and(|m| m.created()));
        }
        let Some(mut stream) = stream else { continue };
        let expected = load.operations * (WATCHERS / CONNECTIONS);
        tasks.push(tokio::spawn(async move {
            let mut seen = 0;
            while seen < expected {
                let answer = stream.message().await?;
                seen += answer.map_or(expected, |answer| answer.events().len());
            }
            anyhow::Ok(())
        }));
    }
    let mut client = server.client().await?;
    let before = server.usage()?;
    let begin = Instant::now();
    for i in 0..load.operations {
        client.put(key(i), vec![b'v'; VALUE], None).await?;
    }
    for task in tasks {
        task.await??;
    }
    let seconds = begin.elapsed().as_secs_f64();
    measured(load.operations * WATCHERS, seconds, before, server)
}

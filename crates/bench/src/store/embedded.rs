//! The engine in this process, without gRPC: as the API server uses it.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use fluyt_etcd::embedded::Embedded;
use fluyt_etcd::{Keys, Op, Put, Range, Store as _, Txn};

use super::load::VALUE;
use super::server::{self, Usage};
use super::{Measured, row};

/// Runs puts and reads of one key.
///
/// # Errors
/// When the store fails.
pub async fn run(disk: &Path) -> anyhow::Result<()> {
    let directory = tempfile::tempdir_in(disk)?;
    let store = Arc::new(Embedded::open(directory.path())?);
    for (name, clients, count) in [
        ("put, 1 client", 1, 500),
        ("put, 32 clients", 32, 16_000),
        ("put, 256 clients", 256, 64_000),
    ] {
        measure(name, count, clients, &store, |store, n| async move {
            let put = Put::new(format!("/registry/things/{n:08}"), vec![b'v'; VALUE]);
            let txn = Txn {
                success: vec![Op::Put(put)],
                ..Txn::default()
            };
            store.txn(txn).await.map(drop)
        })
        .await?;
    }
    measure(
        "get one, 32 clients",
        400_000,
        32,
        &store,
        |store, n| async move {
            let key = format!("/registry/things/{:08}", n % 1000);
            let range = Range::new(Keys::One(key.into()));
            store.range(range).await.map(drop)
        },
    )
    .await
}

async fn measure<F, R>(
    name: &str,
    count: usize,
    clients: usize,
    store: &Arc<Embedded>,
    operation: F,
) -> anyhow::Result<()>
where
    F: Fn(Arc<Embedded>, usize) -> R + Copy + Send + 'static,
    R: Future<Output = Result<(), fluyt_etcd::Error>> + Send,
{
    let before = server::usage("self")?;
    let begin = Instant::now();
    let each = count / clients;
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..each {
                    operation(store.clone(), client * each + i).await?;
                }
                Ok::<_, fluyt_etcd::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let usage = server::usage("self")?;
    let measured = Measured {
        operations: (each * clients) as u64,
        seconds,
        usage: Usage {
            cpu_seconds: usage.cpu_seconds - before.cpu_seconds,
            ..usage
        },
    };
    row(name, "embedded", &measured);
    Ok(())
}

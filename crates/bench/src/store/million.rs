//! A store of a million keys: how long it takes to fill, how large it is, and how soon it is back.

use std::path::Path;
use std::time::Instant;

use etcd_client::{Txn, TxnOp};

use super::load::VALUE;
use super::server::Server;

const KEYS: usize = 1_000_000;

/// Keys put by one transaction.
const BATCH: usize = 100;

const CLIENTS: usize = 16;

/// Fills both, restarts both.
///
/// # Errors
/// When a request fails.
pub async fn run(etcd: &Path, disk: &Path) -> anyhow::Result<()> {
    for program in [None, Some(etcd)] {
        let mut server = Server::start(program, disk).await?;
        let begin = Instant::now();
        let tasks: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let client = server.client();
                async move {
                    let mut client = client.await?;
                    tokio::spawn(async move {
                        for batch in (n..KEYS / BATCH).step_by(CLIENTS) {
                            let put = |i: usize| {
                                // Values that do not compress to nothing.
                                let seed = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                                let mut state = seed | 1;
                                let value: Vec<u8> = (0..VALUE)
                                    .map(|_| {
                                        state ^= state << 13;
                                        state ^= state >> 7;
                                        state ^= state << 17;
                                        b'a' + (state % 16) as u8
                                    })
                                    .collect();
                                TxnOp::put(format!("/registry/things/{i:08}"), value, None)
                            };
                            let puts: Vec<_> =
                                (batch * BATCH..(batch + 1) * BATCH).map(put).collect();
                            client.txn(Txn::new().and_then(puts)).await?;
                        }
                        anyhow::Ok(())
                    })
                    .await?
                }
            })
            .collect();
        futures::future::try_join_all(tasks).await?;
        let seconds = begin.elapsed().as_secs_f64();
        let filled = server.usage()?;
        let start = server.restart().await?;
        let restarted = server.usage()?;
        println!(
            "a million keys, {:<9} filled in {seconds:.0} s with {:.0} s of CPU, RSS {:.0} MB (anonymous {:.0} MB), {:.0} MB on disk; \
             started again in {start:.2} s with {:.2} s of CPU, RSS {:.0} MB (anonymous {:.0} MB)",
            server.name(),
            filled.cpu_seconds,
            filled.resident,
            filled.anonymous,
            server.disk()?,
            restarted.cpu_seconds,
            restarted.resident,
            restarted.anonymous,
        );
    }
    Ok(())
}

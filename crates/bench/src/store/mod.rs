//! The store beside etcd: the same load on both, on the same disk, in turns.
//!
//! `fluyt-bench store [FILTER]`; `ETCD` names the etcd to compare with (Debian's by default).

mod client;
mod embedded;
mod load;
mod million;
mod server;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

pub use server::{Server, Usage, usage};

/// What a run of a load has taken.
pub struct Measured {
    pub operations: u64,
    pub seconds: f64,
    pub usage: Usage,
}

/// The etcd to compare with.
pub fn etcd() -> PathBuf {
    std::env::var_os("ETCD").map_or_else(|| PathBuf::from("/usr/bin/etcd"), Into::into)
}

/// Runs all loads whose name contains the filter.
///
/// # Errors
/// When a server does not start or refuses a request.
pub fn run(filter: &str) -> anyhow::Result<()> {
    let etcd = etcd();
    // On the disk that this was built on: the temporary directory may be memory.
    let disk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    std::fs::create_dir_all(&disk)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        println!("etcd: {}", server::version(&etcd)?);
        println!(
            "{:<28} {:>9} {:>12} {:>12} {:>10} {:>10}",
            "load", "server", "per second", "CPU µs/op", "RSS MB", "anon MB"
        );
        for load in load::ALL.iter().filter(|load| load.name.contains(filter)) {
            compare(load, &etcd, &disk).await?;
        }
        if "embedded".contains(filter) {
            embedded::run(&disk).await?;
        }
        if "million".contains(filter) {
            million::run(&etcd, &disk).await?;
        }
        Ok(())
    })
}

async fn compare(load: &load::Load, etcd: &Path, disk: &Path) -> anyhow::Result<()> {
    for program in [None, Some(etcd)] {
        let server = Server::start(program, disk).await?;
        let measured = load::run(load, &server)
            .await
            .with_context(|| load.name.to_owned())?;
        row(load.name, server.name(), &measured);
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss)]
fn row(load: &str, server: &str, measured: &Measured) {
    let operations = measured.operations as f64;
    println!(
        "{load:<28} {server:>9} {:>12.0} {:>12.1} {:>10.1} {:>10.1}",
        operations / measured.seconds,
        measured.usage.cpu_seconds * 1e6 / operations,
        measured.usage.resident,
        measured.usage.anonymous,
    );
}

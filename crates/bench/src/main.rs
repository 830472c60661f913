//! `make bench`: the figures of this machine. Measured on the release build, from outside, in a world of its own.
//! `make bench-store`: the store's, beside etcd's. `make bench-apiserver`: the API server's alone.

mod apiserver;
mod process;
mod requests;
mod starts;
mod store;

use clap::Parser as _;
use fluyt_e2e::{State, World};
use tokio::signal::unix::{SignalKind, signal};

/// Nodes of the measured cluster.
const NODES: u32 = 2;

#[derive(clap::Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
#[expect(
    clippy::large_enum_variant,
    reason = "one is made, and it is used at once"
)]
enum Command {
    /// The store beside etcd
    Store {
        /// Part of the names of the loads to run
        #[arg(default_value = "")]
        filter: String,
    },
    /// The store as a server, for the loads
    Etcd(fluyt_etcd::Args),
    /// What requests cost the API server
    Apiserver(apiserver::Args),
    /// The API server, for the loads
    KubeApiserver(fluyt_apiserver::Args),
}

/// Runs a server until it is told to stop.
fn serve<F>(run: impl FnOnce(tokio_util::sync::CancellationToken) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    fluyt_memory::give_back_when_idle()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let shutdown = tokio_util::sync::CancellationToken::new();
        let mut ended = signal(SignalKind::terminate())?;
        let stop = shutdown.clone();
        tokio::spawn(async move {
            ended.recv().await;
            stop.cancel();
        });
        run(shutdown).await
    })
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        None => {}
        Some(Command::Store { filter }) => return store::run(&filter),
        Some(Command::Etcd(args)) => return serve(|stop| fluyt_etcd::run(args, stop)),
        Some(Command::Apiserver(args)) => return apiserver::run(&args),
        Some(Command::KubeApiserver(args)) => {
            let _ = rustls::crypto::ring::default_provider().install_default();
            return serve(|stop| fluyt_apiserver::run(args, stop));
        }
    }
    let world = World::new(State::Disk)?;
    let _service = world.serve()?;
    println!("cluster of {NODES} nodes");
    starts::clusters(&world)?;
    starts::pods(&world)?;
    process::idle(&world)?;
    requests::costs(&world)
}

/// One line of the table.
fn row(what: &str, figure: impl std::fmt::Display) {
    println!("  {what:<58} {figure}");
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

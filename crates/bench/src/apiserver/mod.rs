//! The API server alone: what requests cost it, over mutual TLS and HTTP/2, with JSON ConfigMaps of 1.5 KB.
//!
//! `fluyt-bench apiserver`; `APISERVER` names upstream's kube-apiserver to measure in the same run, `ETCD` its store. What is
//! given of it includes its store.

mod client;
mod pods;
mod server;

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use client::Clients;
use server::Server;

use crate::row;

/// What is measured.
#[derive(clap::Args)]
pub struct Args {
    /// Only what single requests cost
    #[arg(long)]
    requests_only: bool,
    /// Objects that are created, read and updated, each; memory is measured with twice as many
    #[arg(long, default_value_t = 5000)]
    objects: usize,
}

/// Lists of all of them.
const LISTS: usize = 20;

const WATCHERS: usize = 100;

const WATCHES: usize = 10_000;
/// Watches of one connection.
const STREAMS: usize = 100;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// A ConfigMap of 1.5 KB.
fn body(name: &str, value: char) -> Vec<u8> {
    let filler: String = std::iter::repeat_n(value, 1400).collect();
    serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app": "bench"}}, "data": {"key": filler},
    })
    .to_string()
    .into_bytes()
}

/// Runs everything and prints a line each.
///
/// # Errors
/// When the server does not start or refuses a request.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        measure(args, None).await?;
        if let Some(upstream) = server::upstream() {
            println!("{} and etcd:", upstream.display());
            measure(args, Some(upstream)).await?;
        }
        Ok(())
    })
}

async fn measure(args: &Args, program: Option<OsString>) -> anyhow::Result<()> {
    let begin = Instant::now();
    let server = Server::start(program.clone()).await?;
    row(
        "ready after start",
        format!("{:.0} ms", begin.elapsed().as_secs_f64() * 1e3),
    );
    // What happens at the start is over; then memory is what is measured.
    tokio::time::sleep(Duration::from_secs(3)).await;
    row("RSS, idle", format!("{:.1} MB", server.usage()?.resident));
    let clients = Clients::connect(&server.access).await?;
    let update = requests(&server, &clients, args.objects).await?;
    if args.requests_only {
        return Ok(());
    }
    memory(&server, &clients, args.objects).await?;
    events(&server, &clients, args.objects, update).await?;
    drop((clients, server));
    if program.is_none() {
        pods::measure().await?;
    }
    Ok(())
}

/// Prints what a load costs per request, and how long requests took.
async fn cost(
    server: &Server,
    clients: &Clients,
    what: &str,
    requests: Vec<client::Request>,
) -> anyhow::Result<f64> {
    let count = requests.len();
    let before = server.usage()?.cpu_seconds;
    let (begin, mut took) = (Instant::now(), clients.run(requests).await?);
    let seconds = begin.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss)]
    let micros = (server.usage()?.cpu_seconds - before) * 1e6 / count as f64;
    took.sort_unstable();
    let p99 = took.get(count * 99 / 100).context("no requests")?;
    #[expect(clippy::cast_precision_loss)]
    let rate = count as f64 / seconds;
    row(
        what,
        format!(
            "{micros:>8.0} µs of CPU, {rate:>7.0}/s, p99 {:.1} ms",
            p99.as_secs_f64() * 1e3
        ),
    );
    Ok(micros)
}

/// Returns what an update costs.
async fn requests(server: &Server, clients: &Clients, objects: usize) -> anyhow::Result<f64> {
    let names = || (0..objects).map(|n| format!("a-{n}"));
    let creates = names().map(|n| client::Request::post(MAPS, body(&n, 'x')));
    cost(server, clients, "create", creates.collect()).await?;
    let gets = names().map(|n| client::Request::get(format!("{MAPS}/{n}")));
    cost(server, clients, "get", gets.collect()).await?;
    let update = cost(server, clients, "update", updates(objects, 'y')).await?;
    let lists = (0..LISTS).map(|_| client::Request::get(MAPS.to_owned()));
    let what = format!("list of {objects}");
    cost(server, clients, &what, lists.collect()).await?;
    Ok(update)
}

fn updates(objects: usize, content: char) -> Vec<client::Request> {
    let names = (0..objects).map(|n| format!("a-{n}"));
    names
        .map(|n| client::Request::put(format!("{MAPS}/{n}"), body(&n, content)))
        .collect()
}

/// Updates all objects while they are watched; `alone` is what that costs when nobody does.
async fn events(
    server: &Server,
    clients: &Clients,
    objects: usize,
    alone: f64,
) -> anyhow::Result<()> {
    let watchers = clients.watch(MAPS, WATCHERS, objects).await?;
    let what = format!("update, with {WATCHERS} watchers");
    let before = server.usage()?.cpu_seconds;
    cost(server, clients, &what, updates(objects, 'z')).await?;
    let mut ends = 0;
    for watcher in watchers {
        ends += watcher.await??;
    }
    #[expect(clippy::cast_precision_loss)]
    let watched = (server.usage()?.cpu_seconds - before) * 1e6 / objects as f64;
    #[expect(clippy::cast_precision_loss)]
    let each = (watched - alone) / WATCHERS as f64;
    let ended = match ends {
        0 => String::new(),
        _ => format!(", with {ends} watches begun again"),
    };
    row(
        "an event to one watcher",
        format!("{each:.1} µs of CPU{ended}"),
    );
    Ok(())
}

async fn memory(server: &Server, clients: &Clients, objects: usize) -> anyhow::Result<()> {
    let many = 2 * objects;
    let names = (objects..many).map(|n| format!("d-{n}"));
    let creates = names.map(|n| client::Request::post(MAPS, body(&n, 'x')));
    let what = format!("create, up to {many}");
    cost(server, clients, &what, creates.collect()).await?;
    let before = server.usage()?.resident;
    let what = format!("RSS with {many} objects");
    row(&what, format!("{before:.1} MB"));
    let watches = Clients::hold(&server.access, MAPS, WATCHES / STREAMS, STREAMS).await?;
    let with = server.usage()?.resident;
    #[expect(clippy::cast_precision_loss)]
    let each = (with - before) * 1e3 / WATCHES as f64;
    row(
        "RSS with 10,000 watches as well",
        format!("{with:.1} MB, {each:.1} KB each"),
    );
    drop(watches);
    Ok(())
}

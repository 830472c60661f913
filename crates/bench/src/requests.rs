//! What requests cost the master, in CPU.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::ensure;
use fluyt_e2e::World;

use crate::{process, row};

const REQUESTS: u32 = 2000;
const LISTS: u32 = 50;
const WATCHERS: u32 = 20;

/// What curl calls itself has answers indented for people, which costs more than they do.
const AGENT: &str = "fluyt-bench";

/// Create, get, list and watch of ConfigMaps, over one connection after the other.
pub fn costs(world: &World) -> anyhow::Result<()> {
    let server = world.admin_files()?;
    let master = world.recorded_pid(&format!(
        "{}/master-process.json",
        world.cluster_directory()?
    ))?;
    let all = format!("{server}/api/v1/namespaces/default/configmaps");
    let measured = |what: &str, count: u32, requests: &str| -> anyhow::Result<f64> {
        let before = process::cpu(world, master)?;
        run(world, requests)?;
        let micros = (process::cpu(world, master)? - before) * 1e6 / f64::from(count);
        row(what, format!("{micros:.0} µs of CPU"));
        Ok(micros)
    };

    let creates = |prefix: &str| {
        let body = |n: u32| {
            format!(
                r#"{{\"metadata\": {{\"name\": \"{prefix}-{n}\"}}, \"data\": {{\"n\": \"{n}\"}}}}"#
            )
        };
        requests((0..REQUESTS).map(|n| (all.clone(), Some(body(n)))))
    };
    let create = measured("create", REQUESTS, &creates("a"))?;
    measured(
        "get",
        REQUESTS,
        &requests((0..REQUESTS).map(|n| (format!("{all}/a-{n}"), None))),
    )?;
    let list = measured(
        &format!("list of {REQUESTS}"),
        LISTS,
        &requests((0..LISTS).map(|_| (all.clone(), None))),
    )?;
    row(
        "list, each object",
        format!("{:.2} µs of CPU", list / f64::from(REQUESTS)),
    );

    let watch = format!(
        "curl -sNk -A {AGENT} --cert $HOME/admin.crt --key $HOME/admin.key '{all}?watch=1&resourceVersion=0'"
    );
    let watchers = (0..WATCHERS)
        .map(|_| world.background(&watch))
        .collect::<Result<Vec<_>, _>>()?;
    for watcher in &watchers {
        watcher.says(&format!("\"a-{}\"", REQUESTS - 1), Duration::from_secs(30))?;
    }
    let with_watchers = measured(
        &format!("create, with {WATCHERS} watchers"),
        REQUESTS,
        &creates("b"),
    )?;
    for watcher in &watchers {
        watcher.says(&format!("\"b-{}\"", REQUESTS - 1), Duration::from_secs(30))?;
    }
    row(
        "an event to one watcher",
        format!(
            "{:.1} µs of CPU",
            (with_watchers - create) / f64::from(WATCHERS)
        ),
    );
    Ok(())
}

/// The requests in the form of a configuration of curl, which sends them over one connection.
fn requests(of: impl Iterator<Item = (String, Option<String>)>) -> String {
    let mut config = String::new();
    for (n, (url, body)) in of.enumerate() {
        if n > 0 {
            config.push_str("next\n");
        }
        let _ = write!(
            config,
            "silent\ninsecure\nfail\nuser-agent = {AGENT}\ncert = admin.crt\nkey = admin.key\noutput = /dev/null\nurl = \"{url}\"\n"
        );
        if let Some(body) = body {
            let _ = write!(
                config,
                "header = \"content-type: application/json\"\ndata = \"{body}\"\n"
            );
        }
    }
    config
}

fn run(world: &World, requests: &str) -> anyhow::Result<()> {
    let config = world.write("requests", requests)?;
    let said = world.ok(&format!("cd $HOME && curl --config {}", config.display()))?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}

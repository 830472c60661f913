//! `make bench`: the figures of this machine. Measured on the release build, from outside, in a world of its own.

mod process;
mod requests;
mod starts;

use fluyt_e2e::{State, World};

/// Nodes of the measured cluster.
const NODES: u32 = 2;

fn main() -> anyhow::Result<()> {
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

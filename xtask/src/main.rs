//! Chores of the workspace: `cargo xtask schema [--check]`, `cargo xtask licences`.

mod licences;
mod schema;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["schema"] => schema::generate(false),
        ["schema", "--check"] => schema::generate(true),
        ["licences"] => licences::check(),
        _ => bail!("usage: cargo xtask schema [--check] | licences"),
    }
}

//! What flags of kube-apiserver do, as clients see it.

mod aggregation;
mod browsers;
mod client;
mod cluster;
mod egress;
mod endpoints;
mod kubelets;
mod metrics;
mod overrides;
mod peers;
mod process;
mod serving;
mod signer;
mod startup;
mod stopping;
mod store;
mod tokens;

use clap::Parser as _;

/// Flags of one group, by themselves.
#[derive(clap::Parser)]
struct Line<T: clap::Args> {
    #[command(flatten)]
    args: T,
}

/// A group of flags as it is given.
fn given<T: clap::Args>(flags: &[&str]) -> T {
    refused_or(flags).unwrap_or_else(|why| panic!("{why}"))
}

/// The same, or why not.
fn refused_or<T: clap::Args>(flags: &[&str]) -> Result<T, String> {
    let line = std::iter::once("kube-apiserver").chain(flags.iter().copied());
    match Line::try_parse_from(line) {
        Ok(line) => Ok(line.args),
        Err(error) => Err(error.to_string()),
    }
}

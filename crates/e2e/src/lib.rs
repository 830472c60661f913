//! Whole clusters, from outside: the built binary, the real kubectl and helm, and nothing of ours in between.
//!
//! Each test has a [`World`] of its own: pid, mount and network namespaces with fresh `/var/lib/fluyt`, `/run/fluyt` and
//! `/run/netns`, so that it neither sees nor disturbs a service that runs on this machine, and so that everything it
//! started dies with its first process, however the test ends.

mod background;
mod cgroups;
mod image;
mod wait;
mod world;

pub use background::Background;
pub use image::BUSYBOX;
pub use wait::{eventually, timed};
pub use world::{Outcome, State, World};

use std::path::{Path, PathBuf};

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Whether the binary under test is the optimised one, to which the issues' figures apply.
#[must_use]
pub fn is_release() -> bool {
    binary().is_ok_and(|path| path.components().any(|part| part.as_os_str() == "release"))
}

/// The binary under test: `FLUYT_BIN`, or what `cargo build --bin fluyt` makes.
///
/// # Errors
/// When it has not been built.
pub fn binary() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("FLUYT_BIN").map_or_else(
        || repository().join("target/x86_64-unknown-linux-gnu/debug/fluyt"),
        PathBuf::from,
    );
    anyhow::ensure!(
        path.exists(),
        "{} is missing: run `cargo build --bin fluyt` first",
        path.display()
    );
    Ok(path.canonicalize()?)
}

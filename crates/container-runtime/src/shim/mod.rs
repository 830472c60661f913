//! The shim: one small single-threaded process per pod that owns its namespaces and containers.
//!
//! It is started by the runtime as `fluyt shim <config>` and outlives it: containers keep running, their output is
//! logged and their exits are recorded whether or not a runtime listens. See [`protocol`] for what they say.

pub mod client;
mod container;
mod create;
mod exec;
mod helper;
pub mod log;
mod namespaces;
pub mod protocol;
mod server;

pub use create::mount_overlay_here;

use std::path::Path;

/// The sub command that [`main`] implements.
pub const COMMAND: &str = "shim";

/// Entry of `fluyt shim <config>`. To be called before anything else of the process: no thread may have been started.
pub fn main(config: &Path) -> ! {
    server::main(config)
}

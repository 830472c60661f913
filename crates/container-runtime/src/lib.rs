//! The container runtime: images, pod sandboxes and containers, served as CRI v1.
//!
//! ```text
//! kubelet ──CRI──▶ cri ──▶ runtime ──unix socket──▶ shim (one per pod) ──▶ containers
//!                   └────▶ image (store shared by the nodes of a host)
//! kubectl … ──SPDY or WebSocket──▶ streaming ──▶ runtime
//! ```
//!
//! The runtime may die at any time: a pod's [`shim`] owns its containers, and [`runtime::Runtime::recover`] finds
//! them again.
#![allow(unsafe_code)] // Forking, descriptors that cross processes, and namespaces.

pub mod cgroup;
pub mod cri;
pub mod image;
mod in_root;
pub mod runtime;
mod serve;
pub mod shim;
pub mod spec;
pub mod streaming;

pub use serve::{Args, run};

/// Entry of `fluyt shim <config>`: to be called before the process starts a thread.
pub fn shim_main(args: &[std::ffi::OsString]) -> ! {
    match args {
        [config] => shim::main(std::path::Path::new(config)),
        _ => {
            eprintln!("usage: fluyt {} <config>", shim::COMMAND);
            std::process::exit(2)
        }
    }
}

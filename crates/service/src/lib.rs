//! The service: clusters as resources of ARM, and everything that makes them so.
//!
//! ```text
//! arm ──▶ state ──▶ cluster::supervisor ──▶ keeper ──▶ master (a process per cluster)
//!                                             └──────▶ providers ──▶ node (a machine per node)
//! ```

pub mod arm;
mod backoff;
pub mod cluster;
mod files;
mod images;
pub mod logs;
pub mod master;
pub mod node;
pub mod process;
pub mod providers;
mod routes;
pub mod serve;
pub mod service;
pub mod state;
pub mod tasks;
pub mod versions;
pub mod vm_sizes;

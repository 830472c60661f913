//! Clusters: what is recorded of each, and making it so.

mod drain;
pub mod keeper;
pub mod kubeconfig;
mod machines;
pub mod master_process;
pub mod record;
pub mod supervisor;

//! The container runtime: images, pod sandboxes and containers, served as CRI v1.
#![allow(unsafe_code)] // Forking, descriptors that cross processes, and namespaces.

pub mod cgroup;
pub mod image;
mod in_root;
pub mod runtime;
pub mod shim;
pub mod spec;

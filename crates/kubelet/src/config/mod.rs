//! Where the kubelet's settings and its pods come from.

pub mod apiserver;
pub mod args;
pub mod file;
pub mod kubelet_configuration;

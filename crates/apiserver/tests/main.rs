//! One program, since each has the whole server in it. A file or folder is about what its name says.

#![allow(clippy::unwrap_used)]

mod admission;
mod admission_plugins;
mod api;
mod apply;
mod audit;
mod authentication;
mod authorization;
mod common;
mod content;
mod custom_resources;
mod flags;
mod flowcontrol;
mod kube_rs;
mod kubectl;
mod openapi;
mod robustness;
mod scripts;
mod service_allocation;
mod storage;
mod tracing;
mod validation;
mod versions;

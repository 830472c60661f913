//! The Kubernetes object model without any I/O: the table of resources, the schema of their types, and the algorithms
//! over them (decoding, defaulting, patches, selectors, printing, validation).

pub mod cbor;
pub mod component_helpers;
pub mod convert;
pub mod custom;
pub mod decode;
pub mod defaults;
pub mod error;
pub mod flowcontrol;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod fuzz;
pub mod go_time;
pub mod json_patch;
pub mod managedfields;
pub mod meta;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod resources;
pub mod schema;
pub mod selector;
pub mod strategy;
pub mod table;
pub mod validation;
mod x509;

pub use error::{Cause, Error, Reason};

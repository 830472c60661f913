//! The CRI v1 services: gRPC on one side, [`crate::runtime`] and [`crate::image`] on the other.

mod image_service;
mod runtime_service;

pub use image_service::ImageService;
pub use runtime_service::RuntimeService;

/// What the runtime calls itself.
pub const RUNTIME_NAME: &str = "fluyt";

fn runtime_version() -> String {
    format!("v{}", env!("CARGO_PKG_VERSION"))
}

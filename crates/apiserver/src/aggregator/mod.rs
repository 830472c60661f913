//! The aggregation layer: groups that an `APIService` says another server serves.

mod availability;
mod custom;
mod discover;
mod endpoint;
mod local;
mod proxy;
mod routing;

use fluyt_api::resources;
use serde_json::Value;

use crate::cache::Caches;

pub use availability::run as watch_availability;
pub use custom::follow_definitions;
pub use discover::Discovered;
pub use endpoint::resolve;
pub use local::{priorities, register};
pub use proxy::proxy;
pub use routing::Routing;

/// The `APIService` of a group and version that another server serves.
#[must_use]
pub fn find(caches: &Caches, group: &str, version: &str) -> Option<Value> {
    let services = resources::find("apiregistration.k8s.io", "v1", "apiservices")?;
    let entry = caches.of(services).get(&format!("{version}.{group}"))?;
    let service = entry.object();
    service["spec"]["service"].is_object().then_some(service)
}

/// Every aggregated group and version.
#[must_use]
pub fn all(caches: &Caches) -> Vec<Value> {
    let Some(services) = resources::find("apiregistration.k8s.io", "v1", "apiservices") else {
        return Vec::new();
    };
    let entries = caches.of(services).snapshot().objects.entries;
    entries
        .values()
        .map(|e| e.object())
        .filter(|s| s["spec"]["service"].is_object())
        .collect()
}

//! kube-apiserver: one generic handler over the table of resources, reading from a watch cache and writing optimistic
//! transactions. [`Server::handle`] is the way of a request, top to bottom.

pub mod admission;
mod aggregator;
pub mod audit;
pub mod authn;
pub mod authz;
mod bootstrap;
mod browsers;
mod cache;
mod cel_types;
mod compactor;
mod custom;
mod default_service_cidr;
pub mod dial;
mod discovery;
mod drain;
pub mod egress;
mod endpoint_reconciler;
mod event_recorder;
mod expiring;
mod features;
mod flags;
pub mod flowcontrol;
mod go_duration;
mod handlers;
mod health;
mod http;
mod identity;
mod limits;
pub mod listen;
mod metrics;
mod openapi;
mod registry;
mod reload;
mod remote;
mod request;
mod served;
mod server;
mod service_repair;
mod spans;
mod storage;
mod user;
mod validation;
mod webhook;
mod zpages;

pub use aggregator::Routing;
pub use browsers::Browsers;
pub use endpoint_reconciler::{Endpoints, Reconciler};
pub use features::{Feature, Features};
pub use flags::{Args, run};
pub use handlers::TokenLifetimes;
pub use health::EtcdChecks;
pub use http::Body;
pub use limits::Limits;
pub use metrics::Exposition;
pub use registry::ServiceNetwork;
pub use served::{Served, Versions};
pub use server::{Config, Credentials, Server};
pub use spans::TracingConfiguration;
pub use storage::encryption::Encryption;
pub use storage::{MediaType, Storage};
pub use user::{MASTERS, User};

/// The version of Kubernetes whose API is served.
pub const VERSION: &str = "v1.36.0";

//! Where the server of a group is: from an `APIService`'s reference to an address, or why there is none.

use std::net::{IpAddr, SocketAddr};

use fluyt_api::resources;
use serde_json::Value;

use crate::cache::Caches;

/// Why a service cannot be reached. Displayed as an `APIService`'s condition says it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unavailable {
    #[error("service/{name} in \"{namespace}\" is not present")]
    NoService { namespace: String, name: String },
    #[error("service/{name} in \"{namespace}\" is not listening on port {port}")]
    NoPort {
        namespace: String,
        name: String,
        port: String,
    },
    #[error("cannot find endpointslices for service/{name} in \"{namespace}\"")]
    NoSlices { namespace: String, name: String },
    #[error(
        "endpointslices for service/{name} in \"{namespace}\" have no addresses with port name \"{port}\""
    )]
    NoAddresses {
        namespace: String,
        name: String,
        port: String,
    },
    #[error("{0}")]
    Route(String),
    #[error("{0}")]
    Discovery(String),
}

impl Unavailable {
    /// The reason of the `Available` condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoService { .. } => "ServiceNotFound",
            Self::NoPort { .. } => "ServicePortError",
            Self::NoSlices { .. } => "EndpointsNotFound",
            Self::NoAddresses { .. } => "MissingEndpoints",
            Self::Route(_) | Self::Discovery(_) => "FailedDiscoveryCheck",
        }
    }
}

/// A ready address of a service's port (name, number, or empty for the first), any of them with the same chance.
///
/// # Errors
/// What is missing on the way from the service to an address.
pub fn resolve(
    caches: &Caches,
    namespace: &str,
    name: &str,
    port: &str,
) -> Result<SocketAddr, Unavailable> {
    let owned = || (namespace.to_owned(), name.to_owned());
    let no_service = || {
        let (namespace, name) = owned();
        Unavailable::NoService { namespace, name }
    };
    let services = resources::find("", "v1", "services").ok_or_else(no_service)?;
    let service = caches
        .of(services)
        .get(&format!("{namespace}/{name}"))
        .ok_or_else(no_service)?
        .object();
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let is_wanted = |p: &&Value| {
        port.is_empty()
            || p["name"] == port
            || p["port"].as_i64().is_some_and(|n| n.to_string() == port)
    };
    let Some(wanted) = ports.into_iter().find(is_wanted) else {
        let (namespace, name) = owned();
        let port = port.to_owned();
        return Err(Unavailable::NoPort {
            namespace,
            name,
            port,
        });
    };
    let port_name = wanted["name"].as_str().unwrap_or_default();
    let slices = slices_of(caches, namespace, name);
    if slices.is_empty() {
        let (namespace, name) = owned();
        return Err(Unavailable::NoSlices { namespace, name });
    }
    let found: Vec<SocketAddr> = slices
        .iter()
        .flat_map(|slice| ready_addresses(slice, port_name))
        .collect();
    if found.is_empty() {
        let (namespace, name) = owned();
        let port = port_name.to_owned();
        return Err(Unavailable::NoAddresses {
            namespace,
            name,
            port,
        });
    }
    Ok(found[rand::random_range(0..found.len())])
}

fn slices_of(caches: &Caches, namespace: &str, service: &str) -> Vec<Value> {
    let Some(slices) = resources::find("discovery.k8s.io", "v1", "endpointslices") else {
        return Vec::new();
    };
    let snapshot = caches.of(slices).snapshot();
    let of_service = snapshot.entries.values().filter(|entry| {
        let owner = entry.labels.get("kubernetes.io/service-name");
        entry.namespace() == namespace && owner == Some(service)
    });
    of_service.map(|entry| entry.object()).collect()
}

fn ready_addresses(slice: &Value, port_name: &str) -> Vec<SocketAddr> {
    let mut ports = slice["ports"].as_array().into_iter().flatten();
    let port = ports
        .find(|p| p["name"].as_str().unwrap_or_default() == port_name)
        .and_then(|p| u16::try_from(p["port"].as_u64()?).ok());
    let Some(port) = port else {
        return Vec::new();
    };
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    endpoints
        .filter(|endpoint| endpoint["conditions"]["ready"] != false)
        .flat_map(|endpoint| endpoint["addresses"].as_array().into_iter().flatten())
        .filter_map(|a| Some(SocketAddr::new(a.as_str()?.parse::<IpAddr>().ok()?, port)))
        .collect()
}

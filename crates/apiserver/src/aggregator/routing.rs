//! By which address the services of groups and webhooks are reached.

use std::net::{IpAddr, SocketAddr};

use clap::ArgAction;
use fluyt_api::resources;

use super::endpoint::{self, Unavailable};
use crate::cache::Caches;
use crate::go_bool;

/// Flags about requests that go on to other servers.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Routing {
    /// Reach services of groups and webhooks by their endpoints' addresses, for servers in whose network cluster IPs lead
    /// nowhere.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    enable_aggregator_routing: bool,
    /// Do not pass redirects of groups' servers on to clients.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true)]
    pub(super) aggregator_reject_forwarding_redirect: bool,
}

impl Default for Routing {
    /// For a server within a master, which is outside the network that services' addresses are for.
    fn default() -> Self {
        Self {
            enable_aggregator_routing: true,
            aggregator_reject_forwarding_redirect: true,
        }
    }
}

impl Routing {
    /// An address under which a port of a service is reached.
    ///
    /// # Errors
    /// What is missing on the way to it.
    pub async fn resolve(
        self,
        caches: &Caches,
        namespace: &str,
        name: &str,
        port: i64,
    ) -> Result<SocketAddr, Unavailable> {
        let text = port.to_string();
        if self.enable_aggregator_routing {
            return endpoint::resolve(caches, namespace, name, &text);
        }
        let missing = || Unavailable::NoService {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let services = resources::find("", "v1", "services").ok_or_else(missing)?;
        let service = caches.of(services).get(&format!("{namespace}/{name}"));
        let service = service.ok_or_else(missing)?.object();
        let spec = &service["spec"];
        let number = u16::try_from(port).unwrap_or_default();
        if spec["type"] == "ExternalName" {
            let host = spec["externalName"].as_str().unwrap_or_default();
            let found = tokio::net::lookup_host((host, number)).await;
            let found = found.map_err(|e| Unavailable::Route(format!("lookup {host}: {e}")))?;
            return found
                .into_iter()
                .next()
                .ok_or_else(|| Unavailable::Route(format!("lookup {host}: no such host")));
        }
        let mut ports = spec["ports"].as_array().into_iter().flatten();
        if !ports.any(|p| p["port"] == port) {
            return Err(Unavailable::NoPort {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                port: text,
            });
        }
        let address = spec["clusterIP"].as_str().unwrap_or_default();
        match address.parse::<IpAddr>() {
            Ok(address) => Ok(SocketAddr::new(address, number)),
            Err(_) => Err(Unavailable::Route(format!(
                "cannot route to service with ClusterIP {address:?}"
            ))),
        }
    }
}

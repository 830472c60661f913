//! The kubelets of nodes, and requests that are passed on to them.

use std::net::{IpAddr, SocketAddr};

use fluyt_api::{Error, resources};
use http::{HeaderMap, Method, Response};
use serde_json::Value;
use tokio_rustls::client::TlsStream;

use super::{Call, proxy};
use crate::Server;
use crate::dial::{Connection, connect_tls, refusal};
use crate::http::Body;
use crate::registry::Location;

/// How the kubelet of a node is reached, and what the node says of itself.
pub(super) struct Kubelet {
    pub address: SocketAddr,
    declared: Value,
}

impl Kubelet {
    /// The kubelet of a node.
    ///
    /// # Errors
    /// 404 when there is no such node, 500 when it has no address.
    pub async fn of(call: &Call, node: &str) -> Result<Self, Error> {
        let nodes = resources::find("", "v1", "nodes").ok_or_else(Error::no_route)?;
        let at = Location {
            resource: nodes,
            namespace: "",
            name: node,
            subresource: "",
        };
        let mut node = call.server.registry.get(at).await?.object();
        let types = &call.server.config.kubelet_address_types;
        let addresses = node["status"]["addresses"].as_array();
        let preferred: Vec<&str> = types
            .iter()
            .flat_map(|ty| {
                let all = addresses.into_iter().flatten();
                all.filter(move |a| a["type"] == ty.as_str())
            })
            .filter_map(|a| a["address"].as_str())
            .collect();
        let mut address = None;
        for given in preferred {
            address = resolved(given).await;
            if address.is_some() {
                break;
            }
        }
        let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
            .as_u64()
            .and_then(|p| u16::try_from(p).ok())
            .filter(|port| *port > 0);
        let address = address
            .ok_or_else(|| Error::internal("no preferred addresses found; known addresses: []"))?;
        let port = port.unwrap_or(call.server.config.kubelet_port);
        Ok(Self {
            address: SocketAddr::new(address, port),
            declared: node["status"]["declaredFeatures"].take(),
        })
    }

    /// Whether its node says that it has a feature.
    pub fn declares(&self, feature: &str) -> bool {
        let declared = self.declared.as_array();
        declared.is_some_and(|all| all.iter().any(|f| f == feature))
    }

    /// A connection to it.
    ///
    /// # Errors
    /// Why there is none, in Go's words.
    pub async fn connect(&self, server: &Server) -> Result<TlsStream<Connection>, String> {
        let address = self.address;
        let tls = server.kubelet_tls.clone();
        let connecting = connect_tls(&*server.dialer, tls, address, None);
        let patience = server.config.kubelet_timeout;
        let why = match tokio::time::timeout(patience, connecting).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => refusal(&error),
            Err(_) => "i/o timeout".to_owned(),
        };
        Err(format!("dial tcp {address}: {why}"))
    }

    /// A connection to it, for a request that is passed on.
    ///
    /// # Errors
    /// 500 when it is not reached.
    pub async fn dial_backend(&self, server: &Server) -> Result<TlsStream<Connection>, Error> {
        let connected = self.connect(server).await;
        connected.map_err(|why| Error::internal(format!("error dialing backend: {why}")))
    }

    /// Passes a request on to it.
    ///
    /// # Errors
    /// 500 when it is not reached.
    pub async fn forward(
        &self,
        call: Call,
        method: Method,
        path: &str,
    ) -> Result<Response<Body>, Error> {
        let stream = self.dial_backend(&call.server).await?;
        let rate = call.server.config.limits.max_connection_bytes_per_sec;
        proxy::forward(
            call.into_request(),
            method,
            path,
            &self.address.to_string(),
            HeaderMap::new(),
            stream,
            rate,
        )
        .await
    }
}

/// The address that a text is, or the first that a name has.
async fn resolved(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let mut found = tokio::net::lookup_host((text, 0)).await.ok()?;
    Some(found.next()?.ip())
}

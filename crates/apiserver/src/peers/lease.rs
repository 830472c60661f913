//! Where a server is: a key in the store with a time to live, whose value is an `Endpoints` of it, as upstream's is.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fluyt_api::{Error, resources};
use fluyt_etcd::{Keys, Range};
use serde_json::{Value, json};

use crate::Server;
use crate::announcement::{announce, withdraw};
use crate::cache::REGISTRY;

/// How often a server makes itself heard.
const INTERVAL: Duration = Duration::from_secs(10);

fn key(id: &str) -> String {
    format!("{REGISTRY}peerserverleases/{id}")
}

/// Keeps this server's key until shutdown.
pub(super) async fn run(server: Arc<Server>) {
    let _held = server.drain.hold();
    let key = key(&server.peers.id);
    let mut renew = tokio::time::interval(INTERVAL);
    let mut generation = 0;
    loop {
        tokio::select! {
            _ = renew.tick() => {}
            () = server.shutdown.cancelled() => break,
        }
        generation += 1;
        let announced = match endpoints(&server, generation) {
            Ok(endpoints) => announce(&server, &key, &endpoints).await,
            Err(error) => Err(error),
        };
        if let Err(error) = announced {
            tracing::warn!(%error, "unable to update peer endpoint leases");
        }
    }
    if let Err(error) = withdraw(&server, &key).await {
        tracing::warn!(%error, "unable to remove peer endpoint leases");
    }
}

/// This server's endpoints, which differ from the last ones so that they are written.
fn endpoints(server: &Server, generation: u64) -> Result<Value, Error> {
    let address = server.config.peer_address();
    let parsed = split_host_port(&address)
        .and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)))
        .ok_or_else(|| Error::internal(format!("{address} is no address")))?;
    let (ip, port) = parsed;
    Ok(json!({
        "metadata": {"generation": generation, "labels": {"apiserverIdentity": server.peers.id}},
        "subsets": [{
            "addresses": [{"ip": ip}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }],
    }))
}

/// Host and port of a server, as its key says now.
///
/// # Errors
/// When there is no key, or it does not say that.
pub(super) async fn endpoint(server: &Server, id: &str) -> Result<String, Error> {
    let resource = resources::find("", "v1", "endpoints").ok_or_else(Error::no_route)?;
    let key = key(id);
    let range = Range::new(Keys::One(key.clone().into()));
    let found = server.caches.main().store().range(range).await;
    let missing = || Error::internal(format!("nobody knows where {id} is"));
    let found = found.map_err(Error::internal)?.kvs;
    let stored = found.first().ok_or_else(missing)?;
    let codec = &server.caches.codec;
    let decoded = codec.decode(resource, key.as_bytes(), &stored.value).await;
    let subset = &decoded.map_err(Error::internal)?.object["subsets"][0];
    let ip = subset["addresses"][0]["ip"].as_str().unwrap_or_default();
    let port = subset["ports"][0]["port"].as_u64().ok_or_else(missing)?;
    Ok(super::join_host_port(ip, port))
}

/// Host and port of an address; a host of IPv6 is in brackets.
pub(super) fn split_host_port(address: &str) -> Option<(&str, &str)> {
    let (host, port) = address.rsplit_once(':')?;
    match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(host) => host.parse::<IpAddr>().ok().map(|_| (host, port)),
        None if host.contains(':') => None,
        None => Some((host, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        assert_eq!(split_host_port("a.b:1"), Some(("a.b", "1")));
        assert_eq!(split_host_port("[::1]:1"), Some(("::1", "1")));
        for none in ["a", "::1:1", "[a]:1", ""] {
            assert_eq!(split_host_port(none), None, "{none}");
        }
    }
}

//! Endpoints of servers that know how many they are: each keeps its own address there, and takes others away while there
//! are too many.

use std::net::Ipv4Addr;
use std::sync::Arc;

use fluyt_api::{Error, resources};
use serde_json::Value;

use crate::{Server, bootstrap};

/// The addresses that are published; `None` when what is there is not of servers' making.
fn published(server: &Server) -> Option<Vec<Ipv4Addr>> {
    let resource = resources::find("", "v1", "endpoints")?;
    let entry = server.caches.of(resource).get("default/kubernetes")?;
    let endpoints = entry.object();
    let [subset] = endpoints["subsets"].as_array()?.as_slice() else {
        return None;
    };
    let addresses = subset["addresses"].as_array().into_iter().flatten();
    let parsed = addresses.map(|a: &Value| a["ip"].as_str()?.parse().ok());
    parsed.collect()
}

/// Puts this server among the published ones.
pub(super) async fn reconcile(server: &Arc<Server>, own: Ipv4Addr) -> Result<(), Error> {
    let count = usize::try_from(server.config.endpoints.apiserver_count).unwrap_or(1);
    let addresses = published(server).unwrap_or_default();
    bootstrap::publish_endpoints(server, &with(own, addresses, count)).await
}

/// Takes this server away from the published ones.
pub(super) async fn withdraw(server: &Arc<Server>, own: Ipv4Addr) -> Result<(), Error> {
    let mut addresses = published(server).unwrap_or_default();
    addresses.retain(|address| *address != own);
    bootstrap::publish_endpoints(server, &addresses).await
}

/// With `own`; the ones that follow it make room, so that all servers come to the same list.
fn with(own: Ipv4Addr, mut addresses: Vec<Ipv4Addr>, count: usize) -> Vec<Ipv4Addr> {
    if !addresses.contains(&own) {
        addresses.push(own);
    }
    addresses.sort_unstable();
    while addresses.len() > count.max(1) {
        let at = addresses.iter().position(|address| *address == own);
        let next = at.map_or(0, |at| (at + 1) % addresses.len());
        addresses.remove(next);
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_make_room() {
        let ip = |last: u8| Ipv4Addr::new(192, 0, 2, last);
        let ips = |lasts: &[u8]| lasts.iter().map(|last| ip(*last)).collect::<Vec<_>>();
        for (own, there, count, expected) in [
            (1, &[][..], 1, &[1][..]),
            (2, &[1], 2, &[1, 2]),
            (2, &[1, 3], 2, &[1, 2]),
            // Who is last takes the first one's place.
            (4, &[1, 2, 3], 2, &[3, 4]),
            (1, &[1, 2, 3], 3, &[1, 2, 3]),
            (1, &[2, 1, 3], 1, &[1]),
        ] {
            assert_eq!(
                with(ip(own), ips(there), count),
                ips(expected),
                "{own} {there:?}"
            );
        }
    }
}

//! Node-to-node routes: `podCIDR(other) via nodeIP(other)`.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};

use crate::link::{Netlink, errno};
use crate::{Context, Result};

/// Marks our routes (the value is free for administrators' use), so that a stale one is ours to delete.
const OURS: RouteProtocol = RouteProtocol::Other(0x46);

/// Makes the routes that we own in the process's namespace, or in the one at `namespace`, exactly these.
/// Only differences are applied.
pub async fn set_routes(namespace: Option<&Path>, routes: &[(Ipv4Net, Ipv4Addr)]) -> Result<()> {
    let netlink = match namespace {
        Some(path) => Netlink::in_namespace(path)?,
        None => Netlink::here()?,
    };
    let wanted: HashMap<Ipv4Net, Ipv4Addr> = routes
        .iter()
        .map(|(destination, gateway)| (destination.trunc(), *gateway))
        .collect();
    let mut present = HashMap::new();
    for message in ours(&netlink).await? {
        if let Some((destination, gateway)) = parse(&message) {
            if wanted.contains_key(&destination) {
                present.insert(destination, gateway);
            } else {
                match netlink.handle().route().del(message).execute().await {
                    Err(error) if errno(&error) == Some(nix::libc::ESRCH) => {}
                    other => other.context(|| format!("deleting the route to {destination}"))?,
                }
            }
        }
    }
    for (destination, gateway) in wanted {
        if present.get(&destination) == Some(&gateway) {
            continue;
        }
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination.network(), destination.prefix_len())
            .gateway(gateway)
            .protocol(OURS)
            .build();
        netlink
            .handle()
            .route()
            .add(route)
            .replace()
            .execute()
            .await
            .context(|| format!("setting the route to {destination} via {gateway}"))?;
    }
    Ok(())
}

async fn ours(netlink: &Netlink) -> Result<Vec<RouteMessage>> {
    let all: Vec<RouteMessage> = netlink
        .handle()
        .route()
        .get(RouteMessageBuilder::<Ipv4Addr>::new().build())
        .execute()
        .try_collect()
        .await
        .context(|| "listing routes".to_owned())?;
    Ok(all
        .into_iter()
        .filter(|route| route.header.protocol == OURS)
        .collect())
}

fn parse(message: &RouteMessage) -> Option<(Ipv4Net, Ipv4Addr)> {
    let mut destination = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = Some(*address)
            }
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            _ => {}
        }
    }
    let network = Ipv4Net::new(destination?, message.header.destination_prefix_length).ok()?;
    Some((network, gateway?))
}

//! Routes to the pods of the nodes: what upstream leaves to a cloud's route table.

use std::net::Ipv4Addr;
use std::path::Path;

use fluyt_client::{Informer, Selectors};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

/// Keeps the routes of a network namespace, or of our own, in step with the Nodes until shutdown. A node has none to
/// itself: `own` is its name.
pub async fn run(
    client: Client,
    namespace: Option<&Path>,
    own: Option<&str>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let nodes = Informer::<Node>::start(Api::all(client), Selectors::default(), shutdown.clone());
    nodes.synced().await;
    let mut changes = nodes.subscribe();
    let mut applied = None;
    loop {
        let mut wanted: Vec<_> = nodes
            .list()
            .iter()
            .filter_map(|node| route(node, own))
            .collect();
        wanted.sort_unstable();
        if applied.as_ref() != Some(&wanted) {
            fluyt_network::set_routes(namespace, &wanted).await?;
            applied = Some(wanted);
        }
        tokio::select! {
            change = changes.recv() => if change.is_none() { return Ok(()) },
            () = shutdown.cancelled() => return Ok(()),
        }
        // One look for all that has changed.
        while changes.try_recv().is_ok() {}
    }
}

fn route(node: &Node, own: Option<&str>) -> Option<(Ipv4Net, Ipv4Addr)> {
    if own.is_some() && node.metadata.name.as_deref() == own {
        return None;
    }
    let pods = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().find(|a| a.type_ == "InternalIP")?;
    Some((pods, internal.address.parse().ok()?))
}

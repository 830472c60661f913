//! Routes to the pods of the other nodes: what upstream leaves to a cloud's route table.

use std::net::Ipv4Addr;
use std::path::Path;

use fluyt_client::{Informer, Selectors, kubeconfig};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio_util::sync::CancellationToken;

/// Keeps the routes in step with the Nodes until shutdown.
pub async fn run(own: String, shutdown: CancellationToken) -> anyhow::Result<()> {
    if !super::joined(&shutdown).await? {
        return Ok(());
    }
    let client = kubeconfig::client(Some(Path::new(super::KUBECONFIG)), "fluyt-node").await?;
    let nodes = Informer::<Node>::start(Api::all(client), Selectors::default(), shutdown.clone());
    nodes.synced().await;
    let mut changes = nodes.subscribe();
    let mut applied = None;
    loop {
        let mut wanted: Vec<_> = nodes.list().iter().filter_map(|node| route(node, &own)).collect();
        wanted.sort_unstable();
        if applied.as_ref() != Some(&wanted) {
            fluyt_network::set_routes(None, &wanted).await?;
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

fn route(node: &Node, own: &str) -> Option<(Ipv4Net, Ipv4Addr)> {
    if node.metadata.name.as_deref() == Some(own) {
        return None;
    }
    let pods = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let internal = addresses.iter().find(|a| a.type_ == "InternalIP")?;
    Some((pods, internal.address.parse().ok()?))
}

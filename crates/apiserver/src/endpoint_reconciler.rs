//! The `kubernetes` service and its endpoints. Servers that share a store keep a key with a time to live each
//! (`masterleases`), and every one of them publishes all whose keys are there; or each keeps its own address among as many
//! as there shall be.

mod flags;
mod master_count;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fluyt_api::Error;
use fluyt_etcd::{Keys, Range};
use serde_json::json;

use crate::Server;
use crate::announcement::{announce, withdraw};
use crate::bootstrap;
use crate::cache::REGISTRY;

pub use flags::{Endpoints, Reconciler};

/// How often it makes itself heard.
const INTERVAL: Duration = Duration::from_secs(10);

fn prefix() -> String {
    format!("{REGISTRY}masterleases/")
}

/// Loopback is nobody's endpoint, since each pod has one of its own.
fn address(server: &Server) -> Option<Ipv4Addr> {
    match server.config.advertise {
        SocketAddr::V4(address) => Some(*address.ip()).filter(|ip| !ip.is_loopback()),
        SocketAddr::V6(_) => None,
    }
}

/// Keeps this server among the endpoints until shutdown.
pub async fn run(server: Arc<Server>) {
    let kind = server.config.endpoints.endpoint_reconciler_type;
    if !server.config.shares_store || kind == Reconciler::None {
        return;
    }
    let _held = server.drain.hold();
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = server.shutdown.cancelled() => break,
        }
        if let Err(error) = reconcile(&server).await {
            tracing::warn!(%error, "cannot keep the endpoints of the kubernetes service");
        }
    }
    if let Err(error) = leave(&server).await {
        tracing::warn!(%error, "this server stays among the endpoints of the kubernetes service");
    }
}

/// Makes this server heard, and publishes it with all others.
///
/// # Errors
/// When the store or a write fails.
pub async fn reconcile(server: &Arc<Server>) -> Result<(), Error> {
    let Some(own) = address(server) else {
        return Ok(());
    };
    match server.config.endpoints.endpoint_reconciler_type {
        Reconciler::None => return Ok(()),
        Reconciler::MasterCount => return master_count::reconcile(server, own).await,
        Reconciler::Lease if server.config.shares_store => {}
        Reconciler::Lease => return bootstrap::publish_endpoints(server, &[own]).await,
    }
    let endpoints = json!({"metadata": {}, "subsets": [{"addresses": [{"ip": own.to_string()}]}]});
    announce(server, &format!("{}{own}", prefix()), &endpoints).await?;
    let keys = Keys::prefix(prefix());
    let found = server.caches.main().store().range(Range::new(keys)).await;
    let mut addresses: Vec<Ipv4Addr> = found
        .map_err(Error::internal)?
        .kvs
        .iter()
        .filter_map(|kv| {
            let name = kv.key.rsplit(|b| *b == b'/').next()?;
            std::str::from_utf8(name).ok()?.parse().ok()
        })
        .collect();
    addresses.sort_unstable();
    bootstrap::publish_endpoints(server, &addresses).await
}

/// What is left, the others publish.
async fn leave(server: &Arc<Server>) -> Result<(), Error> {
    let Some(own) = address(server) else {
        return Ok(());
    };
    if server.config.endpoints.endpoint_reconciler_type == Reconciler::MasterCount {
        return master_count::withdraw(server, own).await;
    }
    withdraw(server, &format!("{}{own}", prefix())).await
}

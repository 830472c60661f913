//! The `kubernetes` service and its endpoints. Servers that share a store keep a key with a time to live each
//! (`masterleases`), and every one of them publishes all whose keys are there; or each keeps its own address among as many
//! as there shall be.

mod flags;
mod master_count;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fluyt_api::{Error, resources};
use fluyt_etcd::{Delete, Keys, Op, Put, Range, Txn};
use serde_json::json;

use crate::Server;
use crate::bootstrap;
use crate::cache::REGISTRY;

pub use flags::{Endpoints, Reconciler};

/// How long a server counts after it was last heard of, in seconds.
const TTL: i64 = 15;

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
    if let Err(error) = withdraw(&server).await {
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
    announce(server, own).await?;
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

/// Renews this server's key, whose value is an `Endpoints` of it, as upstream's is.
async fn announce(server: &Server, own: Ipv4Addr) -> Result<(), Error> {
    let store = server.caches.main().store();
    let resource = resources::find("", "v1", "endpoints").ok_or_else(Error::no_route)?;
    let key = format!("{}{own}", prefix());
    let endpoints = json!({"metadata": {}, "subsets": [{"addresses": [{"ip": own.to_string()}]}]});
    let value = server
        .caches
        .codec
        .encode(resource, key.as_bytes(), &endpoints)
        .await
        .map_err(Error::internal)?;
    let (lease, _) = store.lease_grant(0, TTL).await.map_err(Error::internal)?;
    let put = Op::Put(Put {
        lease,
        ..Put::new(key, value)
    });
    store.txn(only(put)).await.map_err(Error::internal)?;
    Ok(())
}

/// What is left, the others publish.
async fn withdraw(server: &Arc<Server>) -> Result<(), Error> {
    let Some(own) = address(server) else {
        return Ok(());
    };
    if server.config.endpoints.endpoint_reconciler_type == Reconciler::MasterCount {
        return master_count::withdraw(server, own).await;
    }
    let delete = Op::Delete(Delete {
        keys: Keys::One(format!("{}{own}", prefix()).into()),
        prev_kv: false,
    });
    let store = server.caches.main().store();
    store.txn(only(delete)).await.map_err(Error::internal)?;
    Ok(())
}

fn only(op: Op) -> Txn {
    Txn {
        compares: Vec::new(),
        success: vec![op],
        failure: Vec::new(),
    }
}

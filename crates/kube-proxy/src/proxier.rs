//! The loop: whenever Services or EndpointSlices have changed, say what should be reachable now.

use std::time::{Duration, Instant};

use fluyt_client::Informers;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::health::Status;
use crate::model;
use crate::nft::Table;
use crate::ruleset::{Ruleset, Settings};

/// Wait after a transaction that nftables refused.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until shutdown. The rules stay when the process ends: traffic must not stop because its proxy restarts.
///
/// # Errors
/// None; failures to apply rules are retried.
pub async fn run(
    client: Client,
    node: String,
    settings: Settings,
    status: Status,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let informers = Informers::new(client, shutdown.clone());
    let services = informers.get::<Service>();
    let slices = informers.get::<EndpointSlice>();
    let (mut service_changes, mut slice_changes) = (services.subscribe(), slices.subscribe());
    tokio::select! {
        () = async { tokio::join!(services.synced(), slices.synced()); } => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    let mut table = Table::default();
    loop {
        // Everything that has queued up meanwhile is covered by one sync.
        while service_changes.try_recv().is_ok() {}
        while slice_changes.try_recv().is_ok() {}
        let started = Instant::now();
        let wanted = Ruleset::build(&model::build(&services, &slices, &node), &settings);
        let applied = table.apply(wanted).await;
        status.observe(started.elapsed(), applied.is_ok());
        let retry = match applied {
            Ok(()) => None,
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "cannot apply rules; trying again"
                );
                Some(RETRY)
            }
        };
        tokio::select! {
            changed = service_changes.recv() => if changed.is_none() { return Ok(()) },
            changed = slice_changes.recv() => if changed.is_none() { return Ok(()) },
            () = tokio::time::sleep(retry.unwrap_or(Duration::MAX)), if retry.is_some() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

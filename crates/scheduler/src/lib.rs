//! kube-scheduler: chooses a node for every pod that has none.
//!
//! [`framework`] is the plugin interface, [`plugins`] holds one file per plugin; [`scheduler`] is the loop over the
//! queue and the cache, which the handlers feed from informers.

pub mod args;
mod cache;
pub mod configuration;
pub mod framework;
mod handlers;
pub mod plugins;
mod queue;
mod scheduler;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use fluyt_client::{Informers, Recorder};
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, StatefulSet},
    core::v1::{
        Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController,
        Service,
    },
    policy::v1::PodDisruptionBudget,
    storage::v1::StorageClass,
};
use kube::Client;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use self::{args::Args, configuration::ProfileConfig};
use crate::scheduler::Scheduler;

/// Configuration of the scheduler.
#[derive(Clone)]
pub struct Config {
    pub profiles: Vec<ProfileConfig>,
    /// Informers to share with other components of the process; own ones if none are given.
    pub informers: Option<Informers>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            profiles: vec![ProfileConfig::default()],
            informers: None,
        }
    }
}

/// Schedule pods until `shutdown`.
pub async fn start(
    config: Config,
    client: Client,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let informers = match config.informers {
        Some(informers) => informers,
        None => Informers::new(client.clone(), shutdown.clone()),
    };
    let profiles = config.profiles.iter().map(|profile| {
        let recorder = Recorder::new(client.clone(), &profile.scheduler_name, "");
        (profile.build(&client, &informers), recorder)
    });
    let profiles: Vec<_> = profiles.collect();
    let pods = informers.get::<Pod>();
    let budgets = informers.get::<PodDisruptionBudget>();
    let scheduler = Arc::new(Scheduler::new(client, profiles, pods, budgets));
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = synced(&informers) => {}
    }
    handlers::attach(&scheduler, &informers);
    info!("scheduling");
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = Arc::clone(&scheduler).run() => {}
    }
    Ok(())
}

/// Wait until all that plugins look at is there.
async fn synced(informers: &Informers) {
    informers.get::<Pod>().synced().await;
    informers.get::<Node>().synced().await;
    informers.get::<Namespace>().synced().await;
    informers.get::<PodDisruptionBudget>().synced().await;
    informers.get::<PersistentVolumeClaim>().synced().await;
    informers.get::<PersistentVolume>().synced().await;
    informers.get::<StorageClass>().synced().await;
    informers.get::<Service>().synced().await;
    informers.get::<ReplicaSet>().synced().await;
    informers.get::<StatefulSet>().synced().await;
    informers.get::<ReplicationController>().synced().await;
}

/// Run alone, as `fluyt kube-scheduler`.
pub async fn run(args: Args, shutdown: CancellationToken) -> anyhow::Result<()> {
    args::run(args, shutdown).await
}

#[cfg(test)]
mod tests;

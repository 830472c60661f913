//! Makes a cluster what its record says, and keeps it so. One task per cluster.
//!
//! A pass over the record is cut short when the record changes and begun again: every step may be repeated.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use fluyt_client::{Informer, Selectors};
use fluyt_network::ClusterNetwork;
use futures::FutureExt as _;
use futures::future::{join_all, select_all};
use k8s_openapi::api::core::v1::Node;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::keeper::{Keeper, Kept, Status};
use super::machines::{NodeMachine, machine};
use super::master_process::{self, MasterProcess};
use super::record::{Cluster, ClusterKey, Outbound, ProvisioningState};
use super::{drain, kubeconfig};
use crate::backoff::Restarts;
use crate::master::pki::{self, Keys};
use crate::providers::sandbox;
use crate::service::Service;

/// Nodes that are not ready by then fail the operation.
const PATIENCE: Duration = Duration::from_secs(600);

/// So does what could not be started this many times.
const TRIES: u32 = 3;

/// One cluster's supervisor.
pub struct Supervisor {
    service: Arc<Service>,
    key: ClusterKey,
    master: Option<Keeper>,
    nodes: HashMap<String, Keeper>,
}

// === impl Supervisor ===

impl Supervisor {
    /// Supervises until the cluster is gone or the service ends; then the cluster's processes go on alone.
    pub fn spawn(service: Arc<Service>, key: ClusterKey) {
        let supervisor = Self {
            service: service.clone(),
            key,
            master: None,
            nodes: HashMap::new(),
        };
        service.supervisors.spawn(supervisor.run());
    }

    async fn run(mut self) {
        let service = self.service.clone();
        let mut failures = Restarts::default();
        while let Some(cluster) = service.state.cluster(&self.key) {
            let changed = wait_for_change(&service, self.key.clone(), cluster.generation);
            tokio::pin!(changed);
            let outcome = tokio::select! {
                outcome = self.converge(&cluster) => outcome,
                () = &mut changed => continue,
                () = service.shutdown.cancelled() => return,
            };
            match outcome {
                Ok(()) if cluster.state == ProvisioningState::Deleting => return,
                Ok(()) if cluster.state.is_busy() => self.finish(&cluster, None).await,
                Ok(()) => {}
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(cluster = cluster.name, error, "not as it should be");
                    if cluster.state.is_busy() && cluster.state != ProvisioningState::Deleting {
                        self.finish(&cluster, Some(error)).await;
                    } else {
                        tokio::select! {
                            () = tokio::time::sleep(failures.delay().max(Duration::from_secs(1))) => continue,
                            () = service.shutdown.cancelled() => return,
                        }
                    }
                }
            }
            tokio::select! {
                () = changed => {}
                () = service.shutdown.cancelled() => return,
            }
        }
    }

    /// Ends the operation under way.
    async fn finish(&self, cluster: &Cluster, error: Option<String>) {
        let state = if error.is_none() {
            ProvisioningState::Succeeded
        } else {
            ProvisioningState::Failed
        };
        let error =
            error.map(|message| json!({"code": "InternalOperationError", "message": message}));
        let written = self.service.state.update(|tables| {
            tables.edit(&self.key, |now| {
                now.state = state;
                for pool in now.pools.iter_mut().filter(|p| p.state.is_busy()) {
                    pool.state = state;
                    pool.generation += 1;
                }
            });
            tables.finish(&cluster.operation, error);
            anyhow::Ok(())
        });
        if let Err(error) = written.await {
            tracing::error!(
                error = format!("{error:#}"),
                "cannot record the end of an operation"
            );
        }
        self.service.state.clear_progress(&cluster.operation);
    }

    async fn converge(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        if cluster.state == ProvisioningState::Deleting {
            return self.delete(cluster).await;
        }
        let data = self.service.settings.data_dir.clone();
        let config = master_process::config(&data, cluster);
        let keys = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || pki::ensure(&config)).await??
        };
        let network = ClusterNetwork::create(&cluster.namespace(), cluster.network.gateway())
            .await
            .context("making the cluster's network")?;
        match cluster.network.outbound {
            // Made anew when the service starts: it is stateless, and the host may have been rebooted.
            Outbound::LoadBalancer if self.master.is_none() => network
                .enable_egress(cluster.network.egress_link())
                .await
                .context("opening egress")?,
            _ => {}
        }
        if self.master.is_none() {
            self.progress(cluster, "starting the master".to_owned());
            self.master = Some(Keeper::start(Arc::new(MasterProcess { config })));
        }
        for pool in &cluster.pools {
            for node in pool
                .nodes
                .iter()
                .filter(|n| !n.leaving && !self.nodes.contains_key(&n.name))
                .collect::<Vec<_>>()
            {
                let machine = machine(&data, cluster, pool, node, &keys)?;
                let kept = NodeMachine {
                    provider: self.service.provider.clone(),
                    machine,
                };
                self.nodes
                    .insert(node.name.clone(), Keeper::start(Arc::new(kept)));
            }
        }
        let client = client(cluster, &keys).await?;
        self.remove_leaving(cluster, &keys, &client).await?;
        if cluster.state.is_busy() {
            self.wait_until_ready(cluster, &client).await?;
        }
        Ok(())
    }

    fn progress(&self, cluster: &Cluster, step: String) {
        if cluster.state.is_busy() {
            self.service.state.set_progress(&cluster.operation, step);
        }
    }

    /// Resolves when all nodes that are to stay are ready.
    async fn wait_until_ready(&self, cluster: &Cluster, client: &Client) -> anyhow::Result<()> {
        let wanted: Vec<&str> = cluster
            .pools
            .iter()
            .flat_map(|p| &p.nodes)
            .filter(|n| !n.leaving)
            .map(|n| n.name.as_str())
            .collect();
        let watching = CancellationToken::new();
        let _end = watching.clone().drop_guard();
        let nodes =
            Informer::<Node>::start(Api::all(client.clone()), Selectors::default(), watching);
        let all_ready = async {
            let mut changes = nodes.subscribe();
            loop {
                let ready = wanted
                    .iter()
                    .filter(|name| nodes.get(None, name).is_some_and(|n| is_ready(&n)))
                    .count();
                if ready == wanted.len() {
                    return;
                }
                self.progress(
                    cluster,
                    format!("waiting for nodes: {ready} of {} ready", wanted.len()),
                );
                if changes.recv().await.is_none() {
                    return;
                }
            }
        };
        let failing = select_all(
            self.master
                .iter()
                .chain(self.nodes.values())
                .map(|keeper| given_up(keeper).boxed()),
        );
        tokio::select! {
            () = all_ready => Ok(()),
            (error, _, _) = failing => Err(anyhow::anyhow!(error)),
            () = tokio::time::sleep(PATIENCE) => anyhow::bail!("not all nodes became ready in {PATIENCE:?}"),
        }
    }

    /// Drains and removes the nodes that are to go, and pools that have none left and are to go too.
    async fn remove_leaving(
        &mut self,
        cluster: &Cluster,
        keys: &Keys,
        client: &Client,
    ) -> anyhow::Result<()> {
        let mut removals = Vec::new();
        for pool in &cluster.pools {
            for node in pool.nodes.iter().filter(|n| n.leaving) {
                removals.push((
                    node.name.clone(),
                    machine(&self.service.settings.data_dir, cluster, pool, node, keys)?,
                ));
            }
        }
        if !removals.is_empty() {
            self.progress(cluster, format!("removing {} nodes", removals.len()));
        }
        join_all(removals.iter().map(|(name, _)| drain::drain(client, name))).await;
        for (name, machine) in &removals {
            if let Some(keeper) = self.nodes.get_mut(name) {
                keeper.kill().await;
            }
            self.nodes.remove(name);
            self.service.provider.delete(machine).await?;
            drain::forget(client, name).await?;
        }
        if removals.is_empty() && cluster.pools.iter().all(|p| !p.deleting) {
            return Ok(());
        }
        // The pass goes on with the nodes that stay, which this does not change: no new generation.
        self.service
            .state
            .update(|tables| {
                if let Some(now) = tables.clusters.get_mut(&self.key) {
                    let now = Arc::make_mut(now);
                    for pool in &mut now.pools {
                        pool.nodes
                            .retain(|n| !removals.iter().any(|(name, _)| *name == n.name));
                    }
                    now.pools.retain(|p| !p.deleting || !p.nodes.is_empty());
                }
                anyhow::Ok(())
            })
            .await
    }

    /// Removes every trace of the cluster.
    async fn delete(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        self.progress(cluster, "removing nodes and master".to_owned());
        let data = self.service.settings.data_dir.clone();
        let config = master_process::config(&data, cluster);
        let keys = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || pki::ensure(&config)).await??
        };
        join_all(
            self.nodes
                .values_mut()
                .chain(self.master.as_mut())
                .map(Keeper::kill),
        )
        .await;
        // Those that were never adopted since the service started.
        let master = MasterProcess { config };
        if let Some(running) = master.adopt().await? {
            running.signal(rustix::process::Signal::KILL);
            running.ended().await;
        }
        self.master = None;
        self.nodes.clear();
        for pool in &cluster.pools {
            let machines = pool
                .nodes
                .iter()
                .map(|node| machine(&data, cluster, pool, node, &keys));
            let machines: Vec<_> = machines.collect::<Result<_, _>>()?;
            let deleted = join_all(
                machines
                    .iter()
                    .map(|machine| self.service.provider.delete(machine)),
            )
            .await;
            deleted.into_iter().collect::<anyhow::Result<()>>()?;
        }
        cluster
            .cluster_network()
            .delete()
            .await
            .context("removing the cluster's network")?;
        let directory = cluster.directory(&data);
        tokio::task::spawn_blocking(move || {
            std::fs::remove_dir_all(&directory)
                .with_context(|| format!("removing {}", directory.display()))
        })
        .await??;
        sandbox::forget_cluster(&cluster.id);
        self.service
            .state
            .update(|tables| {
                tables.clusters.remove(&self.key);
                tables.finish(&cluster.operation, None);
                anyhow::Ok(())
            })
            .await?;
        self.service.state.clear_progress(&cluster.operation);
        Ok(())
    }
}

async fn wait_for_change(service: &Arc<Service>, key: ClusterKey, generation: u64) {
    let mut changes = service.state.subscribe();
    while service
        .state
        .cluster(&key)
        .is_some_and(|now| now.generation == generation)
    {
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Resolves with the reason when what is kept has failed too often.
async fn given_up(keeper: &Keeper) -> String {
    let mut status = keeper.status();
    let failed = status
        .wait_for(|s| matches!(s, Status::Failing { times, .. } if *times >= TRIES))
        .await
        .map(|s| s.clone());
    match failed {
        Ok(Status::Failing { error, .. }) => error,
        _ => std::future::pending().await,
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

/// A client with the administrator's rights, through the host's loopback.
async fn client(cluster: &Cluster, keys: &Keys) -> anyhow::Result<Client> {
    let config = Kubeconfig::from_yaml(&kubeconfig::admin(cluster, keys, true)?)?;
    let config =
        kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

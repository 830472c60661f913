//! deployment-controller: moves a set of pods from one template to the next by scaling ReplicaSets.

mod conditions;
mod replica_sets;
mod rolling;
mod scaling;
mod status;

use std::{collections::HashMap, sync::Arc};

use fluyt_client::{
    Action, Change, EventType, Informer, ObjectKey, Recorder, WorkQueue, controller,
    helpers::{labels, pods},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::{Api, Resource, api::PostParams};

use self::{
    replica_sets::NewReplicaSet,
    rolling::{max_surge, max_unavailable},
};
use crate::{
    Context,
    common::{
        adoption, by_controller, controller_key, enqueue, name, namespace, pod_control::message_of,
        uid,
    },
};

const COMPONENT: &str = "deployment-controller";

struct Controller {
    context: Context,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    recorder: Recorder,
}

/// One Deployment with its ReplicaSets while it is reconciled. `deployment.status.conditions` collects what to
/// write at the end; ReplicaSets are replaced by what the server returned when they are written.
struct Rollout {
    deployment: Deployment,
    /// Of the current template.
    new: Option<ReplicaSet>,
    /// Of earlier templates.
    old: Vec<ReplicaSet>,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let deployments = context.informers.get::<Deployment>();
    let replica_sets = context.informers.get::<ReplicaSet>();
    let all_pods = context.informers.get::<Pod>();
    deployments.synced().await;
    replica_sets.synced().await;
    all_pods.synced().await;
    let queue = WorkQueue::new();
    enqueue(&deployments, &queue);
    watch_replica_sets(&replica_sets, &deployments, &queue);
    watch_pods(&all_pods, &replica_sets, &deployments, &queue);
    let controller = Controller {
        recorder: context.recorder(COMPONENT),
        deployments,
        replica_sets,
        pods: all_pods,
        context,
    };
    let workers = controller.context.config.concurrent_deployment_syncs;
    let shutdown = controller.context.shutdown.clone();
    let delayed = queue.clone();
    let reconcile = |key| controller.reconcile(key);
    controller::run(COMPONENT, delayed, workers, reconcile, shutdown).await;
}

fn watch_replica_sets(
    replica_sets: &Informer<ReplicaSet>,
    deployments: &Informer<Deployment>,
    queue: &WorkQueue<ObjectKey>,
) {
    let deployments = deployments.clone();
    crate::common::enqueue_mapped(replica_sets, queue, move |set| {
        if let Some(owner) = controller_key(&set.metadata, "apps", "Deployment") {
            return vec![owner];
        }
        if crate::common::controller_of(&set.metadata).is_some() {
            return Vec::new();
        }
        let candidates = deployments.list_namespace(namespace(&set.metadata));
        let matching = candidates.iter().filter(|deployment| {
            let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
            selector.is_some_and(|selector| {
                !labels::is_empty(selector)
                    && labels::matches(selector, labels::labels_of(&set.metadata))
            })
        });
        matching
            .map(|deployment| ObjectKey::of(&**deployment))
            .collect()
    });
}

/// A Recreate rollout goes on when the last old pod is gone.
fn watch_pods(
    all_pods: &Informer<Pod>,
    replica_sets: &Informer<ReplicaSet>,
    deployments: &Informer<Deployment>,
    queue: &WorkQueue<ObjectKey>,
) {
    let (replica_sets, deployments, queue) =
        (replica_sets.clone(), deployments.clone(), queue.clone());
    all_pods.on_change(move |change| {
        let pod = match &change {
            Change::Deleted(pod) => pod,
            Change::Updated { new, .. } if pods::is_terminated(new) => new,
            _ => return,
        };
        let owner = controller_key(&pod.metadata, "apps", "ReplicaSet")
            .and_then(|key| replica_sets.get_key(&key))
            .and_then(|set| controller_key(&set.metadata, "apps", "Deployment"))
            .and_then(|key| deployments.get_key(&key));
        if let Some(deployment) = owner.filter(|deployment| is_recreate(deployment)) {
            queue.add(ObjectKey::of(&*deployment));
        }
    });
}

fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn desired_replicas(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

fn is_paused(deployment: &Deployment) -> bool {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.paused)
        .unwrap_or(false)
}

/// `spec.replicas` of a ReplicaSet.
fn size(set: &ReplicaSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

/// `status.replicas` of a ReplicaSet.
fn actual_size(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

impl Rollout {
    fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.old.iter().chain(&self.new)
    }

    fn replica_set_mut(&mut self, set_name: &str) -> Option<&mut ReplicaSet> {
        let mut all = self.old.iter_mut().chain(&mut self.new);
        all.find(|set| name(&set.metadata) == set_name)
    }
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let Some(cached) = self.deployments.get_key(&key) else {
            return Ok(Action::Await);
        };
        let mut deployment = (*cached).clone();
        let Some(spec) = deployment.spec.clone() else {
            return Ok(Action::Await);
        };
        if labels::is_empty(&spec.selector) {
            let message =
                "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.event(
                &deployment.object_ref(&()),
                EventType::Warning,
                "SelectingAll",
                message,
            );
            return Ok(Action::Await);
        }
        let sets = self.owned_replica_sets(&key, &deployment).await?;
        if deployment.metadata.deletion_timestamp.is_some() {
            let mut rollout = Box::pin(self.split(deployment, sets, NewReplicaSet::Find)).await?;
            return self.write_status(&mut rollout, &cached, false).await;
        }
        conditions::note_pause(&mut deployment);
        if is_paused(&deployment) || scaling::is_scaling_event(&deployment, &sets) {
            let mut rollout = Box::pin(self.split(deployment, sets, NewReplicaSet::Find)).await?;
            self.scale(&mut rollout).await?;
            if is_paused(&rollout.deployment) {
                self.clean_up(&rollout).await?;
            }
            return self.write_status(&mut rollout, &cached, false).await;
        }
        let create = if is_recreate(&deployment) {
            NewReplicaSet::Find
        } else {
            NewReplicaSet::Create
        };
        let mut rollout = Box::pin(self.split(deployment, sets, create)).await?;
        let moved = if is_recreate(&rollout.deployment) {
            self.recreate(&mut rollout).await?
        } else {
            self.roll(&mut rollout).await?
        };
        let status = rollout.deployment.status.clone().unwrap_or_default();
        if !moved && status::is_complete(&rollout.deployment, &status) {
            self.clean_up(&rollout).await?;
        }
        self.write_status(&mut rollout, &cached, true).await
    }

    async fn owned_replica_sets(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
    ) -> anyhow::Result<Vec<ReplicaSet>> {
        let owners = Api::<Deployment>::namespaced(self.context.client.clone(), &key.namespace);
        let api = Api::<ReplicaSet>::namespaced(self.context.client.clone(), &key.namespace);
        let selector = deployment
            .spec
            .as_ref()
            .map(|spec| spec.selector.clone())
            .unwrap_or_default();
        let candidates = self.replica_sets.list_namespace(&key.namespace);
        let owned =
            adoption::claim(deployment, &owners, &api, &selector, candidates, |_| true).await?;
        Ok(owned.iter().map(|set| (**set).clone()).collect())
    }

    /// One step of a rolling update; says whether anything was scaled.
    async fn roll(&self, rollout: &mut Rollout) -> anyhow::Result<bool> {
        let Some(new) = rollout.new.clone() else {
            return Ok(false);
        };
        let all: Vec<_> = rollout.all().cloned().collect();
        let target = rolling::new_replica_set_size(&rollout.deployment, &all, size(&new));
        if target != size(&new) {
            self.scale_replica_set(rollout, name(&new.metadata), target)
                .await?;
            return Ok(true);
        }
        let steps = rolling::scale_down_old(&rollout.deployment, &rollout.old, &new);
        for (set, target) in &steps {
            self.scale_replica_set(rollout, set, *target).await?;
        }
        Ok(!steps.is_empty())
    }

    /// One step of a Recreate rollout: all old pods go before the first new one comes.
    async fn recreate(&self, rollout: &mut Rollout) -> anyhow::Result<bool> {
        let active: Vec<String> = rollout
            .old
            .iter()
            .filter(|set| size(set) > 0)
            .map(|set| name(&set.metadata).to_owned())
            .collect();
        for set in &active {
            self.scale_replica_set(rollout, set, 0).await?;
        }
        if !active.is_empty() || self.old_pods_run(rollout) {
            return Ok(true);
        }
        if rollout.new.is_none() {
            self.create_replica_set(rollout).await?;
        }
        let target = desired_replicas(&rollout.deployment);
        let Some(new) = rollout.new.as_ref().filter(|new| size(new) != target) else {
            return Ok(false);
        };
        let new_name = name(&new.metadata).to_owned();
        self.scale_replica_set(rollout, &new_name, target).await?;
        Ok(true)
    }

    fn old_pods_run(&self, rollout: &Rollout) -> bool {
        if rollout.old.iter().any(|set| actual_size(set) > 0) {
            return true;
        }
        let pods_of = self.pods_by_replica_set(namespace(&rollout.deployment.metadata));
        rollout.old.iter().any(|set| {
            let of_set = pods_of
                .get(uid(&set.metadata))
                .map(Vec::as_slice)
                .unwrap_or_default();
            of_set.iter().any(|pod| !pods::is_terminated(pod))
        })
    }

    fn pods_by_replica_set(&self, namespace: &str) -> HashMap<String, Vec<Arc<Pod>>> {
        by_controller(self.pods.list_namespace(namespace))
    }

    /// Delete the oldest ReplicaSets without pods beyond `revisionHistoryLimit`.
    async fn clean_up(&self, rollout: &Rollout) -> anyhow::Result<()> {
        let limit = rollout
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.revision_history_limit);
        let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
        let api = self.replica_set_api(&rollout.deployment);
        for set in replica_sets::beyond_history(&rollout.old, limit) {
            match api
                .delete(name(&set.metadata), &kube::api::DeleteParams::default())
                .await
            {
                Err(error) if fluyt_client::is_not_found(&error) => {}
                result => drop(result?),
            }
        }
        Ok(())
    }

    /// Scale one ReplicaSet and keep its annotations about the Deployment's size current.
    async fn scale_replica_set(
        &self,
        rollout: &mut Rollout,
        set_name: &str,
        target: i32,
    ) -> anyhow::Result<()> {
        let deployment = rollout.deployment.clone();
        let Some(set) = rollout.replica_set_mut(set_name) else {
            return Ok(());
        };
        let before = size(set);
        let mut changed = set.clone();
        let annotated = scaling::annotate_sizes(&mut changed, &deployment);
        if before == target && !annotated {
            return Ok(());
        }
        changed.spec.get_or_insert_default().replicas = Some(target);
        let api = self.replica_set_api(&deployment);
        *set = api
            .replace(set_name, &PostParams::default(), &changed)
            .await?;
        if before != target {
            let direction = if target > before { "up" } else { "down" };
            let message =
                format!("Scaled {direction} replica set {set_name} from {before} to {target}");
            self.recorder.event(
                &deployment.object_ref(&()),
                EventType::Normal,
                "ScalingReplicaSet",
                message,
            );
        }
        Ok(())
    }

    /// Make the sizes add up after the Deployment was resized, without moving between revisions.
    async fn scale(&self, rollout: &mut Rollout) -> anyhow::Result<()> {
        for (set, target) in scaling::proportional(rollout) {
            self.scale_replica_set(rollout, &set, target).await?;
        }
        Ok(())
    }

    /// Write the status if it changed; `progressing` also judges the rollout's progress.
    async fn write_status(
        &self,
        rollout: &mut Rollout,
        cached: &Deployment,
        progressing: bool,
    ) -> anyhow::Result<Action> {
        let now = Timestamp::now();
        let mut fresh = status::calculate(rollout);
        if progressing {
            conditions::judge_progress(rollout, &mut fresh, now);
        }
        if Some(&fresh) == cached.status.as_ref() {
            return Ok(conditions::deadline_check(&rollout.deployment, &fresh, now));
        }
        let mut deployment = rollout.deployment.clone();
        deployment.status = Some(fresh.clone());
        let api = self.deployment_api(&deployment);
        api.replace_status(
            name(&deployment.metadata),
            &PostParams::default(),
            &deployment,
        )
        .await?;
        Ok(conditions::deadline_check(&deployment, &fresh, now))
    }

    fn deployment_api(&self, deployment: &Deployment) -> Api<Deployment> {
        Api::namespaced(self.context.client.clone(), namespace(&deployment.metadata))
    }

    fn replica_set_api(&self, deployment: &Deployment) -> Api<ReplicaSet> {
        Api::namespaced(self.context.client.clone(), namespace(&deployment.metadata))
    }

    /// Tell about a ReplicaSet that could not be created, in an event and in the conditions.
    fn creation_failed(&self, deployment: &mut Deployment, error: &kube::Error) {
        let message = format!("Failed to create new replica set: {}", message_of(error));
        let object = deployment.object_ref(&());
        self.recorder.event(
            &object,
            EventType::Warning,
            "ReplicaSetCreateError",
            message.clone(),
        );
        if conditions::has_progress_deadline(deployment) {
            conditions::set(
                deployment.status.get_or_insert_default(),
                conditions::new("Progressing", "False", "ReplicaSetCreateError", message),
            );
        }
    }
}

#[cfg(test)]
mod tests;

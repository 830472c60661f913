//! garbage-collector-controller: deletes objects whose owners are gone, and carries out foreground deletion and
//! orphaning.
//!
//! Metadata informers of every deletable resource feed a [`Graph`] of owners and dependents. What the graph suspects
//! is verified against the API server before anything is deleted: informers of different resources are not in step.

mod graph;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use fluyt_client::{Action, Change, WorkQueue, controller, is_conflict, is_not_found, status_code};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::ApiResource,
};
use parking_lot::{Mutex, RwLock};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::graph::{Followup, Graph, Identity};
use crate::{
    Context,
    common::{
        discovery::{self, Resource},
        uid,
    },
    context::Meta,
};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// How long after a change of the API (a CRD) discovery is read again.
const RESYNC_DELAY: Duration = Duration::from_millis(500);
/// Resources whose objects are too many and too short-lived to follow; they have no owners anyway.
const IGNORED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Task {
    /// Delete the object of this uid if nothing that exists owns it.
    Delete(String),
    /// Make the dependents of the object of this uid orphans.
    Orphan(String),
    /// Follow the resources that discovery has now.
    Resync,
}

struct Collector {
    context: Context,
    queue: WorkQueue<Task>,
    graph: Mutex<Graph>,
    /// By API version and kind.
    resources: RwLock<BTreeMap<(String, String), Resource>>,
    monitors: Mutex<BTreeMap<(String, String), CancellationToken>>,
    /// Owners that were found not to exist: a uid never comes back.
    absent: Mutex<HashSet<String>>,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let queue = WorkQueue::new();
    let collector = Arc::new(Collector {
        queue: queue.clone(),
        graph: Mutex::default(),
        resources: RwLock::default(),
        monitors: Mutex::default(),
        absent: Mutex::default(),
        context,
    });
    while let Err(error) = collector.resync().await {
        debug!(%error, "discovery failed, will retry");
        tokio::time::sleep(RESYNC_DELAY).await;
    }
    let workers = collector.context.config.concurrent_gc_syncs;
    let shutdown = collector.context.shutdown.clone();
    let reconcile = |task| collector.reconcile(task);
    controller::run(
        "garbage-collector-controller",
        queue,
        workers,
        reconcile,
        shutdown,
    )
    .await;
}

impl Collector {
    async fn reconcile(self: &Arc<Self>, task: Task) -> anyhow::Result<Action> {
        match task {
            Task::Delete(uid) => self.attempt_to_delete(&uid).await?,
            Task::Orphan(uid) => self.attempt_to_orphan(&uid).await?,
            Task::Resync => self.resync().await?,
        }
        Ok(Action::Await)
    }

    /// Start following resources that are new, stop following those that are gone.
    async fn resync(self: &Arc<Self>) -> anyhow::Result<()> {
        let discovered = discovery::discover(&self.context.client).await?;
        let mut wanted = BTreeMap::new();
        for resource in discovered.resources {
            let ignored =
                IGNORED.contains(&(resource.api.group.as_str(), resource.api.plural.as_str()));
            let followed = ["delete", "list", "watch"]
                .iter()
                .all(|verb| resource.supports(verb));
            if followed && !ignored {
                wanted.insert(
                    (resource.api.api_version.clone(), resource.api.kind.clone()),
                    resource,
                );
            }
        }
        let complete = discovered.failures.is_empty();
        {
            let mut monitors = self.monitors.lock();
            // What could not be discovered is not necessarily gone.
            monitors.retain(|key, stop| {
                let keep = wanted.contains_key(key) || !complete;
                if !keep {
                    stop.cancel();
                }
                keep
            });
            for (key, resource) in &wanted {
                if !monitors.contains_key(key) {
                    monitors.insert(key.clone(), self.follow(resource));
                }
            }
        }
        self.resources.write().extend(wanted);
        if !complete {
            self.queue.add_after(Task::Resync, Duration::from_secs(30));
        }
        Ok(())
    }

    fn follow(self: &Arc<Self>, resource: &Resource) -> CancellationToken {
        // Only who owns whom is of interest.
        let (informer, stop) = self.context.follow(&resource.api, |object| {
            object.metadata.annotations = None;
            object.metadata.labels = None;
        });
        let (this, resource) = (Arc::clone(self), resource.clone());
        let defines_apis = matches!(
            resource.api.kind.as_str(),
            "CustomResourceDefinition" | "APIService"
        );
        informer.on_change(move |change| {
            if defines_apis && !matches!(&change, Change::Updated { old, new } if old.metadata.generation == new.metadata.generation) {
                this.queue.add_after(Task::Resync, RESYNC_DELAY);
            }
            this.on_change(&resource.api, &change);
        });
        stop
    }

    fn on_change(&self, api: &ApiResource, change: &Change<Meta>) {
        let followups = {
            let mut graph = self.graph.lock();
            match change {
                Change::Added(object) | Change::Updated { new: object, .. } => {
                    graph.observe(&Identity::new(api, &object.metadata), &object.metadata)
                }
                Change::Deleted(object) => graph.forget(uid(&object.metadata)),
            }
        };
        self.enqueue(followups);
    }

    fn enqueue(&self, followups: Vec<Followup>) {
        for followup in followups {
            self.queue.add(match followup {
                Followup::Delete(uid) => Task::Delete(uid),
                Followup::Orphan(uid) => Task::Orphan(uid),
            });
        }
    }

    fn resource(&self, api_version: &str, kind: &str) -> Option<Resource> {
        let resources = self.resources.read();
        if let Some(resource) = resources.get(&(api_version.to_owned(), kind.to_owned())) {
            return Some(resource.clone());
        }
        // The owner was named in another version of its group.
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        resources
            .values()
            .find(|known| known.api.group == group && known.api.kind == kind)
            .cloned()
    }

    fn api(&self, identity: &Identity) -> Option<Api<Meta>> {
        let resource = self.resource(&identity.api_version, &identity.kind)?;
        let client = self.context.client.clone();
        Some(match &identity.namespace {
            Some(namespace) if resource.namespaced => {
                Api::namespaced_with(client, namespace, &resource.api)
            }
            _ => Api::all_with(client, &resource.api),
        })
    }

    /// The object as the API server has it now; `None` if it (this very one) is gone.
    async fn live(&self, identity: &Identity) -> anyhow::Result<Option<ObjectMeta>> {
        let Some(api) = self.api(identity) else {
            anyhow::bail!("unknown kind {} {}", identity.api_version, identity.kind);
        };
        let found = api.get_opt(&identity.name).await?;
        Ok(found
            .map(|found| found.metadata)
            .filter(|meta| uid(meta) == identity.uid))
    }

    async fn attempt_to_delete(&self, uid: &str) -> anyhow::Result<()> {
        let Some(node) = self.graph.lock().get(uid) else {
            return Ok(());
        };
        if node.is_leaving && !node.deletes_dependents {
            return Ok(());
        }
        if node.is_virtual
            && self
                .resource(&node.identity.api_version, &node.identity.kind)
                .is_none()
        {
            // Owned by a kind that nobody serves: nothing can be said about it.
            debug!(owner = ?node.identity, "owner of an unknown kind");
            return Ok(());
        }
        let Some(live) = self.live(&node.identity).await? else {
            if node.is_virtual {
                self.absent.lock().insert(uid.to_owned());
            }
            let followups = self.graph.lock().forget(uid);
            self.enqueue(followups);
            return Ok(());
        };
        if node.is_virtual {
            // It exists; its informer will bring it (or something of its kind is not followed).
            return Ok(());
        }
        if node.deletes_dependents {
            return self.delete_in_foreground(&node.identity, &live).await;
        }
        let owners = live.owner_references.clone().unwrap_or_default();
        if owners.is_empty() {
            return Ok(());
        }
        self.judge_by_owners(&node.identity, &live, owners, node.has_dependents)
            .await
    }

    async fn judge_by_owners(
        &self,
        identity: &Identity,
        live: &ObjectMeta,
        owners: Vec<OwnerReference>,
        has_dependents: bool,
    ) -> anyhow::Result<()> {
        let (mut solid, mut dangling, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for owner in owners {
            match self.state_of_owner(identity, &owner).await? {
                OwnerState::Solid => solid.push(owner),
                OwnerState::Absent => dangling.push(owner),
                OwnerState::WaitsForDependents => waiting.push(owner),
            }
        }
        if !solid.is_empty() {
            if dangling.is_empty() && waiting.is_empty() {
                return Ok(());
            }
            return self.set_owners(identity, live, solid).await;
        }
        let finalizers = live.finalizers.as_deref().unwrap_or_default();
        let has = |finalizer: &str| finalizers.iter().any(|known| known == finalizer);
        if !waiting.is_empty() && self.graph.lock().is_in_circle(&identity.uid) {
            // Each would wait for the other: it no longer holds up its owners.
            let freed = waiting.into_iter().map(|owner| OwnerReference {
                block_owner_deletion: Some(false),
                ..owner
            });
            let owners = freed.chain(dangling).collect();
            self.set_owners(identity, live, owners).await?;
            return self
                .delete_freed(identity, PropagationPolicy::Foreground)
                .await;
        }
        let policy = if !waiting.is_empty() && has_dependents {
            // Its own dependents go first, as the owner wants.
            PropagationPolicy::Foreground
        } else if has(ORPHAN) {
            PropagationPolicy::Orphan
        } else if has(FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        self.delete(identity, live, policy).await
    }

    /// Deletes what [`Self::set_owners`] has just changed.
    async fn delete_freed(
        &self,
        identity: &Identity,
        policy: PropagationPolicy,
    ) -> anyhow::Result<()> {
        match self.live(identity).await? {
            Some(live) => self.delete(identity, &live, policy).await,
            None => Ok(()),
        }
    }

    async fn state_of_owner(
        &self,
        dependent: &Identity,
        owner: &OwnerReference,
    ) -> anyhow::Result<OwnerState> {
        if self.absent.lock().contains(&owner.uid) {
            return Ok(OwnerState::Absent);
        }
        let known = self
            .graph
            .lock()
            .get(&owner.uid)
            .filter(|node| !node.is_virtual);
        if let Some(node) = known {
            let waits = node.deletes_dependents;
            return Ok(if waits {
                OwnerState::WaitsForDependents
            } else {
                OwnerState::Solid
            });
        }
        let Some(resource) = self.resource(&owner.api_version, &owner.kind) else {
            // A kind that is not served (any more): better keep than delete.
            return Ok(OwnerState::Solid);
        };
        let identity = Identity {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            namespace: dependent.namespace.clone().filter(|_| resource.namespaced),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
        };
        if resource.namespaced && identity.namespace.is_none() {
            warn!(
                ?dependent,
                ?owner,
                "a cluster-scoped object can't have a namespaced owner"
            );
            return Ok(OwnerState::Solid);
        }
        match self.live(&identity).await? {
            None => {
                self.absent.lock().insert(owner.uid.clone());
                Ok(OwnerState::Absent)
            }
            Some(meta) => {
                let foreground = meta
                    .finalizers
                    .iter()
                    .flatten()
                    .any(|known| known == FOREGROUND);
                let waits = foreground && meta.deletion_timestamp.is_some();
                Ok(if waits {
                    OwnerState::WaitsForDependents
                } else {
                    OwnerState::Solid
                })
            }
        }
    }

    /// The object is gone when the dependents are that block it.
    async fn delete_in_foreground(
        &self,
        identity: &Identity,
        live: &ObjectMeta,
    ) -> anyhow::Result<()> {
        let blocking = self.graph.lock().blocking_dependents(&identity.uid);
        if blocking.is_empty() {
            return self.remove_finalizer(identity, live, FOREGROUND).await;
        }
        for dependent in blocking {
            self.queue.add(Task::Delete(dependent));
        }
        Ok(())
    }

    async fn attempt_to_orphan(&self, uid: &str) -> anyhow::Result<()> {
        let Some(node) = self.graph.lock().get(uid) else {
            return Ok(());
        };
        let dependents = self.graph.lock().dependents(uid);
        for dependent in dependents {
            let Some(live) = self.live(&dependent).await? else {
                continue;
            };
            let owners = live.owner_references.clone().unwrap_or_default();
            let others: Vec<OwnerReference> = owners
                .iter()
                .filter(|owner| owner.uid != uid)
                .cloned()
                .collect();
            if others.len() != owners.len() {
                self.set_owners(&dependent, &live, others).await?;
            }
        }
        match self.live(&node.identity).await? {
            Some(live) => self.remove_finalizer(&node.identity, &live, ORPHAN).await,
            None => Ok(()),
        }
    }

    async fn delete(
        &self,
        identity: &Identity,
        live: &ObjectMeta,
        policy: PropagationPolicy,
    ) -> anyhow::Result<()> {
        let Some(api) = self.api(identity) else {
            return Ok(());
        };
        info!(
            kind = identity.kind,
            namespace = identity.namespace,
            name = identity.name,
            "deleting: its owners are gone"
        );
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: live.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(&identity.name, &params).await {
            // Gone, or another object of this name by now.
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }

    async fn set_owners(
        &self,
        identity: &Identity,
        live: &ObjectMeta,
        owners: Vec<OwnerReference>,
    ) -> anyhow::Result<()> {
        let patch = json!({"metadata": {
            "resourceVersion": live.resource_version, "uid": live.uid, "ownerReferences": owners,
        }});
        self.patch(identity, patch).await
    }

    async fn remove_finalizer(
        &self,
        identity: &Identity,
        live: &ObjectMeta,
        finalizer: &str,
    ) -> anyhow::Result<()> {
        let finalizers = live.finalizers.clone().unwrap_or_default();
        let left: Vec<&String> = finalizers
            .iter()
            .filter(|known| *known != finalizer)
            .collect();
        if left.len() == finalizers.len() {
            return Ok(());
        }
        let patch = json!({"metadata": {
            "resourceVersion": live.resource_version, "uid": live.uid, "finalizers": left,
        }});
        self.patch(identity, patch).await
    }

    async fn patch(&self, identity: &Identity, patch: serde_json::Value) -> anyhow::Result<()> {
        let Some(api) = self.api(identity) else {
            return Ok(());
        };
        match api
            .patch(
                &identity.name,
                &PatchParams::default(),
                &Patch::Merge(patch),
            )
            .await
        {
            Err(error) if is_not_found(&error) || status_code(&error) == Some(422) => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }
}

enum OwnerState {
    Solid,
    Absent,
    /// Is being deleted in the foreground.
    WaitsForDependents,
}

#[cfg(test)]
mod tests;

//! replicaset-controller and replication-controller: keep a number of pods of one template alive.
//!
//! Both kinds are the same controller; [`Replicated`] is the little in which they differ.

mod deletion_order;
mod kinds;
mod status;

use std::{collections::HashSet, sync::Arc};

use fluyt_client::{
    Action, Change, Informer, ObjectKey, WorkQueue, controller,
    helpers::{labels, pods},
    is_namespace_terminating, is_not_found,
};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tracing::debug;

pub use self::kinds::{Replicated, View};
use crate::{
    Context,
    common::{
        adoption, by_controller, controller_key, controller_ref, enqueue,
        expectations::Expectations,
        pod_control::{Owner, PodControl, pod_from_template},
        slow_start::slow_start_batch,
        to_wait, uid,
    },
};

/// Most pods created or deleted in one reconcile.
const BURST_REPLICAS: usize = 500;

/// Controls the objects of kind `K`.
struct Controller<K> {
    context: Context,
    owners: Informer<K>,
    pods: Informer<Pod>,
    expectations: Arc<Expectations>,
    pod_control: PodControl,
}

/// Run the controller of kind `K` until shutdown.
pub async fn run<K: Replicated>(context: Context) {
    let owners = context.informers.get::<K>();
    let all_pods = context.informers.get::<Pod>();
    owners.synced().await;
    all_pods.synced().await;
    let queue = WorkQueue::new();
    let expectations = Arc::new(Expectations::default());
    enqueue(&owners, &queue);
    watch_pods(&all_pods, &owners, &queue, &expectations);
    let recorder = context.recorder(K::COMPONENT);
    let client = context.client.clone();
    let this = Controller {
        owners,
        pods: all_pods,
        expectations,
        pod_control: PodControl { client, recorder },
        context,
    };
    let workers = this.context.config.concurrent_replicaset_syncs;
    let shutdown = this.context.shutdown.clone();
    controller::run(
        K::COMPONENT,
        queue,
        workers,
        |key| this.reconcile(key),
        shutdown,
    )
    .await;
}

fn watch_pods<K: Replicated>(
    all_pods: &Informer<Pod>,
    owners: &Informer<K>,
    queue: &WorkQueue<ObjectKey>,
    expectations: &Arc<Expectations>,
) {
    let (owners, queue, expectations) = (owners.clone(), queue.clone(), Arc::clone(expectations));
    let owner_of = |pod: &Pod| controller_key(&pod.metadata, K::GROUP, K::KIND);
    let matching = move |pod: &Pod| {
        let candidates =
            owners.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
        let labels = labels::labels_of(&pod.metadata);
        let matching = candidates.into_iter().filter(|owner| {
            let view = owner.view();
            !labels::is_empty(&view.selector) && labels::matches(&view.selector, labels)
        });
        matching
            .map(|owner| ObjectKey::of(&*owner))
            .collect::<Vec<_>>()
    };
    all_pods.on_change(move |change| {
        let pod = change.object();
        let owner = owner_of(pod);
        if let Some(owner) = &owner {
            let key = ObjectKey::of(&**pod);
            match &change {
                Change::Added(pod) if !pods::is_terminating(pod) => {
                    expectations.creation_observed(owner)
                }
                Change::Added(_) | Change::Deleted(_) => {
                    expectations.deletion_observed(owner, &key)
                }
                Change::Updated { new, .. } if pods::is_terminating(new) => {
                    expectations.deletion_observed(owner, &key);
                }
                Change::Updated { .. } => {}
            }
            queue.add(owner.clone());
        }
        match &change {
            Change::Updated { old, .. } => {
                let before = owner_of(old);
                if before != owner {
                    before.into_iter().for_each(|owner| queue.add(owner));
                }
            }
            Change::Added(_) | Change::Deleted(_) => {}
        }
        if owner.is_none() && !matches!(change, Change::Deleted(_)) {
            matching(pod).into_iter().for_each(|key| queue.add(key));
        }
    });
}

impl<K: Replicated> Controller<K> {
    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let Some(object) = self.owners.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(Action::Await);
        };
        let view = object.view();
        let caught_up = self.expectations.satisfied(&key);
        let owned = self.owned_pods(&key, &object, &view).await?;
        let (active, terminating): (Vec<_>, Vec<_>) = owned
            .into_iter()
            .filter(|pod| !pods::is_terminated(pod))
            .partition(|pod| !pods::is_terminating(pod));
        let mut outcome = Ok(());
        if caught_up && object.meta().deletion_timestamp.is_none() {
            outcome = self.manage_replicas(&key, &object, &view, &active).await;
        }
        let now = jiff::Timestamp::now();
        let fresh = status::calculate(
            &view,
            &active,
            terminating.len(),
            outcome.as_ref().err(),
            now,
        );
        if fresh != view.status {
            K::write_status(&self.context.client, &object, fresh).await?;
        }
        outcome?;
        // Pods become available by the passing of time, which no watch reports.
        let waits = active
            .iter()
            .filter_map(|pod| pods::available_in(pod, view.min_ready_seconds, now))
            .filter(|wait| wait.is_positive());
        Ok(match waits.min() {
            Some(wait) => Action::Requeue(to_wait(wait)),
            None => Action::Await,
        })
    }

    /// All pods that belong to the object, after adoption.
    async fn owned_pods(
        &self,
        key: &ObjectKey,
        object: &K,
        view: &View,
    ) -> anyhow::Result<Vec<Arc<Pod>>> {
        let owners = Api::<K>::namespaced(self.context.client.clone(), &key.namespace);
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &key.namespace);
        let candidates = self.pods.list_namespace(&key.namespace);
        let claimed = adoption::claim(
            object,
            &owners,
            &api,
            &view.selector,
            candidates,
            pods::is_active,
        );
        Ok(claimed.await?)
    }

    async fn manage_replicas(
        &self,
        key: &ObjectKey,
        object: &K,
        view: &View,
        active: &[Arc<Pod>],
    ) -> kube::Result<()> {
        let wanted = usize::try_from(view.replicas).unwrap_or(0);
        let owner = Owner {
            reference: controller_ref(object),
            object: object.object_ref(&()),
        };
        if active.len() < wanted {
            let missing = (wanted - active.len()).min(BURST_REPLICAS);
            self.create_pods(key, &owner, view, missing).await
        } else if active.len() > wanted {
            let excess = (active.len() - wanted).min(BURST_REPLICAS);
            self.delete_pods(key, object, &owner, active, excess).await
        } else {
            Ok(())
        }
    }

    async fn create_pods(
        &self,
        key: &ObjectKey,
        owner: &Owner,
        view: &View,
        count: usize,
    ) -> kube::Result<()> {
        debug!(%key, count, kind = K::KIND, "creating pods");
        let pod = pod_from_template(&view.template, owner);
        self.expectations.expect(key, count, HashSet::new());
        let pod = &pod;
        let (created, error) = slow_start_batch(count, |_| async move {
            match self.pod_control.create(owner, pod).await {
                // The namespace controller will delete us soon.
                Err(error) if is_namespace_terminating(&error) => {
                    self.expectations.creation_observed(key);
                    Ok(())
                }
                result => result.map(drop),
            }
        })
        .await;
        match error {
            None => Ok(()),
            Some(error) => {
                // No watch event will come for what was not created.
                (created..count).for_each(|_| self.expectations.creation_observed(key));
                Err(error)
            }
        }
    }

    async fn delete_pods(
        &self,
        key: &ObjectKey,
        object: &K,
        owner: &Owner,
        active: &[Arc<Pod>],
        count: usize,
    ) -> kube::Result<()> {
        debug!(%key, count, kind = K::KIND, "deleting pods");
        let related = self.related_pods(object);
        let victims = deletion_order::first_to_delete(active, &related, count);
        let victim_keys = victims.iter().map(|pod| ObjectKey::of(&***pod)).collect();
        self.expectations.expect(key, 0, victim_keys);
        let deletions = victims.iter().map(|pod| async move {
            let result = self.pod_control.delete(owner, &pod.metadata).await;
            if result.is_err() {
                self.expectations
                    .deletion_observed(key, &ObjectKey::of(&***pod));
            }
            match result {
                Err(error) if is_not_found(&error) => Ok(()),
                result => result,
            }
        });
        futures::future::join_all(deletions)
            .await
            .into_iter()
            .collect()
    }

    /// The pods of all owners that our owner manages: of all revisions of one Deployment.
    fn related_pods(&self, object: &K) -> Vec<Arc<Pod>> {
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        let mut pods_of = by_controller(self.pods.list_namespace(namespace));
        let mut siblings = vec![uid(object.meta()).to_owned()];
        if let Some(manager) = crate::common::controller_of(object.meta()) {
            let owners = self.owners.list_namespace(namespace);
            let managed = owners
                .iter()
                .filter(|owner| crate::common::is_controlled_by(owner.meta(), &manager.uid));
            siblings = managed.map(|owner| uid(owner.meta()).to_owned()).collect();
        }
        siblings
            .iter()
            .filter_map(|uid| pods_of.remove(uid))
            .flatten()
            .collect()
    }
}

#[cfg(test)]
mod tests;

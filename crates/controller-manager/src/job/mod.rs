//! job-controller: runs pods until enough of them have succeeded, or too many have failed.
//!
//! Every pod carries the finalizer `batch.kubernetes.io/job-tracking` until its end is counted in the Job's status, so
//! that no end is missed or counted twice: its uid is first noted in `status.uncountedTerminatedPods`, then the
//! finalizer is removed, then the counter moves and the note goes. Each step survives a crash after it.

mod backoff;
mod decision;
mod indexes;
mod pod_failure_policy;
mod pods;
mod tally;

use std::{collections::HashSet, sync::Arc};

use fluyt_client::{
    Action, Change, EventType, Informer, ObjectKey, Recorder, WorkQueue, controller,
    helpers::{labels, pods as pod_state},
    is_namespace_terminating, is_not_found, status_code,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobCondition},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    Api, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use self::decision::Decision;
use crate::{
    Context,
    common::{
        adoption, controller_key, controller_ref, enqueue,
        expectations::Expectations,
        freshness::Freshness,
        name, namespace, now,
        pod_control::{Owner, PodControl},
        slow_start::slow_start_batch,
        to_wait, uid,
    },
};

const COMPONENT: &str = "job-controller";
const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const MANAGER: &str = "kubernetes.io/job-controller";
/// Most pods created or deleted in one reconcile.
const BURST: usize = 500;

struct Controller {
    context: Context,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    expectations: Arc<Expectations>,
    freshness: Freshness,
    pod_control: PodControl,
    recorder: Recorder,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let recorder = context.recorder(COMPONENT);
    let controller = Controller {
        jobs: context.informers.get(),
        pods: context.informers.get(),
        expectations: Arc::default(),
        freshness: Freshness::default(),
        pod_control: PodControl {
            client: context.client.clone(),
            recorder: recorder.clone(),
        },
        recorder,
        context,
    };
    controller.jobs.synced().await;
    controller.pods.synced().await;
    let queue = WorkQueue::new();
    enqueue(&controller.jobs, &queue);
    controller.watch_pods(&queue);
    let workers = controller.context.config.concurrent_job_syncs;
    let shutdown = controller.context.shutdown.clone();
    controller::run(
        COMPONENT,
        queue,
        workers,
        |key| controller.reconcile(key),
        shutdown,
    )
    .await;
}

/// Whether the job has ended: the reason and status of the condition that says so.
pub fn finished(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| {
        (condition.type_ == "Complete" || condition.type_ == "Failed") && condition.status == "True"
    })
}

fn is_tracked(pod: &Pod) -> bool {
    pod.metadata
        .finalizers
        .iter()
        .flatten()
        .any(|finalizer| finalizer == FINALIZER)
}

impl Controller {
    fn watch_pods(&self, queue: &WorkQueue<ObjectKey>) {
        let (queue, expectations, jobs) = (
            queue.clone(),
            Arc::clone(&self.expectations),
            self.jobs.clone(),
        );
        let client = self.context.client.clone();
        self.pods.on_change(move |change| {
            let pod = change.object();
            let Some(owner) = controller_key(&pod.metadata, "batch", "Job") else {
                let in_namespace = jobs.list_namespace(namespace(&pod.metadata));
                let labels = labels::labels_of(&pod.metadata);
                let matching = in_namespace.iter().filter(|job| {
                    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                    selector.is_some_and(|selector| {
                        !labels::is_empty(selector) && labels::matches(selector, labels)
                    })
                });
                matching.for_each(|job| queue.add(ObjectKey::of(&**job)));
                return;
            };
            match &change {
                Change::Added(_) => expectations.creation_observed(&owner),
                Change::Deleted(_) => {
                    expectations.deletion_observed(&owner, &ObjectKey::of(&**pod))
                }
                Change::Updated { new, .. } if pod_state::is_terminating(new) => {
                    expectations.deletion_observed(&owner, &ObjectKey::of(&**pod));
                }
                Change::Updated { .. } => {}
            }
            // Of a job that is gone, nobody will count the pod.
            let orphan = is_tracked(pod)
                && !matches!(change, Change::Deleted(_))
                && jobs.get_key(&owner).is_none_or(|job| {
                    !crate::common::is_controlled_by(&pod.metadata, uid(&job.metadata))
                });
            if orphan {
                let (client, pod) = (client.clone(), Arc::clone(pod));
                tokio::spawn(async move { release_orphan(&client, &pod).await });
            }
            queue.add(owner);
        });
    }

    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let Some(job) = self.jobs.get_key(&key) else {
            self.expectations.forget(&key);
            return Ok(Action::Await);
        };
        let managed_by = job
            .spec
            .as_ref()
            .and_then(|spec| spec.managed_by.as_deref());
        if managed_by.is_some_and(|manager| manager != MANAGER)
            || !self.freshness.is_current(&key, &self.jobs)
        {
            return Ok(Action::Await);
        }
        let owned = self.owned_pods(&key, &job).await?;
        if finished(&job).is_some() || job.metadata.deletion_timestamp.is_some() {
            for pod in owned.iter().filter(|pod| is_tracked(pod)) {
                remove_finalizer(&self.context.client, pod).await?;
            }
            return Ok(Action::Await);
        }
        let at = Timestamp::now();
        let tally = tally::count(&job, &owned);
        let mut decision = decision::decide(&job, &owned, &tally, at);
        let caught_up = self.expectations.satisfied(&key);
        let mut outcome = Ok(());
        if caught_up {
            outcome = self.apply(&key, &job, &mut decision).await;
        }
        self.write_status(&key, &job, &decision).await?;
        for pod in &tally.to_release {
            remove_finalizer(&self.context.client, pod).await?;
        }
        outcome?;
        Ok(decision
            .look_again
            .map_or(Action::Await, |wait| Action::Requeue(to_wait(wait))))
    }

    async fn owned_pods(&self, key: &ObjectKey, job: &Job) -> anyhow::Result<Vec<Arc<Pod>>> {
        let owners = Api::<Job>::namespaced(self.context.client.clone(), &key.namespace);
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &key.namespace);
        let by_uid = || LabelSelector {
            match_labels: Some([(CONTROLLER_UID.to_owned(), uid(&job.metadata).to_owned())].into()),
            match_expressions: None,
        };
        let selector = job
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.clone())
            .unwrap_or_else(by_uid);
        let candidates = self.pods.list_namespace(&key.namespace);
        let finalizer = Some(FINALIZER);
        let claimed = adoption::claim_with(
            job,
            &owners,
            &api,
            &selector,
            candidates,
            |_| true,
            finalizer,
        );
        Ok(claimed.await?)
    }

    /// Create and delete pods; corrects the status by what could not be done.
    async fn apply(
        &self,
        key: &ObjectKey,
        job: &Job,
        decision: &mut Decision,
    ) -> anyhow::Result<()> {
        let create: Vec<Option<i32>> = decision.create.iter().take(BURST).copied().collect();
        let delete: Vec<Arc<Pod>> = decision.delete.iter().take(BURST).cloned().collect();
        if create.is_empty() && delete.is_empty() {
            return Ok(());
        }
        let deletions: HashSet<ObjectKey> =
            delete.iter().map(|pod| ObjectKey::of(&**pod)).collect();
        self.expectations.expect(key, create.len(), deletions);
        let owner = Owner {
            reference: controller_ref(job),
            object: job.object_ref(&()),
        };
        let (owner_ref, create_ref) = (&owner, &create);
        let (created, error) = slow_start_batch(create.len(), |i| async move {
            let pod = pods::new(job, owner_ref, create_ref[i]);
            match self.pod_control.create(owner_ref, &pod).await {
                Err(error) if is_namespace_terminating(&error) => {
                    self.expectations.creation_observed(key);
                    Ok(())
                }
                result => result.map(drop),
            }
        })
        .await;
        if error.is_some() {
            (created..create.len()).for_each(|_| self.expectations.creation_observed(key));
        }
        decision.status.active =
            Some(decision.status.active.unwrap_or(0) + i32::try_from(created).unwrap_or(0))
                .filter(|n| *n > 0);
        let mut first_error = error;
        for pod in &delete {
            if let Err(error) = self.pod_control.delete(&owner, &pod.metadata).await {
                self.expectations
                    .deletion_observed(key, &ObjectKey::of(&**pod));
                if !is_not_found(&error) {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn write_status(
        &self,
        key: &ObjectKey,
        job: &Job,
        decision: &Decision,
    ) -> anyhow::Result<()> {
        if job.status.as_ref() == Some(&decision.status) {
            return Ok(());
        }
        let mut updated = job.clone();
        updated.status = Some(decision.status.clone());
        let api = Api::<Job>::namespaced(self.context.client.clone(), &key.namespace);
        let written = match api
            .replace_status(&key.name, &PostParams::default(), &updated)
            .await
        {
            Err(error) if is_not_found(&error) => return Ok(()),
            result => result?,
        };
        self.freshness.wrote(key, &written);
        for (event_type, reason, message) in &decision.events {
            self.recorder
                .event(&job.object_ref(&()), *event_type, reason, message.clone());
        }
        Ok(())
    }
}

/// Events about the job's conditions.
type JobEvent = (EventType, &'static str, String);

async fn release_orphan(client: &kube::Client, pod: &Pod) {
    if let Err(error) = remove_finalizer(client, pod).await {
        tracing::debug!(pod = %ObjectKey::of(pod), %error, "can't release a pod of a job that is gone");
    }
}

async fn remove_finalizer(client: &kube::Client, pod: &Pod) -> kube::Result<()> {
    let finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
    let left: Vec<&String> = finalizers
        .iter()
        .filter(|finalizer| *finalizer != FINALIZER)
        .collect();
    let patch = json!({"metadata": {
        "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "finalizers": left,
    }});
    let api = Api::<Pod>::namespaced(client.clone(), namespace(&pod.metadata));
    match api
        .patch(
            name(&pod.metadata),
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await
    {
        // Gone, or another pod of this name. A conflict is retried with the newer version.
        Err(error) if is_not_found(&error) || status_code(&error) == Some(422) => Ok(()),
        result => result.map(drop),
    }
}

/// A condition that begins now.
fn condition(type_: &str, status: &str, reason: &str, message: impl Into<String>) -> JobCondition {
    JobCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_probe_time: Some(now()),
        last_transition_time: Some(now()),
    }
}

#[cfg(test)]
mod tests;

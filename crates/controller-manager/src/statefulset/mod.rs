//! statefulset-controller: pods with a stable identity and their own volumes, started and replaced in order.

mod claims;
mod identity;
mod plan;

use std::sync::Arc;

use fluyt_client::{
    Action, EventType, Informer, ObjectKey, Recorder, WorkQueue, controller,
    helpers::{labels, pods},
    is_already_exists, is_namespace_terminating, is_not_found,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus},
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{
    Api, Resource,
    api::{DeleteParams, PostParams},
};

use self::{
    identity::{ordinal_of, revision_of},
    plan::{Plan, Revisions, Step},
};
use crate::{
    Context,
    common::{
        adoption, controller_key, enqueue, enqueue_mapped, freshness::Freshness, is_controlled_by,
        name, pod_control::message_of, revisions, to_wait, uid,
    },
};

const COMPONENT: &str = "statefulset-controller";

struct Controller {
    context: Context,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
    recorder: Recorder,
    freshness: Freshness,
    revision_freshness: Freshness,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Controller {
        sets: context.informers.get(),
        pods: context.informers.get(),
        claims: context.informers.get(),
        revisions: context.informers.get(),
        recorder: context.recorder(COMPONENT),
        freshness: Freshness::default(),
        revision_freshness: Freshness::default(),
        context,
    };
    controller.sets.synced().await;
    controller.pods.synced().await;
    controller.claims.synced().await;
    controller.revisions.synced().await;
    let queue = WorkQueue::new();
    enqueue(&controller.sets, &queue);
    let sets = controller.sets.clone();
    enqueue_mapped(&controller.pods, &queue, move |pod| {
        if let Some(owner) = controller_key(&pod.metadata, "apps", "StatefulSet") {
            return vec![owner];
        }
        // An orphan that a set may adopt.
        let parent = ordinal_of(pod).map(|(parent, _)| parent);
        let set = parent.and_then(|parent| sets.get(pod.metadata.namespace.as_deref(), &parent));
        set.into_iter().map(|set| ObjectKey::of(&*set)).collect()
    });
    enqueue_mapped(&controller.revisions, &queue, |revision| {
        controller_key(&revision.metadata, "apps", "StatefulSet")
            .into_iter()
            .collect()
    });
    let workers = controller.context.config.concurrent_statefulset_syncs;
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

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let current = self.freshness.is_current(&key, &self.pods)
            && self.revision_freshness.is_current(&key, &self.revisions);
        if !current {
            // The event that we wait for will bring us back.
            return Ok(Action::Await);
        }
        let Some(set) = self.sets.get_key(&key) else {
            return Ok(Action::Await);
        };
        let Some(spec) = set
            .spec
            .as_ref()
            .filter(|spec| !labels::is_empty(&spec.selector))
        else {
            return Ok(Action::Await);
        };
        let owners = Api::<StatefulSet>::namespaced(self.context.client.clone(), &key.namespace);
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &key.namespace);
        let is_member = |pod: &Pod| ordinal_of(pod).is_some_and(|(parent, _)| parent == key.name);
        let candidates = self.pods.list_namespace(&key.namespace);
        let owned =
            adoption::claim(&*set, &owners, &api, &spec.selector, candidates, is_member).await?;
        let pods: Vec<Arc<Pod>> = owned.into_iter().filter(|pod| is_member(pod)).collect();

        let mut status = set.status.clone().unwrap_or_default();
        let history = self.history(&set);
        let revisions = self
            .current_revisions(&key, &set, &history, &mut status.collision_count)
            .await?;
        let now = Timestamp::now();
        let plan = if set.metadata.deletion_timestamp.is_none() {
            plan::make(&set, &pods, &revisions, now)
        } else {
            Plan::default()
        };
        let mut outcome = Ok(());
        for step in &plan.steps {
            outcome = self.execute(&key, &set, step).await;
            if outcome.is_err() {
                break;
            }
        }
        self.update_claim_owners(&key, &set, &pods).await?;
        let fresh = plan::status(&set, &pods, &plan, &revisions, status, now);
        if set.status.as_ref() != Some(&fresh) {
            self.write_status(&set, fresh).await?;
        }
        outcome?;
        self.truncate_history(&set, &history, &revisions, &pods)
            .await?;
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let waits = pods
            .iter()
            .filter_map(|pod| pods::available_in(pod, min_ready, now));
        Ok(match waits.filter(|wait| wait.is_positive()).min() {
            Some(wait) => Action::Requeue(to_wait(wait)),
            None => Action::Await,
        })
    }

    fn history(&self, set: &StatefulSet) -> Vec<ControllerRevision> {
        let all = self
            .revisions
            .list_namespace(crate::common::namespace(&set.metadata));
        let owned = all
            .iter()
            .filter(|revision| is_controlled_by(&revision.metadata, uid(&set.metadata)));
        owned.map(|revision| (**revision).clone()).collect()
    }

    /// The revision the pods come from and the one they go to.
    async fn current_revisions(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        history: &[ControllerRevision],
        collisions: &mut Option<i32>,
    ) -> anyhow::Result<Revisions> {
        let template = set
            .spec
            .as_ref()
            .map(|spec| spec.template.clone())
            .unwrap_or_default();
        let api =
            Api::<ControllerRevision>::namespaced(self.context.client.clone(), &key.namespace);
        let update = revisions::current(&api, set, &template, history, collisions).await?;
        self.revision_freshness.wrote(key, &update);
        let known = set
            .status
            .as_ref()
            .and_then(|status| status.current_revision.as_deref());
        let current = history
            .iter()
            .find(|revision| Some(name(&revision.metadata)) == known);
        Ok(Revisions {
            current_template: current
                .and_then(revisions::template_of)
                .unwrap_or_else(|| template.clone()),
            current: name(current.map_or(&update.metadata, |current| &current.metadata)).to_owned(),
            update: name(&update.metadata).to_owned(),
            update_template: template,
        })
    }

    async fn truncate_history(
        &self,
        set: &StatefulSet,
        history: &[ControllerRevision],
        current: &Revisions,
        pods: &[Arc<Pod>],
    ) -> anyhow::Result<()> {
        let limit = set
            .spec
            .as_ref()
            .and_then(|spec| spec.revision_history_limit)
            .unwrap_or(10);
        let namespace = crate::common::namespace(&set.metadata);
        let api = Api::<ControllerRevision>::namespaced(self.context.client.clone(), namespace);
        let in_use = |revision: &ControllerRevision| {
            let revision = name(&revision.metadata);
            revision == current.current
                || revision == current.update
                || pods.iter().any(|pod| revision_of(pod) == Some(revision))
        };
        revisions::truncate(&api, history, usize::try_from(limit).unwrap_or(0), in_use).await?;
        Ok(())
    }

    async fn execute(&self, key: &ObjectKey, set: &StatefulSet, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::Create(pod) => self.create(key, set, pod).await,
            Step::Claims(pod) => self.create_claims(key, set, pod).await,
            Step::Delete(pod) => self.delete(key, set, pod).await,
        }
    }

    async fn create(&self, key: &ObjectKey, set: &StatefulSet, pod: &Pod) -> anyhow::Result<()> {
        self.create_claims(key, set, pod).await?;
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &key.namespace);
        match api.create(&PostParams::default(), pod).await {
            Ok(created) => {
                self.freshness.wrote(key, &created);
                self.tell(
                    set,
                    true,
                    "create",
                    &format!("Pod {}", name(&pod.metadata)),
                    None,
                );
            }
            // Ours, and our informer lags; or somebody else's, and then its deletion brings us back.
            Err(error) if is_already_exists(&error) || is_namespace_terminating(&error) => {}
            Err(error) => {
                self.tell(
                    set,
                    false,
                    "create",
                    &format!("Pod {}", name(&pod.metadata)),
                    Some(&error),
                );
                return Err(error.into());
            }
        }
        Ok(())
    }

    async fn create_claims(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        pod: &Pod,
    ) -> anyhow::Result<()> {
        let api =
            Api::<PersistentVolumeClaim>::namespaced(self.context.client.clone(), &key.namespace);
        for claim in claims::of_pod(set, pod) {
            let claim_name = name(&claim.metadata);
            if let Some(known) = self.claims.get(Some(&key.namespace), claim_name) {
                if known.metadata.deletion_timestamp.is_some() {
                    anyhow::bail!("pvc {claim_name} is being deleted");
                }
                continue;
            }
            let what = format!("Claim {claim_name} Pod {}", name(&pod.metadata));
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => self.tell(set, true, "create", &what, None),
                Err(error) if is_already_exists(&error) || is_namespace_terminating(&error) => {}
                Err(error) => {
                    self.tell(set, false, "create", &what, Some(&error));
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &ObjectKey, set: &StatefulSet, pod: &Pod) -> anyhow::Result<()> {
        let api = Api::<Pod>::namespaced(self.context.client.clone(), &key.namespace);
        let what = format!("Pod {}", name(&pod.metadata));
        match api
            .delete(name(&pod.metadata), &DeleteParams::default())
            .await
        {
            Ok(deleted) => {
                if let Some(deleted) = deleted.left() {
                    self.freshness.wrote(key, &deleted);
                }
                self.tell(set, true, "delete", &what, None);
            }
            Err(error) if is_not_found(&error) => {}
            Err(error) => {
                self.tell(set, false, "delete", &what, Some(&error));
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn tell(
        &self,
        set: &StatefulSet,
        success: bool,
        verb: &str,
        what: &str,
        error: Option<&kube::Error>,
    ) {
        let set_name = name(&set.metadata);
        let capitalized = if verb == "create" { "Create" } else { "Delete" };
        let (event_type, reason, end) = match error {
            None if success => (EventType::Normal, "Successful", "successful".to_owned()),
            _ => {
                let error = error.map(message_of).unwrap_or_default();
                (
                    EventType::Warning,
                    "Failed",
                    format!("failed error: {error}"),
                )
            }
        };
        let message = format!("{verb} {what} in StatefulSet {set_name} {end}");
        self.recorder.event(
            &set.object_ref(&()),
            event_type,
            &format!("{reason}{capitalized}"),
            message,
        );
    }

    /// Make the claims' owners what the retention policy says.
    async fn update_claim_owners(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        pods: &[Arc<Pod>],
    ) -> anyhow::Result<()> {
        let api =
            Api::<PersistentVolumeClaim>::namespaced(self.context.client.clone(), &key.namespace);
        for pod in pods {
            for claim in claims::of_pod(set, pod) {
                let Some(known) = self.claims.get(Some(&key.namespace), name(&claim.metadata))
                else {
                    continue;
                };
                if let Some(owners) = claims::owners(set, pod, &known) {
                    let mut updated = (*known).clone();
                    updated.metadata.owner_references = Some(owners);
                    api.replace(name(&known.metadata), &PostParams::default(), &updated)
                        .await?;
                }
            }
        }
        Ok(())
    }

    async fn write_status(
        &self,
        set: &StatefulSet,
        status: StatefulSetStatus,
    ) -> anyhow::Result<()> {
        let mut set = set.clone();
        set.status = Some(status);
        let namespace = crate::common::namespace(&set.metadata);
        let api = Api::<StatefulSet>::namespaced(self.context.client.clone(), namespace);
        api.replace_status(name(&set.metadata), &PostParams::default(), &set)
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;

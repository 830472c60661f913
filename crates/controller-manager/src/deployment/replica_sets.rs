//! The ReplicaSets of a Deployment: which is of the current template, creating it, and their revisions.

use std::collections::BTreeMap;

use fluyt_client::{EventType, is_already_exists, is_namespace_terminating};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::{Resource, api::PostParams};

use super::{Controller, Rollout, conditions, rolling, scaling, size};
use crate::common::{annotation, controller_ref, hash, is_controlled_by, name, uid};

const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
const TEMPLATE_HASH: &str = "pod-template-hash";

/// What to do if there is no ReplicaSet of the current template.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NewReplicaSet {
    Find,
    Create,
}

/// The number in the revision annotation, 0 if there is none.
fn revision(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION)
        .and_then(|revision| revision.parse().ok())
        .unwrap_or(0)
}

/// The template as the user wrote it.
fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template
        .metadata
        .as_mut()
        .and_then(|meta| meta.labels.as_mut())
    {
        labels.remove(TEMPLATE_HASH);
    }
    let meta = template.metadata.get_or_insert_default();
    // Absent and empty are the same.
    meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
    meta.annotations = meta
        .annotations
        .take()
        .filter(|annotations| !annotations.is_empty());
    meta.creation_timestamp = None;
    template
}

fn template_of(set: &ReplicaSet) -> PodTemplateSpec {
    set.spec
        .as_ref()
        .and_then(|spec| spec.template.clone())
        .unwrap_or_default()
}

/// Separate the ReplicaSet of the Deployment's current template from the others. Of several the oldest counts.
pub fn separate(
    deployment: &Deployment,
    sets: Vec<ReplicaSet>,
) -> (Option<ReplicaSet>, Vec<ReplicaSet>) {
    let template = deployment
        .spec
        .as_ref()
        .map(|spec| without_hash(&spec.template))
        .unwrap_or_default();
    let mut sets = sets;
    sets.sort_by_key(|set| {
        (
            set.metadata.creation_timestamp.clone(),
            set.metadata.name.clone(),
        )
    });
    let new = sets
        .iter()
        .position(|set| without_hash(&template_of(set)) == template);
    let new = new.map(|index| sets.remove(index));
    (new, sets)
}

/// The ReplicaSets to delete so that at most `limit` old ones stay: the lowest revisions, if they have no pods.
pub fn beyond_history(old: &[ReplicaSet], limit: usize) -> Vec<&ReplicaSet> {
    let mut alive: Vec<&ReplicaSet> = old
        .iter()
        .filter(|set| set.metadata.deletion_timestamp.is_none())
        .collect();
    alive.sort_by_key(|set| {
        (
            revision(&set.metadata),
            set.metadata.creation_timestamp.clone(),
        )
    });
    let excess = alive.len().saturating_sub(limit);
    let is_idle = |set: &&ReplicaSet| {
        let status = set.status.clone().unwrap_or_default();
        let observed = status.observed_generation.unwrap_or(0);
        status.replicas == 0 && size(set) == 0 && set.metadata.generation.unwrap_or(0) <= observed
    };
    alive.into_iter().take(excess).filter(is_idle).collect()
}

/// Give the ReplicaSet the Deployment's annotations and its revision number; says whether that changed anything.
pub fn annotate(
    set: &mut ReplicaSet,
    deployment: &Deployment,
    revision_number: i64,
    exists: bool,
) -> bool {
    let before = set.metadata.annotations.clone();
    let current = revision(&set.metadata);
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        let is_ours = [
            LAST_APPLIED,
            REVISION,
            REVISION_HISTORY,
            scaling::DESIRED_REPLICAS,
            scaling::MAX_REPLICAS,
            ROLLBACK_TO,
        ];
        if !is_ours.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    if current < revision_number {
        annotations.insert(REVISION.to_owned(), revision_number.to_string());
        if current > 0 {
            // Rolled back to: remember under which numbers it was known.
            let history = annotations
                .get(REVISION_HISTORY)
                .cloned()
                .unwrap_or_default();
            let numbers = history
                .split(',')
                .filter(|number| !number.is_empty())
                .map(str::to_owned);
            let mut numbers: Vec<String> = numbers.collect();
            numbers.push(current.to_string());
            annotations.insert(REVISION_HISTORY.to_owned(), numbers.join(","));
        }
    }
    if !exists {
        scaling::annotate_sizes(set, deployment);
    }
    set.metadata.annotations != before
}

/// The ReplicaSet of the Deployment's template, of size 0 and not annotated yet.
pub fn blueprint(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|status| status.collision_count);
    let hash = hash::compute(&spec.template, collisions);
    let with_hash = |labels: Option<BTreeMap<String, String>>| {
        let mut labels = labels.unwrap_or_default();
        labels.insert(TEMPLATE_HASH.to_owned(), hash.clone());
        Some(labels)
    };
    let mut template = spec.template;
    let template_meta = template.metadata.get_or_insert_default();
    template_meta.labels = with_hash(template_meta.labels.take());
    let labels = template_meta.labels.clone();
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", name(&deployment.metadata))),
            namespace: deployment.metadata.namespace.clone(),
            owner_references: Some(vec![controller_ref(deployment)]),
            labels,
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector: LabelSelector {
                match_labels: with_hash(spec.selector.match_labels),
                match_expressions: spec.selector.match_expressions,
            },
            template: Some(template),
        }),
        status: None,
    }
}

impl Controller {
    /// Find (or create) the new ReplicaSet and bring revision numbers up to date.
    pub(super) async fn split(
        &self,
        deployment: Deployment,
        sets: Vec<ReplicaSet>,
        new: NewReplicaSet,
    ) -> anyhow::Result<Rollout> {
        let (found, old) = separate(&deployment, sets);
        let mut rollout = Rollout {
            deployment,
            new: found,
            old,
        };
        if rollout.new.is_some() {
            self.refresh_new(&mut rollout).await?;
        } else if new == NewReplicaSet::Create {
            self.create_replica_set(&mut rollout).await?;
        }
        Ok(rollout)
    }

    fn next_revision(rollout: &Rollout) -> i64 {
        rollout
            .old
            .iter()
            .map(|set| revision(&set.metadata))
            .max()
            .unwrap_or(0)
            + 1
    }

    async fn refresh_new(&self, rollout: &mut Rollout) -> anyhow::Result<()> {
        let next = Self::next_revision(rollout);
        let Some(mut set) = rollout.new.clone() else {
            return Ok(());
        };
        let min_ready = rollout
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds);
        let mut changed = annotate(&mut set, &rollout.deployment, next, true);
        let spec = set.spec.get_or_insert_default();
        changed |= spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0);
        spec.min_ready_seconds = min_ready;
        if changed {
            let api = self.replica_set_api(&rollout.deployment);
            set = api
                .replace(name(&set.metadata), &PostParams::default(), &set)
                .await?;
        }
        let message = format!("Found new replica set {:?}", name(&set.metadata));
        let number = annotation(&set.metadata, REVISION)
            .unwrap_or_default()
            .to_owned();
        rollout.new = Some(set);
        conditions::note_replica_set(
            &mut rollout.deployment,
            false,
            "FoundNewReplicaSet",
            message,
        );
        self.note_revision(&mut rollout.deployment, number).await
    }

    /// Keep the Deployment's own revision annotation equal to its new ReplicaSet's.
    async fn note_revision(
        &self,
        deployment: &mut Deployment,
        number: String,
    ) -> anyhow::Result<()> {
        if number.is_empty() || annotation(&deployment.metadata, REVISION) == Some(&number) {
            return Ok(());
        }
        let annotations = deployment.metadata.annotations.get_or_insert_default();
        annotations.insert(REVISION.to_owned(), number);
        let api = self.deployment_api(deployment);
        let written = api
            .replace(
                name(&deployment.metadata),
                &PostParams::default(),
                deployment,
            )
            .await?;
        // The status we are collecting is written later; the server kept the old one.
        deployment.metadata = written.metadata;
        Ok(())
    }

    pub(super) async fn create_replica_set(&self, rollout: &mut Rollout) -> anyhow::Result<()> {
        let mut set = blueprint(&rollout.deployment);
        annotate(
            &mut set,
            &rollout.deployment,
            Self::next_revision(rollout),
            false,
        );
        let all: Vec<_> = rollout.old.iter().cloned().chain([set.clone()]).collect();
        let target = rolling::new_replica_set_size(&rollout.deployment, &all, 0);
        set.spec.get_or_insert_default().replicas = Some(target);
        let api = self.replica_set_api(&rollout.deployment);
        let created = match api.create(&PostParams::default(), &set).await {
            Ok(created) => {
                if target > 0 {
                    let set = name(&created.metadata);
                    let message = format!("Scaled up replica set {set} from 0 to {target}");
                    let object = rollout.deployment.object_ref(&());
                    self.recorder
                        .event(&object, EventType::Normal, "ScalingReplicaSet", message);
                }
                created
            }
            Err(error) if is_already_exists(&error) => {
                let taken = api.get(name(&set.metadata)).await?;
                let ours = is_controlled_by(&taken.metadata, uid(&rollout.deployment.metadata));
                if !ours || without_hash(&template_of(&taken)) != without_hash(&template_of(&set)) {
                    return self.note_collision(&mut rollout.deployment, error).await;
                }
                // We made it, and our informer has not seen it yet.
                taken
            }
            Err(error) if is_namespace_terminating(&error) => return Ok(()),
            Err(error) => {
                self.creation_failed(&mut rollout.deployment, &error);
                let api = self.deployment_api(&rollout.deployment);
                let params = PostParams::default();
                let deployment = &rollout.deployment;
                api.replace_status(name(&deployment.metadata), &params, deployment)
                    .await?;
                return Err(error.into());
            }
        };
        let message = format!("Created new replica set {:?}", name(&created.metadata));
        let number = annotation(&created.metadata, REVISION)
            .unwrap_or_default()
            .to_owned();
        rollout.new = Some(created);
        conditions::note_replica_set(
            &mut rollout.deployment,
            true,
            "NewReplicaSetCreated",
            message,
        );
        self.note_revision(&mut rollout.deployment, number).await
    }

    /// Another template has the same hash: count it, so that the next try computes another.
    async fn note_collision(
        &self,
        deployment: &mut Deployment,
        error: kube::Error,
    ) -> anyhow::Result<()> {
        let status = deployment.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        let api = self.deployment_api(deployment);
        api.replace_status(
            name(&deployment.metadata),
            &PostParams::default(),
            deployment,
        )
        .await?;
        Err(error.into())
    }
}

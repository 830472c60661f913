//! persistentvolume-binder-controller: brings claims and volumes together, has volumes made for claims, and frees or
//! deletes volumes whose claims are gone.

use std::sync::Arc;

use fluyt_client::{
    Action, Change, EventType, Informer, ObjectKey, Recorder, WorkQueue, controller,
    is_already_exists, is_not_found,
};
use k8s_openapi::api::{
    core::v1::{
        Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
    },
    storage::v1::StorageClass,
};
use kube::{
    Api, Resource,
    api::{DeleteParams, PostParams},
};
use tracing::info;

use super::{
    BETA_STORAGE_PROVISIONER, BIND_COMPLETED, BOUND_BY_CONTROLLER, FLUYT_PROVISIONED_BY,
    SELECTED_NODE, STORAGE_PROVISIONER, class_name, matching, provisioner, refers_to, volume_name,
};
use crate::{
    Context,
    common::{annotation, name, namespace, now, pod_control::message_of},
};

const COMPONENT: &str = "persistentvolume-controller";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

struct Controller {
    context: Context,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
    recorder: Recorder,
}

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Task {
    Claim(ObjectKey),
    Volume(ObjectKey),
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Controller {
        claims: context.informers.get(),
        volumes: context.informers.get(),
        classes: context.informers.get(),
        nodes: context.informers.get(),
        recorder: context.recorder(COMPONENT),
        context,
    };
    controller.claims.synced().await;
    controller.volumes.synced().await;
    controller.classes.synced().await;
    controller.nodes.synced().await;
    let queue = WorkQueue::new();
    controller.watch(&queue);
    let shutdown = controller.context.shutdown.clone();
    // One worker: two claims must not get the same volume.
    let reconcile = |task| controller.reconcile(task);
    controller::run(
        "persistentvolume-binder-controller",
        queue,
        1,
        reconcile,
        shutdown,
    )
    .await;
}

fn claim_of(volume: &PersistentVolume) -> Option<ObjectKey> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(ObjectKey::new(
        reference.namespace.clone()?,
        reference.name.clone()?,
    ))
}

impl Controller {
    fn watch(&self, queue: &WorkQueue<Task>) {
        let feed = queue.clone();
        self.claims.on_change(move |change| {
            let claim = change.object();
            feed.add(Task::Claim(ObjectKey::of(&**claim)));
            if let Some(volume) = volume_name(claim) {
                feed.add(Task::Volume(ObjectKey::cluster(volume)));
            }
        });
        let (feed, claims) = (queue.clone(), self.claims.clone());
        self.volumes.on_change(move |change| {
            let volume = change.object();
            feed.add(Task::Volume(ObjectKey::of(&**volume)));
            if let Some(claim) = claim_of(volume) {
                feed.add(Task::Claim(claim));
                return;
            }
            // A volume that became available may be what a claim waits for.
            let unbound = claims
                .list()
                .into_iter()
                .filter(|claim| volume_name(claim).is_none());
            unbound.for_each(|claim| feed.add(Task::Claim(ObjectKey::of(&*claim))));
        });
        let (feed, claims) = (queue.clone(), self.claims.clone());
        self.classes.on_change(move |change| {
            if !matches!(change, Change::Deleted(_)) {
                let class = name(&change.object().metadata).to_owned();
                let waiting = claims
                    .list()
                    .into_iter()
                    .filter(|claim| volume_name(claim).is_none() && class_name(claim) == class);
                waiting.for_each(|claim| feed.add(Task::Claim(ObjectKey::of(&*claim))));
            }
        });
    }

    async fn reconcile(&self, task: Task) -> anyhow::Result<Action> {
        match task {
            Task::Claim(key) => match self.claims.get_key(&key) {
                Some(claim) => Box::pin(self.reconcile_claim(&claim)).await?,
                // Its volume has to notice.
                None => {
                    for volume in self.volumes.list() {
                        if claim_of(&volume).as_ref() == Some(&key) {
                            Box::pin(self.reconcile_volume(&volume)).await?;
                        }
                    }
                }
            },
            Task::Volume(key) => {
                if let Some(volume) = self.volumes.get_key(&key) {
                    Box::pin(self.reconcile_volume(&volume)).await?;
                }
            }
        }
        Ok(Action::Await)
    }

    async fn reconcile_claim(&self, claim: &Arc<PersistentVolumeClaim>) -> anyhow::Result<()> {
        if let Some(wanted) = volume_name(claim) {
            return Box::pin(self.reconcile_named(claim, wanted)).await;
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let class = self.classes.get(None, class_name(claim));
        let waits = class
            .as_ref()
            .and_then(|class| class.volume_binding_mode.as_deref())
            == Some("WaitForFirstConsumer");
        let selected = annotation(&claim.metadata, SELECTED_NODE);
        // Of a class that waits the scheduler chooses the volume, and reserves it for the claim.
        if let Some(volume) = matching::find(&self.volumes.list(), claim, waits) {
            return Box::pin(self.bind(claim, &volume)).await;
        }
        if waits && selected.is_none() {
            let message = "waiting for first consumer to be created before binding";
            self.tell(claim, EventType::Normal, "WaitForFirstConsumer", message);
            return self.set_pending(claim).await;
        }
        match class {
            Some(class) if class.provisioner != NO_PROVISIONER => {
                self.provision(claim, &class).await
            }
            None if !class_name(claim).is_empty() => {
                let message = format!(
                    "storageclass.storage.k8s.io {:?} not found",
                    class_name(claim)
                );
                self.tell(claim, EventType::Warning, "ProvisioningFailed", &message);
                self.set_pending(claim).await
            }
            _ => {
                let message =
                    "no persistent volumes available for this claim and no storage class is set";
                self.tell(claim, EventType::Normal, "FailedBinding", message);
                self.set_pending(claim).await
            }
        }
    }

    /// The claim names its volume.
    async fn reconcile_named(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        wanted: &str,
    ) -> anyhow::Result<()> {
        let was_bound = annotation(&claim.metadata, BIND_COMPLETED).is_some();
        let Some(volume) = self.volumes.get(None, wanted) else {
            if was_bound && self.volume_api().get_opt(wanted).await?.is_none() {
                return self
                    .lose(
                        claim,
                        "ClaimLost",
                        "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
                    )
                    .await;
            }
            return self.set_pending(claim).await;
        };
        let is_free = volume
            .spec
            .as_ref()
            .is_some_and(|spec| spec.claim_ref.is_none());
        if refers_to(&volume, claim) || (is_free && (was_bound || matching::suits(&volume, claim)))
        {
            return Box::pin(self.bind(claim, &volume)).await;
        }
        if was_bound {
            let message = "Two claims are bound to the same volume, this one is bound incorrectly";
            return self.lose(claim, "ClaimMisbound", message).await;
        }
        self.set_pending(claim).await
    }

    /// Point volume and claim at each other. Each step is repeated until it is seen to be done.
    async fn bind(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> anyhow::Result<()> {
        let volume = self.point_volume_at(volume, claim).await?;
        let mut bound = claim.clone();
        let spec = bound.spec.get_or_insert_default();
        let chosen_by_us = spec.volume_name.is_none();
        spec.volume_name = volume.metadata.name.clone();
        let annotations = bound.metadata.annotations.get_or_insert_default();
        annotations.insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
        if chosen_by_us {
            annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
        }
        let api = self.claim_api(claim);
        if bound.spec != claim.spec || bound.metadata.annotations != claim.metadata.annotations {
            bound = match api
                .replace(name(&claim.metadata), &PostParams::default(), &bound)
                .await
            {
                Err(error) if is_not_found(&error) => return Ok(()),
                result => result?,
            };
        }
        let offer = volume.spec.clone().unwrap_or_default();
        let status = PersistentVolumeClaimStatus {
            phase: Some("Bound".to_owned()),
            access_modes: offer.access_modes,
            capacity: offer.capacity,
            ..bound.status.clone().unwrap_or_default()
        };
        if bound.status.as_ref() != Some(&status) {
            bound.status = Some(status);
            match api
                .replace_status(name(&claim.metadata), &PostParams::default(), &bound)
                .await
            {
                Err(error) if is_not_found(&error) => {}
                result => drop(result?),
            }
            info!(claim = %ObjectKey::of(claim), volume = name(&volume.metadata), "bound");
        }
        Ok(())
    }

    async fn point_volume_at(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> anyhow::Result<PersistentVolume> {
        let mut pointed = volume.clone();
        let spec = pointed.spec.get_or_insert_default();
        let known_uid = spec
            .claim_ref
            .as_ref()
            .and_then(|reference| reference.uid.as_ref());
        if known_uid != claim.metadata.uid.as_ref() {
            let was_free = spec.claim_ref.is_none();
            let resource_version = claim.metadata.resource_version.clone();
            spec.claim_ref = Some(ObjectReference {
                resource_version,
                ..claim.object_ref(&())
            });
            if was_free {
                let annotations = pointed.metadata.annotations.get_or_insert_default();
                annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
            }
            pointed = self
                .volume_api()
                .replace(name(&volume.metadata), &PostParams::default(), &pointed)
                .await?;
        }
        self.set_phase(pointed, "Bound").await
    }

    async fn set_phase(
        &self,
        mut volume: PersistentVolume,
        phase: &str,
    ) -> anyhow::Result<PersistentVolume> {
        let status = volume.status.get_or_insert_default();
        if status.phase.as_deref() == Some(phase) {
            return Ok(volume);
        }
        status.phase = Some(phase.to_owned());
        status.last_phase_transition_time = Some(now());
        let api = self.volume_api();
        Ok(api
            .replace_status(name(&volume.metadata), &PostParams::default(), &volume)
            .await?)
    }

    async fn set_pending(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<()> {
        let phase = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if phase == Some("Pending") {
            return Ok(());
        }
        let mut pending = claim.clone();
        pending.status.get_or_insert_default().phase = Some("Pending".to_owned());
        let api = self.claim_api(claim);
        match api
            .replace_status(name(&claim.metadata), &PostParams::default(), &pending)
            .await
        {
            Err(error) if is_not_found(&error) => {}
            result => drop(result?),
        }
        Ok(())
    }

    async fn lose(
        &self,
        claim: &PersistentVolumeClaim,
        reason: &str,
        message: &str,
    ) -> anyhow::Result<()> {
        let phase = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if phase == Some("Lost") {
            return Ok(());
        }
        let mut lost = claim.clone();
        let status = lost.status.get_or_insert_default();
        (status.phase, status.access_modes, status.capacity) =
            (Some("Lost".to_owned()), None, None);
        let api = self.claim_api(claim);
        api.replace_status(name(&claim.metadata), &PostParams::default(), &lost)
            .await?;
        self.tell(claim, EventType::Warning, reason, message);
        Ok(())
    }

    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
    ) -> anyhow::Result<()> {
        let api = self.claim_api(claim);
        if annotation(&claim.metadata, STORAGE_PROVISIONER) != Some(&class.provisioner) {
            // External provisioners look for this; their claims come back to us when the volume is there.
            let mut annotated = claim.clone();
            let annotations = annotated.metadata.annotations.get_or_insert_default();
            annotations.insert(STORAGE_PROVISIONER.to_owned(), class.provisioner.clone());
            annotations.insert(
                BETA_STORAGE_PROVISIONER.to_owned(),
                class.provisioner.clone(),
            );
            api.replace(name(&claim.metadata), &PostParams::default(), &annotated)
                .await?;
            return Ok(());
        }
        self.set_pending(claim).await?;
        if class.provisioner != provisioner::NAME {
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the \
                 system administrator. If volume creation is delayed, please verify that the provisioner is running \
                 and correctly registered.",
                class.provisioner
            );
            self.tell(claim, EventType::Normal, "ExternalProvisioning", &message);
            return Ok(());
        }
        let Some(selected) = annotation(&claim.metadata, SELECTED_NODE) else {
            let message = "a volume on a node's disk needs volumeBindingMode WaitForFirstConsumer";
            self.tell(claim, EventType::Warning, "ProvisioningFailed", message);
            return Ok(());
        };
        let made = match self.nodes.get(None, selected) {
            Some(node) => provisioner::volume(claim, class, &node),
            None => Err(format!("node {selected:?} not found")),
        };
        let volume = match made {
            Ok(volume) => volume,
            Err(message) => {
                self.tell(claim, EventType::Warning, "ProvisioningFailed", &message);
                return self.deselect_node(claim).await;
            }
        };
        match self
            .volume_api()
            .create(&PostParams::default(), &volume)
            .await
        {
            Ok(_) => {
                let message = format!("Successfully provisioned volume {}", name(&volume.metadata));
                self.tell(claim, EventType::Normal, "ProvisioningSucceeded", &message);
            }
            Err(error) if is_already_exists(&error) => {}
            Err(error) => {
                self.tell(
                    claim,
                    EventType::Warning,
                    "ProvisioningFailed",
                    &message_of(&error),
                );
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Have the scheduler choose again.
    async fn deselect_node(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<()> {
        let mut deselected = claim.clone();
        deselected
            .metadata
            .annotations
            .get_or_insert_default()
            .remove(SELECTED_NODE);
        let api = self.claim_api(claim);
        api.replace(name(&claim.metadata), &PostParams::default(), &deselected)
            .await?;
        Ok(())
    }

    async fn reconcile_volume(&self, volume: &Arc<PersistentVolume>) -> anyhow::Result<()> {
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
        let reference_uid = reference
            .as_ref()
            .and_then(|reference| reference.uid.clone());
        let (Some(key), Some(reference_uid)) = (
            claim_of(volume),
            reference_uid.filter(|uid| !uid.is_empty()),
        ) else {
            // Free, or reserved for a claim that may come.
            self.set_phase((**volume).clone(), "Available").await?;
            return Ok(());
        };
        let claim = match self.claims.get_key(&key) {
            Some(claim) => Some(claim),
            // Our copy may lag: ask before data is deleted.
            None => {
                let api = Api::<PersistentVolumeClaim>::namespaced(
                    self.context.client.clone(),
                    &key.namespace,
                );
                api.get_opt(&key.name).await?.map(Arc::new)
            }
        };
        match claim.filter(|claim| claim.metadata.uid.as_deref() == Some(&reference_uid)) {
            None => self.reclaim(volume).await,
            Some(claim) if volume_name(&claim) == Some(name(&volume.metadata)) => {
                self.set_phase((**volume).clone(), "Bound").await?;
                Ok(())
            }
            Some(claim) if volume_name(&claim).is_none() => {
                Box::pin(self.reconcile_claim(&claim)).await
            }
            // The claim went to another volume.
            Some(_) if annotation(&volume.metadata, super::PROVISIONED_BY).is_some() => {
                self.reclaim(volume).await
            }
            Some(_) => self.free(volume).await,
        }
    }

    /// Take back a reservation that we made; one that a user made stays.
    async fn free(&self, volume: &PersistentVolume) -> anyhow::Result<()> {
        let mut freed = volume.clone();
        let by_us = annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some();
        let spec = freed.spec.get_or_insert_default();
        if by_us {
            spec.claim_ref = None;
            freed
                .metadata
                .annotations
                .get_or_insert_default()
                .remove(BOUND_BY_CONTROLLER);
        } else if let Some(reference) = &mut spec.claim_ref {
            (reference.uid, reference.resource_version) = (None, None);
        }
        let freed = self
            .volume_api()
            .replace(name(&volume.metadata), &PostParams::default(), &freed)
            .await?;
        self.set_phase(freed, "Available").await?;
        Ok(())
    }

    /// The claim is gone for good.
    async fn reclaim(&self, volume: &PersistentVolume) -> anyhow::Result<()> {
        let released = self.set_phase(volume.clone(), "Released").await?;
        let spec = released.spec.as_ref();
        let delete = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref())
            == Some("Delete");
        let ours = annotation(&released.metadata, FLUYT_PROVISIONED_BY).is_some();
        // Others' volumes are deleted by their provisioners.
        if !(delete && ours) || released.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        info!(
            volume = name(&volume.metadata),
            "deleting a released volume"
        );
        match self
            .volume_api()
            .delete(name(&volume.metadata), &DeleteParams::default())
            .await
        {
            Err(error) if is_not_found(&error) => {}
            result => drop(result?),
        }
        Ok(())
    }

    fn tell(
        &self,
        claim: &PersistentVolumeClaim,
        event_type: EventType,
        reason: &str,
        message: &str,
    ) {
        self.recorder
            .event(&claim.object_ref(&()), event_type, reason, message);
    }

    fn claim_api(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.context.client.clone(), namespace(&claim.metadata))
    }

    fn volume_api(&self) -> Api<PersistentVolume> {
        Api::all(self.context.client.clone())
    }
}

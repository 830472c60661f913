//! VolumeBinding: a pod goes where its volumes are, or where they can be made.
//!
//! Bound claims pin the pod to nodes that reach the volume. For unbound claims of a class that waits for its first
//! consumer we choose the node: an available volume there is bound to the claim, or the claim is annotated with the
//! node for the provisioner, and the binding cycle waits until it is bound.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use fluyt_api::quantity::Quantity;
use fluyt_client::{
    Informer, Informers,
    helpers::{labels, scheduling::node_selector_matches},
};
use k8s_openapi::api::{
    core::v1::{Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use kube::{Api, Client, Resource, api::PostParams};
use parking_lot::Mutex;

use crate::framework::{
    BindResult, CycleState, Event, NodeInfo, Plugin, PodInfo, PreFilter, Rejection, Snapshot,
    Verdict,
};

const NAME: &str = "VolumeBinding";
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// How long a pod waits for its volumes before it is scheduled anew.
const BIND_TIMEOUT: Duration = Duration::from_secs(600);

pub struct VolumeBinding {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    /// What pods in their binding cycle will do, by pod uid.
    assumed: Mutex<HashMap<String, Vec<Decision>>>,
}

/// The claims of a pod.
#[derive(Default)]
struct Claims {
    bound: Vec<Arc<PersistentVolumeClaim>>,
    waiting: Vec<Arc<PersistentVolumeClaim>>,
}

/// How a waiting claim gets its volume.
#[derive(Debug, Clone, PartialEq)]
enum Decision {
    Bind {
        claim: Arc<PersistentVolumeClaim>,
        volume: Arc<PersistentVolume>,
    },
    Provision {
        claim: Arc<PersistentVolumeClaim>,
    },
}

/// The names of the pod's claims.
fn claim_names(pod: &Pod) -> Vec<String> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(
            |volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(claim), _) => Some(claim.claim_name.clone()),
                (None, Some(_)) => Some(format!("{pod_name}-{}", volume.name)),
                (None, None) => None,
            },
        )
        .collect()
}

fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    let name = claim.spec.as_ref()?.volume_name.as_deref()?;
    (!name.is_empty()).then_some(name)
}

fn name<K: Resource>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let phase = claim
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    volume_name(claim).is_some() && phase == Some("Bound")
}

fn reaches(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    required.is_none_or(|required| node_selector_matches(required, node))
}

/// Whether the volume can serve the claim.
fn fits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(offer), Some(wish)) = (&volume.spec, &claim.spec) else {
        return false;
    };
    let phase = volume
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let reserved_for_us = offer.claim_ref.as_ref().is_some_and(|reference| {
        reference.name == claim.metadata.name
            && reference.namespace == claim.metadata.namespace
            && reference
                .uid
                .as_ref()
                .is_none_or(|uid| claim.metadata.uid.as_ref() == Some(uid))
    });
    let free = reserved_for_us || (offer.claim_ref.is_none() && phase == Some("Available"));
    let amount = |list: &std::collections::BTreeMap<String, _>| {
        let text: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
            list.get("storage");
        text.and_then(|text| text.0.parse::<Quantity>().ok())
    };
    let capacity = offer
        .capacity
        .as_ref()
        .and_then(amount)
        .unwrap_or(Quantity::ZERO);
    let requests = wish
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref());
    let wanted = requests.and_then(amount).unwrap_or(Quantity::ZERO);
    let modes = offer.access_modes.as_deref().unwrap_or_default();
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    free && volume.metadata.deletion_timestamp.is_none()
        && capacity >= wanted
        && wish
            .access_modes
            .iter()
            .flatten()
            .all(|wanted| modes.contains(wanted))
        && mode(&offer.volume_mode) == mode(&wish.volume_mode)
        && offer.storage_class_name.clone().unwrap_or_default()
            == wish.storage_class_name.clone().unwrap_or_default()
        && wish
            .selector
            .as_ref()
            .is_none_or(|selector| labels::matches(selector, labels::labels_of(&volume.metadata)))
}

impl VolumeBinding {
    pub fn new(client: Client, informers: &Informers) -> Self {
        Self {
            client,
            claims: informers.get(),
            volumes: informers.get(),
            classes: informers.get(),
            assumed: Mutex::default(),
        }
    }

    fn class_of(&self, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
        let class = claim.spec.as_ref()?.storage_class_name.as_deref()?;
        self.classes.get(None, class)
    }

    fn waits_for_consumer(&self, claim: &PersistentVolumeClaim) -> bool {
        let class = self.class_of(claim);
        let mode = class
            .as_ref()
            .and_then(|class| class.volume_binding_mode.as_deref());
        mode == Some("WaitForFirstConsumer")
    }

    fn claims_of(&self, pod: &PodInfo) -> Result<Claims, Rejection> {
        let mut claims = Claims::default();
        for claim_name in claim_names(&pod.pod) {
            let Some(claim) = self.claims.get(Some(pod.namespace()), &claim_name) else {
                let reason = format!("persistentvolumeclaim {claim_name:?} not found");
                return Err(Rejection::unresolvable(NAME, reason));
            };
            if claim.metadata.deletion_timestamp.is_some() {
                let reason = format!("persistentvolumeclaim {claim_name:?} is being deleted");
                return Err(Rejection::unresolvable(NAME, reason));
            }
            if claim
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref())
                == Some("Lost")
            {
                let reason = format!(
                    "persistentvolumeclaim {claim_name:?} bound to non-existing persistentvolume"
                );
                return Err(Rejection::unresolvable(NAME, reason));
            }
            if volume_name(&claim).is_some() {
                claims.bound.push(claim);
            } else if self.waits_for_consumer(&claim) {
                claims.waiting.push(claim);
            } else {
                let reason = "pod has unbound immediate PersistentVolumeClaims";
                return Err(Rejection::unresolvable(NAME, reason));
            }
        }
        Ok(claims)
    }

    /// How the waiting claims would get their volumes on the node.
    fn decide(
        &self,
        pod: &PodInfo,
        waiting: &[Arc<PersistentVolumeClaim>],
        node: &Node,
    ) -> Option<Vec<Decision>> {
        let mut taken: HashSet<String> = {
            let assumed = self.assumed.lock();
            let others = assumed.iter().filter(|(uid, _)| uid.as_str() != pod.uid());
            let volumes = others
                .flat_map(|(_, decisions)| decisions)
                .filter_map(|decision| match decision {
                    Decision::Bind { volume, .. } => Some(name(&**volume).to_owned()),
                    Decision::Provision { .. } => None,
                });
            volumes.collect()
        };
        let volumes = self.volumes.list();
        let mut decisions = Vec::new();
        for claim in waiting {
            let candidates = volumes.iter().filter(|volume| {
                !taken.contains(name(&***volume)) && fits(volume, claim) && reaches(volume, node)
            });
            let capacity = |volume: &PersistentVolume| {
                let capacity = volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?;
                capacity.0.parse::<Quantity>().ok()
            };
            // The smallest that is large enough.
            if let Some(volume) = candidates.min_by_key(|volume| capacity(volume)) {
                taken.insert(name(&**volume).to_owned());
                decisions.push(Decision::Bind {
                    claim: Arc::clone(claim),
                    volume: Arc::clone(volume),
                });
            } else if self.can_provision(claim, node) {
                decisions.push(Decision::Provision {
                    claim: Arc::clone(claim),
                });
            } else {
                return None;
            }
        }
        Some(decisions)
    }

    fn can_provision(&self, claim: &PersistentVolumeClaim, node: &Node) -> bool {
        let Some(class) = self.class_of(claim) else {
            return false;
        };
        let selected = claim
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(SELECTED_NODE));
        if selected.is_some_and(|selected| selected != name(node)) {
            // A provisioner is at work for another node; it takes the annotation back if it fails.
            return false;
        }
        let node_labels = labels::labels_of(&node.metadata);
        let allowed = class.allowed_topologies.as_deref().unwrap_or_default();
        let topology_fits = allowed.is_empty()
            || allowed.iter().any(|term| {
                let mut requirements = term.match_label_expressions.iter().flatten();
                requirements.all(|requirement| {
                    node_labels
                        .get(&requirement.key)
                        .is_some_and(|value| requirement.values.contains(value))
                })
            });
        class.provisioner != NO_PROVISIONER && topology_fits
    }

    async fn carry_out(&self, decision: &Decision, node: &str) -> anyhow::Result<()> {
        match decision {
            Decision::Bind { claim, volume } => {
                let mut volume = (**volume).clone();
                let reference = claim.object_ref(&());
                volume.spec.get_or_insert_default().claim_ref = Some(ObjectReference {
                    resource_version: claim.metadata.resource_version.clone(),
                    ..reference
                });
                let annotations = volume.metadata.annotations.get_or_insert_default();
                annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
                let api = Api::<PersistentVolume>::all(self.client.clone());
                api.replace(name(&volume), &PostParams::default(), &volume)
                    .await?;
            }
            Decision::Provision { claim } => {
                let mut claim = (**claim).clone();
                let annotations = claim.metadata.annotations.get_or_insert_default();
                annotations.insert(SELECTED_NODE.to_owned(), node.to_owned());
                let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
                let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace);
                api.replace(name(&claim), &PostParams::default(), &claim)
                    .await?;
            }
        }
        Ok(())
    }

    /// Wait until all claims of the pod are bound, to volumes that the node reaches.
    async fn wait_for_binding(&self, pod: &PodInfo, node: &str) -> anyhow::Result<()> {
        let mut changes = self.claims.subscribe();
        let mut provisioning_seen = HashSet::new();
        loop {
            let mut unbound = 0;
            for claim_name in claim_names(&pod.pod) {
                let Some(claim) = self.claims.get(Some(pod.namespace()), &claim_name) else {
                    anyhow::bail!("persistentvolumeclaim {claim_name:?} was deleted");
                };
                if is_bound(&claim) {
                    continue;
                }
                unbound += 1;
                let selected = claim
                    .metadata
                    .annotations
                    .as_ref()
                    .and_then(|all| all.get(SELECTED_NODE));
                match selected {
                    Some(selected) if selected == node => {
                        provisioning_seen.insert(claim_name);
                    }
                    Some(_) => anyhow::bail!(
                        "another node was selected for persistentvolumeclaim {claim_name:?}"
                    ),
                    None if provisioning_seen.contains(&claim_name) => {
                        anyhow::bail!(
                            "provisioning failed for persistentvolumeclaim {claim_name:?}"
                        );
                    }
                    None => {}
                }
            }
            if unbound == 0 {
                return Ok(());
            }
            if changes.recv().await.is_none() {
                anyhow::bail!("the scheduler is shutting down");
            }
        }
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        match self.claims_of(pod) {
            Err(rejection) => PreFilter::Reject(rejection),
            Ok(claims) if claims.bound.is_empty() && claims.waiting.is_empty() => PreFilter::Skip,
            Ok(claims) => {
                state.put(NAME, claims);
                PreFilter::Continue
            }
        }
    }

    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        let Some(claims) = state.get::<Claims>(NAME) else {
            return Ok(());
        };
        for claim in &claims.bound {
            match volume_name(claim).and_then(|volume| self.volumes.get(None, volume)) {
                None => {
                    let reason =
                        "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
                    return Err(Rejection::unresolvable(NAME, reason));
                }
                Some(volume) if !reaches(&volume, &node.node) => {
                    let reason = "node(s) didn't match PersistentVolume's node affinity";
                    return Err(Rejection::unresolvable(NAME, reason));
                }
                Some(_) => {}
            }
        }
        if self.decide(pod, &claims.waiting, &node.node).is_none() {
            let reason = "node(s) didn't find available persistent volumes to bind";
            return Err(Rejection::unresolvable(NAME, reason));
        }
        Ok(())
    }

    fn reserve(&self, state: &CycleState, pod: &PodInfo, node: &str) -> Verdict {
        let Some(claims) = state
            .get::<Claims>(NAME)
            .filter(|claims| !claims.waiting.is_empty())
        else {
            return Ok(());
        };
        let node = state
            .get::<ChosenNode>(CHOSEN_NODE)
            .filter(|chosen| chosen.0.metadata.name.as_deref() == Some(node));
        let decisions = node.and_then(|node| self.decide(pod, &claims.waiting, &node.0));
        let Some(decisions) = decisions else {
            return Err(Rejection::unschedulable(
                NAME,
                "volumes were taken meanwhile",
            ));
        };
        self.assumed.lock().insert(pod.uid().to_owned(), decisions);
        Ok(())
    }

    fn unreserve(&self, _state: &CycleState, pod: &PodInfo, _node: &str) {
        self.assumed.lock().remove(pod.uid());
    }

    fn pre_bind<'a>(
        &'a self,
        _state: &'a CycleState,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BindResult<'a> {
        Box::pin(async move {
            let decisions = self
                .assumed
                .lock()
                .get(pod.uid())
                .cloned()
                .unwrap_or_default();
            if decisions.is_empty() {
                return Ok(());
            }
            for decision in &decisions {
                self.carry_out(decision, node).await?;
            }
            let bound = tokio::time::timeout(BIND_TIMEOUT, self.wait_for_binding(pod, node)).await;
            self.assumed.lock().remove(pod.uid());
            match bound {
                Ok(result) => result,
                Err(_) => anyhow::bail!("timed out waiting for volumes to be bound"),
            }
        })
    }

    fn may_help(&self, event: &Event, pod: &Pod) -> bool {
        match event {
            Event::ClaimChanged(claim) => {
                claim.metadata.namespace == pod.metadata.namespace
                    && claim_names(pod)
                        .iter()
                        .any(|wanted| wanted == name(&**claim))
            }
            Event::PodAssigned { .. } | Event::PodRemoved(_) | Event::NodeRemoved(_) => false,
            _ => true,
        }
    }
}

/// The node that the cycle chose, for plugins that decide at reserve.
pub struct ChosenNode(pub Arc<Node>);

/// Key of [`ChosenNode`] in the cycle state.
pub const CHOSEN_NODE: &str = "ChosenNode";

#[cfg(test)]
mod tests {
    use fluyt_client::fake::FakeApi;
    use k8s_openapi::{
        api::core::v1::{
            NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolumeClaimSpec,
            PersistentVolumeClaimStatus, PersistentVolumeClaimVolumeSource, PersistentVolumeSpec,
            PersistentVolumeStatus, Volume, VolumeNodeAffinity, VolumeResourceRequirements,
        },
        apimachinery::pkg::{api::resource::Quantity as Text, apis::meta::v1::ObjectMeta},
    };
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::testing::{filter, node, passes, pod, snapshot};

    fn class(mode: &str, provisioner: &str) -> StorageClass {
        StorageClass {
            metadata: ObjectMeta {
                name: Some("default".to_owned()),
                ..ObjectMeta::default()
            },
            provisioner: provisioner.to_owned(),
            volume_binding_mode: Some(mode.to_owned()),
            ..StorageClass::default()
        }
    }

    fn claim(volume: Option<&str>) -> PersistentVolumeClaim {
        let storage = [("storage".to_owned(), Text("1Gi".to_owned()))];
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                namespace: Some("ns".to_owned()),
                name: Some("data".to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeClaimSpec {
                storage_class_name: Some("default".to_owned()),
                volume_name: volume.map(str::to_owned),
                access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
                resources: Some(VolumeResourceRequirements {
                    requests: Some(storage.into()),
                    limits: None,
                }),
                ..PersistentVolumeClaimSpec::default()
            }),
            status: None,
        }
    }

    fn volume(volume_name: &str, size: &str, on: &str) -> PersistentVolume {
        let requirement = NodeSelectorRequirement {
            key: "kubernetes.io/hostname".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![on.to_owned()]),
        };
        let term = NodeSelectorTerm {
            match_expressions: Some(vec![requirement]),
            match_fields: None,
        };
        PersistentVolume {
            metadata: ObjectMeta {
                name: Some(volume_name.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeSpec {
                storage_class_name: Some("default".to_owned()),
                access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
                capacity: Some([("storage".to_owned(), Text(size.to_owned()))].into()),
                node_affinity: Some(VolumeNodeAffinity {
                    required: Some(NodeSelector {
                        node_selector_terms: vec![term],
                    }),
                }),
                ..PersistentVolumeSpec::default()
            }),
            status: Some(PersistentVolumeStatus {
                phase: Some("Available".to_owned()),
                ..PersistentVolumeStatus::default()
            }),
        }
    }

    fn incoming() -> PodInfo {
        pod("p")
            .edit(|spec| {
                spec.volumes = Some(vec![Volume {
                    persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                        claim_name: "data".to_owned(),
                        read_only: None,
                    }),
                    ..Volume::default()
                }]);
            })
            .info()
    }

    fn plugin(
        class: StorageClass,
        claims: Vec<PersistentVolumeClaim>,
        volumes: Vec<PersistentVolume>,
    ) -> VolumeBinding {
        VolumeBinding {
            client: FakeApi::new().client(),
            claims: Informer::of_objects(claims),
            volumes: Informer::of_objects(volumes),
            classes: Informer::of_objects([class]),
            assumed: Mutex::default(),
        }
    }

    #[tokio::test]
    async fn where_volumes_are_or_can_be() {
        let nodes = snapshot([node("a").with([]), node("b").with([])]);
        let passes = |plugin: &VolumeBinding| passes(plugin, &incoming(), &nodes);
        let (wait, static_only) = ("WaitForFirstConsumer", NO_PROVISIONER);
        let cases = [
            (
                "bound",
                plugin(
                    class(wait, "x"),
                    vec![claim(Some("v"))],
                    vec![volume("v", "1Gi", "b")],
                ),
                [false, true],
            ),
            (
                "volume is lost",
                plugin(class(wait, "x"), vec![claim(Some("v"))], vec![]),
                [false, false],
            ),
            (
                "provisionable",
                plugin(class(wait, "x"), vec![claim(None)], vec![]),
                [true, true],
            ),
            (
                "static",
                plugin(
                    class(wait, static_only),
                    vec![claim(None)],
                    vec![volume("v", "2Gi", "a")],
                ),
                [true, false],
            ),
            (
                "too small",
                plugin(
                    class(wait, static_only),
                    vec![claim(None)],
                    vec![volume("v", "1Mi", "a")],
                ),
                [false, false],
            ),
            (
                "immediate",
                plugin(class("Immediate", "x"), vec![claim(None)], vec![]),
                [false, false],
            ),
            (
                "no claim",
                plugin(class(wait, "x"), vec![], vec![]),
                [false, false],
            ),
        ];
        for (what, plugin, expected) in cases {
            assert_eq!(passes(&plugin), expected, "{what}");
        }
        let missing = plugin(class(wait, "x"), vec![], vec![]);
        let reason = filter(&missing, &incoming(), &nodes)
            .remove(0)
            .unwrap_err()
            .reasons
            .remove(0);
        assert_eq!(reason, "persistentvolumeclaim \"data\" not found");
    }

    #[tokio::test]
    async fn binding_waits_for_the_provisioner() {
        let fake = FakeApi::new();
        fake.insert(class("WaitForFirstConsumer", "x"));
        fake.insert(claim(None));
        let informers = Informers::new(fake.client(), CancellationToken::new());
        let plugin = Arc::new(VolumeBinding::new(fake.client(), &informers));
        plugin.claims.synced().await;
        plugin.volumes.synced().await;
        plugin.classes.synced().await;
        let nodes = snapshot([node("a").with([])]);
        let pod = Arc::new(incoming());
        let mut state = CycleState::default();
        plugin.pre_filter(&mut state, &pod, &nodes);
        state.put(CHOSEN_NODE, ChosenNode(Arc::clone(&nodes.nodes[0].node)));
        plugin.reserve(&state, &pod, "a").unwrap();
        let binding = {
            let (plugin, pod) = (Arc::clone(&plugin), Arc::clone(&pod));
            tokio::spawn(async move { plugin.pre_bind(&state, &pod, "a").await })
        };
        let selected = |fake: &FakeApi| {
            let claim = fake.get::<PersistentVolumeClaim>("ns", "data")?;
            claim.metadata.annotations?.remove(SELECTED_NODE)
        };
        fake.until("node is selected", |fake| {
            selected(fake).as_deref() == Some("a")
        })
        .await;
        assert!(!binding.is_finished());
        let mut bound = fake.get::<PersistentVolumeClaim>("ns", "data").unwrap();
        bound.spec.as_mut().unwrap().volume_name = Some("v".to_owned());
        bound.status = Some(PersistentVolumeClaimStatus {
            phase: Some("Bound".to_owned()),
            ..PersistentVolumeClaimStatus::default()
        });
        fake.update(&bound);
        assert!(binding.await.unwrap().is_ok());
        assert!(plugin.assumed.lock().is_empty());
    }
}

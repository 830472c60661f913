//! VolumeRestrictions: a claim with access mode ReadWriteOncePod is used by one pod at a time.

use std::collections::HashSet;

use fluyt_client::{Informer, Informers};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use crate::framework::{
    CycleState, Event, NodeInfo, Plugin, PodInfo, PreFilter, Rejection, Snapshot, Verdict,
};

pub struct VolumeRestrictions {
    claims: Informer<PersistentVolumeClaim>,
}

const NAME: &str = "VolumeRestrictions";

/// The exclusive claims of the pod.
struct Exclusive(HashSet<String>);

impl VolumeRestrictions {
    pub fn new(informers: &Informers) -> Self {
        Self {
            claims: informers.get(),
        }
    }
}

fn claim_names(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        volume
            .persistent_volume_claim
            .as_ref()
            .map(|claim| claim.claim_name.as_str())
    })
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_filter(&self, state: &mut CycleState, pod: &PodInfo, _snapshot: &Snapshot) -> PreFilter {
        let is_exclusive = |name: &&str| {
            let claim = self.claims.get(Some(pod.namespace()), name);
            let modes = claim.and_then(|claim| claim.spec.as_ref()?.access_modes.clone());
            modes
                .iter()
                .flatten()
                .any(|mode| mode == "ReadWriteOncePod")
        };
        let exclusive: HashSet<String> = claim_names(&pod.pod)
            .filter(is_exclusive)
            .map(str::to_owned)
            .collect();
        if exclusive.is_empty() {
            return PreFilter::Skip;
        }
        state.put(NAME, Exclusive(exclusive));
        PreFilter::Continue
    }

    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeInfo) -> Verdict {
        let Some(Exclusive(exclusive)) = state.get(NAME) else {
            return Ok(());
        };
        let used = node
            .pods
            .iter()
            .filter(|other| other.namespace() == pod.namespace())
            .any(|other| claim_names(&other.pod).any(|name| exclusive.contains(name)));
        if used {
            let reason = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod \
                access mode";
            return Err(Rejection::unschedulable(NAME, reason));
        }
        Ok(())
    }

    fn may_help(&self, event: &Event, _pod: &Pod) -> bool {
        matches!(
            event,
            Event::PodRemoved(_) | Event::ClaimChanged(_) | Event::NodeAdded(_) | Event::Unknown
        )
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{PersistentVolumeClaimSpec, PersistentVolumeClaimVolumeSource, Volume},
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };

    use super::*;
    use crate::testing::{PodBuilder, node, passes, pod, snapshot};

    fn using(pod: PodBuilder) -> PodBuilder {
        pod.edit(|spec| {
            spec.volumes = Some(vec![Volume {
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: "data".to_owned(),
                    read_only: None,
                }),
                ..Volume::default()
            }]);
        })
    }

    #[test]
    fn one_pod_at_a_time() {
        let plugin = |mode: &str| VolumeRestrictions {
            claims: Informer::of_objects([PersistentVolumeClaim {
                metadata: ObjectMeta {
                    namespace: Some("ns".to_owned()),
                    name: Some("data".to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(PersistentVolumeClaimSpec {
                    access_modes: Some(vec![mode.to_owned()]),
                    ..PersistentVolumeClaimSpec::default()
                }),
                status: None,
            }]),
        };
        let nodes = snapshot([node("a").with([using(pod("x"))]), node("b").with([])]);
        assert_eq!(
            passes(&plugin("ReadWriteOncePod"), &using(pod("p")).info(), &nodes),
            [false, true]
        );
        assert_eq!(
            passes(&plugin("ReadWriteOnce"), &using(pod("p")).info(), &nodes),
            [true, true]
        );
    }
}

//! The persistent volume claims of a StatefulSet's pods, and who owns them.

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::Resource;

use super::{
    identity::{claim_name, ordinal_of},
    plan,
};
use crate::common::{name, uid};

/// The claims that the pod needs, as they are created.
pub fn of_pod(set: &StatefulSet, pod: &Pod) -> Vec<PersistentVolumeClaim> {
    let Some((_, ordinal)) = ordinal_of(pod) else {
        return Vec::new();
    };
    let Some(spec) = &set.spec else {
        return Vec::new();
    };
    let templates = spec.volume_claim_templates.iter().flatten();
    templates
        .map(|template| {
            let mut claim = template.clone();
            claim.metadata.name = Some(claim_name(name(&template.metadata), set, ordinal));
            claim.metadata.namespace.clone_from(&set.metadata.namespace);
            let mut labels = spec.selector.match_labels.clone().unwrap_or_default();
            labels.extend(claim.metadata.labels.take().unwrap_or_default());
            claim.metadata.labels = Some(labels);
            claim.status = None;
            if deleted_with_set(set) {
                claim.metadata.owner_references = Some(vec![owner_reference(set)]);
            }
            claim
        })
        .collect()
}

fn policy<'a>(set: &'a StatefulSet, when: impl FnOnce(&'a Policy) -> &'a Option<String>) -> bool {
    let policy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    policy
        .map(when)
        .is_some_and(|policy| policy.as_deref() == Some("Delete"))
}

type Policy = k8s_openapi::api::apps::v1::StatefulSetPersistentVolumeClaimRetentionPolicy;

fn deleted_with_set(set: &StatefulSet) -> bool {
    policy(set, |policy| &policy.when_deleted)
}

fn deleted_when_scaled(set: &StatefulSet) -> bool {
    policy(set, |policy| &policy.when_scaled)
}

fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: name(owner.meta()).to_owned(),
        uid: uid(owner.meta()).to_owned(),
        controller: None,
        block_owner_deletion: None,
    }
}

/// The owners that the retention policy gives the claim of `pod`; `None` if it has them already.
pub fn owners(
    set: &StatefulSet,
    pod: &Pod,
    claim: &PersistentVolumeClaim,
) -> Option<Vec<OwnerReference>> {
    let condemned = plan::is_condemned(set, pod);
    let wanted = if deleted_when_scaled(set) && condemned {
        Some(owner_reference(pod))
    } else if deleted_with_set(set) {
        Some(owner_reference(set))
    } else {
        None
    };
    let current = claim.metadata.owner_references.clone().unwrap_or_default();
    let ours = [uid(&set.metadata), uid(&pod.metadata)];
    let mut owners: Vec<OwnerReference> = current
        .iter()
        .filter(|owner| !ours.contains(&owner.uid.as_str()))
        .cloned()
        .collect();
    owners.extend(wanted);
    (owners != current).then_some(owners)
}

//! The identity of a StatefulSet's pods: name, host name, labels, volumes.

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::common::{controller_ref, name, revisions::REVISION_HASH};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The set's name and the ordinal in the pod's name `<set>-<ordinal>`.
pub fn ordinal_of(pod: &Pod) -> Option<(String, i32)> {
    let (parent, ordinal) = name(&pod.metadata).rsplit_once('-')?;
    Some((parent.to_owned(), ordinal.parse().ok()?))
}

/// The name of the revision the pod was made from.
pub fn revision_of(pod: &Pod) -> Option<&str> {
    pod.metadata
        .labels
        .as_ref()?
        .get(REVISION_HASH)
        .map(String::as_str)
}

/// The claim's name for a template of the set and a pod.
pub fn claim_name(template: &str, set: &StatefulSet, ordinal: i32) -> String {
    format!("{template}-{}-{ordinal}", name(&set.metadata))
}

/// The pod of this ordinal, from this template.
pub fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let pod_name = format!("{}-{ordinal}", name(&set.metadata));
    let mut labels = meta.labels.unwrap_or_default();
    labels.insert(POD_NAME.to_owned(), pod_name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(REVISION_HASH.to_owned(), revision.to_owned());
    let mut spec = template.spec.clone().unwrap_or_default();
    spec.hostname = Some(pod_name.clone());
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone());
    let templates = set
        .spec
        .iter()
        .flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    let mut volumes: Vec<Volume> = templates
        .map(|claim| {
            let template = name(&claim.metadata);
            Volume {
                name: template.to_owned(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim_name(template, set, ordinal),
                    read_only: None,
                }),
                ..Volume::default()
            }
        })
        .collect();
    let others = spec.volumes.take().unwrap_or_default().into_iter();
    let claimed: Vec<String> = volumes.iter().map(|volume| volume.name.clone()).collect();
    volumes.extend(others.filter(|volume| !claimed.contains(&volume.name)));
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
    Pod {
        metadata: ObjectMeta {
            name: Some(pod_name),
            namespace: set.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_ref(set)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

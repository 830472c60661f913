//! ControllerRevisions: the history of the templates of DaemonSets and StatefulSets.

use std::fmt::Debug;

use fluyt_client::{is_already_exists, is_not_found};
use k8s_openapi::{
    api::{apps::v1::ControllerRevision, core::v1::PodTemplateSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use kube::{
    Api, Resource,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use super::{controller_ref, hash, labels_with, name};

/// The label of pods and revisions that names a revision's hash.
pub const REVISION_HASH: &str = "controller-revision-hash";

/// What a revision records of its owner: a strategic merge patch that restores the template.
pub fn snapshot(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template that a revision records.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision
        .data
        .as_ref()?
        .0
        .get("spec")?
        .get("template")?
        .clone();
    if let Some(fields) = template.as_object_mut() {
        fields.remove("$patch");
    }
    serde_json::from_value(template).ok()
}

/// The hash in the revision's label.
pub fn hash_of(revision: &ControllerRevision) -> &str {
    let labels = revision.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(REVISION_HASH))
        .map(String::as_str)
        .unwrap_or_default()
}

/// A new revision of `owner` with this data.
fn blueprint<O: Resource<DynamicType = ()>>(
    owner: &O,
    template: &PodTemplateSpec,
    data: Value,
    number: i64,
    collisions: Option<i32>,
) -> ControllerRevision {
    let hash = hash::compute(&data, collisions.filter(|count| *count > 0));
    let labels = template
        .metadata
        .as_ref()
        .and_then(|meta| meta.labels.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", name(owner.meta()))),
            namespace: owner.meta().namespace.clone(),
            annotations: owner.meta().annotations.clone(),
            labels: labels_with(labels, REVISION_HASH, &hash),
            owner_references: Some(vec![controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    }
}

/// Find or create the revision of the owner's current template. `history` are the owner's revisions; the one
/// returned has the highest number. `collisions` is raised when another object has taken the name.
pub async fn current<O>(
    api: &Api<ControllerRevision>,
    owner: &O,
    template: &PodTemplateSpec,
    history: &[ControllerRevision],
    collisions: &mut Option<i32>,
) -> kube::Result<ControllerRevision>
where
    O: Resource<DynamicType = ()> + Debug,
{
    let data = snapshot(template);
    let newest = history
        .iter()
        .map(|revision| revision.revision)
        .max()
        .unwrap_or(0);
    let same = history
        .iter()
        .filter(|revision| revision.data.as_ref().is_some_and(|known| known.0 == data));
    if let Some(known) = same.max_by_key(|revision| revision.revision) {
        if known.revision == newest {
            return Ok(known.clone());
        }
        // Rolled back: what is current has the highest number.
        let mut renumbered = known.clone();
        renumbered.revision = newest + 1;
        return api
            .replace(name(&known.metadata), &PostParams::default(), &renumbered)
            .await;
    }
    loop {
        let revision = blueprint(owner, template, data.clone(), newest + 1, *collisions);
        match api.create(&PostParams::default(), &revision).await {
            Err(error) if is_already_exists(&error) => {
                let taken = api.get(name(&revision.metadata)).await?;
                if taken.data.as_ref().is_some_and(|known| known.0 == data) {
                    return Ok(taken);
                }
                *collisions = Some(collisions.unwrap_or(0) + 1);
            }
            result => return result,
        }
    }
}

/// Delete the oldest revisions beyond `limit` that are not in use.
pub async fn truncate(
    api: &Api<ControllerRevision>,
    history: &[ControllerRevision],
    limit: usize,
    in_use: impl Fn(&ControllerRevision) -> bool,
) -> kube::Result<()> {
    let mut idle: Vec<&ControllerRevision> = history
        .iter()
        .filter(|revision| !in_use(revision))
        .collect();
    idle.sort_by_key(|revision| revision.revision);
    let excess = idle.len().saturating_sub(limit);
    for revision in idle.into_iter().take(excess) {
        match api
            .delete(name(&revision.metadata), &DeleteParams::default())
            .await
        {
            Err(error) if is_not_found(&error) => {}
            result => drop(result?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use fluyt_client::fake::FakeApi;
    use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::PodSpec};

    use super::*;
    use crate::common::test_support::named;

    fn template(image: &str) -> PodTemplateSpec {
        PodTemplateSpec {
            metadata: None,
            spec: Some(PodSpec {
                hostname: Some(image.to_owned()),
                ..PodSpec::default()
            }),
        }
    }

    #[tokio::test]
    async fn one_revision_per_template_and_rollback_renumbers() {
        let fake = FakeApi::new();
        let api = Api::<ControllerRevision>::namespaced(fake.client(), "ns");
        let owner = DaemonSet {
            metadata: named("ns", "ds"),
            ..DaemonSet::default()
        };
        let mut collisions = None;
        let mut numbers = Vec::new();
        for image in ["v1", "v1", "v2", "v1"] {
            let history = fake.list::<ControllerRevision>();
            let found = current(&api, &owner, &template(image), &history, &mut collisions)
                .await
                .unwrap();
            assert_eq!(template_of(&found), Some(template(image)));
            numbers.push(found.revision);
        }
        assert_eq!(numbers, [1, 1, 2, 3]);
        let history = fake.list::<ControllerRevision>();
        assert_eq!(history.len(), 2);

        truncate(&api, &history, 0, |revision| revision.revision == 3)
            .await
            .unwrap();
        let left: Vec<i64> = fake
            .list::<ControllerRevision>()
            .iter()
            .map(|left| left.revision)
            .collect();
        assert_eq!(left, [3]);
    }
}

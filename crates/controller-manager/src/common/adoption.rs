//! Which objects belong to a controller: adopting orphans that its selector matches, releasing dependents that
//! it no longer matches (upstream's ControllerRefManager).

use std::{fmt::Debug, sync::Arc};

use fluyt_client::{helpers::labels, is_not_found, status_code};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{controller_of, controller_ref, name, uid};

/// What to do with an object.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Keep,
    Adopt,
    Release,
    Ignore,
}

fn judge(
    owner: &ObjectMeta,
    selector: &LabelSelector,
    object: &ObjectMeta,
    may_adopt: bool,
) -> Claim {
    let matches = labels::matches(selector, labels::labels_of(object));
    match controller_of(object) {
        Some(reference) if reference.uid != uid(owner) => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        // A controller that is going away leaves its dependents to the garbage collector.
        Some(_) if owner.deletion_timestamp.is_some() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner.deletion_timestamp.is_some() || object.deletion_timestamp.is_some() => {
            Claim::Ignore
        }
        None if matches && may_adopt => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// The objects that `owner` manages, after adopting and releasing where needed.
///
/// `may_adopt` filters orphans further. Before the first adoption the owner is read anew: our copy could be of an
/// object that was deleted, and adopting for a dead owner would make the garbage collector delete the orphan.
pub async fn claim<O, K>(
    owner: &O,
    owners: &Api<O>,
    api: &Api<K>,
    selector: &LabelSelector,
    candidates: impl IntoIterator<Item = Arc<K>>,
    may_adopt: impl Fn(&K) -> bool,
) -> kube::Result<Vec<Arc<K>>>
where
    O: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    claim_with(owner, owners, api, selector, candidates, may_adopt, None).await
}

/// The same of objects that carry a finalizer while they are managed: it comes with adoption and goes with release.
pub async fn claim_with<O, K>(
    owner: &O,
    owners: &Api<O>,
    api: &Api<K>,
    selector: &LabelSelector,
    candidates: impl IntoIterator<Item = Arc<K>>,
    may_adopt: impl Fn(&K) -> bool,
    finalizer: Option<&str>,
) -> kube::Result<Vec<Arc<K>>>
where
    O: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut claimed = Vec::new();
    let mut owner_lives = None;
    for object in candidates {
        match judge(owner.meta(), selector, object.meta(), may_adopt(&object)) {
            Claim::Keep => claimed.push(object),
            Claim::Ignore => {}
            Claim::Release => release(owner, api, object.meta(), finalizer).await?,
            Claim::Adopt => {
                if owner_lives.is_none() {
                    owner_lives = Some(lives(owner, owners).await?);
                }
                if owner_lives == Some(true)
                    && let Some(adopted) = adopt(owner, api, object.meta(), finalizer).await?
                {
                    claimed.push(Arc::new(adopted));
                }
            }
        }
    }
    Ok(claimed)
}

async fn lives<O>(owner: &O, owners: &Api<O>) -> kube::Result<bool>
where
    O: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let fresh = owners.get_opt(name(owner.meta())).await?;
    Ok(fresh.is_some_and(|fresh| {
        fresh.meta().uid == owner.meta().uid && fresh.meta().deletion_timestamp.is_none()
    }))
}

async fn adopt<O, K>(
    owner: &O,
    api: &Api<K>,
    object: &ObjectMeta,
    finalizer: Option<&str>,
) -> kube::Result<Option<K>>
where
    O: Resource<DynamicType = ()>,
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut owners: Vec<OwnerReference> = object.owner_references.clone().unwrap_or_default();
    owners.push(controller_ref(owner));
    let finalizers = finalizer.map(|finalizer| {
        let mut finalizers = object.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|present| present == finalizer) {
            finalizers.push(finalizer.to_owned());
        }
        finalizers
    });
    patch_owners(api, object, owners, finalizers).await
}

async fn release<O, K>(
    owner: &O,
    api: &Api<K>,
    object: &ObjectMeta,
    finalizer: Option<&str>,
) -> kube::Result<()>
where
    O: Resource<DynamicType = ()>,
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut owners: Vec<OwnerReference> = object.owner_references.clone().unwrap_or_default();
    owners.retain(|reference| reference.uid != uid(owner.meta()));
    let finalizers = finalizer.map(|finalizer| {
        let mut finalizers = object.finalizers.clone().unwrap_or_default();
        finalizers.retain(|present| present != finalizer);
        finalizers
    });
    patch_owners(api, object, owners, finalizers)
        .await
        .map(drop)
}

/// Replace the owner references, and the finalizers if there are others, of exactly this version of this object; `None` if
/// it is gone.
async fn patch_owners<K>(
    api: &Api<K>,
    object: &ObjectMeta,
    owners: Vec<OwnerReference>,
    finalizers: Option<Vec<String>>,
) -> kube::Result<Option<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut patch = json!({"metadata": {
        "uid": object.uid,
        "resourceVersion": object.resource_version,
        "ownerReferences": owners,
    }});
    if let Some(finalizers) = finalizers {
        patch["metadata"]["finalizers"] = json!(finalizers);
    }
    let params = PatchParams::default();
    match api.patch(name(object), &params, &Patch::Merge(patch)).await {
        Ok(patched) => Ok(Some(patched)),
        // 422: the uid differs, so it is another object of this name by now.
        Err(error) if is_not_found(&error) || status_code(&error) == Some(422) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn who_owns_what() {
        let selector = LabelSelector {
            match_labels: Some([("app".to_owned(), "web".to_owned())].into()),
            match_expressions: None,
        };
        let object = |label: &str, owner: Option<&str>, deleted: bool| ObjectMeta {
            labels: Some([("app".to_owned(), label.to_owned())].into()),
            deletion_timestamp: deleted.then_some(Time(Timestamp::UNIX_EPOCH)),
            owner_references: owner.map(|uid| {
                vec![OwnerReference {
                    uid: uid.to_owned(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        };
        let owner = |deleted: bool| ObjectMeta {
            uid: Some("me".to_owned()),
            ..object("", None, deleted)
        };
        let cases = [
            ("ours", false, object("web", Some("me"), false), Claim::Keep),
            (
                "ours, relabelled",
                false,
                object("db", Some("me"), false),
                Claim::Release,
            ),
            (
                "ours, relabelled, we are deleted",
                true,
                object("db", Some("me"), false),
                Claim::Ignore,
            ),
            (
                "another's",
                false,
                object("web", Some("other"), false),
                Claim::Ignore,
            ),
            ("orphan", false, object("web", None, false), Claim::Adopt),
            (
                "orphan of other labels",
                false,
                object("db", None, false),
                Claim::Ignore,
            ),
            (
                "orphan being deleted",
                false,
                object("web", None, true),
                Claim::Ignore,
            ),
            (
                "orphan, we are deleted",
                true,
                object("web", None, false),
                Claim::Ignore,
            ),
        ];
        for (what, owner_deleted, object, expected) in cases {
            let claim = judge(&owner(owner_deleted), &selector, &object, true);
            assert_eq!(claim, expected, "{what}");
        }
        let orphan = object("web", None, false);
        assert_eq!(
            judge(&owner(false), &selector, &orphan, false),
            Claim::Ignore
        );
    }
}

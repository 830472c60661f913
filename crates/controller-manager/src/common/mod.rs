//! What the controllers share.

pub mod adoption;
pub mod discovery;
pub mod expectations;
pub mod freshness;
pub mod hash;
pub mod pod_control;
pub mod revisions;
pub mod service_pods;
pub mod slow_start;
#[cfg(test)]
pub mod test_support;

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    time::Duration,
};

use fluyt_client::{Change, Informer, ObjectKey, WorkQueue, is_not_found};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference, Time},
        util::intstr::IntOrString,
    },
    serde::de::DeserializeOwned,
};
use kube::{Api, Resource, api::PostParams};
use serde::Serialize;

/// The current time with the resolution of the API, one second.
pub fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// A duration to wait; negative ones are over.
pub fn to_wait(duration: SignedDuration) -> Duration {
    Duration::try_from(duration).unwrap_or(Duration::ZERO)
}

/// The reference to the managing controller.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    let mut owners = meta.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true))
}

/// The key of the controller of this kind that manages the object.
pub fn controller_key(meta: &ObjectMeta, group: &str, kind: &str) -> Option<ObjectKey> {
    let owner = controller_of(meta)?;
    let owner_group = owner
        .api_version
        .split_once('/')
        .map_or("", |(group, _)| group);
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    (owner.kind == kind && owner_group == group).then(|| ObjectKey::new(namespace, &owner.name))
}

/// Whether the object's managing controller has this uid.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// The owner reference of an object that `owner` manages.
pub fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The object's name.
pub fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The object's namespace, empty for cluster-scoped objects.
pub fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

/// The object's uid.
pub fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// `labels` with one more.
pub fn labels_with(
    labels: Option<BTreeMap<String, String>>,
    key: &str,
    value: &str,
) -> Option<BTreeMap<String, String>> {
    let mut labels = labels.unwrap_or_default();
    labels.insert(key.to_owned(), value.to_owned());
    Some(labels)
}

/// The value of an annotation.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Queue the key of every object that changes.
pub fn enqueue<K>(informer: &Informer<K>, queue: &WorkQueue<ObjectKey>)
where
    K: Resource + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    enqueue_mapped(informer, queue, |object| vec![ObjectKey::of(object)]);
}

/// Queue the keys that `keys` derives from every object that changes, from its old and its new form.
pub fn enqueue_mapped<K>(
    informer: &Informer<K>,
    queue: &WorkQueue<ObjectKey>,
    keys: impl Fn(&K) -> Vec<ObjectKey> + Send + 'static,
) where
    K: Resource + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    let queue = queue.clone();
    informer.on_change(move |change| {
        let before = match &change {
            Change::Updated { old, .. } => keys(old),
            _ => Vec::new(),
        };
        for key in before.into_iter().chain(keys(change.object())) {
            queue.add(key);
        }
    });
}

/// Writes an object as it is to be; of one that is gone nothing is left to write.
pub async fn replace<K>(api: &Api<K>, object: &K) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let params = PostParams::default();
    let written = api.replace(name(object.meta()), &params, object).await;
    match written {
        Err(error) if is_not_found(&error) => Ok(()),
        result => result.map(drop),
    }
}

/// An absolute number or a percentage of `total`; malformed percentages count as 0.
pub fn scaled_value(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text
                .strip_suffix('%')
                .and_then(|p| p.parse().ok())
                .unwrap_or(0);
            let product = percent * i64::from(total);
            let scaled = if round_up {
                (product + 99).div_euclid(100)
            } else {
                product.div_euclid(100)
            };
            i32::try_from(scaled).unwrap_or(i32::MAX)
        }
    }
}

/// Group objects by the uid of their managing controller.
pub fn by_controller<K: Resource>(
    objects: impl IntoIterator<Item = std::sync::Arc<K>>,
) -> HashMap<String, Vec<std::sync::Arc<K>>> {
    let mut groups: HashMap<String, Vec<std::sync::Arc<K>>> = HashMap::new();
    for object in objects {
        if let Some(owner) = controller_of(object.meta()) {
            let uid = owner.uid.clone();
            groups.entry(uid).or_default().push(object);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages() {
        let percent = |text: &str| IntOrString::String(text.to_owned());
        assert_eq!(scaled_value(&percent("25%"), 10, true), 3);
        assert_eq!(scaled_value(&percent("25%"), 10, false), 2);
        assert_eq!(scaled_value(&percent("100%"), 7, false), 7);
        assert_eq!(scaled_value(&IntOrString::Int(4), 7, false), 4);
        assert_eq!(scaled_value(&percent("x"), 7, true), 0);
    }

    #[test]
    fn controller_key_checks_group_and_kind() {
        let owner = OwnerReference {
            api_version: "apps/v1".to_owned(),
            kind: "ReplicaSet".to_owned(),
            name: "rs".to_owned(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let meta = ObjectMeta {
            namespace: Some("ns".to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        };
        assert_eq!(
            controller_key(&meta, "apps", "ReplicaSet"),
            Some(ObjectKey::new("ns", "rs"))
        );
        assert_eq!(controller_key(&meta, "", "ReplicaSet"), None);
        assert_eq!(controller_key(&meta, "apps", "DaemonSet"), None);
    }
}

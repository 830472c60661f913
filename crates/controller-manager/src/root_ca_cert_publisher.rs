//! root-ca-certificate-publisher-controller: every namespace has a ConfigMap `kube-root-ca.crt` with the
//! authorities of the API server, for pods to mount next to their tokens.

use fluyt_client::{
    Action, Informer, ObjectKey, Selectors, WorkQueue, controller, is_already_exists,
    is_namespace_terminating, is_not_found,
};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};

use crate::{
    Context,
    common::{annotation, enqueue, enqueue_mapped, namespace},
    serviceaccount::is_active,
};

const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let Some(root_ca) = context.config.root_ca.clone() else {
        return;
    };
    let namespaces = context.informers.get::<Namespace>();
    // Only the ConfigMaps of this name: a copy of all of them would be a waste of memory.
    let selectors = Selectors {
        fields: Some(format!("metadata.name={NAME}")),
        labels: None,
    };
    let published = context.informers.get_selected::<ConfigMap>(selectors);
    namespaces.synced().await;
    published.synced().await;
    let queue = WorkQueue::new();
    enqueue(&namespaces, &queue);
    enqueue_mapped(&published, &queue, |map| {
        vec![ObjectKey::cluster(namespace(&map.metadata))]
    });
    let reconcile = |key| reconcile(key, &namespaces, &published, &context.client, &root_ca);
    let shutdown = context.shutdown.clone();
    controller::run(
        "root-ca-certificate-publisher-controller",
        queue,
        1,
        reconcile,
        shutdown,
    )
    .await;
}

async fn reconcile(
    key: ObjectKey,
    namespaces: &Informer<Namespace>,
    published: &Informer<ConfigMap>,
    client: &Client,
    root_ca: &str,
) -> anyhow::Result<Action> {
    if !namespaces
        .get_key(&key)
        .is_some_and(|namespace| is_active(&namespace))
    {
        return Ok(Action::Await);
    }
    let api = Api::<ConfigMap>::namespaced(client.clone(), &key.name);
    let data = Some([("ca.crt".to_owned(), root_ca.to_owned())].into());
    let Some(current) = published.get(Some(&key.name), NAME) else {
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(key.name.clone()),
                annotations: Some([(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned())].into()),
                ..ObjectMeta::default()
            },
            data,
            ..ConfigMap::default()
        };
        match api.create(&PostParams::default(), &map).await {
            Err(error) if is_already_exists(&error) || is_namespace_terminating(&error) => {}
            result => drop(result?),
        }
        return Ok(Action::Await);
    };
    if current.data == data && annotation(&current.metadata, DESCRIPTION).is_some() {
        return Ok(Action::Await);
    }
    let mut map = (*current).clone();
    map.data = data;
    let annotations = map.metadata.annotations.get_or_insert_default();
    annotations.insert(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned());
    match api.replace(NAME, &PostParams::default(), &map).await {
        Err(error) if is_not_found(&error) => {}
        result => drop(result?),
    }
    Ok(Action::Await)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::common::test_support::{context, named};

    #[tokio::test]
    async fn published_and_repaired() {
        let (fake, mut context) = context();
        Arc::get_mut(&mut context.config).unwrap().root_ca = Some("PEM".to_owned());
        fake.insert(Namespace {
            metadata: named("", "ns"),
            ..Namespace::default()
        });
        tokio::spawn(run(context));
        let is_right = |fake: &fluyt_client::fake::FakeApi| {
            let map = fake.get::<ConfigMap>("ns", NAME);
            map.and_then(|map| map.data)
                .is_some_and(|data| data["ca.crt"] == "PEM")
        };
        fake.until("published", is_right).await;
        let mut map = fake.get::<ConfigMap>("ns", NAME).unwrap();
        map.data = None;
        fake.update(&map);
        fake.until("repaired", is_right).await;
        fake.remove(&map);
        fake.until("restored", is_right).await;
    }
}

//! serviceaccount-controller: every namespace has a ServiceAccount `default`.

use fluyt_client::{
    Action, Informer, ObjectKey, WorkQueue, controller, is_already_exists, is_namespace_terminating,
};
use k8s_openapi::{
    api::core::v1::{Namespace, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};

use crate::{
    Context,
    common::{enqueue, enqueue_mapped, namespace},
};

const NAME: &str = "default";

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let namespaces = context.informers.get::<Namespace>();
    let accounts = context.informers.get::<ServiceAccount>();
    namespaces.synced().await;
    accounts.synced().await;
    let queue = WorkQueue::new();
    enqueue(&namespaces, &queue);
    enqueue_mapped(&accounts, &queue, |account| {
        vec![ObjectKey::cluster(namespace(&account.metadata))]
    });
    let reconcile = |key: ObjectKey| reconcile(key, &namespaces, &accounts, &context.client);
    let shutdown = context.shutdown.clone();
    controller::run("serviceaccount-controller", queue, 1, reconcile, shutdown).await;
}

async fn reconcile(
    key: ObjectKey,
    namespaces: &Informer<Namespace>,
    accounts: &Informer<ServiceAccount>,
    client: &Client,
) -> anyhow::Result<Action> {
    let active = namespaces
        .get_key(&key)
        .is_some_and(|namespace| is_active(&namespace));
    if !active || accounts.get(Some(&key.name), NAME).is_some() {
        return Ok(Action::Await);
    }
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(key.name.clone()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    let api = Api::<ServiceAccount>::namespaced(client.clone(), &key.name);
    match api.create(&PostParams::default(), &account).await {
        Err(error) if is_already_exists(&error) || is_namespace_terminating(&error) => {}
        result => drop(result?),
    }
    Ok(Action::Await)
}

/// Whether the namespace is not being deleted.
pub fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    namespace.metadata.deletion_timestamp.is_none() && phase != Some("Terminating")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::test_support::{context, named};

    #[tokio::test]
    async fn the_default_account_is_created_and_restored() {
        let (fake, context) = context();
        fake.insert(Namespace {
            metadata: named("", "ns"),
            ..Namespace::default()
        });
        tokio::spawn(run(context));
        let exists =
            |fake: &fluyt_client::fake::FakeApi| fake.get::<ServiceAccount>("ns", NAME).is_some();
        fake.until("default account", exists).await;
        fake.remove(&fake.get::<ServiceAccount>("ns", NAME).unwrap());
        fake.until("default account again", exists).await;
    }
}

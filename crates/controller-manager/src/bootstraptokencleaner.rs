//! token-cleaner-controller: deletes bootstrap tokens when they expire.

use fluyt_client::{
    Action, Informer, ObjectKey, Selectors, WorkQueue, controller, is_conflict, is_not_found,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{DeleteParams, Preconditions},
};
use tracing::info;

use crate::{
    Context,
    common::{enqueue, to_wait},
};

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let of_type = Selectors {
        fields: Some(format!("type={TYPE}")),
        labels: None,
    };
    let api = Api::<Secret>::namespaced(context.informers.client().clone(), NAMESPACE);
    let secrets = Informer::start(api, of_type, context.shutdown.clone());
    secrets.synced().await;
    let queue = WorkQueue::new();
    enqueue(&secrets, &queue);
    let reconcile = |key| reconcile(key, &secrets, &context.client);
    let shutdown = context.shutdown.clone();
    controller::run("token-cleaner-controller", queue, 1, reconcile, shutdown).await;
}

/// When the token expires; one whose date can't be read has expired.
fn expires(secret: &Secret) -> Option<Timestamp> {
    let text = secret
        .data
        .as_ref()?
        .get("expiration")
        .filter(|text| !text.0.is_empty())?;
    let text = String::from_utf8_lossy(&text.0);
    Some(text.trim().parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

async fn reconcile(
    key: ObjectKey,
    secrets: &Informer<Secret>,
    client: &Client,
) -> anyhow::Result<Action> {
    let Some(secret) = secrets.get_key(&key) else {
        return Ok(Action::Await);
    };
    let Some(expires) = expires(&secret) else {
        return Ok(Action::Await);
    };
    let left = expires.duration_since(Timestamp::now());
    if left.is_positive() {
        return Ok(Action::Requeue(to_wait(left)));
    }
    info!(token = key.name, "deleting an expired bootstrap token");
    let api = Api::<Secret>::namespaced(client.clone(), NAMESPACE);
    let same = Preconditions {
        uid: secret.metadata.uid.clone(),
        resource_version: None,
    };
    match api
        .delete(&key.name, &DeleteParams::default().preconditions(same))
        .await
    {
        Err(error) if is_not_found(&error) || is_conflict(&error) => {}
        result => drop(result?),
    }
    Ok(Action::Await)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use k8s_openapi::ByteString;

    use super::*;
    use crate::common::test_support::{context, named};

    #[tokio::test]
    async fn expired_tokens_go() {
        let (fake, context) = context();
        let token = |name: &str, expiration: Option<String>| Secret {
            metadata: named(NAMESPACE, name),
            type_: Some(TYPE.to_owned()),
            data: expiration
                .map(|text| [("expiration".to_owned(), ByteString(text.into_bytes()))].into()),
            ..Secret::default()
        };
        let at = |seconds: i64| {
            let time = Timestamp::now()
                .checked_add(SignedDuration::from_secs(seconds))
                .unwrap();
            Some(time.to_string())
        };
        fake.insert(token("expired", at(-5)));
        fake.insert(token("soon", at(1)));
        fake.insert(token("later", at(600)));
        fake.insert(token("for-ever", None));
        fake.insert(token("unreadable", Some("tomorrow".to_owned())));
        tokio::spawn(run(context));
        let names = |fake: &fluyt_client::fake::FakeApi| -> Vec<String> {
            fake.list::<Secret>()
                .into_iter()
                .filter_map(|secret| secret.metadata.name)
                .collect()
        };
        fake.until("expired ones are gone", |fake| {
            names(fake) == ["for-ever", "later"]
        })
        .await;
    }
}

//! serviceaccount-token-controller: fills Secrets of type `kubernetes.io/service-account-token` and deletes those
//! whose account is gone. Pods don't use them (their tokens are projected); some tools still ask for them.

use std::sync::Arc;

use fluyt_client::{
    Action, Informer, ObjectKey, Selectors, WorkQueue, controller, is_conflict, is_not_found,
};
use fluyt_pki::{NamedReference, SecretClaims, TokenKeys};
use k8s_openapi::{
    ByteString,
    api::core::v1::{Secret, ServiceAccount},
};
use kube::{
    Api,
    api::{DeleteParams, PostParams, Preconditions},
};
use tracing::error;

use crate::{
    Context,
    common::{annotation, enqueue, enqueue_mapped, name, namespace, uid},
};

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

struct Controller {
    context: Context,
    keys: TokenKeys,
    accounts: Informer<ServiceAccount>,
    secrets: Informer<Secret>,
}

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let Some(key) = &context.config.service_account_private_key else {
        return;
    };
    let keys = match TokenKeys::load(key) {
        Ok(keys) => keys,
        Err(error) => {
            error!(%error, "the key for service-account tokens is unusable, no token secrets will be filled");
            return;
        }
    };
    // Of the secrets only these: nobody here should hold all the others in memory.
    let of_type = Selectors {
        fields: Some(format!("type={TYPE}")),
        labels: None,
    };
    let controller = Controller {
        keys,
        accounts: context.informers.get(),
        secrets: context.informers.get_selected(of_type),
        context,
    };
    controller.accounts.synced().await;
    controller.secrets.synced().await;
    let queue = WorkQueue::new();
    enqueue(&controller.secrets, &queue);
    let secrets = controller.secrets.clone();
    enqueue_mapped(&controller.accounts, &queue, move |account| {
        let of_account = secrets
            .list_namespace(namespace(&account.metadata))
            .into_iter()
            .filter(|secret| {
                annotation(&secret.metadata, ACCOUNT_NAME) == Some(name(&account.metadata))
            });
        of_account.map(|secret| ObjectKey::of(&*secret)).collect()
    });
    let shutdown = controller.context.shutdown.clone();
    let reconcile = |key| controller.reconcile(key);
    controller::run(
        "serviceaccount-token-controller",
        queue,
        5,
        reconcile,
        shutdown,
    )
    .await;
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> anyhow::Result<Action> {
        let Some(secret) = self.secrets.get_key(&key) else {
            return Ok(Action::Await);
        };
        let Some(account_name) = annotation(&secret.metadata, ACCOUNT_NAME) else {
            return Ok(Action::Await);
        };
        // The root client: the Secrets of all namespaces are the manager's own business.
        let client = self.context.informers.client().clone();
        let api = Api::<Secret>::namespaced(client.clone(), &key.namespace);
        let account = match self.accounts.get(Some(&key.namespace), account_name) {
            Some(account) => Some(account),
            // Our copy may lag: ask before a secret is deleted.
            None => {
                let accounts = Api::<ServiceAccount>::namespaced(client, &key.namespace);
                accounts.get_opt(account_name).await?.map(Arc::new)
            }
        };
        let wanted_uid = annotation(&secret.metadata, ACCOUNT_UID).filter(|uid| !uid.is_empty());
        let account = account
            .filter(|account| wanted_uid.is_none_or(|wanted| wanted == uid(&account.metadata)));
        let Some(account) = account else {
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
            return Ok(Action::Await);
        };
        if let Some(filled) = self.fill(&secret, &account)? {
            match api
                .replace(&key.name, &PostParams::default(), &filled)
                .await
            {
                Err(error) if is_not_found(&error) => {}
                result => drop(result?),
            }
        }
        Ok(Action::Await)
    }

    /// The secret with what is missing; `None` if nothing is.
    fn fill(&self, secret: &Secret, account: &ServiceAccount) -> anyhow::Result<Option<Secret>> {
        let mut filled = secret.clone();
        let annotations = filled.metadata.annotations.get_or_insert_default();
        annotations.insert(ACCOUNT_UID.to_owned(), uid(&account.metadata).to_owned());
        let data = filled.data.get_or_insert_default();
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        if let Some(root_ca) = &self.context.config.root_ca {
            data.insert("ca.crt".to_owned(), bytes(root_ca));
        }
        data.insert("namespace".to_owned(), bytes(namespace(&secret.metadata)));
        if data.get("token").is_none_or(|token| token.0.is_empty()) {
            let token = self.keys.sign(&claims(secret, account))?;
            data.insert("token".to_owned(), bytes(&token));
        }
        Ok((filled != *secret).then_some(filled))
    }
}

fn claims(secret: &Secret, account: &ServiceAccount) -> SecretClaims {
    let account_reference = NamedReference {
        name: name(&account.metadata).to_owned(),
        uid: uid(&account.metadata).to_owned(),
    };
    SecretClaims::new(
        namespace(&secret.metadata),
        name(&secret.metadata),
        &account_reference,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::test_support::{context, named};

    #[tokio::test]
    async fn secrets_are_filled_and_go_with_their_account() {
        let (fake, mut context) = context();
        let keys = TokenKeys::create().unwrap();
        let config = Arc::get_mut(&mut context.config).unwrap();
        config.service_account_private_key = Some(keys.private_pem().to_owned());
        config.root_ca = Some("CA".to_owned());
        let account = fake.insert(ServiceAccount {
            metadata: named("ns", "robot"),
            ..ServiceAccount::default()
        });
        let secret = |secret_name: &str, account: &str| {
            let mut secret = Secret {
                metadata: named("ns", secret_name),
                type_: Some(TYPE.to_owned()),
                ..Secret::default()
            };
            secret.metadata.annotations =
                Some([(ACCOUNT_NAME.to_owned(), account.to_owned())].into());
            secret
        };
        fake.insert(secret("token", "robot"));
        fake.insert(secret("dangling", "nobody"));
        tokio::spawn(run(context));
        let token = |fake: &fluyt_client::fake::FakeApi| {
            let data = fake.get::<Secret>("ns", "token")?.data?;
            assert_eq!(data["ca.crt"].0, b"CA");
            String::from_utf8(data.get("token")?.0.clone()).ok()
        };
        fake.until("token", |fake| {
            fake.get::<Secret>("ns", "token")
                .is_some_and(|secret| secret.data.is_some())
        })
        .await;
        let claims = keys.verify_of_secret(&token(&fake).unwrap()).unwrap();
        assert_eq!(claims.sub, "system:serviceaccount:ns:robot");
        assert_eq!(claims.secret, "token");
        assert_eq!(claims.account_uid, uid(&account.metadata));
        fake.until("the dangling one is gone", |fake| {
            fake.get::<Secret>("ns", "dangling").is_none()
        })
        .await;
        fake.remove(&account);
        fake.until("both are gone", |fake| fake.list::<Secret>().is_empty())
            .await;
    }
}

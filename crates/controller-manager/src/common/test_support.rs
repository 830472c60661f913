//! What the controllers' tests share.

use std::sync::Arc;

use fluyt_client::{Informers, fake::FakeApi};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use tokio_util::sync::CancellationToken;

use crate::{Config, Context};

/// A fake API and the context of a controller that uses it.
pub fn context() -> (FakeApi, Context) {
    let fake = FakeApi::new();
    let client = fake.client();
    let shutdown = CancellationToken::new();
    let context = Context {
        informers: Informers::new(client.clone(), shutdown.clone()),
        config: Arc::new(Config::for_client(client.clone())),
        client,
        shutdown,
    };
    (fake, context)
}

/// Metadata of this namespace (empty for cluster scope) and name.
pub fn named(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}

/// Metadata with the labels `key=value,…`.
pub fn labelled(namespace: &str, name: &str, labels: &str) -> ObjectMeta {
    let pairs = labels.split(',').filter_map(|pair| pair.split_once('='));
    ObjectMeta {
        labels: Some(
            pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        ),
        ..named(namespace, name)
    }
}

/// The reference of a managing controller.
pub fn owned_by(
    api_version: &str,
    kind: &str,
    name: &str,
    uid: &str,
) -> Option<Vec<OwnerReference>> {
    Some(vec![OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }])
}

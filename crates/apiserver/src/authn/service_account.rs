//! Service-account tokens: signed by the cluster, bound to objects that must still exist.

use fluyt_api::{meta, resources};
use fluyt_pki::{NamedReference, TokenKeys};

use crate::cache::Caches;
use crate::user::User;

/// A token's user, and which of the wanted audiences it is for.
#[derive(Clone, Debug)]
pub struct Authenticated {
    pub user: User,
    pub audiences: Vec<String>,
}

pub(super) fn user(
    caches: &Caches,
    keys: &TokenKeys,
    issuer: &str,
    token: &str,
    audiences: &[String],
) -> Option<Authenticated> {
    let claims = keys.verify(token).ok()?;
    let meant: Vec<String> = audiences
        .iter()
        .filter(|a| claims.aud.contains(a))
        .cloned()
        .collect();
    if claims.iss != issuer || meant.is_empty() {
        return None;
    }
    let bound = claims.kubernetes;
    let namespace = bound.namespace.as_str();
    let exists = |plural: &str, namespace: &str, reference: &NamedReference| {
        let key = if namespace.is_empty() {
            reference.name.clone()
        } else {
            format!("{namespace}/{}", reference.name)
        };
        let resource = resources::find("", "v1", plural)?;
        let object = caches.of(resource).get(&key)?.object();
        (reference.uid.is_empty() || meta::uid(&object) == reference.uid).then_some(object)
    };
    exists("serviceaccounts", namespace, &bound.serviceaccount)?;
    let mut user = User::service_account(
        namespace,
        &bound.serviceaccount.name,
        &bound.serviceaccount.uid,
    );
    if let Some(pod) = &bound.pod {
        let object = exists("pods", namespace, pod)?;
        let mut extra = |key: &str, value: &str| {
            user.extra.insert(
                format!("authentication.kubernetes.io/{key}"),
                vec![value.to_owned()],
            );
        };
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
        if let Some(node) = object["spec"]["nodeName"].as_str() {
            extra("node-name", node);
        }
    }
    if let Some(secret) = &bound.secret {
        exists("secrets", namespace, secret)?;
    }
    if let Some(node) = &bound.node {
        exists("nodes", "", node)?;
    }
    if let Some(id) = claims.jti {
        user.extra.insert(
            "authentication.kubernetes.io/credential-id".into(),
            vec![format!("JTI={id}")],
        );
    }
    Some(Authenticated {
        user,
        audiences: meant,
    })
}

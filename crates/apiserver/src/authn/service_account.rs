//! Service-account tokens: signed by the cluster, bound to objects that must still exist.

use std::sync::Arc;
use std::time::Duration;

use fluyt_api::{meta, resources};
use fluyt_pki::{Claims, NamedReference};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::jwt;
use crate::cache::Caches;
use crate::expiring::Expiring;
use crate::tokens::Tokens;
use crate::user::{CREDENTIAL_ID, User};

/// Signatures are remembered this long. What a token is bound to is looked at each time.
const VERIFIED: Duration = Duration::from_secs(60);

/// Tokens whose signatures are remembered.
const CACHE: usize = 4096;

/// A token's user, and which of the wanted audiences it is for.
#[derive(Clone, Debug)]
pub struct Authenticated {
    pub user: User,
    pub audiences: Vec<String>,
    pub stale: Option<StaleToken>,
}

/// Why a token that still counts should have been renewed, for the record.
#[derive(Clone, Debug)]
pub struct StaleToken(pub String);

pub(super) struct ServiceAccounts {
    caches: Arc<Caches>,
    keys: Arc<Tokens>,
    issuers: Vec<String>,
    verified: Expiring<[u8; 32], Arc<Claims>>,
}

impl ServiceAccounts {
    pub(super) fn new(caches: Arc<Caches>, keys: Arc<Tokens>, issuers: Vec<String>) -> Self {
        Self {
            caches,
            keys,
            issuers,
            verified: Expiring::new(CACHE),
        }
    }

    /// The user of a token; `None` when it is not one of ours.
    pub(super) async fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Option<Result<Authenticated, String>> {
        let issuer = jwt::untrusted_issuer(token)?;
        if !self.issuers.contains(&issuer) {
            return None;
        }
        let claims = match self.verify(token).await {
            Ok(claims) => claims,
            Err(why) => return Some(Err(why)),
        };
        let found = self.user(&claims, audiences);
        if found.is_ok() {
            return Some(found);
        }
        // A token made a moment ago may be bound to objects made a moment ago.
        if let Err(error) = self.caches.consistent().await {
            return Some(Err(error.message));
        }
        Some(self.user(&claims, audiences))
    }

    async fn verify(&self, token: &str) -> Result<Arc<Claims>, String> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(claims) = self.verified.get(&digest) {
            if claims.exp < jiff::Timestamp::now().as_second() {
                return Err("service account token has expired".into());
            }
            return Ok(claims);
        }
        let claims = Arc::new(self.keys.verify(token).await?);
        self.verified.put(digest, claims.clone(), VERIFIED);
        Ok(claims)
    }

    fn user(&self, claims: &Claims, audiences: &[String]) -> Result<Authenticated, String> {
        let meant: Vec<String> = audiences
            .iter()
            .filter(|a| claims.aud.contains(a))
            .cloned()
            .collect();
        if !self.issuers.contains(&claims.iss) {
            return Err("the token is of another issuer".into());
        }
        if meant.is_empty() {
            return Err(format!(
                "token audiences {:?} is invalid for the target audiences {audiences:?}",
                claims.aud
            ));
        }
        let bound = &claims.kubernetes;
        let namespace = bound.namespace.as_str();
        self.living("serviceaccounts", namespace, &bound.serviceaccount)?;
        let mut user = User::service_account(
            namespace,
            &bound.serviceaccount.name,
            &bound.serviceaccount.uid,
        );
        let mut extra = |key: &str, value: &str| {
            user.extra.insert(
                format!("authentication.kubernetes.io/{key}"),
                vec![value.to_owned()],
            );
        };
        let mut node = bound.node.clone();
        if let Some(pod) = &bound.pod {
            let object = self.living("pods", namespace, pod)?;
            extra("pod-name", &pod.name);
            extra("pod-uid", &pod.uid);
            if let (None, Some(name)) = (&node, object["spec"]["nodeName"].as_str()) {
                node = Some(NamedReference {
                    name: name.to_owned(),
                    uid: String::new(),
                });
            }
        } else if let Some(node) = &bound.node {
            self.living("nodes", "", node)?;
        }
        if let Some(secret) = &bound.secret {
            self.living("secrets", namespace, secret)?;
        }
        if let Some(node) = node {
            extra("node-name", &node.name);
            if !node.uid.is_empty() {
                extra("node-uid", &node.uid);
            }
        }
        if let Some(id) = &claims.jti {
            user.extra
                .insert(CREDENTIAL_ID.into(), vec![format!("JTI={id}")]);
        }
        Ok(Authenticated {
            user,
            audiences: meant,
            stale: self.staleness(claims),
        })
    }

    /// Whether an extended token is used after its own time.
    fn staleness(&self, claims: &Claims) -> Option<StaleToken> {
        let due = claims.kubernetes.warnafter.filter(|due| *due != 0)?;
        let late = jiff::Timestamp::now().as_second() - due;
        self.caches.metrics.extended_token(late > 0);
        (late > 0).then(|| {
            StaleToken(format!(
                "subject: {}, seconds after warning threshold: {late}",
                claims.sub
            ))
        })
    }

    /// An object that a token is bound to. One that is being deleted does not count for long any more.
    fn living(
        &self,
        plural: &str,
        namespace: &str,
        reference: &NamedReference,
    ) -> Result<Value, String> {
        let key = if namespace.is_empty() {
            reference.name.clone()
        } else {
            format!("{namespace}/{}", reference.name)
        };
        let object = resources::find("", "v1", plural)
            .and_then(|resource| self.caches.of(resource).get(&key))
            .map(|entry| entry.object())
            .filter(|object| reference.uid.is_empty() || meta::uid(object) == reference.uid);
        object.ok_or_else(|| "service account token has been invalidated".into())
    }
}

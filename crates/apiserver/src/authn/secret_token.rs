//! Tokens that Secrets of type `kubernetes.io/service-account-token` hold: without an end, and good for as long as the
//! Secret has them. When one was last used is written on its Secret, so that those that nobody uses can be found.

use std::sync::{Arc, Weak};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluyt_api::{Error, Reason, meta, resources};
use fluyt_pki::SecretClaims;
use jiff::civil::Date;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::jwt;
use crate::Server;
use crate::cache::Caches;
use crate::loopback::SERVER;
use crate::registry::Location;
use crate::tokens::Tokens;
use crate::user::User;

/// Labels of a Secret: the day on which its token was last used, and since when it is not good any more because nobody did.
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// Since when use is written down, for whoever cleans up.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";

/// Secrets whose use is not written down yet. There are few, each once a day; what does not fit is seen at the next use.
const QUEUE: usize = 256;

/// A Secret's namespace and name.
type Used = (String, String);

pub(super) struct SecretTokens {
    caches: Arc<Caches>,
    keys: Arc<Tokens>,
    used: mpsc::Sender<Used>,
    lookup: bool,
}

/// The other end: what has been used.
pub struct Uses(mpsc::Receiver<Used>);

impl SecretTokens {
    /// Without `lookup`, a token is good whatever has become of its Secret and account.
    pub(super) fn new(caches: Arc<Caches>, keys: Arc<Tokens>, lookup: bool) -> (Self, Uses) {
        let (used, uses) = mpsc::channel(QUEUE);
        let tokens = Self {
            caches,
            keys,
            used,
            lookup,
        };
        (tokens, Uses(uses))
    }

    /// The user of a token; `None` when it is not of this kind.
    pub(super) async fn authenticate(&self, token: &str) -> Option<Result<User, String>> {
        if jwt::untrusted_issuer(token)? != SecretClaims::ISSUER {
            return None;
        }
        let claims = match self.keys.verify_of_secret(token).await {
            Ok(claims) => claims,
            Err(error) => return Some(Err(error)),
        };
        let found = self.user(&claims, token);
        if found.is_ok() {
            return Some(found);
        }
        // Secret and account may have been made a moment ago.
        if let Err(error) = self.caches.consistent().await {
            return Some(Err(error.message));
        }
        Some(self.user(&claims, token))
    }

    fn user(&self, claims: &SecretClaims, token: &str) -> Result<User, String> {
        let (namespace, account) = (claims.namespace.as_str(), claims.account.as_str());
        let named = [namespace, account, &claims.secret, &claims.account_uid];
        if named.iter().any(|name| name.is_empty()) {
            return Err("the token does not say whose it is".into());
        }
        if claims.sub != format!("system:serviceaccount:{namespace}:{account}") {
            return Err("sub claim does not match namespace and name".into());
        }
        if self.lookup {
            self.look_up(claims, token)?;
        }
        Ok(User::service_account(
            namespace,
            account,
            &claims.account_uid,
        ))
    }

    /// Whether Secret and account are still those that a token is of. That it is used is noted.
    fn look_up(&self, claims: &SecretClaims, token: &str) -> Result<(), String> {
        let (namespace, account) = (claims.namespace.as_str(), claims.account.as_str());
        let gone = || "Token has been invalidated".to_owned();
        let secret = self.object("secrets", namespace, &claims.secret);
        let secret = secret.ok_or_else(gone)?;
        let held = secret["data"]["token"].as_str().unwrap_or_default();
        if STANDARD.decode(held).ok().as_deref() != Some(token.as_bytes()) {
            return Err("Token does not match server's copy".into());
        }
        let found = self.object("serviceaccounts", namespace, account);
        if meta::uid(&found.ok_or_else(gone)?) != claims.account_uid {
            return Err("the service account is another one of the same name".into());
        }
        if is_due(&secret, today()) {
            // Whoever reads the queue may be behind; the next use will tell.
            let used = (namespace.to_owned(), claims.secret.clone());
            let _ = self.used.try_send(used);
        }
        if label(&secret, INVALID_SINCE).is_some_and(|since| !since.is_empty()) {
            return Err("the token has been marked invalid because nobody used it".into());
        }
        Ok(())
    }

    /// One that is not being deleted.
    fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let resource = resources::find("", "v1", plural)?;
        let entry = self
            .caches
            .of(resource)
            .get(&format!("{namespace}/{name}"))?;
        Some(entry.object()).filter(|object| !meta::is_terminating(object))
    }
}

fn label<'o>(object: &'o Value, name: &str) -> Option<&'o str> {
    object["metadata"]["labels"][name].as_str()
}

fn today() -> Date {
    jiff::Timestamp::now()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date()
}

/// Whether the day that a Secret tells is not today, or it tells none.
fn is_due(secret: &Value, today: Date) -> bool {
    let told = label(secret, LAST_USED).and_then(|day| day.parse::<Date>().ok());
    told.is_none_or(|day| day < today)
}

impl Uses {
    /// Writes down what is used, until the server is gone.
    pub(crate) async fn run(mut self, server: Weak<Server>) {
        while let Some((namespace, name)) = self.0.recv().await {
            let Some(server) = server.upgrade() else {
                return;
            };
            if let Err(error) = note(&server, &namespace, &name).await
                && error.reason != Reason::NotFound
            {
                tracing::warn!(namespace, name, %error, "the use of a Secret's token is not noted");
            }
        }
    }
}

async fn note(server: &Arc<Server>, namespace: &str, name: &str) -> Result<(), Error> {
    let at = Location {
        resource: resources::find("", "v1", "secrets").ok_or_else(Error::no_route)?,
        namespace,
        name,
        subresource: "",
    };
    let today = today();
    let change = Box::new(move |secret: &Value| {
        let mut secret = secret.clone();
        if is_due(&secret, today) {
            let labels = meta::child(&mut secret["metadata"], "labels");
            labels.insert(LAST_USED.to_owned(), today.to_string().into());
        }
        Ok(secret)
    });
    SERVER.update(server, at, change).await.map(drop)
}

/// Says since when the use of tokens is written down.
pub(crate) async fn begin_tracking(server: &Arc<Server>) -> Result<(), Error> {
    let map = json!({
        "metadata": {"name": TRACKING, "namespace": "kube-system"},
        "data": {"since": today().to_string()},
    });
    SERVER
        .create(server, "", "configmaps", "kube-system", map)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_written_down_once() {
        let secret = |day: &str| json!({"metadata": {"labels": {LAST_USED: day}}});
        let today = "2026-11-28".parse().unwrap();
        assert!(is_due(&json!({"metadata": {}}), today));
        assert!(is_due(&secret("never"), today));
        assert!(is_due(&secret("2026-11-27"), today));
        assert!(!is_due(&secret("2026-11-28"), today));
    }
}

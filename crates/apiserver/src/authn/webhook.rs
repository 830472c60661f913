//! Tokens that a service knows, which is asked with a `TokenReview`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Authenticated;
use crate::dial::ControlPlane;
use crate::expiring::Expiring;
use crate::remote::{self, Backoff, Remote};
use crate::user::User;

/// Answers kept.
const CACHE: usize = 4096;

/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How the service is asked.
#[derive(Clone, Debug)]
pub struct TokenWebhookSettings {
    pub kubeconfig: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: &'static str,
    pub cache_ttl: Duration,
}

pub(super) struct TokenWebhook {
    remote: Remote,
    settings: TokenWebhookSettings,
    answers: Expiring<[u8; 32], Result<Authenticated, String>>,
}

impl TokenWebhook {
    pub(super) fn new(
        settings: &TokenWebhookSettings,
        network: &ControlPlane,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            remote: remote::load(&settings.kubeconfig)?.through(network),
            settings: settings.clone(),
            answers: Expiring::new(CACHE),
        })
    }

    /// The user of a token.
    ///
    /// # Errors
    /// When it is not good, or the service cannot be asked.
    pub(super) async fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Authenticated, String> {
        let mut digest = Sha256::new();
        digest.update(token);
        for audience in audiences {
            digest.update([0]);
            digest.update(audience);
        }
        let key: [u8; 32] = digest.finalize().into();
        if let Some(known) = self.answers.get(&key) {
            return known;
        }
        let answer = self.ask(token, audiences).await?;
        self.answers
            .put(key, answer.clone(), self.settings.cache_ttl);
        answer
    }

    /// What the service says; failures to ask are the outer error, and not remembered.
    async fn ask(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Result<Authenticated, String>, String> {
        let review = json!({
            "apiVersion": format!("authentication.k8s.io/{}", self.settings.version),
            "kind": "TokenReview",
            "metadata": {},
            "spec": {"token": token, "audiences": audiences},
            "status": {"user": {}},
        });
        let body = Bytes::from(review.to_string());
        let reply = Backoff::default()
            .post(&self.remote, "", &body, TIMEOUT)
            .await
            .map_err(|e| e.to_string())?;
        if !reply.status.is_success() {
            return Err(format!("the webhook answered with status {}", reply.status));
        }
        let answer: Value = serde_json::from_slice(&reply.body).map_err(|e| e.to_string())?;
        Ok(judge(&answer["status"], audiences))
    }
}

fn judge(status: &Value, audiences: &[String]) -> Result<Authenticated, String> {
    if status["authenticated"] != true {
        let error = status["error"].as_str().unwrap_or_default();
        return Err(error.to_owned());
    }
    let strings = |value: &Value| -> Vec<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    // A service that does not know of audiences answers for all of the server's own.
    let named = strings(&status["audiences"]);
    let meant: Vec<String> = if named.is_empty() {
        audiences.to_vec()
    } else {
        let meant = audiences.iter().filter(|a| named.contains(a));
        meant.cloned().collect()
    };
    if meant.is_empty() {
        return Err("the token is for another audience".into());
    }
    let user = &status["user"];
    let text = |field: &str| user[field].as_str().unwrap_or_default().to_owned();
    let extra: BTreeMap<String, Vec<String>> = user["extra"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, values)| (key.clone(), strings(values)))
        .collect();
    Ok(Authenticated {
        user: User {
            name: text("username"),
            uid: text("uid"),
            groups: strings(&user["groups"]),
            extra,
        },
        audiences: meant,
        stale: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_users() {
        let audiences = ["api".to_owned()];
        let status = json!({"authenticated": true, "user": {"username": "a", "groups": ["g"], "extra": {"k": ["v"]}}});
        let found = judge(&status, &audiences).unwrap();
        assert_eq!((found.user.name.as_str(), found.audiences.len()), ("a", 1));
        let other = json!({"authenticated": true, "audiences": ["x"], "user": {"username": "a"}});
        assert!(judge(&other, &audiences).is_err());
        assert!(judge(&json!({"error": "no"}), &audiences).is_err());
    }
}

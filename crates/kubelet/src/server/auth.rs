//! Who asks (client certificate, or bearer token by TokenReview), and whether they may (SubjectAccessReview on the
//! node's subresources).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use tracing::warn;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::kubelet::Kubelet;

/// Upstream's cache times.
const TOKEN_TTL: Duration = Duration::from_secs(120);
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const DENIED_TTL: Duration = Duration::from_secs(30);
const CACHE: usize = 1024;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct User {
    pub name: String,
    pub uid: Option<String>,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// Common name and organizations of a certificate that the TLS layer has verified.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let name = subject
            .iter_common_name()
            .next()?
            .as_str()
            .ok()?
            .to_string();
        let mut groups: Vec<String> = subject
            .iter_organization()
            .filter_map(|organization| organization.as_str().ok().map(String::from))
            .collect();
        groups.push("system:authenticated".into());
        Some(User {
            name,
            groups,
            ..User::default()
        })
    }

    fn anonymous() -> Self {
        User {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..User::default()
        }
    }
}

/// Who (with groups), verb and subresource.
type Question = (String, String, String);

pub struct Auth {
    kubelet: Arc<Kubelet>,
    tokens: Mutex<HashMap<String, (Instant, Option<User>)>>,
    verdicts: Mutex<HashMap<Question, (Instant, bool)>>,
}

impl Auth {
    pub fn new(kubelet: Arc<Kubelet>) -> Self {
        Auth {
            kubelet,
            tokens: Mutex::default(),
            verdicts: Mutex::default(),
        }
    }

    pub async fn authenticate(
        &self,
        certificate: Option<User>,
        headers: &HeaderMap,
    ) -> Option<User> {
        if let Some(user) = certificate {
            return Some(user);
        }
        let token = headers
            .get(http::header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        match token {
            Some(token) if self.kubelet.settings.token_webhook => {
                self.review_token(token.trim()).await
            }
            Some(_) => None,
            None => self.kubelet.settings.anonymous_auth.then(User::anonymous),
        }
    }

    async fn review_token(&self, token: &str) -> Option<User> {
        // The token itself is not kept.
        let key = crate::hash::hex128(token);
        if let Some((at, user)) = self.tokens.lock().get(&key)
            && at.elapsed() < TOKEN_TTL
        {
            return user.clone();
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_string(),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.kubelet.client.clone());
        let answer = match api.create(&PostParams::default(), &review).await {
            Ok(answer) => answer.status.unwrap_or_default(),
            Err(error) => {
                warn!(%error, "a token can't be reviewed");
                return None;
            }
        };
        let user = answer
            .user
            .filter(|_| answer.authenticated == Some(true))
            .map(|user| User {
                name: user.username.unwrap_or_default(),
                uid: user.uid,
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            });
        let mut tokens = self.tokens.lock();
        if tokens.len() >= CACHE {
            tokens.clear();
        }
        tokens.insert(key, (Instant::now(), user.clone()));
        user
    }

    /// Any one of the subresources that stand for the path is enough.
    pub async fn authorize(&self, user: &User, method: &Method, path: &str) -> bool {
        if !self.kubelet.settings.authorization_webhook {
            return true;
        }
        for subresource in subresources(path) {
            if self.review_access(user, verb(method), subresource).await {
                return true;
            }
        }
        false
    }

    async fn review_access(&self, user: &User, verb: &str, subresource: &str) -> bool {
        let who = format!("{}\n{}", user.name, user.groups.join("\n"));
        let key = (who, verb.to_string(), subresource.to_string());
        if let Some((at, allowed)) = self.verdicts.lock().get(&key) {
            let ttl = if *allowed { ALLOWED_TTL } else { DENIED_TTL };
            if at.elapsed() < ttl {
                return *allowed;
            }
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: user.uid.clone(),
                groups: Some(user.groups.clone()),
                extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    group: Some(String::new()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.into()),
                    name: Some(self.kubelet.settings.node_name.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.kubelet.client.clone());
        let allowed = match api.create(&PostParams::default(), &review).await {
            Ok(answer) => answer.status.is_some_and(|status| status.allowed),
            Err(error) => {
                warn!(%error, "access can't be reviewed");
                return false;
            }
        };
        let mut verdicts = self.verdicts.lock();
        if verdicts.len() >= CACHE {
            verdicts.clear();
        }
        verdicts.insert(key, (Instant::now(), allowed));
        allowed
    }
}

pub fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// Subresources of `nodes` that a path stands for: the fine-grained one first, `proxy` for everything.
pub fn subresources(path: &str) -> &'static [&'static str] {
    let first = path
        .trim_start_matches('/')
        .split('/')
        .next()
        .unwrap_or_default();
    match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes() {
        for (path, expected) in [
            ("/stats/summary", &["stats"][..]),
            ("/metrics/resource", &["metrics"]),
            ("/pods", &["pods", "proxy"]),
            ("/exec/n/p/c", &["proxy"]),
            ("/containerLogs/n/p/c", &["proxy"]),
        ] {
            assert_eq!(subresources(path), expected, "{path}");
        }
        assert_eq!((verb(&Method::POST), verb(&Method::GET)), ("create", "get"));
    }
}

//! Distributed claims (OpenID Connect Core 1.0, section 5.6.2): a token that does not say its user's groups names who does,
//! which answers with a token of its own.

use std::collections::HashMap;
use std::sync::Arc;

use ::http::HeaderValue;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::issuer::{self, TIMEOUT, Unverified, Verifier, untrusted_issuer};
use crate::remote::Credentials;

/// Names of claims, each with the source that has it.
const NAMES: &str = "_claim_names";

/// The sources by their names.
const SOURCES: &str = "_claim_sources";

/// Issuers of such tokens that are known at most: there are few, if they are what they should be.
const MOST: usize = 64;

/// Where one claim comes from if it is not in a token itself.
pub(super) struct Distributed {
    /// Empty when nobody asks for it.
    claim: String,
    issuers: Mutex<HashMap<String, Arc<Verifier>>>,
}

/// Who has a claim.
#[derive(Default, Deserialize)]
struct Source {
    #[serde(default)]
    endpoint: String,
    #[serde(default)]
    access_token: String,
}

impl Distributed {
    pub(super) fn new(claim: &str) -> Self {
        Self {
            claim: claim.to_owned(),
            issuers: Mutex::default(),
        }
    }

    /// Fetches the claim where the verified claims of a token of `verifier` say that it is.
    ///
    /// # Errors
    /// When they contradict themselves, or the source does not answer with a good token.
    pub(super) async fn expand(
        &self,
        verifier: &Verifier,
        claims: &mut Map<String, Value>,
    ) -> Result<(), String> {
        let claim = self.claim.as_str();
        if claim.is_empty() || claims.contains_key(claim) {
            return Ok(());
        }
        let Some(source) = self.source(claims)? else {
            return Ok(());
        };
        let value = self.resolve(verifier, &source).await?;
        claims.insert(claim.to_owned(), value);
        Ok(())
    }

    /// Who has the claim, if anybody says so.
    fn source(&self, claims: &Map<String, Value>) -> Result<Option<Source>, String> {
        let Some(names) = claims.get(NAMES) else {
            return Ok(None);
        };
        let names: HashMap<String, String> = serde_json::from_value(names.clone())
            .map_err(|error| format!("oidc: error parsing distributed claim names: {error}"))?;
        let sources = claims.get(SOURCES).ok_or("oidc: no claim sources")?;
        let mut sources: HashMap<String, Source> = serde_json::from_value(sources.clone())
            .map_err(|error| format!("oidc: could not parse claim sources: {error}"))?;
        let Some(name) = names.get(&self.claim) else {
            return Ok(None);
        };
        let source = sources.remove(name).ok_or_else(|| {
            format!("id token {NAMES} contained a source {name} missing in _claims_sources")
        })?;
        // Without an endpoint it may be an aggregated claim, which is none of ours.
        Ok(Some(source).filter(|source| !source.endpoint.is_empty()))
    }

    async fn resolve(&self, verifier: &Verifier, source: &Source) -> Result<Value, String> {
        let (claim, url) = (&self.claim, &source.endpoint);
        let token = fetch(verifier, source).await;
        let token =
            token.map_err(|why| format!("while getting distributed claim {claim:?}: {why}"))?;
        let issuer = untrusted_issuer(&token).ok_or_else(|| {
            format!(
                "getting untrusted issuer from endpoint {url} failed for claim {claim:?}: no token of an issuer"
            )
        })?;
        let verified = if verifier.is_of(&issuer) {
            verifier.verified(&token).await
        } else {
            let other = self.verifier(verifier, &issuer).await?;
            Box::pin(other.verified(&token)).await
        };
        let mut claims = verified.map_err(|unverified| match unverified {
            Unverified::NotYet => format!(
                "verifying untrusted issuer {issuer} failed: verifier not initialized for issuer: {issuer:?}"
            ),
            Unverified::Wrong(why) => format!("verify distributed claim token: {why}"),
        })?;
        claims.remove(claim).ok_or_else(|| {
            format!(
                "jwt returned by distributed claim endpoint {url:?} did not contain claim: {claim}"
            )
        })
    }

    /// What verifies tokens of an issuer, whose keys are looked for when it is first met.
    async fn verifier(&self, verifier: &Verifier, issuer: &str) -> Result<Arc<Verifier>, String> {
        let failed = |why: String| format!("verifying untrusted issuer {issuer} failed: {why}");
        let other = {
            let mut issuers = self.issuers.lock();
            if let Some(known) = issuers.get(issuer) {
                return Ok(known.clone());
            }
            if issuers.len() == MOST {
                return Err(failed("there are too many of them".into()));
            }
            let other = verifier.for_issuer(issuer);
            let other = other.map_err(|error| failed(format!("{error:#}")))?;
            issuers.insert(issuer.to_owned(), other.clone());
            other
        };
        if other.fetch_discovery().await.is_err() {
            // It ends when the verifier that it is made after is retired.
            issuer::discover(other.clone(), CancellationToken::new());
        }
        Ok(other)
    }
}

async fn fetch(verifier: &Verifier, source: &Source) -> Result<String, String> {
    let token = &source.access_token;
    let credentials = if token.is_empty() {
        Credentials::None
    } else {
        let header = HeaderValue::from_str(&format!("Bearer {token}"));
        Credentials::Header(header.map_err(|error| error.to_string())?)
    };
    let endpoint = verifier.endpoint(&source.endpoint, credentials);
    let endpoint = endpoint.map_err(|error| format!("{error:#}"))?;
    let reply = endpoint.get(TIMEOUT).await;
    let reply = reply.map_err(|error| error.to_string())?;
    if !reply.status.is_success() {
        return Err(format!(
            "error while getting distributed claim JWT: {}",
            reply.status
        ));
    }
    let text = String::from_utf8(reply.body.into());
    text.map_err(|_| "could not decode distributed claim response".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn source(claims: &Value) -> Result<Option<String>, String> {
        let claims = claims.as_object().unwrap();
        let found = Distributed::new("groups").source(claims)?;
        Ok(found.map(|source| source.endpoint))
    }

    #[test]
    fn a_claim_is_where_the_token_says_that_it_is() {
        let sources =
            json!({"a": {"endpoint": "https://a", "access_token": "t"}, "b": {"JWT": "x.y.z"}});
        let names =
            |name: &str| json!({"_claim_names": {"groups": name}, "_claim_sources": sources});
        assert_eq!(source(&json!({})), Ok(None));
        assert_eq!(source(&names("a")), Ok(Some("https://a".into())));
        assert_eq!(source(&names("b")), Ok(None));
        assert_eq!(
            source(&names("c")).unwrap_err(),
            "id token _claim_names contained a source c missing in _claims_sources"
        );
        let other = json!({"_claim_names": {"other": "a"}, "_claim_sources": sources});
        assert_eq!(source(&other), Ok(None));
        let none = json!({"_claim_names": {"groups": "a"}});
        assert_eq!(source(&none).unwrap_err(), "oidc: no claim sources");
        let wrong = json!({"_claim_names": "groups"});
        let why = source(&wrong).unwrap_err();
        assert!(why.starts_with("oidc: error parsing distributed claim names: "));
    }
}

//! One issuer: where its keys are, which are cached and fetched again when a token names one that is not among them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::future::BoxFuture;
use jsonwebtoken::jwk::{Jwk, JwkSet, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::claims::Mapper;
use super::config::JwtAuthenticator;
use super::distributed::Distributed;
use crate::remote::{Credentials, Remote, Trust};
use crate::user::User;

/// How often an issuer that does not answer is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// How long one call to an issuer may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// Keys are not fetched more often, whatever tokens name.
const REFRESH: Duration = Duration::from_secs(1);

/// A token may be used this much before it says that it may.
const NOT_BEFORE_LEEWAY: i64 = 300;

/// Longer tokens are not looked at.
const MAX_TOKEN: usize = 64 * 1024;

pub struct Verifier {
    config: JwtAuthenticator,
    mapper: Mapper,
    discovery: Remote,
    trust: Trust,
    algorithms: Vec<Algorithm>,
    keys: Mutex<Option<Keys>>,
    distributed: Distributed,
    /// Held while keys are fetched, so that many tokens cause one call.
    fetching: tokio::sync::Mutex<()>,
    retired: CancellationToken,
}

struct Keys {
    remote: Arc<Remote>,
    set: Arc<JwkSet>,
    fetched: Instant,
}

/// Why a token says nothing.
#[derive(Debug)]
pub(super) enum Unverified {
    /// The issuer's keys have not been found yet.
    NotYet,
    Wrong(String),
}

/// Every algorithm that upstream lets an issuer use and that is known here.
const ALGORITHMS: [(&str, Algorithm); 8] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
];

/// The `iss` claim of a token, which nobody has verified yet.
pub fn untrusted_issuer(token: &str) -> Option<String> {
    if token.len() > MAX_TOKEN {
        return None;
    }
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let decoded = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Value = serde_json::from_slice(&decoded).ok()?;
    match claims["iss"].as_str()? {
        // What Google wrote before there was a standard.
        "accounts.google.com" => Some("https://accounts.google.com".into()),
        issuer => Some(issuer.to_owned()),
    }
}

/// Looks for the issuer's keys until they are found.
pub fn discover(verifier: Arc<Verifier>, shutdown: CancellationToken) {
    tokio::spawn(async move {
        let retired = verifier.retired.clone();
        let looking = async {
            while let Err(error) = verifier.fetch_discovery().await {
                tracing::error!(
                    error = format!("{error:#}"),
                    issuer = verifier.config.issuer.url,
                    "oidc authenticator: initializing plugin"
                );
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = looking => {}
            () = shutdown.cancelled() => {}
            () = retired.cancelled() => {}
        }
    });
}

impl Verifier {
    pub fn new(config: &JwtAuthenticator) -> anyhow::Result<Self> {
        let issuer = &config.issuer;
        let trust = if issuer.certificate_authority.is_empty() {
            Trust::System
        } else {
            Trust::Authorities(issuer.certificate_authority.clone())
        };
        let discovery = if issuer.discovery_url.is_empty() {
            let base = issuer.url.trim_end_matches('/');
            format!("{base}/.well-known/openid-configuration")
        } else {
            issuer.discovery_url.clone()
        };
        let wanted = &config.signing_algorithms;
        for name in wanted {
            if !ALGORITHMS.iter().any(|(known, _)| known == name) {
                bail!("oidc: unsupported signing alg: {name:?}");
            }
        }
        let algorithms = ALGORITHMS
            .iter()
            .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| w == name))
            .map(|(_, algorithm)| *algorithm)
            .collect();
        Ok(Self {
            mapper: Mapper::new(config).map_err(|why| anyhow::anyhow!(why))?,
            discovery: Remote::new(&discovery, &trust, None, None, Credentials::None)?,
            trust,
            distributed: Distributed::new(&config.claim_mappings.groups.claim),
            algorithms,
            config: config.clone(),
            keys: Mutex::new(None),
            fetching: tokio::sync::Mutex::new(()),
            retired: CancellationToken::new(),
        })
    }

    /// What verifies the tokens of another issuer by the same rules.
    pub(super) fn for_issuer(&self, issuer: &str) -> anyhow::Result<Arc<Self>> {
        let mut config = JwtAuthenticator {
            issuer: self.config.issuer.clone(),
            signing_algorithms: self.config.signing_algorithms.clone(),
            ..JwtAuthenticator::default()
        };
        issuer.clone_into(&mut config.issuer.url);
        config.issuer.discovery_url.clear();
        let other = Self::new(&config)?;
        Ok(Arc::new(Self {
            retired: self.retired.clone(),
            ..other
        }))
    }

    /// An endpoint that this issuer names.
    pub(super) fn endpoint(&self, url: &str, credentials: Credentials) -> anyhow::Result<Remote> {
        Remote::new(url, &self.trust, None, None, credentials)
    }

    pub fn retire(&self) {
        self.retired.cancel();
    }

    pub fn is_of(&self, issuer: &str) -> bool {
        self.config.issuer.url == issuer
    }

    pub(super) async fn fetch_discovery(&self) -> anyhow::Result<()> {
        let reply = self.discovery.get(TIMEOUT).await?;
        if !reply.status.is_success() {
            bail!("{}: {}", self.discovery.url(), reply.status);
        }
        let document: Value = serde_json::from_slice(&reply.body)?;
        let (said, url) = (document["issuer"].as_str(), &self.config.issuer.url);
        if said != Some(url) {
            bail!(
                "oidc: issuer did not match the issuer returned by provider, expected {url:?} got {:?}",
                said.unwrap_or_default()
            );
        }
        let uri = document["jwks_uri"]
            .as_str()
            .context("provider did not return JWKS URL")?;
        let remote = Remote::new(uri, &self.trust, None, None, Credentials::None)?;
        let set = fetch_keys(&remote).await?;
        *self.keys.lock() = Some(Keys {
            remote: Arc::new(remote),
            set: Arc::new(set),
            fetched: Instant::now(),
        });
        Ok(())
    }

    /// The user of a token of this issuer.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn authenticate(&self, token: &str) -> Result<User, String> {
        let mut claims = match self.verified(token).await {
            Ok(claims) => claims,
            Err(Unverified::NotYet) => return Err("oidc: authenticator not initialized".into()),
            Err(Unverified::Wrong(why)) => return Err(format!("oidc: verify token: {why}")),
        };
        let expanding: BoxFuture<'_, _> = Box::pin(self.distributed.expand(self, &mut claims));
        let expanded = expanding.await;
        expanded.map_err(|why| format!("oidc: could not expand distributed claims: {why}"))?;
        self.mapper.user(&claims)
    }

    /// The claims of a token of this issuer.
    pub(super) async fn verified(&self, token: &str) -> Result<Map<String, Value>, Unverified> {
        let failed = Unverified::Wrong;
        let header = jsonwebtoken::decode_header(token).map_err(|e| failed(e.to_string()))?;
        if !self.algorithms.contains(&header.alg) {
            let why = format!(
                "oidc: id token signed with unsupported algorithm, got {:?}",
                header.alg
            );
            return Err(failed(why));
        }
        let set = self.present().ok_or(Unverified::NotYet)?;
        let claims = match verify(&set, token, header.alg, header.kid.as_deref()) {
            Some(claims) => claims,
            None => {
                // The issuer may have begun to use another key.
                let fresh = self.refreshed(&set).await.map_err(failed)?;
                verify(&fresh, token, header.alg, header.kid.as_deref()).ok_or_else(|| {
                    failed("failed to verify signature: failed to verify id token signature".into())
                })?
            }
        };
        self.check(&claims).map_err(failed)?;
        Ok(claims)
    }

    fn present(&self) -> Option<Arc<JwkSet>> {
        self.keys.lock().as_ref().map(|keys| keys.set.clone())
    }

    /// Newer keys than `known`, unless those were fetched just now.
    async fn refreshed(&self, known: &Arc<JwkSet>) -> Result<Arc<JwkSet>, String> {
        let _one = self.fetching.lock().await;
        let remote = {
            let keys = self.keys.lock();
            let keys = keys.as_ref().ok_or("oidc: authenticator not initialized")?;
            if !Arc::ptr_eq(&keys.set, known) || keys.fetched.elapsed() < REFRESH {
                return Ok(keys.set.clone());
            }
            keys.remote.clone()
        };
        let fetched = fetch_keys(&remote).await;
        let mut keys = self.keys.lock();
        let keys = keys.as_mut().ok_or("oidc: authenticator not initialized")?;
        keys.fetched = Instant::now();
        match fetched {
            Ok(set) => keys.set = Arc::new(set),
            Err(error) => return Err(format!("fetching keys {error:#}")),
        }
        Ok(keys.set.clone())
    }

    /// Issuer, audience and times.
    fn check(&self, claims: &Map<String, Value>) -> Result<(), String> {
        let issuer = &self.config.issuer;
        let said = claims
            .get("iss")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if said != issuer.url && !(said == "accounts.google.com" && issuer.url.ends_with(said)) {
            return Err(format!(
                "oidc: id token issued by a different provider, expected {:?} got {said:?}",
                issuer.url
            ));
        }
        let audiences: Vec<&str> = match claims.get("aud") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if !issuer
            .audiences
            .iter()
            .any(|a| audiences.contains(&a.as_str()))
        {
            return Err(format!(
                "oidc: expected audience in {:?} got {audiences:?}",
                issuer.audiences
            ));
        }
        let now = jiff::Timestamp::now().as_second();
        let seconds = |name: &str| {
            let value = claims.get(name)?;
            #[allow(clippy::cast_possible_truncation)]
            value.as_i64().or_else(|| value.as_f64().map(|f| f as i64))
        };
        match seconds("exp") {
            Some(expires) if expires > now => {}
            _ => return Err("oidc: token is expired".into()),
        }
        if seconds("nbf").is_some_and(|nbf| nbf > now.saturating_add(NOT_BEFORE_LEEWAY)) {
            return Err("oidc: current time before the nbf (not before) time".into());
        }
        Ok(())
    }
}

async fn fetch_keys(remote: &Remote) -> anyhow::Result<JwkSet> {
    let reply = remote.get(TIMEOUT).await?;
    if !reply.status.is_success() {
        bail!("{}: {}", remote.url(), reply.status);
    }
    // Keys of kinds that are not known are no reason to refuse the others.
    let document: Value = serde_json::from_slice(&reply.body).context("jwks")?;
    let keys = document["keys"].as_array().context("jwks has no keys")?;
    let keys = keys
        .iter()
        .filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
    Ok(JwkSet {
        keys: keys.collect(),
    })
}

/// The claims of a token that one of the keys has signed.
fn verify(
    set: &JwkSet,
    token: &str,
    algorithm: Algorithm,
    key_id: Option<&str>,
) -> Option<Map<String, Value>> {
    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    set.keys
        .iter()
        .filter(|key| key_id.is_none_or(|id| key.common.key_id.as_deref() == Some(id)))
        .filter(|key| fits(key, algorithm))
        .find_map(|key| {
            let key = DecodingKey::from_jwk(key).ok()?;
            let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation);
            decoded.ok().map(|data| data.claims)
        })
}

/// Whether a key is for signatures, by this algorithm if it names one.
fn fits(key: &Jwk, algorithm: Algorithm) -> bool {
    let signs = !matches!(key.common.public_key_use, Some(PublicKeyUse::Encryption));
    let named = key.common.key_algorithm;
    signs && named.is_none_or(|named| named == KeyAlgorithm::from(algorithm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_looks_like_a_token_has_an_issuer() {
        let token = |payload: &str| format!("x.{}.y", URL_SAFE_NO_PAD.encode(payload));
        assert_eq!(untrusted_issuer(&token("{\"iss\":\"a\"}")).unwrap(), "a");
        for bad in [
            "",
            "a.b",
            "a.b.c.d",
            &token("[]"),
            &token("{\"iss\":1}"),
            "a.!.c",
        ] {
            assert!(untrusted_issuer(bad).is_none(), "{bad}");
        }
    }
}

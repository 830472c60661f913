//! Service-account tokens: JWTs with upstream's claims.

use jsonwebtoken::{Algorithm, Header, Validation};
use rcgen::KeyPair;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::public_key::{PrivateKey, PublicKey};

/// What a service-account token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: Vec<String>,
    /// Seconds since the epoch.
    pub exp: i64,
    pub iat: i64,
    pub nbf: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
}

/// What the token of a Secret says: it is for no audience in particular and has no end of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretClaims {
    pub iss: String,
    pub sub: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub account_uid: String,
}

impl SecretClaims {
    /// Their issuer in every cluster.
    pub const ISSUER: &str = "kubernetes/serviceaccount";

    /// Those of an account's Secret.
    #[must_use]
    pub fn new(namespace: &str, secret: &str, account: &NamedReference) -> Self {
        Self {
            iss: Self::ISSUER.to_owned(),
            sub: format!("system:serviceaccount:{namespace}:{}", account.name),
            namespace: namespace.to_owned(),
            secret: secret.to_owned(),
            account: account.name.clone(),
            account_uid: account.uid.clone(),
        }
    }
}

/// The objects that a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    pub namespace: String,
    pub serviceaccount: NamedReference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodReference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<NamedReference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NamedReference>,
    /// After this second the token should have been renewed, though it still counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedReference {
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

/// A bound pod.
pub type PodReference = NamedReference;

/// All keys that may have signed a token.
#[derive(Clone, Default)]
pub struct VerifyingKeys {
    keys: Vec<PublicKey>,
}

/// The key that signs tokens, and all keys that may have signed one.
pub struct TokenKeys {
    private_pem: String,
    signing: PrivateKey,
    verifying: VerifyingKeys,
}

/// Longer tokens are not looked at.
const MAX_TOKEN: usize = 16 * 1024;

/// The key that a token names; whether there is one by that name is not known yet.
///
/// # Errors
/// When the token is malformed.
pub fn key_id(token: &str) -> Result<Option<String>, Error> {
    Ok(jsonwebtoken::decode_header(token)?.kid)
}

// === impl VerifyingKeys ===

impl VerifyingKeys {
    #[must_use]
    pub fn new(keys: Vec<PublicKey>) -> Self {
        Self { keys }
    }

    /// Whether there is a key by this name.
    #[must_use]
    pub fn knows(&self, key_id: &str) -> bool {
        self.keys.iter().any(|key| key.key_id == key_id)
    }

    /// Whether all keys by this name are shown to everybody.
    #[must_use]
    pub fn shows(&self, key_id: &str) -> bool {
        let mut named = self.keys.iter().filter(|key| key.key_id == key_id);
        named.all(|key| !key.hidden)
    }

    /// Checks signature and times; audiences and bound objects are the caller's to check.
    ///
    /// # Errors
    /// When the token is malformed, expired, not yet valid, or signed by an unknown key.
    pub fn verify(&self, token: &str) -> Result<Claims, Error> {
        self.verify_as(token, |validation| validation.validate_nbf = true)
    }

    /// Checks the signature of a Secret's token; whether the Secret still has it is the caller's to check.
    ///
    /// # Errors
    /// When the token is malformed or signed by an unknown key.
    pub fn verify_of_secret(&self, token: &str) -> Result<SecretClaims, Error> {
        self.verify_as(token, |validation| {
            validation.validate_exp = false;
            validation.required_spec_claims.clear();
        })
    }

    fn verify_as<T: DeserializeOwned + Clone>(
        &self,
        token: &str,
        adjust: impl Fn(&mut Validation),
    ) -> Result<T, Error> {
        if token.len() > MAX_TOKEN {
            return Err(Error::Pem("the token is too long".into()));
        }
        let key_id = key_id(token)?;
        let named = |key: &&PublicKey| key_id.as_deref().is_none_or(|id| id == key.key_id);
        let mut failed = Error::Pem("no key with this id".into());
        for key in self.keys.iter().filter(named) {
            let mut validation = Validation::new(key.algorithm);
            validation.validate_aud = false;
            validation.leeway = 5;
            adjust(&mut validation);
            match jsonwebtoken::decode::<T>(token, &key.decoding, &validation) {
                Ok(decoded) => return Ok(decoded.claims),
                Err(error) => failed = error.into(),
            }
        }
        Err(failed)
    }

    fn shown(&self) -> impl Iterator<Item = &PublicKey> {
        self.keys.iter().filter(|key| !key.hidden)
    }

    /// The names of the algorithms that tokens may be signed with.
    #[must_use]
    pub fn algorithms(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self
            .shown()
            .map(|key| match key.algorithm {
                Algorithm::ES256 => "ES256",
                Algorithm::ES384 => "ES384",
                _ => "RS256",
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The public keys as a JSON Web Key Set.
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        let keys: Vec<_> = self.shown().map(|key| &key.jwk).collect();
        serde_json::json!({"keys": keys})
    }
}

// === impl TokenKeys ===

impl TokenKeys {
    /// A fresh P-256 key.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn create() -> Result<Self, Error> {
        Self::load(&KeyPair::generate()?.serialize_pem())
    }

    /// Reads a private key back; it verifies too.
    ///
    /// # Errors
    /// When the PEM is neither an RSA nor a P-256 or P-384 key.
    pub fn load(private_pem: &str) -> Result<Self, Error> {
        let signing = PrivateKey::read(private_pem)?;
        Ok(Self {
            private_pem: private_pem.to_owned(),
            verifying: VerifyingKeys::new(vec![signing.public.clone()]),
            signing,
        })
    }

    /// Verifies with the keys of these PEM texts instead: those of the past, and of the future, while keys are rotated.
    ///
    /// # Errors
    /// When one of them has no key.
    pub fn verified_by(mut self, pems: &[String]) -> Result<Self, Error> {
        if pems.is_empty() {
            return Ok(self);
        }
        let mut keys: Vec<PublicKey> = Vec::new();
        for pem in pems {
            for key in PublicKey::read_all(pem)? {
                if keys.iter().all(|k| k.key_id != key.key_id) {
                    keys.push(key);
                }
            }
        }
        self.verifying = VerifyingKeys::new(keys);
        Ok(self)
    }

    #[must_use]
    pub fn private_pem(&self) -> &str {
        &self.private_pem
    }

    /// What verifies tokens.
    #[must_use]
    pub fn verifying(&self) -> &VerifyingKeys {
        &self.verifying
    }

    /// Signs a token.
    ///
    /// # Errors
    /// When the claims cannot be serialised.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, Error> {
        let mut header = Header::new(self.signing.public.algorithm);
        header.typ = None;
        header.kid = Some(self.signing.public.key_id.clone());
        Ok(jsonwebtoken::encode(
            &header,
            claims,
            &self.signing.encoding,
        )?)
    }

    /// As [`VerifyingKeys::verify`].
    ///
    /// # Errors
    /// As there.
    pub fn verify(&self, token: &str) -> Result<Claims, Error> {
        self.verifying.verify(token)
    }

    /// As [`VerifyingKeys::verify_of_secret`].
    ///
    /// # Errors
    /// As there.
    pub fn verify_of_secret(&self, token: &str) -> Result<SecretClaims, Error> {
        self.verifying.verify_of_secret(token)
    }

    /// The public keys as a JSON Web Key Set.
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        self.verifying.jwks()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(lifetime: i64) -> Claims {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        Claims {
            iss: "https://kubernetes.default.svc".into(),
            sub: "system:serviceaccount:a:b".into(),
            aud: vec!["api".into()],
            exp: now + lifetime,
            iat: now,
            nbf: now,
            jti: None,
            kubernetes: KubernetesClaims {
                namespace: "a".into(),
                serviceaccount: NamedReference {
                    name: "b".into(),
                    uid: "u".into(),
                },
                pod: None,
                secret: None,
                node: None,
                warnafter: None,
            },
        }
    }

    #[test]
    fn tokens_verify_with_the_key_that_signed_them_only() {
        let keys = TokenKeys::create().unwrap();
        let token = keys.sign(&claims(600)).unwrap();
        let again = TokenKeys::load(keys.private_pem()).unwrap();
        assert_eq!(
            again.verify(&token).unwrap().sub,
            "system:serviceaccount:a:b"
        );
        assert!(TokenKeys::create().unwrap().verify(&token).is_err());
        let (head, signature) = token.rsplit_once('.').unwrap();
        assert!(
            again
                .verify(&format!("{head}.{}", &signature[..signature.len() - 4]))
                .is_err()
        );
        assert!(again.verify(&keys.sign(&claims(-60)).unwrap()).is_err());
        assert_eq!(keys.jwks()["keys"][0]["crv"], "P-256");
    }

    #[test]
    fn tokens_of_secrets_have_no_end() {
        let keys = TokenKeys::create().unwrap();
        let account = NamedReference {
            name: "b".into(),
            uid: "u".into(),
        };
        let claims = SecretClaims::new("a", "s", &account);
        let token = keys.sign(&claims).unwrap();
        assert_eq!(keys.verify_of_secret(&token).unwrap(), claims);
        assert!(keys.verify(&token).is_err());
        let other = TokenKeys::create().unwrap();
        assert!(other.verify_of_secret(&token).is_err());
    }
}

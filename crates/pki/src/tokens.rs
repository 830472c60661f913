//! Service-account tokens: ES256 JWTs with upstream's claims.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;

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
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedReference {
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

/// A bound pod.
pub type PodReference = NamedReference;

/// The key that signs tokens, and all keys that may have signed one.
pub struct TokenKeys {
    private_pem: String,
    encoding: EncodingKey,
    verifying: Vec<VerifyingKey>,
    key_id: String,
}

struct VerifyingKey {
    decoding: DecodingKey,
    key_id: String,
    /// The point of the public key: 0x04, x, y.
    point: Vec<u8>,
}

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
    /// When the PEM is not a P-256 key in PKCS #8.
    pub fn load(private_pem: &str) -> Result<Self, Error> {
        let pair = KeyPair::from_pem(private_pem)?;
        let point = pair.der_bytes().to_vec();
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(&point));
        let encoding = EncodingKey::from_ec_pem(private_pem.as_bytes())?;
        let coordinate = |range: std::ops::Range<usize>| {
            point
                .get(range)
                .map(|b| URL_SAFE_NO_PAD.encode(b))
                .ok_or_else(|| Error::Pem("not a P-256 key".into()))
        };
        let decoding = DecodingKey::from_ec_components(&coordinate(1..33)?, &coordinate(33..65)?)?;
        let verifying = vec![VerifyingKey {
            decoding,
            key_id: key_id.clone(),
            point,
        }];
        Ok(Self {
            private_pem: private_pem.to_owned(),
            encoding,
            verifying,
            key_id,
        })
    }

    #[must_use]
    pub fn private_pem(&self) -> &str {
        &self.private_pem
    }

    /// Signs a token.
    ///
    /// # Errors
    /// When the claims cannot be serialised.
    pub fn sign(&self, claims: &Claims) -> Result<String, Error> {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        Ok(jsonwebtoken::encode(&header, claims, &self.encoding)?)
    }

    /// Checks signature and times; audiences and bound objects are the caller's to check.
    ///
    /// # Errors
    /// When the token is malformed, expired, not yet valid, or signed by an unknown key.
    pub fn verify(&self, token: &str) -> Result<Claims, Error> {
        let header = jsonwebtoken::decode_header(token)?;
        let key = self
            .verifying
            .iter()
            .find(|k| header.kid.as_deref().is_none_or(|id| id == k.key_id))
            .ok_or_else(|| Error::Pem("no key with this id".into()))?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        validation.leeway = 5;
        Ok(jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation)?.claims)
    }

    /// The public keys as a JSON Web Key Set.
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        let keys: Vec<serde_json::Value> = self
            .verifying
            .iter()
            .map(|k| {
                serde_json::json!({
                    "use": "sig", "kty": "EC", "kid": k.key_id, "crv": "P-256", "alg": "ES256",
                    "x": URL_SAFE_NO_PAD.encode(&k.point[1..33]), "y": URL_SAFE_NO_PAD.encode(&k.point[33..65]),
                })
            })
            .collect();
        serde_json::json!({"keys": keys})
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
}

//! Public keys that verify tokens: read from PEM in whatever form they come, shown as JSON Web Keys, and named as upstream
//! names them, by the digest of their `SubjectPublicKeyInfo`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, CommonParameters, EllipticCurve, EllipticCurveKeyParameters,
    EllipticCurveKeyType, Jwk, KeyAlgorithm, PublicKeyUse, RSAKeyParameters, RSAKeyType,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::Error;

const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];

/// A key that verifies what one algorithm has signed.
#[derive(Clone)]
pub struct PublicKey {
    pub key_id: String,
    pub algorithm: Algorithm,
    pub decoding: DecodingKey,
    pub jwk: Jwk,
    /// It verifies, but nobody is told of it.
    pub hidden: bool,
}

/// A key that signs.
pub(crate) struct PrivateKey {
    pub encoding: EncodingKey,
    pub public: PublicKey,
}

impl PublicKey {
    /// Every key of a PEM text: public keys, certificates, and the public halves of private keys.
    ///
    /// # Errors
    /// When there is none, or one is malformed or of an unknown kind.
    pub fn read_all(pem: &str) -> Result<Vec<Self>, Error> {
        let mut keys = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()) {
            let (kind, der) = section.map_err(|e| Error::Pem(e.to_string()))?;
            match kind {
                SectionKind::PublicKey => keys.push(Self::from_spki(&der)?),
                SectionKind::Certificate => {
                    let (_, certificate) = x509_parser::parse_x509_certificate(&der)
                        .map_err(|e| Error::Parse(e.to_string()))?;
                    keys.push(Self::from_spki(certificate.public_key().raw)?);
                }
                kind => {
                    if let Some(key) = PrivateKey::from_section(kind, &der)? {
                        keys.push(key.public);
                    }
                }
            }
        }
        if keys.is_empty() {
            return Err(Error::Pem(
                "data does not contain any valid RSA or ECDSA public keys".into(),
            ));
        }
        Ok(keys)
    }

    /// The same key by another name.
    #[must_use]
    pub fn named(mut self, key_id: &str) -> Self {
        key_id.clone_into(&mut self.key_id);
        self.jwk.common.key_id = Some(key_id.to_owned());
        self
    }

    /// From a `SubjectPublicKeyInfo` in DER.
    ///
    /// # Errors
    /// When it is malformed or of an unknown kind.
    pub fn from_spki(der: &[u8]) -> Result<Self, Error> {
        let parse = |e: &dyn std::fmt::Display| Error::Parse(e.to_string());
        let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(|e| parse(&e))?;
        match info.parsed().map_err(|e| parse(&e))? {
            Parsed::RSA(rsa) => Self::rsa(rsa.modulus, rsa.exponent),
            Parsed::EC(point) => Self::ec(point.data()),
            _ => Err(Error::Pem("neither an RSA nor an ECDSA key".into())),
        }
    }

    fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, Error> {
        let (modulus, exponent) = (unsigned(modulus), unsigned(exponent));
        let components = [integer(modulus), integer(exponent)].concat();
        let identifier = [object(RSA), vec![0x05, 0x00]].concat();
        let jwk = Jwk {
            common: CommonParameters::default(),
            algorithm: AlgorithmParameters::RSA(RSAKeyParameters {
                key_type: RSAKeyType::RSA,
                n: URL_SAFE_NO_PAD.encode(modulus),
                e: URL_SAFE_NO_PAD.encode(exponent),
            }),
        };
        let bits = sequence(&components);
        Self::new(
            jwk,
            Algorithm::RS256,
            KeyAlgorithm::RS256,
            &identifier,
            &bits,
        )
    }

    /// From an uncompressed point: 0x04, x, y.
    fn ec(point: &[u8]) -> Result<Self, Error> {
        let (curve, oid, algorithm, key_algorithm) = match point.len() {
            65 => (
                EllipticCurve::P256,
                P256,
                Algorithm::ES256,
                KeyAlgorithm::ES256,
            ),
            97 => (
                EllipticCurve::P384,
                P384,
                Algorithm::ES384,
                KeyAlgorithm::ES384,
            ),
            _ => return Err(Error::Pem("an ECDSA key on an unknown curve".into())),
        };
        let (x, y) = point[1..].split_at(point.len() / 2);
        let jwk = Jwk {
            common: CommonParameters::default(),
            algorithm: AlgorithmParameters::EllipticCurve(EllipticCurveKeyParameters {
                key_type: EllipticCurveKeyType::EC,
                curve,
                x: URL_SAFE_NO_PAD.encode(x),
                y: URL_SAFE_NO_PAD.encode(y),
            }),
        };
        let identifier = [object(EC), object(oid)].concat();
        Self::new(jwk, algorithm, key_algorithm, &identifier, point)
    }

    fn new(
        mut jwk: Jwk,
        algorithm: Algorithm,
        key_algorithm: KeyAlgorithm,
        identifier: &[u8],
        bits: &[u8],
    ) -> Result<Self, Error> {
        let info = sequence(&[sequence(identifier), bit_string(bits)].concat());
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(&info));
        jwk.common.key_id = Some(key_id.clone());
        jwk.common.key_algorithm = Some(key_algorithm);
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self {
            decoding: DecodingKey::from_jwk(&jwk)?,
            key_id,
            algorithm,
            jwk,
            hidden: false,
        })
    }
}

impl PrivateKey {
    /// The first private key of a PEM text.
    pub(crate) fn read(pem: &str) -> Result<Self, Error> {
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()) {
            let (kind, der) = section.map_err(|e| Error::Pem(e.to_string()))?;
            if let Some(key) = Self::from_section(kind, &der)? {
                return Ok(key);
            }
        }
        Err(Error::Pem(
            "data does not contain a valid RSA or ECDSA private key".into(),
        ))
    }

    fn from_section(kind: SectionKind, der: &[u8]) -> Result<Option<Self>, Error> {
        let wrapped;
        let (der, is_rsa) = match kind {
            SectionKind::RsaPrivateKey => (der, true),
            // The algorithm's identifier is at the start.
            SectionKind::PrivateKey => (der, contains(&der[..der.len().min(40)], RSA)),
            SectionKind::EcPrivateKey => {
                let curve = [P256, P384]
                    .into_iter()
                    .find(|oid| contains(der, &object(oid)))
                    .ok_or_else(|| Error::Pem("an ECDSA key on an unknown curve".into()))?;
                let identifier = sequence(&[object(EC), object(curve)].concat());
                wrapped = sequence(&[integer(&[0]), identifier, octet_string(der)].concat());
                (wrapped.as_slice(), false)
            }
            _ => return Ok(None),
        };
        let jwk;
        let encoding;
        if is_rsa {
            // What is inside of PKCS #8 is a key in PKCS #1.
            let pem = pem_of(kind, der);
            encoding = EncodingKey::from_rsa_pem(pem.as_bytes())?;
            jwk = Jwk::from_encoding_key(&encoding, Algorithm::RS256)?;
        } else {
            encoding = EncodingKey::from_ec_der(der);
            jwk = Jwk::from_encoding_key(&encoding, Algorithm::ES256)
                .or_else(|_| Jwk::from_encoding_key(&encoding, Algorithm::ES384))?;
        }
        let decode = |text: &str| {
            let decoded = URL_SAFE_NO_PAD.decode(text);
            decoded.map_err(|e| Error::Pem(e.to_string()))
        };
        let public = match &jwk.algorithm {
            AlgorithmParameters::RSA(key) => PublicKey::rsa(&decode(&key.n)?, &decode(&key.e)?)?,
            AlgorithmParameters::EllipticCurve(key) => {
                PublicKey::ec(&[vec![4], decode(&key.x)?, decode(&key.y)?].concat())?
            }
            _ => return Err(Error::Pem("neither an RSA nor an ECDSA key".into())),
        };
        Ok(Some(Self { encoding, public }))
    }
}

fn pem_of(kind: SectionKind, der: &[u8]) -> String {
    let label = if kind == SectionKind::RsaPrivateKey {
        "RSA PRIVATE KEY"
    } else {
        "PRIVATE KEY"
    };
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// Without the zeros that DER puts before large numbers.
fn unsigned(mut number: &[u8]) -> &[u8] {
    while let [0, rest @ ..] = number
        && !rest.is_empty()
    {
        number = rest;
    }
    number
}

// DER, as far as keys need it.

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..128 => out.push(u8::try_from(short).unwrap_or_default()),
        long => {
            let bytes = long.to_be_bytes();
            let significant = unsigned(&bytes);
            out.push(0x80 | u8::try_from(significant.len()).unwrap_or_default());
            out.extend_from_slice(significant);
        }
    }
    out.extend_from_slice(content);
    out
}

fn sequence(content: &[u8]) -> Vec<u8> {
    tagged(0x30, content)
}

fn object(oid: &[u8]) -> Vec<u8> {
    tagged(0x06, oid)
}

fn octet_string(content: &[u8]) -> Vec<u8> {
    tagged(0x04, content)
}

fn integer(number: &[u8]) -> Vec<u8> {
    if number.first().is_some_and(|byte| byte & 0x80 != 0) {
        tagged(0x02, &[&[0], number].concat())
    } else {
        tagged(0x02, number)
    }
}

fn bit_string(content: &[u8]) -> Vec<u8> {
    tagged(0x03, &[&[0], content].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    // `openssl ecparam -name prime256v1 -genkey -noout`, its `openssl ec -pubout`, and the digest of that in DER.
    const SEC1: &str = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIFVuPq3Daf+ijV9sTEjzosE16G0ce/2Xs6atOgZX5hgMoAoGCCqGSM49\nAwEHoUQDQgAEpn0Sy6yvIMR8lykCksBNLiSTBi/E1eMGxbffDZQBTBnHhrI4rgZE\nhqsOyJvRoUa7gSRhOGxZc2HvPrXNaVLFrg==\n-----END EC PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEpn0Sy6yvIMR8lykCksBNLiSTBi/E\n1eMGxbffDZQBTBnHhrI4rgZEhqsOyJvRoUa7gSRhOGxZc2HvPrXNaVLFrg==\n-----END PUBLIC KEY-----\n";
    const KEY_ID: &str = "CHk-L4-0PAV13hmGwnbcb2qgcrdXAgOh40RNLXSfDqw";

    #[test]
    fn a_key_has_one_name_in_every_form() {
        for pem in [SEC1, PUBLIC] {
            let [key] = &PublicKey::read_all(pem).unwrap()[..] else {
                panic!("not one key");
            };
            assert_eq!(key.key_id, KEY_ID);
            assert_eq!(key.algorithm, Algorithm::ES256);
        }
        assert_eq!(PrivateKey::read(SEC1).unwrap().public.key_id, KEY_ID);
    }

    #[test]
    fn nonsense_is_no_key() {
        let cut = SEC1.replace("MHc", "MHd");
        for pem in [
            "",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            &cut,
        ] {
            assert!(PublicKey::read_all(pem).is_err(), "{pem}");
            assert!(PrivateKey::read(pem).is_err(), "{pem}");
        }
    }
}

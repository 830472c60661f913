//! Ciphers with keys from the configuration: how they lay out what they encrypt is upstream's.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockDecryptMut as _, BlockEncryptMut as _, KeyIvInit as _};
use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{AesGcm, Nonce, Tag};
use crypto_secretbox::XSalsa20Poly1305;

/// Of AES-GCM's nonce, and of the tags of both.
const GCM_NONCE: usize = 12;
const SECRETBOX_NONCE: usize = 24;
const TAG: usize = 16;
const BLOCK: usize = 16;

const TOO_SHORT: &str = "the stored data was shorter than the required size";

/// A cipher with its key.
pub enum Cipher {
    /// `nonce ciphertext tag`, bound to the object's key in the store.
    Gcm(Gcm),
    /// `iv ciphertext`, padded as in PKCS #7.
    Cbc(Vec<u8>),
    /// `nonce tag ciphertext`.
    Secretbox(Box<XSalsa20Poly1305>),
}

/// AES-GCM with a key of any size.
pub enum Gcm {
    Aes128(Box<AesGcm<Aes128, U12>>),
    Aes192(Box<AesGcm<Aes192, U12>>),
    Aes256(Box<AesGcm<Aes256, U12>>),
}

/// As many random bytes as there are in `bytes`.
pub fn random(bytes: &mut [u8]) -> Result<(), String> {
    use ring::rand::SecureRandom as _;
    ring::rand::SystemRandom::new()
        .fill(bytes)
        .map_err(|_| "unable to read sufficient random bytes".to_owned())
}

impl Gcm {
    /// With a key of 16, 24 or 32 bytes.
    #[must_use]
    pub fn new(key: &[u8]) -> Option<Self> {
        Some(match key.len() {
            16 => Self::Aes128(Box::new(AesGcm::new_from_slice(key).ok()?)),
            24 => Self::Aes192(Box::new(AesGcm::new_from_slice(key).ok()?)),
            32 => Self::Aes256(Box::new(AesGcm::new_from_slice(key).ok()?)),
            _ => return None,
        })
    }

    /// Appends `nonce ciphertext tag` to `out`.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn seal(&self, bound: &[u8], plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let mut nonce = [0; GCM_NONCE];
        random(&mut nonce)?;
        let nonce = Nonce::from(nonce);
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plain);
        let data = &mut out[start..];
        let tag = match self {
            Self::Aes128(c) => c.encrypt_in_place_detached(&nonce, bound, data),
            Self::Aes192(c) => c.encrypt_in_place_detached(&nonce, bound, data),
            Self::Aes256(c) => c.encrypt_in_place_detached(&nonce, bound, data),
        };
        let tag = tag.map_err(|e| e.to_string())?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// # Errors
    /// When the data is not what was sealed under this key and for this place.
    pub fn open(&self, bound: &[u8], stored: &[u8]) -> Result<Vec<u8>, String> {
        let (nonce, rest) = stored.split_first_chunk::<GCM_NONCE>().ok_or(TOO_SHORT)?;
        let (data, tag) = rest.split_last_chunk::<TAG>().ok_or(TOO_SHORT)?;
        let (nonce, tag) = (&Nonce::from(*nonce), &Tag::from(*tag));
        let mut plain = data.to_vec();
        let opened = match self {
            Self::Aes128(c) => c.decrypt_in_place_detached(nonce, bound, &mut plain, tag),
            Self::Aes192(c) => c.decrypt_in_place_detached(nonce, bound, &mut plain, tag),
            Self::Aes256(c) => c.decrypt_in_place_detached(nonce, bound, &mut plain, tag),
        };
        opened.map_err(|_| "cipher: message authentication failed".to_owned())?;
        Ok(plain)
    }
}

impl Cipher {
    #[must_use]
    pub fn gcm(key: &[u8]) -> Option<Self> {
        Gcm::new(key).map(Self::Gcm)
    }

    #[must_use]
    pub fn cbc(key: Vec<u8>) -> Option<Self> {
        matches!(key.len(), 16 | 24 | 32).then_some(Self::Cbc(key))
    }

    #[must_use]
    pub fn secretbox(key: &[u8]) -> Option<Self> {
        let cipher = XSalsa20Poly1305::new_from_slice(key).ok()?;
        Some(Self::Secretbox(Box::new(cipher)))
    }

    /// Appends the encrypted data to `out`; `bound` is what it is bound to, if the cipher can do so.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn seal(&self, bound: &[u8], plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        match self {
            Self::Gcm(gcm) => gcm.seal(bound, plain, out)?,
            Self::Cbc(key) => {
                let mut iv = [0; BLOCK];
                random(&mut iv)?;
                out.extend_from_slice(&iv);
                out.extend_from_slice(&encrypt_cbc(key, &iv, plain).ok_or("invalid key size")?);
            }
            Self::Secretbox(cipher) => {
                let mut nonce = [0; SECRETBOX_NONCE];
                random(&mut nonce)?;
                out.extend_from_slice(&nonce);
                let start = out.len();
                out.extend_from_slice(&[0; TAG]);
                out.extend_from_slice(plain);
                let (tag, data) = out[start..].split_at_mut(TAG);
                let made = cipher.encrypt_in_place_detached(&nonce.into(), b"", data);
                tag.copy_from_slice(&made.map_err(|e| e.to_string())?);
            }
        }
        Ok(())
    }

    /// # Errors
    /// When the data is not what was sealed.
    pub fn open(&self, bound: &[u8], stored: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Gcm(gcm) => gcm.open(bound, stored),
            Self::Cbc(key) => {
                let (iv, data) = stored.split_at_checked(BLOCK).ok_or(TOO_SHORT)?;
                if data.len() % BLOCK != 0 {
                    return Err("the stored data is not a multiple of the block size".into());
                }
                decrypt_cbc(key, iv, data).ok_or_else(|| "invalid padding on input".to_owned())
            }
            Self::Secretbox(cipher) => {
                let (nonce, rest) = stored.split_at_checked(SECRETBOX_NONCE).ok_or(TOO_SHORT)?;
                let (tag, data) = rest.split_at_checked(TAG).ok_or(TOO_SHORT)?;
                let mut plain = data.to_vec();
                cipher
                    .decrypt_in_place_detached(nonce.into(), b"", &mut plain, tag.into())
                    .map_err(|_| "the stored data cannot be opened with this key".to_owned())?;
                Ok(plain)
            }
        }
    }
}

fn encrypt_cbc(key: &[u8], iv: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
    Some(match key.len() {
        16 => cbc::Encryptor::<Aes128>::new_from_slices(key, iv)
            .ok()?
            .encrypt_padded_vec_mut::<Pkcs7>(plain),
        24 => cbc::Encryptor::<Aes192>::new_from_slices(key, iv)
            .ok()?
            .encrypt_padded_vec_mut::<Pkcs7>(plain),
        _ => cbc::Encryptor::<Aes256>::new_from_slices(key, iv)
            .ok()?
            .encrypt_padded_vec_mut::<Pkcs7>(plain),
    })
}

fn decrypt_cbc(key: &[u8], iv: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    match key.len() {
        16 => cbc::Decryptor::<Aes128>::new_from_slices(key, iv)
            .ok()?
            .decrypt_padded_vec_mut::<Pkcs7>(data)
            .ok(),
        24 => cbc::Decryptor::<Aes192>::new_from_slices(key, iv)
            .ok()?
            .decrypt_padded_vec_mut::<Pkcs7>(data)
            .ok(),
        _ => cbc::Decryptor::<Aes256>::new_from_slices(key, iv)
            .ok()?
            .decrypt_padded_vec_mut::<Pkcs7>(data)
            .ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ciphers() -> Vec<Cipher> {
        let key = |n: usize| vec![7; n];
        let mut all = vec![Cipher::secretbox(&key(32)).unwrap()];
        for size in [16, 24, 32] {
            all.push(Cipher::gcm(&key(size)).unwrap());
            all.push(Cipher::cbc(key(size)).unwrap());
        }
        all
    }

    #[test]
    fn what_is_bound_elsewhere_or_changed_is_not_opened() {
        let gcm = Cipher::gcm(&[1; 32]).unwrap();
        let mut sealed = Vec::new();
        gcm.seal(b"/registry/secrets/a", b"x", &mut sealed).unwrap();
        assert_eq!(gcm.open(b"/registry/secrets/a", &sealed).unwrap(), b"x");
        assert!(gcm.open(b"/registry/secrets/b", &sealed).is_err());
        *sealed.last_mut().unwrap() ^= 1;
        assert!(gcm.open(b"/registry/secrets/a", &sealed).is_err());
        assert!(Cipher::gcm(&[1; 31]).is_none());
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(plain in proptest::collection::vec(any::<u8>(), 0..200)) {
            for cipher in ciphers() {
                let mut sealed = Vec::new();
                cipher.seal(b"k", &plain, &mut sealed).unwrap();
                prop_assert_eq!(cipher.open(b"k", &sealed).unwrap(), plain.clone());
            }
        }

        #[test]
        fn no_data_makes_a_cipher_panic(data in proptest::collection::vec(any::<u8>(), 0..100)) {
            for cipher in ciphers() {
                let _ = cipher.open(b"k", &data);
            }
        }
    }
}

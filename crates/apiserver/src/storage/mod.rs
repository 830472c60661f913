//! What objects are in the store: their serialized form, encrypted if the configuration says so. The write path, the cache,
//! lists of the past and deletion all read and write through [`Storage`].

pub mod encryption;
mod serializer;

use std::borrow::Cow;
use std::sync::Arc;

use fluyt_api::resources::Resource;
use serde_json::Value;

use encryption::Encryption;

pub use serializer::{MediaType, Stored, prepare};

/// Encodes and decodes what is stored.
#[derive(Clone, Default)]
pub struct Storage {
    pub media_type: MediaType,
    pub encryption: Arc<Encryption>,
}

impl Storage {
    /// The stored form of an object of a resource in its stored version. `key` is the whole key.
    ///
    /// # Errors
    /// When it cannot be encrypted.
    pub async fn encode(
        &self,
        resource: &Resource,
        key: &[u8],
        object: &Value,
    ) -> Result<Vec<u8>, String> {
        let plain = serializer::encode(self.media_type, resource, object);
        self.encryption.seal(resource, key, plain).await
    }

    /// The object that was stored under a key.
    ///
    /// # Errors
    /// When it cannot be decrypted, is damaged, or is of another kind.
    pub async fn decode(
        &self,
        resource: &Resource,
        key: &[u8],
        stored: &[u8],
    ) -> Result<Stored, String> {
        let opened = self.encryption.open(resource, key, stored).await?;
        let plain: Cow<'_, [u8]> = opened.plain;
        let mut decoded = serializer::decode(self.media_type, resource, &plain)?;
        decoded.stale |= opened.stale;
        Ok(decoded)
    }
}

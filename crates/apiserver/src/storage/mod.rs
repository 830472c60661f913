//! What objects are in the store: their serialized form, encrypted if the configuration says so. The write path, the cache,
//! lists of the past and deletion all read and write through [`Codec`].

pub mod encryption;
mod serializer;

use std::borrow::Cow;
use std::sync::Arc;

use fluyt_api::resources::Resource;
use serde_json::Value;

use encryption::Encryption;

use serializer::Form;

pub use serializer::{MediaType, Stored, prepare};

/// What objects are stored as.
#[derive(Clone, Default)]
pub struct Storage {
    pub media_type: MediaType,
    pub encryption: Arc<Encryption>,
}

/// Encodes and decodes what is stored.
pub struct Codec {
    form: Form,
    pub encryption: Arc<Encryption>,
}

impl Codec {
    /// `compatible` is the oldest minor version of servers that are to read what is written.
    #[must_use]
    pub fn new(storage: &Storage, compatible: u32) -> Self {
        Self {
            form: Form {
                media_type: storage.media_type,
                compatible,
            },
            encryption: storage.encryption.clone(),
        }
    }

    /// What objects are written as.
    #[must_use]
    pub fn media_type(&self) -> MediaType {
        self.form.media_type
    }

    /// The version of a built-in resource that is written.
    #[must_use]
    pub fn written_as<'r>(&self, resource: &'r Resource) -> &'r Resource {
        resource.written_as(self.form.compatible)
    }

    /// The stored form of an object of a resource in the version that the server works in. `key` is the whole key.
    ///
    /// # Errors
    /// When it cannot be encrypted.
    pub async fn encode(
        &self,
        resource: &Resource,
        key: &[u8],
        object: &Value,
    ) -> Result<Vec<u8>, String> {
        let plain = serializer::encode(self.form, resource, object);
        self.encryption.seal(resource, key, plain).await
    }

    /// The object that was stored under a key, in the version that the server works in.
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
        let mut decoded = serializer::decode(self.form, resource, &plain)?;
        decoded.stale |= opened.stale;
        Ok(decoded)
    }
}

//! KMS v2: objects are encrypted with keys that are derived from a seed, and the seed with a key that a plugin keeps.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fluyt_api::protobuf::wire::{Fields, Wire, bytes, message, tag, varint};
use parking_lot::{Mutex, RwLock};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk};
use tonic::Status;
use tonic::transport::Channel;

use super::ciphers::{Gcm, random};
use super::config::Kms;
use crate::plugin;

/// How long a seed is used for writing after the plugin has last been well.
const WRITE_TTL: Duration = Duration::from_secs(180);

/// How often the plugin is asked, when it is well and when it is not.
const ASK_WELL: Duration = Duration::from_secs(60);
const ASK_ILL: Duration = Duration::from_secs(10);

/// How long an answer to a health check stands.
const HEALTH_WELL: Duration = Duration::from_secs(20);
const HEALTH_ILL: Duration = Duration::from_secs(3);

/// How long a key that reads stays known.
const READ_TTL: Duration = Duration::from_secs(24 * 3600);

const SEED: usize = 32;
const INFO: usize = 32;

/// Limits of what a plugin may answer.
const MAX_KEY_ID: usize = 1024;
const MAX_SOURCE: usize = 1024;
const MAX_ANNOTATIONS: usize = 32 * 1024;

/// How the key that encrypts data comes about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Source {
    /// It is the plugin's plain text.
    #[default]
    Key,
    /// It is derived from the plugin's plain text, anew for every object.
    Seed,
}

/// What was encrypted by the plugin: what is stored with every object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Wrapped {
    key_id: String,
    source: Vec<u8>,
    annotations: BTreeMap<String, Vec<u8>>,
    kind: Source,
}

/// What encrypts data.
enum DataKey {
    Key(Gcm),
    Seed(Prk),
}

/// The seed that is written with.
struct Writing {
    wrapped: Wrapped,
    key: Arc<DataKey>,
    until: Instant,
}

/// A plugin.
pub struct Plugin {
    name: String,
    timeout: Duration,
    channel: Channel,
    writing: RwLock<Option<Writing>>,
    reading: Mutex<HashMap<Wrapped, (Arc<DataKey>, Instant)>>,
    /// One question at a time; when and how the last one was answered.
    health: tokio::sync::Mutex<Health>,
}

#[derive(Default)]
struct Health {
    last: Option<(Instant, Result<(), String>)>,
    version: String,
}

impl DataKey {
    fn of(kind: Source, plain: &[u8]) -> Result<Self, String> {
        match kind {
            Source::Key => Gcm::new(plain)
                .map(Self::Key)
                .ok_or_else(|| format!("crypto/aes: invalid key size {}", plain.len())),
            Source::Seed if plain.len() < SEED => Err(format!(
                "invalid seed length {} used for key generation",
                plain.len()
            )),
            Source::Seed => Ok(Self::Seed(Prk::new_less_safe(HKDF_SHA256, plain))),
        }
    }

    fn derive(prk: &Prk, info: &[u8]) -> Result<Gcm, String> {
        struct Length;
        impl KeyType for Length {
            fn len(&self) -> usize {
                32
            }
        }
        let mut key = [0; 32];
        prk.expand(&[info], Length)
            .and_then(|okm| okm.fill(&mut key))
            .map_err(|_| "failed to derive a key from KDF".to_owned())?;
        Gcm::new(&key).ok_or_else(|| "failed to derive a key from KDF".to_owned())
    }

    fn seal(&self, bound: &[u8], plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        match self {
            Self::Key(gcm) => gcm.seal(bound, plain, out),
            Self::Seed(prk) => {
                let mut info = [0; INFO];
                random(&mut info)?;
                out.extend_from_slice(&info);
                Self::derive(prk, &info)?.seal(bound, plain, out)
            }
        }
    }

    fn open(&self, bound: &[u8], data: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Key(gcm) => gcm.open(bound, data),
            Self::Seed(prk) => {
                let (info, data) = data
                    .split_at_checked(INFO)
                    .ok_or("the stored data was shorter than the required size")?;
                Self::derive(prk, info)?.open(bound, data)
            }
        }
    }
}

impl Wrapped {
    fn validate(&self) -> Result<(), String> {
        if self.source.is_empty() {
            return Err("encrypted DEK source is empty".into());
        }
        if self.source.len() > MAX_SOURCE {
            let length = self.source.len();
            return Err(format!(
                "encrypted DEK source is {length} bytes, which exceeds the max size of {MAX_SOURCE}"
            ));
        }
        validate_key_id(&self.key_id)?;
        let mut size = 0;
        for (name, value) in &self.annotations {
            if !fluyt_api::validation::dns_subdomain(name).is_empty() || !name.contains('.') {
                return Err(format!(
                    "invalid annotation key {name}: should be a domain with at least two segments separated by dots"
                ));
            }
            size += name.len() + value.len();
        }
        if size > MAX_ANNOTATIONS {
            return Err(format!(
                "total size of annotations is {size}, which exceeds the max size of {MAX_ANNOTATIONS}"
            ));
        }
        Ok(())
    }

    /// Writes the message that is stored, around encrypted data.
    fn encode(&self, data: &[u8], out: &mut Vec<u8>) {
        bytes(out, 1, data);
        bytes(out, 2, self.key_id.as_bytes());
        bytes(out, 3, &self.source);
        for (name, value) in &self.annotations {
            message(out, 4, |out| {
                bytes(out, 1, name.as_bytes());
                bytes(out, 2, value);
            });
        }
        if self.kind == Source::Seed {
            tag(out, 5, 0);
            varint(out, 1);
        }
    }

    /// Reads such a message: what it was encrypted with, and the data.
    fn decode(stored: &[u8]) -> Result<(Self, &[u8]), String> {
        let (mut wrapped, mut data) = (Self::default(), &[][..]);
        let text = |raw: &[u8]| String::from_utf8(raw.to_vec()).map_err(|e| e.to_string());
        for field in Fields(stored) {
            match field? {
                (1, Wire::Bytes(raw)) => data = raw,
                (2, Wire::Bytes(raw)) => wrapped.key_id = text(raw)?,
                (3, Wire::Bytes(raw)) => wrapped.source = raw.to_vec(),
                (4, Wire::Bytes(entry)) => {
                    let (mut name, mut value) = (String::new(), Vec::new());
                    for field in Fields(entry) {
                        match field? {
                            (1, Wire::Bytes(raw)) => name = text(raw)?,
                            (2, Wire::Bytes(raw)) => value = raw.to_vec(),
                            _ => {}
                        }
                    }
                    wrapped.annotations.insert(name, value);
                }
                (5, Wire::Varint(0)) => wrapped.kind = Source::Key,
                (5, Wire::Varint(1)) => wrapped.kind = Source::Seed,
                (5, Wire::Varint(other)) => {
                    return Err(format!("unknown encryptedDEKSourceType {other}"));
                }
                _ => {}
            }
        }
        if data.is_empty() {
            return Err("encrypted data is empty".into());
        }
        wrapped.validate()?;
        Ok((wrapped, data))
    }
}

fn validate_key_id(key_id: &str) -> Result<(), String> {
    match key_id.len() {
        0 => Err("keyID is empty".into()),
        length if length > MAX_KEY_ID => Err(format!(
            "keyID is {length} bytes, which exceeds the max size of {MAX_KEY_ID}"
        )),
        _ => Ok(()),
    }
}

impl Plugin {
    /// A plugin, which is asked from now on until nobody holds it any more.
    ///
    /// # Errors
    /// When the endpoint is not a socket's path.
    pub async fn start(config: &Kms) -> anyhow::Result<Arc<Self>> {
        let path = config.endpoint.trim_start_matches("unix://").to_owned();
        let channel = plugin::channel(path);
        let plugin = Arc::new(Self {
            name: config.name.clone(),
            timeout: config.timeout(),
            channel,
            writing: RwLock::default(),
            reading: Mutex::default(),
            health: tokio::sync::Mutex::default(),
        });
        let well = plugin.check().await;
        if let Err(error) = &well {
            tracing::warn!(name = %plugin.name, %error, "a KMS plugin is not healthy");
        }
        let weak = Arc::downgrade(&plugin);
        tokio::spawn(async move {
            let mut well = well.is_ok();
            loop {
                tokio::time::sleep(if well { ASK_WELL } else { ASK_ILL }).await;
                let Some(plugin) = weak.upgrade() else { return };
                well = match plugin.check().await {
                    Ok(()) => true,
                    Err(error) => {
                        tracing::warn!(name = %plugin.name, %error, "a KMS plugin is not healthy");
                        false
                    }
                };
            }
        });
        Ok(plugin)
    }

    /// Appends the encrypted object to `out`.
    ///
    /// # Errors
    /// When there is no seed to write with, or it is too old.
    pub fn seal(&self, bound: &[u8], plain: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let (key, wrapped) = {
            let writing = self.writing.read();
            let Some(writing) = &*writing else {
                return Err("got unexpected nil transformer".into());
            };
            if Instant::now() > writing.until {
                return Err(format!(
                    "encryptedDEKSource of KMS provider {} expired",
                    self.name
                ));
            }
            (writing.key.clone(), writing.wrapped.clone())
        };
        let mut data = Vec::with_capacity(plain.len() + 64);
        key.seal(bound, plain, &mut data)?;
        wrapped.encode(&data, out);
        Ok(())
    }

    /// Opens an object; also whether it would be written with another key now.
    ///
    /// # Errors
    /// When it is damaged, or the plugin does not decrypt its key.
    pub async fn open(&self, bound: &[u8], stored: &[u8]) -> Result<(Vec<u8>, bool), String> {
        let (wrapped, data) = Wrapped::decode(stored)?;
        let stale = match &*self.writing.read() {
            Some(writing) => {
                (&writing.wrapped.key_id, writing.wrapped.kind) != (&wrapped.key_id, wrapped.kind)
            }
            None => return Err("got unexpected nil transformer".into()),
        };
        let known = self
            .reading
            .lock()
            .get(&wrapped)
            .map(|(key, _)| key.clone());
        let key = match known {
            Some(key) => key,
            None => self.unwrap(wrapped).await?,
        };
        Ok((key.open(bound, data)?, stale))
    }

    /// Has a key decrypted by the plugin.
    async fn unwrap(&self, wrapped: Wrapped) -> Result<Arc<DataKey>, String> {
        let request = DecryptRequest {
            ciphertext: wrapped.source.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            key_id: wrapped.key_id.clone(),
            annotations: wrapped.annotations.clone().into_iter().collect(),
        };
        let answer: Result<DecryptResponse, Status> = self.call("Decrypt", request).await;
        let answer = answer.map_err(|e| format!("failed to decrypt DEK, error: {e}"))?;
        let key = Arc::new(DataKey::of(wrapped.kind, &answer.plaintext)?);
        self.remember(wrapped, key.clone());
        Ok(key)
    }

    fn remember(&self, wrapped: Wrapped, key: Arc<DataKey>) {
        let now = Instant::now();
        let mut reading = self.reading.lock();
        reading.retain(|_, (_, until)| *until > now);
        reading.insert(wrapped, (key, now + READ_TTL));
    }

    /// Whether the plugin is well; a recent answer will do.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self) -> Result<(), String> {
        let mut health = self.health.lock().await;
        if let Some((at, answer)) = &health.last {
            let stands = if answer.is_ok() {
                HEALTH_WELL
            } else {
                HEALTH_ILL
            };
            if at.elapsed() < stands {
                return answer.clone();
            }
        }
        let answer = self.ask(&mut health.version).await;
        health.last = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn ask(&self, version: &mut String) -> Result<(), String> {
        let asked = Instant::now();
        let answer: Result<StatusResponse, Status> = self.call("Status", StatusRequest {}).await;
        let status = answer.map_err(|e| {
            format!(
                "failed to perform status section of the healthz check for KMS Provider {}, error: {e}",
                self.name
            )
        })?;
        let mut problems = Vec::new();
        if status.healthz != "ok" {
            problems.push(format!("got unexpected healthz status: {}", status.healthz));
        }
        if !matches!(status.version.as_str(), "v2" | "v2beta1") {
            problems.push(format!(
                "expected KMSv2 API version v2, got {}",
                status.version
            ));
        } else if version.is_empty() {
            version.clone_from(&status.version);
        } else if *version != status.version {
            problems.push(format!(
                "KMSv2 API version should not change after the initial status response version {version}, got {}",
                status.version
            ));
        }
        let rotated = match validate_key_id(&status.key_id) {
            Ok(()) => self.rotate(&status.key_id, asked + WRITE_TTL).await,
            Err(why) => Err(format!("got invalid KMSv2 KeyID: {why}")),
        };
        problems.extend(rotated.err());
        if problems.is_empty() {
            return Ok(());
        }
        Err(format!(
            "kmsv2 Provider {} is not healthy, error: {}",
            self.name,
            problems.join(", ")
        ))
    }

    /// Takes a new seed when the plugin has another key; otherwise the present one serves longer.
    async fn rotate(&self, key_id: &str, until: Instant) -> Result<(), String> {
        if let Some(writing) = &mut *self.writing.write()
            && writing.wrapped.key_id == key_id
        {
            writing.until = until;
            return Ok(());
        }
        let mut seed = [0; SEED];
        random(&mut seed)?;
        let request = EncryptRequest {
            plaintext: seed.to_vec(),
            uid: uuid::Uuid::new_v4().to_string(),
        };
        let answer: Result<EncryptResponse, Status> = self.call("Encrypt", request).await;
        let answer = answer.map_err(|e| format!("failed to encrypt DEK, error: {e}"))?;
        let wrapped = Wrapped {
            key_id: answer.key_id,
            source: answer.ciphertext,
            annotations: answer.annotations.into_iter().collect(),
            kind: Source::Seed,
        };
        wrapped.validate()?;
        if wrapped.key_id != key_id {
            return Err(
                "failed to rotate DEK: the plugin's status and its answer have different key IDs"
                    .into(),
            );
        }
        let key = Arc::new(DataKey::of(Source::Seed, &seed)?);
        self.remember(wrapped.clone(), key.clone());
        *self.writing.write() = Some(Writing {
            wrapped,
            key,
            until,
        });
        Ok(())
    }

    async fn call<Q, A>(&self, method: &'static str, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let path = match method {
            "Status" => "/v2.KeyManagementService/Status",
            "Encrypt" => "/v2.KeyManagementService/Encrypt",
            _ => "/v2.KeyManagementService/Decrypt",
        };
        let called = plugin::call(&self.channel, path, message);
        match tokio::time::timeout(self.timeout, called).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusResponse {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub healthz: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub key_id: String,
    #[prost(map = "string, bytes", tag = "4")]
    pub annotations: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub uid: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(map = "string, bytes", tag = "3")]
    pub annotations: HashMap<String, Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_stored_with_an_object_is_read_again() {
        let wrapped = Wrapped {
            key_id: "1".into(),
            source: vec![1, 2],
            annotations: [("a.example.com".to_owned(), vec![3])].into(),
            kind: Source::Seed,
        };
        let mut stored = Vec::new();
        wrapped.encode(b"data", &mut stored);
        assert_eq!(
            Wrapped::decode(&stored).unwrap(),
            (wrapped, b"data".as_slice())
        );
        assert!(Wrapped::decode(&[]).is_err());
    }

    #[test]
    fn keys_are_derived_for_every_object() {
        let key = DataKey::of(Source::Seed, &[5; 32]).unwrap();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        key.seal(b"k", b"plain", &mut a).unwrap();
        key.seal(b"k", b"plain", &mut b).unwrap();
        assert_ne!(a, b);
        assert_eq!(key.open(b"k", &a).unwrap(), b"plain");
        assert!(key.open(b"other", &b).is_err());
        assert!(DataKey::of(Source::Seed, &[5; 31]).is_err());
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(stored in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = Wrapped::decode(&stored);
        }
    }
}

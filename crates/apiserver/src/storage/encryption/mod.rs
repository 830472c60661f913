//! Encryption at rest: which resources are encrypted with what, as `--encryption-provider-config` says. The layout of what
//! is stored is upstream's, so that either can read what the other wrote.

mod ciphers;
pub mod config;
mod kms;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fluyt_api::resources::Resource;
use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::cache::REGISTRY;
use ciphers::Cipher;
use config::{EncryptionConfiguration, Key, Provider, group_resource};
use kms::Plugin;

/// What every encrypted value starts with.
const ENCRYPTED: &[u8] = b"k8s:enc:";

/// The rules, which may be replaced while the server runs.
pub struct Encryption {
    /// What the keys really start with in the store: data is bound to its key.
    prefix: Box<str>,
    rules: RwLock<Arc<Rules>>,
    /// Whether there is a health check even if no plugin is in use.
    reloads: bool,
}

/// Group and resource, either of which may be `*`.
type Pattern = (Box<str>, Box<str>);

/// In order: the first one writes.
type Providers = Arc<[Arc<Keyed>]>;

#[derive(Default)]
struct Rules {
    /// Patterns of group and resource with their providers, in order.
    by_resource: Vec<(Pattern, Providers)>,
    plugins: Vec<Arc<Plugin>>,
}

/// One way to encrypt, and what tells its values.
struct Keyed {
    prefix: Vec<u8>,
    with: With,
}

enum With {
    Nothing,
    Cipher(Cipher),
    Plugin(Arc<Plugin>),
}

/// A value as it was before it was encrypted.
#[derive(Debug)]
pub struct Opened<'a> {
    pub plain: Cow<'a, [u8]>,
    /// It would be encrypted otherwise now.
    pub stale: bool,
}

impl Default for Encryption {
    fn default() -> Self {
        Self {
            prefix: REGISTRY.into(),
            rules: RwLock::default(),
            reloads: false,
        }
    }
}

impl Encryption {
    /// A configuration that encrypts Secrets with a new key, and reads what was stored before.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate() -> anyhow::Result<String> {
        let mut key = [0; 32];
        ciphers::random(&mut key).map_err(anyhow::Error::msg)?;
        let config = serde_json::json!({
            "apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
            "resources": [{"resources": ["secrets"], "providers": [
                {"secretbox": {"keys": [{"name": "key1", "secret": STANDARD.encode(key)}]}},
                {"identity": {}},
            ]}],
        });
        // JSON is YAML.
        Ok(serde_json::to_string_pretty(&config)?)
    }

    /// Reads the configuration. `prefix` is what the keys start with in the store.
    ///
    /// # Errors
    /// When it is malformed.
    pub async fn load(text: &str, prefix: &str) -> anyhow::Result<Self> {
        let config = EncryptionConfiguration::parse(text)?;
        Ok(Self {
            prefix: prefix.into(),
            rules: RwLock::new(Arc::new(Rules::of(&config).await?)),
            reloads: false,
        })
    }

    /// The same from a file, which is followed if `reload` says so.
    ///
    /// # Errors
    /// When it cannot be read or is malformed.
    pub async fn load_file(
        path: &Path,
        prefix: &str,
        reload: bool,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "error reading encryption provider configuration file {:?}",
                path.display().to_string()
            )
        })?;
        let loaded = Self::load(&text, prefix).await.with_context(|| {
            format!(
                "encryption provider configuration file {:?}",
                path.display().to_string()
            )
        })?;
        let encryption = Arc::new(Self {
            reloads: reload,
            ..loaded
        });
        if reload {
            let follow = Follow {
                encryption: encryption.clone(),
                path: path.to_owned(),
                text,
            };
            let changes = follow.changes()?;
            tokio::spawn(follow.run(changes, shutdown));
        }
        Ok(encryption)
    }

    /// The providers of a resource: the first one writes. Nothing said means plain.
    fn providers(&self, resource: &Resource) -> Option<Providers> {
        let rules = self.rules.read();
        if rules.by_resource.is_empty() {
            return None;
        }
        let patterns = [
            (resource.group, resource.plural),
            (resource.group, "*"),
            ("*", "*"),
        ];
        patterns.iter().find_map(|(group, plural)| {
            let mut all = rules.by_resource.iter();
            let found = all.find(|((g, r), _)| **g == **group && **r == **plural);
            found.map(|(_, providers)| providers.clone())
        })
    }

    /// Whether anything is said of a resource.
    #[must_use]
    pub fn covers(&self, resource: &Resource) -> bool {
        self.providers(resource).is_some()
    }

    /// The key of an object as it is in the store.
    fn bound(&self, key: &[u8]) -> Vec<u8> {
        let rest = key.strip_prefix(REGISTRY.as_bytes()).unwrap_or(key);
        [self.prefix.as_bytes(), rest].concat()
    }

    /// Encrypts a value.
    ///
    /// # Errors
    /// When the provider cannot.
    pub async fn seal(
        &self,
        resource: &Resource,
        key: &[u8],
        plain: Vec<u8>,
    ) -> Result<Vec<u8>, String> {
        let Some(providers) = self.providers(resource) else {
            return Ok(plain);
        };
        let Some(first) = providers.first() else {
            return Ok(plain);
        };
        let mut sealed = first.prefix.clone();
        sealed.reserve(plain.len() + 64);
        match &first.with {
            With::Nothing => return Ok(plain),
            With::Cipher(cipher) => cipher.seal(&self.bound(key), &plain, &mut sealed)?,
            With::Plugin(plugin) => plugin.seal(&self.bound(key), &plain, &mut sealed)?,
        }
        Ok(sealed)
    }

    /// Decrypts a value.
    ///
    /// # Errors
    /// When no provider of the resource knows it, or it has been tampered with.
    pub async fn open<'a>(
        &self,
        resource: &Resource,
        key: &[u8],
        stored: &'a [u8],
    ) -> Result<Opened<'a>, String> {
        let Some(providers) = self.providers(resource) else {
            return plain(stored, false);
        };
        let matching = providers
            .iter()
            .enumerate()
            .find(|(_, p)| stored.starts_with(&p.prefix));
        let Some((place, provider)) = matching else {
            return Err("no matching prefix found".into());
        };
        let data = &stored[provider.prefix.len()..];
        let (opened, stale) = match &provider.with {
            With::Nothing => return plain(stored, place != 0),
            With::Cipher(cipher) => (cipher.open(&self.bound(key), data)?, false),
            With::Plugin(plugin) => plugin.open(&self.bound(key), data).await?,
        };
        Ok(Opened {
            plain: opened.into(),
            stale: stale || place != 0,
        })
    }

    /// Whether `/healthz/kms-providers` is there.
    #[must_use]
    pub fn has_health(&self) -> bool {
        self.reloads || !self.rules.read().plugins.is_empty()
    }

    /// Whether all plugins are well.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn check(&self) -> Result<(), String> {
        let rules = self.rules.read().clone();
        let mut problems = Vec::new();
        for (i, plugin) in rules.plugins.iter().enumerate() {
            if let Err(why) = plugin.check().await {
                problems.push(format!("kms-provider-{i}: {why}"));
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems.join(", "))
        }
    }
}

/// What is not encrypted; encrypted data must not pass for it.
fn plain(stored: &[u8], stale: bool) -> Result<Opened<'_>, String> {
    if stored.starts_with(ENCRYPTED) {
        return Err("identity transformer tried to read encrypted data".into());
    }
    Ok(Opened {
        plain: stored.into(),
        stale,
    })
}

impl Rules {
    async fn of(config: &EncryptionConfiguration) -> anyhow::Result<Self> {
        let mut rules = Self::default();
        for entry in &config.resources {
            let mut providers = Vec::new();
            for provider in &entry.providers {
                rules.add(provider, &mut providers).await?;
            }
            for name in &entry.resources {
                let (group, resource) = group_resource(name);
                let pattern = (group.into(), resource.into());
                let mut known = rules.by_resource.iter_mut();
                match known.find(|(of, _)| *of == pattern) {
                    // An earlier rule for the same resource comes first.
                    Some((_, all)) => *all = all.iter().chain(&providers).cloned().collect(),
                    None => {
                        let all = providers.clone().into();
                        rules.by_resource.push((pattern, all));
                    }
                }
            }
        }
        Ok(rules)
    }

    async fn add(&mut self, provider: &Provider, to: &mut Vec<Arc<Keyed>>) -> anyhow::Result<()> {
        let keys = |config: &Option<config::Keys>| {
            config.as_ref().map(|c| c.keys.clone()).unwrap_or_default()
        };
        let mut ciphers = |name: &str, keys: Vec<Key>, make: fn(Vec<u8>) -> Option<Cipher>| {
            for key in keys {
                if let Some(cipher) = make(key.secret()) {
                    to.push(Arc::new(Keyed {
                        prefix: format!("k8s:enc:{name}:v1:{}:", key.name).into_bytes(),
                        with: With::Cipher(cipher),
                    }));
                }
            }
        };
        ciphers("aesgcm", keys(&provider.aesgcm), |k| Cipher::gcm(&k));
        ciphers("aescbc", keys(&provider.aescbc), Cipher::cbc);
        ciphers("secretbox", keys(&provider.secretbox), |k| {
            Cipher::secretbox(&k)
        });
        if let Some(kms) = &provider.kms {
            let plugin = Plugin::start(kms).await?;
            self.plugins.push(plugin.clone());
            to.push(Arc::new(Keyed {
                prefix: format!("k8s:enc:kms:v2:{}:", kms.name).into_bytes(),
                with: With::Plugin(plugin),
            }));
        }
        if provider.identity.is_some() {
            to.push(Arc::new(Keyed {
                prefix: Vec::new(),
                with: With::Nothing,
            }));
        }
        Ok(())
    }
}

/// Takes over what is written to the file.
struct Follow {
    encryption: Arc<Encryption>,
    path: PathBuf,
    text: String,
}

impl Follow {
    /// Changes in the file's directory: whoever replaces a file renames another one.
    fn changes(&self) -> anyhow::Result<inotify::EventStream<Vec<u8>>> {
        let directory = self.path.parent().filter(|d| !d.as_os_str().is_empty());
        let inotify = Inotify::init().context("inotify")?;
        let mask =
            WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
        inotify
            .watches()
            .add(directory.unwrap_or(Path::new(".")), mask)
            .context("inotify")?;
        Ok(inotify.into_event_stream(vec![0; 4096])?)
    }

    async fn run(
        mut self,
        mut changes: inotify::EventStream<Vec<u8>>,
        shutdown: CancellationToken,
    ) {
        loop {
            tokio::select! {
                changed = changes.next() => if !matches!(changed, Some(Ok(_))) { return },
                () = shutdown.cancelled() => return,
            }
            if let Err(error) = self.reload().await {
                tracing::error!(error = %format!("{error:#}"), "the encryption configuration stays as it was");
            }
        }
    }

    async fn reload(&mut self) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(&self.path)?;
        if text == self.text {
            return Ok(());
        }
        let config = EncryptionConfiguration::parse(&text)?;
        let rules = Rules::of(&config).await?;
        for plugin in &rules.plugins {
            plugin.check().await.map_err(anyhow::Error::msg)?;
        }
        *self.encryption.rules.write() = Arc::new(rules);
        self.text = text;
        tracing::info!("the encryption configuration was reloaded");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluyt_api::resources::find;

    async fn encryption(providers: impl std::fmt::Display) -> Encryption {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{{resources: [secrets], providers: {providers}}}]\n"
        );
        Encryption::load(&text, "/other/").await.unwrap()
    }

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    #[tokio::test]
    async fn values_are_written_with_the_first_provider_and_read_with_any() {
        let secrets = find("", "v1", "secrets").unwrap();
        let key = b"/registry/secrets/n/a";
        let old = encryption(format!(
            "[{{aescbc: {{keys: [{{name: one, secret: {KEY}}}]}}}}]"
        ))
        .await;
        let sealed = old.seal(secrets, key, b"plain".to_vec()).await.unwrap();
        assert!(sealed.starts_with(b"k8s:enc:aescbc:v1:one:"));
        assert!(!old.open(secrets, key, &sealed).await.unwrap().stale);
        let new = encryption(format!(
            "[{{aesgcm: {{keys: [{{name: two, secret: {KEY}}}]}}}}, {{aescbc: {{keys: [{{name: one, secret: {KEY}}}]}}}}, {{identity: {{}}}}]"
        ))
        .await;
        let opened = new.open(secrets, key, &sealed).await.unwrap();
        assert_eq!((&*opened.plain, opened.stale), (&b"plain"[..], true));
        let opened = new.open(secrets, key, b"{}").await.unwrap();
        assert_eq!((&*opened.plain, opened.stale), (&b"{}"[..], true));
        // Without the key it is not mistaken for plain data.
        let lost = encryption("[{identity: {}}]").await;
        assert!(lost.open(secrets, key, &sealed).await.is_err());
        let pods = find("", "v1", "pods").unwrap();
        assert_eq!(new.seal(pods, key, b"p".to_vec()).await.unwrap(), b"p");
    }

    #[tokio::test]
    async fn a_generated_configuration_encrypts_secrets() {
        let secrets = find("", "v1", "secrets").unwrap();
        let key = b"/registry/secrets/n/a";
        let (one, other) = (
            Encryption::generate().unwrap(),
            Encryption::generate().unwrap(),
        );
        assert_ne!(one, other);
        let encryption = Encryption::load(&one, REGISTRY).await.unwrap();
        let sealed = encryption.seal(secrets, key, b"x".to_vec()).await.unwrap();
        assert!(sealed.starts_with(b"k8s:enc:secretbox:v1:key1:"));
        assert!(encryption.open(secrets, key, b"{}").await.unwrap().stale);
    }

    #[tokio::test]
    async fn data_is_bound_to_its_key() {
        let secrets = find("", "v1", "secrets").unwrap();
        let gcm = encryption(format!(
            "[{{aesgcm: {{keys: [{{name: a, secret: {KEY}}}]}}}}]"
        ))
        .await;
        let sealed = gcm
            .seal(secrets, b"/registry/secrets/n/a", b"x".to_vec())
            .await
            .unwrap();
        let elsewhere = gcm.open(secrets, b"/registry/secrets/n/b", &sealed);
        assert!(elsewhere.await.is_err());
        assert_eq!(gcm.bound(b"/registry/secrets/n/a"), b"/other/secrets/n/a");
    }
}

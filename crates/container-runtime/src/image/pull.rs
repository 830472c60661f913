//! Pulling from a registry.

use std::collections::BTreeSet;
use std::fs::File;

use futures::StreamExt;
use futures::TryStreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

use super::import::parse_config;
use super::manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, Descriptor, Manifest, ManifestOrIndex, OCI_INDEX, OCI_MANIFEST,
};
use super::{Context, Error, Image, ImageStore, Layer, Result, chain_ids, digest_of, name};

/// Layers that are downloaded at the same time.
const CONCURRENT_LAYERS: usize = 3;

#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// Registries (`host:port`) that are spoken to without TLS, besides those on loopback.
    pub insecure_registries: Vec<String>,
    pub credentials: Credentials,
}

/// How to authenticate, as CRI's `AuthConfig` says.
#[derive(Clone, Default)]
pub enum Credentials {
    #[default]
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    Bearer(String),
}

/// Pulls an image. What is in the store already isn't transferred again.
pub async fn pull(store: &ImageStore, reference: &str, options: &PullOptions) -> Result<Image> {
    let parsed = name::parse(reference)?;
    let puller = Puller {
        store,
        client: client(&parsed, options)?,
        auth: options.credentials.clone().into(),
        reference: parsed,
    };
    puller.pull().await.map_err(|error| puller.failed(error))
}

struct Puller<'a> {
    store: &'a ImageStore,
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
}

// === impl Puller ===

impl Puller<'_> {
    async fn pull(&self) -> Result<Image> {
        let lease = {
            let store = self.store.clone();
            blocking(move || store.lease()).await?
        };
        let (manifest_bytes, top_digest, manifest) = self.manifest().await?;
        let manifest_digest = self.store.put_blob(&manifest_bytes)?;
        self.blob(&manifest.config).await?;
        let config_path = self.store.blob_path(&manifest.config.digest)?;
        let config_bytes = tokio::fs::read(&config_path)
            .await
            .context(|| format!("reading {}", config_path.display()))?;
        let config = parse_config(&config_bytes)?;
        let diff_ids = config.rootfs.diff_ids.clone();
        if diff_ids.len() != manifest.layers.len() {
            return Err(Error::Invalid(
                "the image's config doesn't have as many layers as its manifest".to_owned(),
            ));
        }
        let layers: Vec<Layer> = manifest
            .layers
            .iter()
            .zip(chain_ids(&diff_ids))
            .map(|(descriptor, chain_id)| Layer {
                digest: descriptor.digest.clone(),
                chain_id,
            })
            .collect();
        let mut downloads = Vec::new();
        for ((descriptor, layer), diff_id) in manifest.layers.iter().zip(&layers).zip(&diff_ids) {
            downloads.push(self.layer(descriptor, &layer.chain_id, diff_id));
        }
        futures::stream::iter(downloads)
            .buffer_unordered(CONCURRENT_LAYERS)
            .try_collect::<Vec<()>>()
            .await?;

        let mut repo_tags = BTreeSet::new();
        if self.reference.digest().is_none() {
            repo_tags.insert(self.reference.whole());
        }
        let image = self.store.add_image(Image {
            id: manifest.config.digest.clone(),
            manifest: manifest_digest,
            repo_tags,
            repo_digests: BTreeSet::from([name::with_digest(&self.reference, &top_digest)]),
            size: manifest.layers.iter().map(|layer| layer.size).sum(),
            layers,
            config,
            pinned: false,
            source: None,
        })?;
        drop(lease);
        Ok(image)
    }

    /// The manifest for this platform, and the digest that names the image in its registry (perhaps an index's).
    async fn manifest(&self) -> Result<(Vec<u8>, String, Manifest)> {
        let (bytes, top_digest) = self.fetch_manifest(&self.reference).await?;
        match ManifestOrIndex::parse(&bytes)? {
            ManifestOrIndex::Manifest(manifest) => Ok((bytes, top_digest, manifest)),
            ManifestOrIndex::Index(index) => {
                let chosen = index.for_this_platform()?;
                let reference = Reference::with_digest(
                    self.reference.registry().to_owned(),
                    self.reference.repository().to_owned(),
                    chosen.digest.clone(),
                );
                let (bytes, _) = self.fetch_manifest(&reference).await?;
                match ManifestOrIndex::parse(&bytes)? {
                    ManifestOrIndex::Manifest(manifest) => Ok((bytes, top_digest, manifest)),
                    ManifestOrIndex::Index(_) => {
                        Err(Error::Invalid("an index within an index".to_owned()))
                    }
                }
            }
        }
    }

    async fn fetch_manifest(&self, reference: &Reference) -> Result<(Vec<u8>, String)> {
        let (bytes, _) = self
            .client
            .pull_manifest_raw(
                reference,
                &self.auth,
                &[OCI_MANIFEST, DOCKER_MANIFEST, OCI_INDEX, DOCKER_LIST],
            )
            .await
            .map_err(|error| from_registry(&error))?;
        let digest = digest_of(&bytes);
        if let Some(wanted) = reference.digest()
            && wanted != digest
        {
            return Err(Error::Invalid(format!(
                "the registry sent a manifest with digest {digest} for {wanted}"
            )));
        }
        Ok((bytes.to_vec(), digest))
    }

    async fn layer(&self, descriptor: &Descriptor, chain_id: &str, diff_id: &str) -> Result<()> {
        if self.store.layer_directory(chain_id).exists() {
            return Ok(());
        }
        self.blob(descriptor).await?;
        let store = self.store.clone();
        let path = self.store.blob_path(&descriptor.digest)?;
        let (chain_id, diff_id) = (chain_id.to_owned(), diff_id.to_owned());
        blocking(move || {
            store.ensure_layer(&chain_id, &diff_id, || {
                let file = File::open(&path).context(|| format!("opening {}", path.display()))?;
                Ok(Box::new(file))
            })
        })
        .await
    }

    /// Downloads a blob unless it is there. oci-client checks its digest.
    async fn blob(&self, descriptor: &Descriptor) -> Result<()> {
        let target = self.store.blob_path(&descriptor.digest)?;
        if target.exists() {
            return Ok(());
        }
        let _turn = {
            let store = self.store.clone();
            let name = format!("blob-{}", descriptor.digest.trim_start_matches("sha256:"));
            blocking(move || store.exclusive(&name)).await?
        };
        if target.exists() {
            return Ok(());
        }
        let temporary = self.store.temporary();
        let download = async {
            let file = tokio::fs::File::create(&temporary)
                .await
                .context(|| format!("creating {}", temporary.display()))?;
            let layer = oci_client::manifest::OciDescriptor {
                digest: descriptor.digest.clone(),
                size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
                media_type: descriptor.media_type.clone(),
                ..Default::default()
            };
            let mut file = tokio::io::BufWriter::with_capacity(256 * 1024, file);
            self.client
                .pull_blob(&self.reference, &layer, &mut file)
                .await
                .map_err(|error| from_registry(&error))?;
            file.get_ref()
                .sync_all()
                .await
                .and(std::fs::rename(&temporary, &target))
                .context(|| format!("writing {}", target.display()))
        };
        let result = download.await;
        if result.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        result
    }

    /// Whatever went wrong, the user is told of which image.
    fn failed(&self, error: Error) -> Error {
        Error::Pull {
            reference: self.reference.whole(),
            message: error.to_string(),
        }
    }
}

// === impl Credentials ===

impl From<Credentials> for RegistryAuth {
    fn from(credentials: Credentials) -> Self {
        match credentials {
            Credentials::Anonymous => RegistryAuth::Anonymous,
            Credentials::Basic { username, password } => RegistryAuth::Basic(username, password),
            Credentials::Bearer(token) => RegistryAuth::Bearer(token),
        }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Basic { .. } => "Basic(…)",
            Credentials::Bearer(_) => "Bearer(…)",
        })
    }
}

fn from_registry(error: &dyn std::error::Error) -> Error {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        message = format!("{message}: {inner}");
        cause = inner.source();
    }
    Error::Registry(message)
}

fn client(reference: &Reference, options: &PullOptions) -> Result<Client> {
    // Someone has to choose; the binary does so at start, and then this changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let registry = reference.resolve_registry();
    let plain = is_loopback(registry)
        || options
            .insecure_registries
            .iter()
            .any(|insecure| insecure == registry);
    let config = ClientConfig {
        protocol: if plain {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        },
        connect_timeout: Some(std::time::Duration::from_secs(30)),
        read_timeout: Some(std::time::Duration::from_secs(60)),
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|error| Error::Pull {
        reference: reference.whole(),
        message: error.to_string(),
    })
}

/// Registries on this host are spoken to in plain HTTP, as containerd and Docker do.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::Invalid(format!("a task panicked: {error}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_registries_are_plain() {
        for (registry, plain) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("localhost.example.com", false),
            ("mcr.microsoft.com", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(registry), plain, "{registry}");
        }
    }
}

//! Importing an archive: what `docker save`, `skopeo copy … oci-archive:` and the like write.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use serde::Deserialize;

use super::manifest::{
    Descriptor, Index, Manifest, ManifestOrIndex, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
};
use super::{
    Context, Error, Image, ImageConfig, ImageStore, Layer, Result, chain_ids, name, normalize,
    unpack,
};
use crate::in_root;

/// An image of a `docker save` archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Where the parts of an image are in the unpacked archive.
struct Parts {
    config: Vec<u8>,
    manifest: Vec<u8>,
    /// Digest and path of each layer, lowest first.
    layers: Vec<(String, String)>,
    tags: Vec<String>,
    size: u64,
}

/// Imports all images of an OCI-layout or docker-archive tar, plain or compressed. Blocks.
pub fn import(store: &ImageStore, file: &Path) -> Result<Vec<Image>> {
    let reader = File::open(file).context(|| format!("opening {}", file.display()))?;
    let _lease = store.lease()?;
    let directory = store.temporary();
    fs::create_dir_all(&directory).context(|| format!("creating {}", directory.display()))?;
    let result = unpack::unpack(reader, &directory)
        .map_err(|error| {
            Error::Invalid(format!(
                "{} is not an image archive: {error}",
                file.display()
            ))
        })
        .and_then(|_| import_directory(store, &directory));
    let _ = fs::remove_dir_all(&directory);
    result
}

fn import_directory(store: &ImageStore, directory: &Path) -> Result<Vec<Image>> {
    let root = in_root::open(directory).context(|| format!("opening {}", directory.display()))?;
    let parts = if let Some(manifest) = read(&root, "manifest.json")? {
        docker_parts(&root, &manifest)?
    } else if let Some(index) = read(&root, "index.json")? {
        oci_parts(&root, &index)?
    } else {
        return Err(Error::Invalid(
            "the archive has neither a manifest.json nor an index.json".to_owned(),
        ));
    };
    if parts.is_empty() {
        return Err(Error::Invalid("the archive has no image".to_owned()));
    }
    parts
        .into_iter()
        .map(|parts| add(store, &root, parts))
        .collect()
}

fn docker_parts(root: &OwnedFd, manifest: &[u8]) -> Result<Vec<Parts>> {
    let images: Vec<DockerImage> = serde_json::from_slice(manifest)
        .map_err(|error| Error::Invalid(format!("bad manifest.json: {error}")))?;
    let mut found = Vec::new();
    for image in images {
        let config = require(root, &image.config)?;
        let diff_ids = parse_config(&config)?.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() {
            return Err(Error::Invalid(
                "the image's config doesn't have as many layers as its manifest".to_owned(),
            ));
        }
        let mut size = 0;
        let mut descriptors = Vec::new();
        for (path, diff_id) in image.layers.iter().zip(&diff_ids) {
            let length = open(root, path)?
                .metadata()
                .context(|| format!("reading {path}"))?
                .len();
            size += length;
            descriptors.push(Descriptor {
                media_type: OCI_LAYER.to_owned(),
                digest: diff_id.clone(),
                size: length,
                platform: None,
                annotations: Default::default(),
            });
        }
        let manifest = encode_manifest(&config, descriptors)?;
        found.push(Parts {
            config,
            manifest,
            layers: diff_ids.into_iter().zip(image.layers).collect(),
            tags: image.repo_tags.unwrap_or_default(),
            size,
        });
    }
    Ok(found)
}

fn oci_parts(root: &OwnedFd, index: &[u8]) -> Result<Vec<Parts>> {
    let index: Index = serde_json::from_slice(index)
        .map_err(|error| Error::Invalid(format!("bad index.json: {error}")))?;
    let mut found = Vec::new();
    for descriptor in &index.manifests {
        let mut bytes = require(root, &blob(&descriptor.digest))?;
        let manifest = match ManifestOrIndex::parse(&bytes)? {
            ManifestOrIndex::Manifest(manifest) => manifest,
            ManifestOrIndex::Index(inner) => {
                bytes = require(root, &blob(&inner.for_this_platform()?.digest))?;
                match ManifestOrIndex::parse(&bytes)? {
                    ManifestOrIndex::Manifest(manifest) => manifest,
                    ManifestOrIndex::Index(_) => {
                        return Err(Error::Invalid("an index within an index".to_owned()));
                    }
                }
            }
        };
        let tags = [
            "io.containerd.image.name",
            "org.opencontainers.image.ref.name",
        ]
        .iter()
        .find_map(|key| descriptor.annotations.get(*key))
        .into_iter()
        .cloned()
        .collect();
        found.push(Parts {
            config: require(root, &blob(&manifest.config.digest))?,
            manifest: bytes,
            size: manifest.layers.iter().map(|layer| layer.size).sum(),
            layers: manifest
                .layers
                .iter()
                .map(|layer| (layer.digest.clone(), blob(&layer.digest)))
                .collect(),
            tags,
        });
    }
    Ok(found)
}

fn add(store: &ImageStore, root: &OwnedFd, parts: Parts) -> Result<Image> {
    let config = parse_config(&parts.config)?;
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != parts.layers.len() {
        return Err(Error::Invalid(
            "the image's config doesn't have as many layers as its manifest".to_owned(),
        ));
    }
    let mut layers = Vec::new();
    for ((digest, path), (diff_id, chain_id)) in parts
        .layers
        .into_iter()
        .zip(diff_ids.iter().zip(chain_ids(diff_ids)))
    {
        store.ensure_layer(&chain_id, diff_id, || Ok(Box::new(open(root, &path)?)))?;
        layers.push(Layer { digest, chain_id });
    }
    let manifest = store.put_blob(&parts.manifest)?;
    let mut repo_tags = BTreeSet::new();
    let mut repo_digests = BTreeSet::new();
    for tag in parts.tags {
        let reference = name::parse(&tag)?;
        repo_tags.insert(normalize(&tag)?);
        repo_digests.insert(name::with_digest(&reference, &manifest));
    }
    store.add_image(Image {
        id: store.put_blob(&parts.config)?,
        manifest,
        repo_tags,
        repo_digests,
        size: parts.size,
        layers,
        config,
        pinned: false,
        source: None,
    })
}

pub(super) fn parse_config(bytes: &[u8]) -> Result<ImageConfig> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::Invalid(format!("bad image config: {error}")))
}

/// A manifest for an image that came without one.
pub(super) fn encode_manifest(config: &[u8], layers: Vec<Descriptor>) -> Result<Vec<u8>> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        config: Descriptor {
            media_type: OCI_CONFIG.to_owned(),
            digest: super::digest_of(config),
            size: config.len() as u64,
            platform: None,
            annotations: Default::default(),
        },
        layers,
    };
    serde_json::to_vec(&manifest)
        .map_err(|error| Error::Invalid(format!("encoding a manifest: {error}")))
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn open(root: &OwnedFd, path: &str) -> Result<File> {
    in_root::open_file(root, Path::new(path)).context(|| format!("opening {path} of the archive"))
}

fn require(root: &OwnedFd, path: &str) -> Result<Vec<u8>> {
    read(root, path)?.ok_or_else(|| Error::Invalid(format!("the archive has no {path}")))
}

fn read(root: &OwnedFd, path: &str) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match in_root::open_file(root, Path::new(path)) {
        Ok(mut file) => {
            file.read_to_end(&mut bytes)
                .context(|| format!("reading {path} of the archive"))?;
            Ok(Some(bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| format!("opening {path} of the archive")),
    }
}

//! The image store of a host: blobs by digest, layers unpacked once, and names.
//!
//! Several processes (the runtimes of all nodes of a host, the command line) use one store at once:
//!
//! ```text
//! blobs/sha256/<hex>     manifests, configs and layers as they came
//! layers/<chain id>/fs   a layer's files, ready to be an overlay's lower directory; size.json beside it
//! refs/<owner>/<name>    layers in use by a container, which garbage collection spares
//! index.json             the images, replaced atomically under `lock`
//! lease                  held shared while something is added, exclusively while garbage is collected
//! tmp/                   whatever isn't complete; renamed into place when it is
//! ```

pub mod from_binary;
mod gc;
mod import;
mod manifest;
mod name;
mod pull;
mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use from_binary::{BinaryImage, from_binary};
pub use import::import;
pub use manifest::{Execution, ImageConfig};
pub use name::normalize;
pub use pull::{Credentials, PullOptions, pull};
pub use unpack::Usage;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("image {0:?} not found")]
    NotFound(String),
    #[error("invalid image reference {0:?}: {1}")]
    InvalidReference(String, String),
    #[error("invalid image: {0}")]
    Invalid(String),
    #[error("{0}")]
    Registry(String),
    #[error("failed to pull and unpack image {reference:?}: {message}")]
    Pull { reference: String, message: String },
}

pub type Result<T> = std::result::Result<T, Error>;

pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: what(),
            source,
        })
    }
}

/// A store on disk. Cheap to clone; holds nothing in memory.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: PathBuf,
}

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of its config, `sha256:…`.
    pub id: String,
    /// Digest of its manifest.
    pub manifest: String,
    /// Names with a tag, in full: `docker.io/library/busybox:latest`.
    pub repo_tags: BTreeSet<String>,
    /// Names with a digest.
    pub repo_digests: BTreeSet<String>,
    /// Bytes of its layers as they were transferred.
    pub size: u64,
    /// Lowest first.
    pub layers: Vec<Layer>,
    pub config: ImageConfig,
    /// Never to be garbage collected: it can't be pulled again.
    #[serde(default)]
    pub pinned: bool,
    /// What it was made from, to recognise that it needn't be made again.
    #[serde(default)]
    pub source: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Digest of the blob, compressed or not.
    pub digest: String,
    pub chain_id: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    images: BTreeMap<String, Image>,
}

/// Keeps garbage collection away while it lives.
#[derive(Debug)]
pub struct Lease {
    _file: File,
}

// === impl ImageStore ===

impl ImageStore {
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        for directory in ["blobs/sha256", "layers", "refs", "tmp", "locks"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).context(|| format!("creating {}", path.display()))?;
        }
        Ok(Self { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All images.
    pub fn list(&self) -> Result<Vec<Image>> {
        Ok(self.read_index()?.images.into_values().collect())
    }

    /// The image that a reference, an id or a unique start of an id names.
    pub fn get(&self, reference: &str) -> Result<Image> {
        self.find(reference)?
            .ok_or_else(|| Error::NotFound(reference.to_owned()))
    }

    pub fn find(&self, reference: &str) -> Result<Option<Image>> {
        let index = self.read_index()?;
        Ok(index.find(reference).map(|id| index.images[&id].clone()))
    }

    /// The directories of an image's layers, topmost first as overlayfs wants them.
    pub fn lower_directories(&self, image: &Image) -> Vec<PathBuf> {
        image
            .layers
            .iter()
            .rev()
            .map(|layer| self.layer_directory(&layer.chain_id).join("fs"))
            .collect()
    }

    /// Removes a name, or with an id all names; the image goes with its last name. A missing one is fine.
    pub fn remove(&self, reference: &str) -> Result<()> {
        self.update_index(|index| {
            let Some(id) = index.find(reference) else {
                return;
            };
            let by_id =
                reference == id || !reference.contains(['/', ':', '@']) && id.contains(reference);
            if let Some(image) = index.images.get_mut(&id) {
                if !by_id && let Ok(name) = normalize(reference) {
                    image.repo_tags.remove(&name);
                    image.repo_digests.remove(&name);
                }
                if by_id || image.repo_tags.is_empty() {
                    index.images.remove(&id);
                }
            }
        })?;
        self.collect_garbage()
    }

    /// Marks an image's layers as used by `name` of `owner`, until [`Self::release`].
    pub fn hold(&self, owner: &str, name: &str, image: &Image) -> Result<()> {
        let directory = self.root.join("refs").join(owner);
        fs::create_dir_all(&directory).context(|| format!("creating {}", directory.display()))?;
        let chains: Vec<&str> = image
            .layers
            .iter()
            .map(|layer| layer.chain_id.as_str())
            .collect();
        self.write_atomically(&directory.join(name), chains.join("\n").as_bytes())
    }

    /// Undoes [`Self::hold`].
    pub fn release(&self, owner: &str, name: &str) -> Result<()> {
        remove_if_present(&self.root.join("refs").join(owner).join(name))
    }

    /// Drops all that `owner` holds: a node that was deleted.
    pub fn release_owner(&self, owner: &str) -> Result<()> {
        match fs::remove_dir_all(self.root.join("refs").join(owner)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).context(|| format!("releasing the images of {owner}"))
            }
            _ => Ok(()),
        }
    }

    /// Keeps what is being added from being collected as garbage.
    pub fn lease(&self) -> Result<Lease> {
        let path = self.root.join("lease");
        let file = open_lock(&path)?;
        file.lock_shared()
            .context(|| format!("locking {}", path.display()))?;
        Ok(Lease { _file: file })
    }

    /// Bytes and inodes of the whole store.
    pub fn usage(&self) -> Result<Usage> {
        let mut total = Usage::default();
        for entry in read_dir(&self.root.join("layers"))? {
            if let Ok(text) = fs::read(entry.join("size.json"))
                && let Ok(usage) = serde_json::from_slice::<Usage>(&text)
            {
                total.bytes += usage.bytes;
                total.inodes += usage.inodes;
            }
        }
        for entry in read_dir(&self.root.join("blobs/sha256"))? {
            if let Ok(metadata) = fs::metadata(&entry) {
                total.bytes += metadata.len();
                total.inodes += 1;
            }
        }
        Ok(total)
    }

    // --- for the modules that add images ---

    fn blob_path(&self, digest: &str) -> Result<PathBuf> {
        let hex = digest
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .ok_or_else(|| Error::Invalid(format!("unsupported digest {digest:?}")))?;
        Ok(self.root.join("blobs/sha256").join(hex))
    }

    fn layer_directory(&self, chain_id: &str) -> PathBuf {
        self.root
            .join("layers")
            .join(chain_id.trim_start_matches("sha256:"))
    }

    fn temporary(&self) -> PathBuf {
        self.root
            .join("tmp")
            .join(uuid::Uuid::new_v4().simple().to_string())
    }

    /// Adds a small blob and returns its digest.
    fn put_blob(&self, bytes: &[u8]) -> Result<String> {
        let digest = digest_of(bytes);
        let path = self.blob_path(&digest)?;
        if !path.exists() {
            self.write_atomically(&path, bytes)?;
        }
        Ok(digest)
    }

    /// Unpacks a layer unless some process did so already. `open` gives the blob's bytes.
    fn ensure_layer(
        &self,
        chain_id: &str,
        diff_id: &str,
        open: impl FnOnce() -> Result<Box<dyn io::Read>>,
    ) -> Result<()> {
        let target = self.layer_directory(chain_id);
        if target.exists() {
            return Ok(());
        }
        let _turn = self.exclusive(chain_id)?;
        if target.exists() {
            return Ok(());
        }
        let temporary = self.temporary();
        let unpack = || {
            let files = temporary.join("fs");
            fs::create_dir_all(&files).context(|| format!("creating {}", files.display()))?;
            let unpacked = unpack::unpack(open()?, &files)?;
            if unpacked.diff_id != diff_id {
                return Err(Error::Invalid(format!(
                    "layer has digest {}, its image says {diff_id}",
                    unpacked.diff_id
                )));
            }
            self.finish_layer(&temporary, unpacked.usage, chain_id)
        };
        let result = unpack();
        if result.is_err() {
            let _ = fs::remove_dir_all(&temporary);
        }
        result
    }

    /// Moves an unpacked layer from `temporary` to its place.
    fn finish_layer(&self, temporary: &Path, usage: Usage, chain_id: &str) -> Result<()> {
        let json = serde_json::to_vec(&usage).map_err(io::Error::from);
        let size = temporary.join("size.json");
        json.and_then(|json| fs::write(&size, json))
            .context(|| format!("writing {}", size.display()))?;
        // A layer is found by its directory's existence, so after a power cut it must not be found half written.
        sync_filesystem(temporary);
        let target = self.layer_directory(chain_id);
        match fs::rename(temporary, &target) {
            Err(_) if target.exists() => {
                let _ = fs::remove_dir_all(temporary);
                Ok(())
            }
            other => other.context(|| format!("creating {}", target.display())),
        }
    }

    /// Waits until nobody else does what `name` stands for.
    fn exclusive(&self, name: &str) -> Result<File> {
        let path = self
            .root
            .join("locks")
            .join(name.trim_start_matches("sha256:"));
        let file = open_lock(&path)?;
        file.lock()
            .context(|| format!("locking {}", path.display()))?;
        Ok(file)
    }

    /// Adds an image, or names to one that is there, and takes the tags from images that had them.
    fn add_image(&self, image: Image) -> Result<Image> {
        self.update_index(|index| {
            for other in index.images.values_mut() {
                if other.id != image.id {
                    for tag in &image.repo_tags {
                        other.repo_tags.remove(tag);
                    }
                }
            }
            let id = image.id.clone();
            match index.images.get_mut(&id) {
                Some(present) => {
                    present.repo_tags.extend(image.repo_tags.iter().cloned());
                    present
                        .repo_digests
                        .extend(image.repo_digests.iter().cloned());
                    present.pinned |= image.pinned;
                    present.manifest.clone_from(&image.manifest);
                    present.source.clone_from(&image.source);
                    present.clone()
                }
                None => {
                    index.images.insert(id, image.clone());
                    image
                }
            }
        })
    }

    fn read_index(&self) -> Result<Index> {
        let path = self.root.join("index.json");
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(io::Error::from)
                .context(|| format!("parsing {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Index::default()),
            Err(error) => Err(error).context(|| format!("reading {}", path.display())),
        }
    }

    fn update_index<T>(&self, change: impl FnOnce(&mut Index) -> T) -> Result<T> {
        let path = self.root.join("lock");
        let lock = open_lock(&path)?;
        lock.lock()
            .context(|| format!("locking {}", path.display()))?;
        let mut index = self.read_index()?;
        let result = change(&mut index);
        let json = serde_json::to_vec(&index)
            .map_err(io::Error::from)
            .context(|| "encoding the image index".to_owned())?;
        self.write_atomically(&self.root.join("index.json"), &json)?;
        Ok(result)
    }

    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = self.temporary();
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().context(|| format!("writing {}", path.display()))
    }
}

// === impl Index ===

impl Index {
    fn find(&self, reference: &str) -> Option<String> {
        let with_algorithm = format!("sha256:{}", reference.trim_start_matches("sha256:"));
        if self.images.contains_key(&with_algorithm) {
            return Some(with_algorithm);
        }
        if let Ok(name) = normalize(reference)
            && let Some(image) = self.images.values().find(|image| {
                image.repo_tags.contains(&name)
                    || image.repo_digests.contains(&name)
                    || name::matches_digest(&name, &image.repo_digests)
            })
        {
            return Some(image.id.clone());
        }
        if reference.len() < 4 || !reference.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut starting = self
            .images
            .keys()
            .filter(|id| id.starts_with(&with_algorithm));
        match (starting.next(), starting.next()) {
            (Some(id), None) => Some(id.clone()),
            _ => None,
        }
    }
}

/// `sha256:…` of bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    format_digest(Sha256::digest(bytes).as_slice())
}

fn format_digest(hash: &[u8]) -> String {
    let mut text = String::with_capacity(7 + hash.len() * 2);
    text.push_str("sha256:");
    for byte in hash {
        use std::fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The ids of the stacks of layers, lowest first, as the OCI image specification defines them.
fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let chain = match chains.last() {
            None => diff_id.clone(),
            Some(parent) => digest_of(format!("{parent} {diff_id}").as_bytes()),
        };
        chains.push(chain);
    }
    chains
}

fn open_lock(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .context(|| format!("opening {}", path.display()))
}

fn remove_if_present(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn read_dir(path: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .context(|| format!("reading {}", path.display()))
}

fn sync_filesystem(path: &Path) {
    if let Ok(directory) = File::open(path) {
        let _ = rustix::fs::syncfs(&directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn image(id: char, tags: &[&str]) -> Image {
        Image {
            id: format!("sha256:{}", id.to_string().repeat(64)),
            manifest: format!("sha256:{}", "0".repeat(64)),
            repo_tags: tags.iter().map(|tag| normalize(tag).unwrap()).collect(),
            repo_digests: BTreeSet::new(),
            size: 1,
            layers: Vec::new(),
            config: ImageConfig::default(),
            pinned: false,
            source: None,
        }
    }

    #[test]
    fn an_image_is_found_by_name_and_id() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        store.add_image(image('a', &["busybox"])).unwrap();
        for reference in [
            "busybox",
            "busybox:latest",
            "docker.io/library/busybox:latest",
            "aaaaaaaaaaaa",
        ] {
            assert!(store.find(reference).unwrap().is_some(), "{reference}");
        }
        assert!(store.find("busybox:1").unwrap().is_none());
        assert!(store.find("aaa").unwrap().is_none());
    }

    #[test]
    fn a_moved_tag_leaves_its_old_image() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        store.add_image(image('a', &["app:1"])).unwrap();
        store.add_image(image('b', &["app:1"])).unwrap();
        assert!(store.get("app:1").unwrap().id.ends_with('b'));
        assert!(store.get(&image('a', &[]).id).unwrap().repo_tags.is_empty());
    }

    #[test]
    fn removing_the_last_name_removes_the_image() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        store.add_image(image('a', &["app:1", "app:2"])).unwrap();
        store.remove("app:1").unwrap();
        assert!(store.find("app:2").unwrap().is_some());
        store.remove("app:2").unwrap();
        assert!(store.list().unwrap().is_empty());
        store.remove("app:2").unwrap();
    }

    #[test]
    fn chains_follow_the_specification() {
        let diff_ids = ["sha256:a".to_owned(), "sha256:b".to_owned()];
        let chains = chain_ids(&diff_ids);
        assert_eq!(chains[0], "sha256:a");
        assert_eq!(chains[1], digest_of(b"sha256:a sha256:b"));
    }
}

//! Images made of nothing but one static executable: the add-ons, the sample application and the test images.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::import::encode_manifest;
use super::manifest::{Descriptor, OCI_LAYER, RootFs, architecture};
use super::{
    Context, Error, Execution, Image, ImageConfig, ImageStore, Layer, Result, Usage, format_digest,
    name, normalize,
};

/// One image of the executable.
#[derive(Clone, Debug, Default)]
pub struct BinaryImage {
    /// Name with tag: `mcr.fluyt.local/coredns:v0.1.0`.
    pub name: String,
    /// `["/fluyt", "dns"]`.
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    /// `65534:65534`; empty is root.
    pub user: String,
}

/// What the one layer of all images of an executable is made of.
#[derive(Clone, Debug)]
pub struct BinaryLayer<'a> {
    pub binary: &'a Path,
    /// Where it is in the image, without a leading slash: `fluyt`.
    pub path: &'a str,
    /// Symbolic links to it: `bin/sh` of a busybox image.
    pub links: &'a [&'a str],
}

/// Makes (or finds) an image per entry of `images`, all of the one layer. Blocks; quick when they are there.
pub fn from_binary(
    store: &ImageStore,
    layer: &BinaryLayer<'_>,
    images: &[BinaryImage],
) -> Result<Vec<Image>> {
    let source = source_of(layer)?;
    let present: Vec<Option<Image>> = images
        .iter()
        .map(|image| {
            Ok(store
                .find(&image.name)?
                .filter(|found| found.source.as_deref() == Some(&source) && found.runs(image)))
        })
        .collect::<Result<_>>()?;
    if let Some(present) = present.into_iter().collect::<Option<Vec<_>>>() {
        return Ok(present);
    }
    let _lease = store.lease()?;
    let (diff_id, size) = ensure_layer(store, layer)?;
    images
        .iter()
        .map(|image| add(store, image, &diff_id, size, &source))
        .collect()
}

// === impl Image ===

impl Image {
    fn runs(&self, wanted: &BinaryImage) -> bool {
        self.config.config.as_ref() == Some(&wanted.execution())
    }
}

// === impl BinaryImage ===

impl BinaryImage {
    fn execution(&self) -> Execution {
        Execution {
            user: (!self.user.is_empty()).then(|| self.user.clone()),
            env: Some(
                std::iter::once(
                    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
                )
                .chain(self.env.iter().cloned())
                .collect(),
            ),
            entrypoint: (!self.entrypoint.is_empty()).then(|| self.entrypoint.clone()),
            cmd: (!self.cmd.is_empty()).then(|| self.cmd.clone()),
            ..Execution::default()
        }
    }
}

fn add(
    store: &ImageStore,
    image: &BinaryImage,
    diff_id: &str,
    size: u64,
    source: &str,
) -> Result<Image> {
    let config = ImageConfig {
        architecture: architecture().to_owned(),
        os: "linux".to_owned(),
        config: Some(image.execution()),
        rootfs: RootFs {
            kind: "layers".to_owned(),
            diff_ids: vec![diff_id.to_owned()],
        },
    };
    let bytes = serde_json::to_vec(&config)
        .map_err(|error| Error::Invalid(format!("encoding an image config: {error}")))?;
    let manifest = encode_manifest(
        &bytes,
        vec![Descriptor {
            media_type: OCI_LAYER.to_owned(),
            digest: diff_id.to_owned(),
            size,
            platform: None,
            annotations: Default::default(),
        }],
    )?;
    let manifest = store.put_blob(&manifest)?;
    let reference = name::parse(&image.name)?;
    store.add_image(Image {
        id: store.put_blob(&bytes)?,
        repo_tags: BTreeSet::from([normalize(&image.name)?]),
        repo_digests: BTreeSet::from([name::with_digest(&reference, &manifest)]),
        manifest,
        size,
        layers: vec![Layer {
            digest: diff_id.to_owned(),
            chain_id: diff_id.to_owned(),
        }],
        config,
        // No registry has it.
        pinned: true,
        source: Some(source.to_owned()),
    })
}

/// Identifies the executable without reading it: a new build is a new inode or a new time.
fn source_of(layer: &BinaryLayer<'_>) -> Result<String> {
    let metadata =
        fs::metadata(layer.binary).context(|| format!("reading {}", layer.binary.display()))?;
    Ok(format!(
        "{}:{}:{}:{}.{}:{}:{}",
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        layer.path,
        layer.links.join(",")
    ))
}

/// Lays the files out in the store directly. The layer's digest is that of the tar which it would be as a blob; the
/// blob itself, a second copy of the executable, is of no use as nobody pushes it.
fn ensure_layer(store: &ImageStore, layer: &BinaryLayer<'_>) -> Result<(String, u64)> {
    let temporary = store.temporary();
    let result = lay_out(&temporary.join("fs"), layer).and_then(|size| {
        let diff_id = tar_digest(&temporary.join("fs"), layer)
            .context(|| format!("reading {}", layer.binary.display()))?;
        let _turn = store.exclusive(&diff_id)?;
        if !store.layer_directory(&diff_id).exists() {
            let usage = Usage {
                bytes: size,
                inodes: 8 + layer.links.len() as u64,
            };
            store.finish_layer(&temporary, usage, &diff_id)?;
        }
        Ok((diff_id, size))
    });
    let _ = fs::remove_dir_all(&temporary);
    result
}

fn lay_out(root: &Path, layer: &BinaryLayer<'_>) -> Result<u64> {
    let target = root.join(layer.path);
    let make = || -> io::Result<u64> {
        for directory in ["dev", "etc", "proc", "sys", "tmp", "run", "var"] {
            fs::create_dir_all(root.join(directory))?;
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        )?;
        fs::write(root.join("etc/group"), "root:x:0:\nnobody:x:65534:\n")?;
        fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
        create_parent(&target)?;
        let size = fs::copy(layer.binary, &target)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
        for link in layer.links {
            let link = root.join(link);
            create_parent(&link)?;
            symlink(Path::new("/").join(layer.path), link)?;
        }
        Ok(size)
    };
    make().context(|| format!("copying {}", layer.binary.display()))
}

fn create_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent),
        None => Ok(()),
    }
}

/// A digest that depends on the files' names and contents only.
fn tar_digest(root: &Path, layer: &BinaryLayer<'_>) -> io::Result<String> {
    struct Sink(Sha256);
    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut tar = tar::Builder::new(Sink(Sha256::new()));
    tar.mode(tar::HeaderMode::Deterministic);
    let mut file = File::open(root.join(layer.path))?;
    tar.append_file(layer.path, &mut file)?;
    for link in layer.links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, link, Path::new("/").join(layer.path))?;
    }
    Ok(format_digest(tar.into_inner()?.0.finalize().as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_one_binary_share_a_layer_and_are_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path().join("store")).unwrap();
        let binary = directory.path().join("binary");
        fs::write(&binary, "#!").unwrap();
        let layer = BinaryLayer {
            binary: &binary,
            path: "fluyt",
            links: &["bin/tool"],
        };
        let images: Vec<BinaryImage> = ["a", "b"]
            .map(|name| BinaryImage {
                name: format!("mcr.fluyt.local/{name}:v1"),
                entrypoint: vec!["/fluyt".to_owned(), name.to_owned()],
                ..BinaryImage::default()
            })
            .to_vec();
        let made = from_binary(&store, &layer, &images).unwrap();
        assert_eq!(made[0].layers, made[1].layers);
        assert_ne!(made[0].id, made[1].id);
        assert_eq!(from_binary(&store, &layer, &images).unwrap(), made);
        let lower = store.lower_directories(&made[0]);
        assert_eq!(
            fs::read_link(lower[0].join("bin/tool")).unwrap(),
            Path::new("/fluyt")
        );
        assert!(
            fs::read_dir(directory.path().join("store/tmp"))
                .unwrap()
                .next()
                .is_none()
        );
    }
}

//! Removing blobs and layers that no image and no container uses.

use std::collections::HashSet;
use std::fs;

use super::{Context, ImageStore, Result, open_lock, read_dir};

impl ImageStore {
    /// Removes what nothing refers to. Does nothing while something is being added; the next call will.
    pub fn collect_garbage(&self) -> Result<()> {
        let path = self.root.join("lease");
        let lease = open_lock(&path)?;
        match lease.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(()),
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).context(|| format!("locking {}", path.display()));
            }
        }
        let mut blobs = HashSet::new();
        let mut layers = self.held_layers()?;
        for image in self.list()? {
            blobs.insert(image.id);
            blobs.insert(image.manifest);
            for layer in image.layers {
                blobs.insert(layer.digest);
                layers.insert(layer.chain_id);
            }
        }
        // With the lease ours alone, nothing in `tmp` belongs to a living process but the index's own writes,
        // which are under `lock`.
        let _index = {
            let path = self.root.join("lock");
            let lock = open_lock(&path)?;
            lock.lock()
                .context(|| format!("locking {}", path.display()))?;
            lock
        };
        for path in read_dir(&self.root.join("blobs/sha256"))? {
            if !is_in(&path, &blobs) {
                let _ = fs::remove_file(&path);
            }
        }
        for path in read_dir(&self.root.join("layers"))? {
            if !is_in(&path, &layers) {
                // Out of sight first, so that nobody finds half a layer.
                let doomed = self.temporary();
                if fs::rename(&path, &doomed).is_ok() {
                    let _ = fs::remove_dir_all(&doomed);
                }
            }
        }
        for path in read_dir(&self.root.join("tmp"))? {
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
        Ok(())
    }

    fn held_layers(&self) -> Result<HashSet<String>> {
        let mut held = HashSet::new();
        for owner in read_dir(&self.root.join("refs"))? {
            for reference in read_dir(&owner)? {
                if let Ok(text) = fs::read_to_string(&reference) {
                    held.extend(text.lines().map(str::to_owned));
                }
            }
        }
        Ok(held)
    }
}

fn is_in(path: &std::path::Path, digests: &HashSet<String>) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|hex| digests.contains(&format!("sha256:{hex}")))
}

#[cfg(test)]
mod tests {
    use super::super::{Layer, tests::image};
    use super::*;

    #[test]
    fn layers_in_use_outlive_their_image() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let mut used = image('a', &["app:1"]);
        let chain_id = format!("sha256:{}", "c".repeat(64));
        used.layers.push(Layer {
            digest: chain_id.clone(),
            chain_id: chain_id.clone(),
        });
        let used = store.add_image(used).unwrap();
        fs::create_dir_all(store.layer_directory(&chain_id).join("fs")).unwrap();
        store.hold("node", "container", &used).unwrap();
        store.remove("app:1").unwrap();
        assert!(store.layer_directory(&chain_id).exists());
        store.release("node", "container").unwrap();
        store.collect_garbage().unwrap();
        assert!(!store.layer_directory(&chain_id).exists());
    }

    #[test]
    fn nothing_is_collected_under_a_lease() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let digest = store.put_blob(b"new").unwrap();
        let lease = store.lease().unwrap();
        store.collect_garbage().unwrap();
        assert!(store.blob_path(&digest).unwrap().exists());
        drop(lease);
        store.collect_garbage().unwrap();
        assert!(!store.blob_path(&digest).unwrap().exists());
    }
}

//! The images that are made out of the running executable, so that nothing needs a registry.

use std::path::Path;

use fluyt_container_runtime::image::{
    BinaryImage, ImageStore, from_binary, from_binary::BinaryLayer,
};

use crate::versions::IMAGE_TAG;

/// Name, command and user of each.
const IMAGES: [(&str, &[&str], &str); 4] = [
    ("coredns", &["/fluyt", "dns"], ""),
    ("metrics-server", &["/fluyt", "metrics-server"], "1000:1000"),
    ("sample-web", &["/fluyt", "sample-web"], "65534:65534"),
    ("sample-store", &["/fluyt", "sample-store"], "65534:65534"),
];

/// Makes the images in the store, or finds them made. Blocks.
///
/// # Errors
/// When the disk refuses.
pub fn ensure(store: &Path) -> anyhow::Result<()> {
    let store = ImageStore::open(store)?;
    let images: Vec<BinaryImage> = IMAGES
        .iter()
        .map(|(name, entrypoint, user)| BinaryImage {
            name: format!("mcr.fluyt.local/{name}:{IMAGE_TAG}"),
            entrypoint: entrypoint.iter().map(|word| (*word).to_owned()).collect(),
            user: (*user).to_owned(),
            ..BinaryImage::default()
        })
        .collect();
    let layer = BinaryLayer {
        binary: Path::new("/proc/self/exe"),
        path: "fluyt",
        links: &[],
    };
    from_binary(&store, &layer, &images)?;
    Ok(())
}

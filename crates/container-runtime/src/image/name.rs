//! Image names: `busybox` is `docker.io/library/busybox:latest`.

use std::collections::BTreeSet;

use oci_client::Reference;

use super::{Error, Result};

/// A reference in full, as it is stored and compared.
pub fn normalize(reference: &str) -> Result<String> {
    parse(reference).map(|reference| reference.whole())
}

pub(super) fn parse(reference: &str) -> Result<Reference> {
    reference.parse().map_err(|error: oci_client::ParseError| {
        Error::InvalidReference(reference.to_owned(), error.to_string())
    })
}

/// Whether `name@digest` (perhaps with a tag before the digest, which doesn't count) is one of the names.
pub(super) fn matches_digest(name: &str, repo_digests: &BTreeSet<String>) -> bool {
    let Ok(reference) = name.parse::<Reference>() else {
        return false;
    };
    match reference.digest() {
        Some(digest) => repo_digests.contains(&with_digest(&reference, digest)),
        None => false,
    }
}

/// The repository's name with a digest.
pub(super) fn with_digest(reference: &Reference, digest: &str) -> String {
    format!(
        "{}/{}@{digest}",
        reference.registry(),
        reference.repository()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_get_the_default_registry() {
        assert_eq!(
            normalize("busybox").unwrap(),
            "docker.io/library/busybox:latest"
        );
        assert_eq!(
            normalize("127.0.0.1:5000/a/b:1").unwrap(),
            "127.0.0.1:5000/a/b:1"
        );
        assert!(normalize("UPPER CASE").is_err());
    }
}

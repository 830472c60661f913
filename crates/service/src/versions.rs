//! The versions of Kubernetes that clusters may have.

/// What a new cluster gets unless it asks for another.
pub const DEFAULT: &str = "1.36.0";

/// All that are offered, oldest first.
pub const OFFERED: &[&str] = &[DEFAULT];

/// The offered version that `1.36.0` or the alias `1.36` means.
#[must_use]
pub fn resolve(version: &str) -> Option<&'static str> {
    let newest_of_minor = |minor: &str| {
        OFFERED
            .iter()
            .rev()
            .find(|v| v.rsplit_once('.').is_some_and(|(m, _)| m == minor))
    };
    OFFERED
        .iter()
        .find(|v| **v == version)
        .or_else(|| newest_of_minor(version))
        .copied()
}

/// The tag of the images that are made from this binary.
pub const IMAGE_TAG: &str = concat!("v", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minor_means_its_newest_patch() {
        assert_eq!(resolve("1.36"), Some("1.36.0"));
        assert_eq!(resolve("1.36.0"), Some("1.36.0"));
        assert_eq!(resolve("1.36.7"), None);
        assert_eq!(resolve("1.2"), None);
    }
}

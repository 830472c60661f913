//! Webhooks and policies from the files of a directory (KEP-5793): they are at work before the API is, and nobody can
//! change them through it, though they judge even those who change admission itself. When the files change, so do they;
//! files that are wrong change nothing.

mod load;
mod metrics;

use std::path::Path;
use std::sync::Arc;

use fluyt_api::meta;
use fluyt_api::resources::Resource;
use fluyt_api::validation::Errors;
use parking_lot::RwLock;
use serde_json::Value;

use super::plugins::{Invalid, Setup};
use crate::features::{Feature, Features};
use crate::reload::Changes;

pub use load::Loaded;
pub use metrics::Metrics;

/// How names of what is in files end. Through the API nothing gets such a name.
const SUFFIX: &str = ".static.k8s.io";

/// What a plugin finds in its directory.
pub(super) struct Kind {
    /// The plugin's name.
    pub plugin: &'static str,
    /// What errors call it.
    pub what: &'static str,
    /// The resource of what is at work.
    pub plural: &'static str,
    /// That of what binds it, where it has to be bound.
    pub bindings: Option<&'static str>,
    /// Where upstream's decoder is from, which its errors name.
    pub scheme: &'static str,
}

/// What is at work of a directory's files.
pub(super) struct Manifests<T>(Arc<RwLock<Arc<[T]>>>);

impl<T> Default for Manifests<T> {
    /// Without a directory.
    fn default() -> Self {
        Self(Arc::new(RwLock::new(Arc::new([]))))
    }
}

impl<T: Send + Sync + 'static> Manifests<T> {
    /// What `make` makes of the files of a directory, now and whenever they change; of no directory it is nothing.
    ///
    /// # Errors
    /// When the files cannot be read, or what is in them makes no sense.
    pub fn follow(
        kind: &'static Kind,
        directory: &str,
        setup: &Setup<'_>,
        make: impl Fn(Loaded) -> Vec<T> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let manifests = Self::default();
        if directory.is_empty() {
            return Ok(manifests);
        }
        let path = Path::new(directory);
        let (what, plugin) = (kind.what, kind.plugin);
        // Begun first: what changes while the files are read is a change as well.
        let changes = Changes::of(path, setup.shared.shutdown.clone());
        let loaded = load::load(kind, path).map_err(|why| {
            Invalid(format!(
                "failed to load static {what} manifests from {directory:?}: {why}"
            ))
        })?;
        let metrics = setup.shared.manifests.clone();
        let mut hash = loaded.hash.clone();
        metrics.succeeded(plugin, &hash);
        *manifests.0.write() = make(loaded).into();
        let mut changes = changes?;
        let (current, path) = (manifests.0.clone(), path.to_owned());
        tokio::spawn(async move {
            while changes.next().await {
                match load::load(kind, &path) {
                    Ok(loaded) if loaded.hash == hash => {}
                    Ok(loaded) => {
                        hash.clone_from(&loaded.hash);
                        *current.write() = make(loaded).into();
                        tracing::info!(plugin, "reloaded admission manifest config");
                        metrics.succeeded(plugin, &hash);
                    }
                    Err(why) => {
                        tracing::error!(plugin, why, "reloading admission manifest config");
                        metrics.failed(plugin);
                    }
                }
            }
        });
        Ok(manifests)
    }

    /// What is at work now.
    pub fn all(&self) -> Arc<[T]> {
        self.0.read().clone()
    }

    pub fn is_empty(&self) -> bool {
        self.0.read().is_empty()
    }
}

/// Whether a directory may be one of manifests.
pub(super) fn check(directory: &str, features: Features, errors: &mut Errors) {
    const FIELD: &str = "staticManifestsDir";
    if directory.is_empty() {
        return;
    }
    if !features.has(Feature::ManifestBasedAdmissionControlConfig) {
        let why = format!(
            "{FIELD} requires the ManifestBasedAdmissionControlConfig feature gate to be enabled"
        );
        return errors.forbidden(FIELD, &why);
    }
    if !directory.starts_with('/') {
        return errors.invalid_text(FIELD, directory, "must be an absolute file path");
    }
    match std::fs::metadata(directory) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => errors.invalid_text(FIELD, directory, "must be a directory"),
        Err(error) => {
            let why = load::reason(&error);
            let why = format!("unable to read: stat {directory}: {why}");
            errors.invalid_text(FIELD, directory, &why);
        }
    }
}

/// Whether a name is one that only files may give.
fn is_reserved(resource: &Resource, object: &Value) -> bool {
    resource.group == "admissionregistration.k8s.io" && meta::name(object).ends_with(SUFFIX)
}

/// Refuses an object that is created with a name that is for files.
pub fn refuse_reserved_name(
    resource: &Resource,
    object: &Value,
    features: Features,
    errors: &mut Errors,
) {
    if features.has(Feature::ManifestBasedAdmissionControlConfig) && is_reserved(resource, object) {
        let why = format!(
            "names ending with {SUFFIX:?} are reserved for static manifest-based configurations and cannot be managed via the API"
        );
        errors.invalid_text("metadata.name", meta::name(object), &why);
    }
}

/// What the author of an object with such a name should know, as long as it may have one.
#[must_use]
pub fn warning(resource: &Resource, object: &Value) -> Option<String> {
    is_reserved(resource, object).then(|| {
        format!(
            "metadata.name: names ending with {SUFFIX:?} are reserved for static manifest-based configurations and cannot be managed via the API"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_to_be_one() {
        let on = Features::default().with(Feature::ManifestBasedAdmissionControlConfig);
        let refused = |directory: &str| {
            let mut errors = Errors::default();
            check(directory, on, &mut errors);
            crate::validation::sentence(&errors)
        };
        let invalid = |directory: &str, why: &str| {
            Some(format!(
                "staticManifestsDir: Invalid value: \"{directory}\": {why}"
            ))
        };
        assert_eq!(refused(""), None);
        assert_eq!(refused("/tmp"), None);
        assert_eq!(
            refused("tmp"),
            invalid("tmp", "must be an absolute file path")
        );
        assert_eq!(
            refused("/absent"),
            invalid(
                "/absent",
                "unable to read: stat /absent: no such file or directory"
            )
        );
        assert_eq!(
            refused("/proc/version"),
            invalid("/proc/version", "must be a directory")
        );
    }
}

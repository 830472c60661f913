//! Which plugins run, and what they are configured with: `--enable-admission-plugins`, `--disable-admission-plugins` and
//! `--admission-control-config-file`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;

use super::Tolerations;
use super::plugins::{ALL, Known};
use crate::authz::aggregate;
use crate::config_file::{DecodeError, Of, Scheme, Struct};
use crate::features::Features;
use crate::yaml;

/// What is said about plugins.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Plugins that run besides those that do by default, by upstream's names.
    pub enabled: Vec<String>,
    /// Plugins that run by default and shall not.
    pub disabled: Vec<String>,
    pub configuration: AdmissionConfiguration,
    pub tolerations: Tolerations,
}

/// `AdmissionConfiguration`: a configuration of its own for each plugin that is named.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct AdmissionConfiguration {
    #[serde(default)]
    plugins: Vec<PluginConfiguration>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct PluginConfiguration {
    #[serde(default)]
    name: String,
    /// A file that has it.
    #[serde(default)]
    path: PathBuf,
    /// It itself, which counts more.
    configuration: Option<Value>,
}

const PLUGIN: Struct = Struct {
    name: "v1.AdmissionPluginConfiguration",
    fields: &[
        ("name", Of::Text),
        ("path", Of::Text),
        ("configuration", Of::Anything),
    ],
};

const SCHEME: Scheme = Scheme {
    name: "k8s.io/apiserver/pkg/server/options/admission.go:51",
    kinds: &[
        ("apiserver.config.k8s.io/v1", "AdmissionConfiguration"),
        ("apiserver.config.k8s.io/v1alpha1", "AdmissionConfiguration"),
        ("apiserver.k8s.io/v1alpha1", "AdmissionConfiguration"),
    ],
    content: Struct {
        name: "v1.AdmissionConfiguration",
        fields: &[("plugins", Of::Objects(&PLUGIN))],
    },
    strict: true,
};

/// Plugins whose own configuration may be given instead, and what it begins with.
const LEGACY: [(&str, &str); 2] = [
    ("ImagePolicyWebhook", "imagePolicy"),
    ("PodNodeSelector", "podNodeSelectorPluginConfig"),
];

// === impl Settings ===

impl Settings {
    /// # Errors
    /// Plugins that there are none of, and those that are to run and not to run.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let mut errors = Vec::new();
        for (flag, names) in [("enable", &self.enabled), ("disable", &self.disabled)] {
            let unknown = names.iter().filter(|n| ALL.iter().all(|k| k.name != *n));
            errors.extend(
                unknown.map(|name| format!("{flag}-admission-plugins plugin {name:?} is unknown")),
            );
        }
        let both = |name: &&String| self.disabled.contains(name);
        let mut overlapping: Vec<&str> = self.enabled.iter().filter(both).map(|n| &**n).collect();
        overlapping.sort_unstable();
        overlapping.dedup();
        if !overlapping.is_empty() {
            errors.push(format!(
                "[{}] in enable-admission-plugins and disable-admission-plugins overlapped",
                overlapping.join(" ")
            ));
        }
        match aggregate(errors) {
            None => Ok(()),
            Some(all) => bail!(all),
        }
    }

    /// Whether a plugin runs.
    pub(super) fn has(&self, plugin: &Known, features: Features) -> bool {
        let named = |names: &[String]| names.iter().any(|name| name == plugin.name);
        plugin.feature.is_none_or(|feature| features.has(feature))
            && (named(&self.enabled) || (plugin.by_default && !named(&self.disabled)))
    }
}

/// All plugins but those that are named.
///
/// # Errors
/// When there is none of a name.
pub fn others(names: &[String]) -> anyhow::Result<Vec<String>> {
    let unknown = names.iter().filter(|n| ALL.iter().all(|k| k.name != *n));
    let unknown = unknown.map(|name| format!("admission-control plugin {name:?} is unknown"));
    if let Some(all) = aggregate(unknown.collect()) {
        bail!(all);
    }
    let others = ALL.iter().map(|known| known.name.to_owned());
    Ok(others.filter(|name| !names.contains(name)).collect())
}

// === impl AdmissionConfiguration ===

impl AdmissionConfiguration {
    /// Reads a file. Paths in it are relative to its directory.
    ///
    /// # Errors
    /// When there is none, or it cannot be decoded.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            anyhow::anyhow!(
                "unable to read admission control configuration from {:?} [{error}]",
                path.display().to_string()
            )
        })?;
        let file = std::path::absolute(path)?;
        let directory = file.parent().unwrap_or(Path::new("/"));
        match Self::parse(&text, directory) {
            Err(DecodeError::Unrecognized(_)) if is_legacy(&text) => Ok(Self::legacy(path)),
            parsed => Ok(parsed?),
        }
    }

    /// Decodes the content of a file in a directory.
    ///
    /// # Errors
    /// What upstream's decoder objects to.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, DecodeError> {
        let mut configuration: Self = SCHEME.decode(text)?;
        for plugin in &mut configuration.plugins {
            if !plugin.path.as_os_str().is_empty() {
                plugin.path = directory.join(&plugin.path);
            }
        }
        Ok(configuration)
    }

    /// The file is the configuration of the plugins that had one before there was this kind.
    fn legacy(path: &Path) -> Self {
        let plugins = LEGACY.map(|(name, _)| PluginConfiguration {
            name: name.to_owned(),
            path: path.to_owned(),
            configuration: None,
        });
        Self {
            plugins: plugins.into(),
        }
    }

    /// What a plugin is configured with, as JSON or YAML.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub(super) fn of(&self, plugin: &str) -> anyhow::Result<Option<String>> {
        let Some(found) = self.plugins.iter().find(|p| p.name == plugin) else {
            return Ok(None);
        };
        if let Some(configuration) = &found.configuration {
            return Ok(Some(configuration.to_string()));
        }
        if found.path.as_os_str().is_empty() {
            return Ok(None);
        }
        let read = std::fs::read_to_string(&found.path).with_context(|| {
            let path = found.path.display();
            format!("Couldn't open admission plugin configuration {path}")
        });
        read.map(Some)
    }
}

fn is_legacy(text: &str) -> bool {
    let parsed = yaml::parse(text.as_bytes());
    parsed.is_ok_and(|(document, _)| {
        LEGACY
            .iter()
            .any(|(_, field)| document.get(field).is_some())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::served::Versions;
    use serde_json::json;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admission.yaml");
        std::fs::write(&path, text).unwrap();
        (directory, path)
    }

    fn settings(enabled: &[&str], disabled: &[&str]) -> Settings {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Settings {
            enabled: owned(enabled),
            disabled: owned(disabled),
            ..Settings::default()
        }
    }

    #[test]
    fn plugins_are_known_and_either_on_or_off() {
        let refused = |enabled: &[&str], disabled: &[&str]| {
            settings(enabled, disabled).check().unwrap_err().to_string()
        };
        assert_eq!(
            refused(&["Captain", "AlwaysDeny"], &["Mate"]),
            r#"[enable-admission-plugins plugin "Captain" is unknown, disable-admission-plugins plugin "Mate" is unknown]"#
        );
        assert_eq!(
            refused(&["Priority", "LimitRanger"], &["LimitRanger", "Priority"]),
            "[LimitRanger Priority] in enable-admission-plugins and disable-admission-plugins overlapped"
        );
        let settings = settings(&["AlwaysDeny"], &["LimitRanger", "AlwaysAdmit"]);
        settings.check().unwrap();
        let runs = |name: &str| {
            let plugin = ALL.iter().find(|k| k.name == name).unwrap();
            settings.has(plugin, Features::default())
        };
        assert!(runs("AlwaysDeny") && runs("Priority"));
        assert!(!runs("LimitRanger") && !runs("AlwaysAdmit") && !runs("EventRateLimit"));
        // It is on by default, but its feature is not.
        let plugin = ALL
            .iter()
            .find(|k| k.name == "MutatingAdmissionPolicy")
            .unwrap();
        let feature = plugin.feature.unwrap();
        let off = Features::parse("MutatingAdmissionPolicy=false", Versions::default()).unwrap();
        assert!(!settings.has(plugin, off) && settings.has(plugin, off.with(feature)));
    }

    #[test]
    fn plugins_may_be_named_one_by_one() {
        let names = ["NamespaceLifecycle", "AlwaysDeny"].map(str::to_owned);
        let settings = Settings {
            disabled: others(&names).unwrap(),
            enabled: names.into(),
            ..Settings::default()
        };
        settings.check().unwrap();
        let features = Features::default();
        let runs: Vec<&str> = (ALL.iter())
            .filter(|plugin| settings.has(plugin, features))
            .map(|plugin| plugin.name)
            .collect();
        assert_eq!(runs.len(), 2, "{runs:?}");
        assert_eq!(
            others(&["Captain".to_owned()]).unwrap_err().to_string(),
            "admission-control plugin \"Captain\" is unknown"
        );
    }

    #[test]
    fn every_plugin_has_its_own_configuration() {
        let text = "
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- {name: A, path: a.yaml}
- {name: B, configuration: {kind: X}, path: gone.yaml}
- {name: C, path: gone.yaml}
- {name: D}
";
        let (directory, path) = file(text);
        std::fs::write(directory.path().join("a.yaml"), "kind: Y").unwrap();
        let configuration = AdmissionConfiguration::load(&path).unwrap();
        let of = |name: &str| configuration.of(name).unwrap();
        assert_eq!(of("A").as_deref(), Some("kind: Y"));
        assert_eq!(of("B"), Some(json!({"kind": "X"}).to_string()));
        assert_eq!((of("D"), of("E")), (None, None));
        let gone = configuration.of("C").unwrap_err().to_string();
        let expected = directory.path().join("gone.yaml");
        assert_eq!(
            gone,
            format!(
                "Couldn't open admission plugin configuration {}",
                expected.display()
            )
        );
    }

    #[test]
    fn the_file_is_of_a_known_kind_and_strict() {
        for version in [
            "apiserver.config.k8s.io/v1",
            "apiserver.config.k8s.io/v1alpha1",
            "apiserver.k8s.io/v1alpha1",
        ] {
            let (_directory, path) = file(&format!(
                "apiVersion: {version}\nkind: AdmissionConfiguration"
            ));
            assert!(
                AdmissionConfiguration::load(&path)
                    .unwrap()
                    .plugins
                    .is_empty()
            );
        }
        let refused = |text: &str| {
            let (_directory, path) = file(text);
            AdmissionConfiguration::load(&path).unwrap_err().to_string()
        };
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\n";
        assert_eq!(
            refused(&format!("{head}plugins: [{{name: A, file: b}}]")),
            r#"strict decoding error: unknown field "plugins[0].file""#
        );
        let other = "apiVersion: apiserver.k8s.io/v1\nkind: AdmissionConfiguration";
        assert_eq!(
            refused(other),
            r#"no kind "AdmissionConfiguration" is registered for version "apiserver.k8s.io/v1" in scheme "k8s.io/apiserver/pkg/server/options/admission.go:51""#
        );
        assert_eq!(refused("a: b"), "Object 'Kind' is missing in 'a: b'");
        let absent = AdmissionConfiguration::load(Path::new("/absent")).unwrap_err();
        let absent = absent.to_string();
        let expected = "unable to read admission control configuration from \"/absent\" [";
        assert!(absent.starts_with(expected), "{absent}");
    }

    #[test]
    fn what_two_plugins_read_before_is_still_read() {
        for text in ["imagePolicy: {}", "podNodeSelectorPluginConfig: {}"] {
            let (_directory, path) = file(text);
            let configuration = AdmissionConfiguration::load(&path).unwrap();
            for (plugin, _) in LEGACY {
                assert_eq!(configuration.of(plugin).unwrap().as_deref(), Some(text));
            }
            assert_eq!(configuration.of("PodSecurity").unwrap(), None);
        }
    }
}

//! Which built-in versions are served: what `--runtime-config` turns on and off, what needs a feature, and what the emulated
//! version did not have yet or has no more.

mod runtime_config;

use clap::ArgAction;
use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use anyhow::{bail, ensure};
use fluyt_api::resources::{self, Hidden, Resource, Stage, compare_versions};

use crate::features::Features;
use crate::go_bool;
use runtime_config::Wanted;

/// The minor version of Kubernetes that this is, and the oldest that it can emulate.
pub const MINOR: u32 = 36;
const OLDEST: u32 = 33;

/// Minor versions: the emulated one, and the oldest that peers may be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    pub emulated: u32,
    pub compatible: u32,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            emulated: MINOR,
            compatible: MINOR - 1,
        }
    }
}

/// What is served, and as which version.
#[derive(Clone, Debug)]
pub struct Served {
    pub(crate) hidden: Arc<Hidden>,
    pub(crate) versions: Versions,
}

impl Default for Served {
    fn default() -> Self {
        static DEFAULT: LazyLock<Served> = LazyLock::new(|| Served {
            hidden: Arc::new(hidden_without_flags()),
            versions: Versions::default(),
        });
        DEFAULT.clone()
    }
}

/// Stable versions that need no feature are served, and nothing else.
fn hidden_without_flags() -> Hidden {
    resources::builtin()
        .iter()
        .filter(|r| Stage::of(r.version) != Some(Stage::Stable) || r.gate.is_some())
        .map(path)
        .collect()
}

impl Served {
    /// What a value of `--runtime-config` says.
    ///
    /// # Errors
    /// For versions that there are none of.
    pub fn configured(runtime_config: &str, features: Features) -> anyhow::Result<Self> {
        let flags = Flags {
            runtime_config: runtime_config.split(',').map(str::to_owned).collect(),
            ..Flags::default()
        };
        flags.served(features)
    }
}

/// Flags about versions.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Flags {
    /// Versions and resources to serve or not: GROUP/VERSION[/RESOURCE]=BOOL, api/all, api/ga, api/beta, api/alpha, comma
    /// separated.
    #[arg(long, value_delimiter = ',')]
    runtime_config: Vec<String>,
    /// The version whose API is served: 1.33 to 1.36.
    #[arg(long, value_delimiter = ',')]
    emulated_version: Vec<String>,
    /// The oldest version that other servers of the cluster may be of. One before the emulated one by default.
    #[arg(long, value_delimiter = ',')]
    min_compatibility_version: Vec<String>,
    /// Serve newer versions than the emulated one had of the resources that are served and are not alpha.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    emulation_forward_compatible: bool,
    /// Serve what --runtime-config names though it is newer than the emulated version.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    runtime_config_emulation_forward_compatible: bool,
}

impl Flags {
    /// The versions that the flags name.
    ///
    /// # Errors
    /// For versions that cannot be emulated.
    pub fn versions(&self) -> anyhow::Result<Versions> {
        let emulated = minor(&self.emulated_version)?.unwrap_or(MINOR);
        let compatible = minor(&self.min_compatibility_version)?;
        let compatible = compatible.unwrap_or_else(|| emulated.saturating_sub(1).max(OLDEST));
        ensure!(
            (OLDEST..=MINOR).contains(&emulated),
            "emulation version 1.{emulated} is not between [1.{OLDEST}, 1.{MINOR}.0]"
        );
        ensure!(
            (OLDEST..=emulated).contains(&compatible),
            "minCompatibilityVersion version 1.{compatible} is not between [1.{OLDEST}, 1.{emulated}]"
        );
        Ok(Versions {
            emulated,
            compatible,
        })
    }

    /// Whether priority and fairness can work with what is served.
    ///
    /// # Errors
    /// When the kinds that configure it are turned off.
    pub fn check_flow_control(&self) -> anyhow::Result<()> {
        runtime_config::check_flow_control(&self.runtime_config)
    }

    /// What the flags say.
    ///
    /// # Errors
    /// For versions that there are none of, and for flags that exclude each other.
    pub fn served(&self, features: Features) -> anyhow::Result<Served> {
        let versions = self.versions()?;
        for (flag, name) in [
            (
                self.emulation_forward_compatible,
                "EmulationForwardCompatible",
            ),
            (
                self.runtime_config_emulation_forward_compatible,
                "RuntimeConfigEmulationForwardCompatible",
            ),
        ] {
            ensure!(
                !flag || versions.emulated != MINOR,
                "ServerRunOptions.{name} cannot be set to true if the emulation version is the same as the binary version"
            );
        }
        let mut wanted = Wanted::parse(&self.runtime_config)?;
        if self.emulation_forward_compatible {
            wanted = wanted.forward(&self.runtime_config)?;
        }
        let shown = self.shown(&wanted, features, versions.emulated)?;
        Ok(Served {
            hidden: Arc::new(
                resources::builtin()
                    .iter()
                    .map(path)
                    .filter(|path| !shown.contains(path))
                    .collect(),
            ),
            versions,
        })
    }

    /// What is served of what is wanted.
    fn shown(&self, wanted: &Wanted, features: Features, emulated: u32) -> anyhow::Result<Hidden> {
        let mut candidates: Vec<&'static Resource> = resources::builtin()
            .iter()
            .filter(|r| wanted.has(r) && r.gate.is_none_or(|gate| features.enables(gate)))
            .filter(|r| r.life.removed.is_none_or(|minor| minor > emulated))
            .collect();
        // From the worst version to the best: whether a better one counts may depend on it.
        candidates.sort_by(|a, b| compare_versions(b.version, a.version));
        let mut shown = Hidden::new();
        let mut has_lesser = HashSet::new();
        for resource in &candidates {
            let lesser = has_lesser.contains(&(resource.group, resource.plural));
            if self.is_there(resource, wanted, emulated, lesser)? {
                shown.insert(path(resource));
                if Stage::of(resource.version) != Some(Stage::Alpha) {
                    has_lesser.insert((resource.group, resource.plural));
                }
            }
        }
        for resource in candidates {
            let version = (resource.group, resource.version);
            ensure!(
                !wanted.names_version(resource)
                    || shown.iter().any(|(g, v, _)| (*g, *v) == version),
                "cannot enable version {} in runtime-config because all the resources have been introduced after the current version 1.{emulated}. Consider setting --runtime-config-emulation-forward-compatible=true",
                resource.api_version()
            );
        }
        Ok(shown)
    }

    /// Whether the emulated version has a resource, or shall have it all the same.
    fn is_there(
        &self,
        resource: &Resource,
        wanted: &Wanted,
        emulated: u32,
        lesser: bool,
    ) -> anyhow::Result<bool> {
        let introduced = resource.life.introduced.unwrap_or(0);
        let named = wanted.names(resource);
        if introduced <= emulated || self.emulation_forward_compatible && lesser {
            return Ok(true);
        }
        if self.runtime_config_emulation_forward_compatible {
            return Ok(named || wanted.names_version(resource));
        }
        if named {
            bail!(
                "cannot enable resource {}/{}, Resource={} in runtime-config because it is introduced at 1.{introduced} after the current version 1.{emulated}. Consider setting --runtime-config-emulation-forward-compatible=true",
                resource.group,
                resource.version,
                resource.plural
            );
        }
        Ok(false)
    }
}

fn path(resource: &Resource) -> (&'static str, &'static str, &'static str) {
    (resource.group, resource.version, resource.plural)
}

/// `1.35` or `kube=1.35` -> 35.
fn minor(values: &[String]) -> anyhow::Result<Option<u32>> {
    let mut found = None;
    for value in values {
        let (component, text) = value.split_once('=').unwrap_or(("kube", value));
        let (component, text) = (component.trim(), text.trim());
        let numbers: Vec<Option<u32>> = text
            .strip_prefix('v')
            .unwrap_or(text)
            .split('.')
            .map(|part| part.parse().ok())
            .collect();
        let minor = match numbers.as_slice() {
            [Some(1), Some(minor)] | [Some(1), Some(minor), Some(0)] => *minor,
            [Some(_), Some(_), Some(_)] => {
                bail!("patch version not allowed, got: {component}={text}")
            }
            _ => bail!("could not parse {text:?} as version"),
        };
        ensure!(component == "kube", "component not registered: {component}");
        if let Some(first) = found {
            bail!("duplicate version flag, kube=1.{first} and kube=1.{minor}");
        }
        found = Some(minor);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Feature;

    fn served(runtime_config: &str) -> Result<Served, String> {
        Served::configured(runtime_config, Features::default()).map_err(|e| e.to_string())
    }

    fn emulating(minor: u32, runtime_config: &str) -> Flags {
        Flags {
            runtime_config: runtime_config.split(',').map(str::to_owned).collect(),
            emulated_version: vec![format!("1.{minor}")],
            ..Flags::default()
        }
    }

    fn has(served: &Served, group: &str, version: &str, plural: &str) -> bool {
        let resource = resources::find(group, version, plural).unwrap();
        !served.hidden.contains(&path(resource))
    }

    #[test]
    fn without_flags_everything_stable_is_served() {
        let none = Flags::default().served(Features::default()).unwrap();
        assert_eq!(none.hidden, Served::default().hidden);
        assert!(has(&none, "resource.k8s.io", "v1", "resourceclaims"));
        assert!(!has(&none, "resource.k8s.io", "v1beta1", "resourceclaims"));
    }

    #[test]
    fn versions_and_resources_are_turned_on_and_off() {
        let off = served("autoscaling/v1=false,apps/v1/daemonsets=false").unwrap();
        assert!(!has(&off, "autoscaling", "v1", "horizontalpodautoscalers"));
        assert!(!has(&off, "apps", "v1", "daemonsets"));
        assert!(has(&off, "apps", "v1", "deployments"));
        // One resource is turned on again, wherever it is said.
        let one = served("apps/v1/deployments=true,api/all=false").unwrap();
        assert!(has(&one, "apps", "v1", "deployments") && !has(&one, "apps", "v1", "daemonsets"));
        let beta = served("api/beta=true,networking.k8s.io/v1beta1=false").unwrap();
        assert!(has(&beta, "resource.k8s.io", "v1beta2", "devicetaintrules"));
        assert!(!has(&beta, "networking.k8s.io", "v1beta1", "ipaddresses"));
        assert!(!has(
            &beta,
            "resource.k8s.io",
            "v1alpha3",
            "devicetaintrules"
        ));
        // A resource counts more than its version, that more than its stage.
        let one = served(
            "api/all=true,resource.k8s.io/v1alpha3=false,resource.k8s.io/v1alpha3/devicetaintrules",
        )
        .unwrap();
        assert!(has(&one, "resource.k8s.io", "v1alpha3", "devicetaintrules"));
        assert!(!has(
            &one,
            "resource.k8s.io",
            "v1alpha3",
            "resourcepoolstatusrequests"
        ));
        assert!(has(
            &one,
            "internal.apiserver.k8s.io",
            "v1alpha1",
            "storageversions"
        ));
    }

    #[test]
    fn some_resources_need_a_feature() {
        let of = |features: Features| Served::configured("api/all=true", features).unwrap();
        let bundles = ("certificates.k8s.io", "v1beta1", "clustertrustbundles");
        let (group, version, plural) = bundles;
        assert!(!has(&of(Features::default()), group, version, plural));
        let with = of(Features::default().with(Feature::ClusterTrustBundle));
        assert!(has(&with, group, version, plural));
        assert!(!has(&with, group, version, "podcertificaterequests"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_upstreams_words() {
        for (flag, why) in [
            (
                "api/all=false",
                "invalid runtime-config with only api/all=false",
            ),
            ("api/beta=maybe", "invalid value api/beta=maybe"),
            (
                "apps/v1=maybe",
                "invalid value of apps/v1: maybe, err: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
            ("apps", "runtime-config invalid key apps"),
            (
                "b.example.com/v1=true,a.example.com/v1",
                "unknown api groups a.example.com/v1,b.example.com/v1",
            ),
            (
                "apps/v3=false",
                "group version apps/v3 that has not been registered",
            ),
            (
                "apps/v1/DaemonSets",
                "invalid key apps/v1/DaemonSets: group/version/resource and resource is always lowercase plural, not \"DaemonSets\"",
            ),
        ] {
            assert_eq!(served(flag).unwrap_err(), why);
        }
        // Of the core group there is one version, whatever is said of it.
        for core in ["v1=false", "api/v1=false", "v1/pods=false", "/v1=false"] {
            assert!(!has(&served(core).unwrap(), "", "v1", "secrets"), "{core}");
        }
        let off = |runtime_config: &str| emulating(36, runtime_config).check_flow_control();
        assert_eq!(
            off("api/all=false,apps/v1=true").unwrap_err().to_string(),
            "--runtime-config=api/all=false conflicts with --enable-priority-and-fairness=true"
        );
        assert!(off("api/all=false,flowcontrol.apiserver.k8s.io/v1=true").is_ok());
        // Known, though nothing is served of it.
        assert!(served("apps/v1beta1=true,extensions/v1beta1").is_ok());
    }

    #[test]
    fn emulation_takes_back_what_is_new() {
        let features = Features::default();
        let older = emulating(35, "").served(features).unwrap();
        assert_eq!(
            (older.versions.emulated, older.versions.compatible),
            (35, 34)
        );
        let group = "admissionregistration.k8s.io";
        assert!(!has(&older, group, "v1", "mutatingadmissionpolicies"));
        let beta = emulating(35, "api/beta=true").served(features).unwrap();
        assert!(has(&beta, group, "v1beta1", "mutatingadmissionpolicies"));
        assert!(!has(
            &beta,
            "resource.k8s.io",
            "v1beta2",
            "devicetaintrules"
        ));
        let oldest = emulating(33, "api/beta=true").served(features).unwrap();
        assert!(!has(&oldest, "resource.k8s.io", "v1", "resourceclaims"));
        assert!(has(&oldest, "resource.k8s.io", "v1beta2", "resourceclaims"));
        assert_eq!(oldest.versions.compatible, 33);
    }

    #[test]
    fn what_is_new_can_be_had_all_the_same() {
        let features = Features::default();
        let (group, plural) = ("admissionregistration.k8s.io", "mutatingadmissionpolicies");
        let forward = Flags {
            emulation_forward_compatible: true,
            ..emulating(35, "admissionregistration.k8s.io/v1beta1=true")
        };
        let served = forward.served(features).unwrap();
        assert!(has(&served, group, "v1", plural));
        assert!(!has(
            &served,
            "resource.k8s.io",
            "v1beta2",
            "devicetaintrules"
        ));
        let named = Flags {
            runtime_config_emulation_forward_compatible: true,
            ..emulating(35, "resource.k8s.io/v1beta2=true")
        };
        let served = named.served(features).unwrap();
        assert!(has(
            &served,
            "resource.k8s.io",
            "v1beta2",
            "devicetaintrules"
        ));
        assert!(!has(&served, group, "v1", plural));
    }

    #[test]
    fn versions_that_cannot_be_are_refused_in_upstreams_words() {
        let why = |flags: Flags| flags.served(Features::default()).unwrap_err().to_string();
        assert_eq!(
            why(emulating(32, "")),
            "emulation version 1.32 is not between [1.33, 1.36.0]"
        );
        let compatible = Flags {
            min_compatibility_version: vec!["kube=1.36".into()],
            ..emulating(35, "")
        };
        assert_eq!(
            why(compatible),
            "minCompatibilityVersion version 1.36 is not between [1.33, 1.35]"
        );
        for (version, message) in [
            ("x", "could not parse \"x\" as version"),
            ("1.35.1", "patch version not allowed, got: kube=1.35.1"),
            ("wardle=1.2", "component not registered: wardle"),
        ] {
            let flags = Flags {
                emulated_version: vec![version.into()],
                ..Flags::default()
            };
            assert_eq!(why(flags), message);
        }
        let forward = Flags {
            emulation_forward_compatible: true,
            ..Flags::default()
        };
        assert_eq!(
            why(forward),
            "ServerRunOptions.EmulationForwardCompatible cannot be set to true if the emulation version is the same as the binary version"
        );
        assert_eq!(
            why(emulating(35, "resource.k8s.io/v1beta2/devicetaintrules")),
            "cannot enable resource resource.k8s.io/v1beta2, Resource=devicetaintrules in runtime-config because it is introduced at 1.36 after the current version 1.35. Consider setting --runtime-config-emulation-forward-compatible=true"
        );
        assert_eq!(
            why(emulating(
                33,
                "storagemigration.k8s.io/v1beta1/storageversionmigrations=false,storage.k8s.io/v1=true,resource.k8s.io/v1=true"
            )),
            "cannot enable version resource.k8s.io/v1 in runtime-config because all the resources have been introduced after the current version 1.33. Consider setting --runtime-config-emulation-forward-compatible=true"
        );
    }
}

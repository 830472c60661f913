//! Feature gates: upstream's, with what each minor version made of them (`features.txt`), and those that make a difference
//! here. Others have their defaults, and cannot be changed.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use anyhow::{bail, ensure};

use crate::go_bool;
use crate::served::Versions;

/// Features that can be turned on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Connections to pods take the right to create them, also where WebSocket has clients use GET.
    AuthorizePodWebsocketUpgradeCreatePermission,
    /// `application/cbor` for requests, responses and apply.
    Cbor,
    /// `ClusterTrustBundle` objects, and who may read and write them.
    ClusterTrustBundle,
    /// WebSockets go on to kubelets that declare to take them.
    ExtendWebSocketsToKubelet,
    /// `/flagz`.
    Flagz,
    /// `/statusz`.
    Statusz,
    /// `Workload` and `PodGroup` objects.
    GenericWorkload,
    /// Webhooks and policies from files.
    ManifestBasedAdmissionControlConfig,
    /// The admission plugin of `MutatingAdmissionPolicy` objects.
    MutatingAdmissionPolicy,
    /// `status.declaredFeatures` of nodes, and what is refused because of them.
    NodeDeclaredFeatures,
    /// `PodCertificateRequest` objects, and nodes' right to make them.
    PodCertificateRequest,
    /// Ports are forwarded through WebSockets, whatever the kubelet speaks.
    PortForwardWebsockets,
    /// `StorageVersionMigration` objects.
    StorageVersionMigrator,
    /// The newest protocol of exec and attach is translated for kubelets that do not know it.
    TranslateStreamCloseWebsocketRequests,
    /// Requests that other API servers of the cluster answer, and discovery of what they serve.
    UnknownVersionInteroperabilityProxy,
}

impl Feature {
    /// All of them, by upstream's names.
    const ALL: [(Self, &'static str); 15] = [
        (
            Self::AuthorizePodWebsocketUpgradeCreatePermission,
            "AuthorizePodWebsocketUpgradeCreatePermission",
        ),
        (Self::Cbor, "CBORServingAndStorage"),
        (Self::ClusterTrustBundle, "ClusterTrustBundle"),
        (Self::ExtendWebSocketsToKubelet, "ExtendWebSocketsToKubelet"),
        (Self::Flagz, "ComponentFlagz"),
        (Self::Statusz, "ComponentStatusz"),
        (Self::GenericWorkload, "GenericWorkload"),
        (
            Self::ManifestBasedAdmissionControlConfig,
            "ManifestBasedAdmissionControlConfig",
        ),
        (Self::MutatingAdmissionPolicy, "MutatingAdmissionPolicy"),
        (Self::NodeDeclaredFeatures, "NodeDeclaredFeatures"),
        (Self::PodCertificateRequest, "PodCertificateRequest"),
        (Self::PortForwardWebsockets, "PortForwardWebsockets"),
        (Self::StorageVersionMigrator, "StorageVersionMigrator"),
        (
            Self::TranslateStreamCloseWebsocketRequests,
            "TranslateStreamCloseWebsocketRequests",
        ),
        (
            Self::UnknownVersionInteroperabilityProxy,
            "UnknownVersionInteroperabilityProxy",
        ),
    ];

    fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(_, known)| *known == name);
        found.map(|(feature, _)| *feature)
    }

    fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// The features that are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u16);

impl Default for Features {
    /// Upstream's defaults.
    fn default() -> Self {
        static DEFAULT: LazyLock<Features> = LazyLock::new(|| Features::of(Versions::default()));
        *DEFAULT
    }
}

impl Features {
    /// The defaults of a version.
    fn of(versions: Versions) -> Self {
        let mut features = Self(0);
        for (feature, name) in Feature::ALL {
            let on = spec(name, versions.emulated).is_some_and(|spec| spec.on);
            features.set(feature, on);
        }
        features
    }

    #[must_use]
    pub fn has(self, feature: Feature) -> bool {
        self.0 & feature.bit() != 0
    }

    /// Whether a gate of upstream's is on that makes a difference here.
    #[must_use]
    pub fn enables(self, gate: &str) -> bool {
        Feature::named(gate).is_some_and(|feature| self.has(feature))
    }

    /// The same with one more.
    #[must_use]
    pub fn with(mut self, feature: Feature) -> Self {
        self.set(feature, true);
        self
    }

    /// The same with one less.
    #[must_use]
    pub fn without(mut self, feature: Feature) -> Self {
        self.set(feature, false);
        self
    }

    fn set(&mut self, feature: Feature, on: bool) {
        self.0 = if on {
            self.0 | feature.bit()
        } else {
            self.0 & !feature.bit()
        };
    }

    /// What a value of `--feature-gates` says: `Name=true,kube:Other=false`. Names that are not upstream's are ignored with
    /// a line in the log, as upstream does it.
    ///
    /// # Errors
    /// For gates without a value or with one that is no boolean, and for changes that are not possible.
    pub fn parse(gates: &str, versions: Versions) -> anyhow::Result<Self> {
        let given = given(gates)?;
        let mut changes: BTreeMap<&str, bool> = BTreeMap::new();
        for (gate, on) in given.iter().filter(|(gate, _)| special(gate).is_none()) {
            let Some(specs) = GATES.get(gate) else {
                tracing::warn!("unrecognized feature gate: {gate}");
                continue;
            };
            let Some(spec) = specs.iter().rfind(|s| s.since <= versions.emulated) else {
                bail!(
                    "cannot set feature gate {gate} to {on}, feature is PreAlpha at emulated version 1.{}, min compatibility version 1.{}",
                    versions.emulated,
                    versions.compatible
                );
            };
            ensure!(
                !spec.locked || spec.on == *on,
                "cannot set feature gate {gate} to {on}, feature is locked to {}",
                spec.on
            );
            changes.insert(gate, *on);
        }
        // Those of a stage as a whole, except what is said of one.
        for (stage, on) in given.iter().filter_map(|(g, on)| Some((special(g)?, on))) {
            for (gate, specs) in GATES.iter() {
                let now = specs.iter().rfind(|s| s.since <= versions.emulated);
                if now.is_some_and(|s| s.stage == stage) && !given.contains_key(gate) {
                    changes.insert(gate, *on);
                }
            }
        }
        let mut features = Self::of(versions);
        let mut refused = Vec::new();
        for (gate, on) in changes {
            let default = spec(gate, versions.emulated).is_some_and(|spec| spec.on);
            match Feature::named(gate) {
                Some(feature) => features.set(feature, on),
                None if on == default => {}
                None => refused.push(format!("{gate} to {on}")),
            }
        }
        ensure!(
            refused.is_empty(),
            "cannot set feature gates that make no difference in this server: {}",
            refused.join(", ")
        );
        Ok(features)
    }
}

/// The gates that are about all of a stage.
fn special(gate: &str) -> Option<&'static str> {
    match gate {
        "AllAlpha" => Some("alpha"),
        "AllBeta" => Some("beta"),
        _ => None,
    }
}

/// Gates with the values that they are given; the last one of a gate counts.
fn given(gates: &str) -> anyhow::Result<BTreeMap<&str, bool>> {
    let mut given = BTreeMap::new();
    let (mut named, mut unnamed) = (false, false);
    for gate in gates.split(',').map(str::trim).filter(|g| !g.is_empty()) {
        let gate = match gate.split_once(':') {
            Some((component, gate)) => {
                ensure!(component == "kube", "component not registered: {component}");
                named = true;
                gate
            }
            None => {
                unnamed = true;
                gate
            }
        };
        let Some((name, value)) = gate.split_once('=') else {
            bail!("missing bool value for {gate}");
        };
        let (name, value) = (name.trim(), value.trim());
        let on = match go_bool::parse(value) {
            Ok(on) => on,
            Err(error) => bail!("invalid value of {name}={value}, err: {error}"),
        };
        given.insert(name, on);
    }
    ensure!(
        !(named && unnamed),
        "set kube feature gates with default empty prefix or kube: prefix consistently, do not mix use"
    );
    Ok(given)
}

/// What a minor version made of a gate.
#[derive(Clone, Copy, Debug)]
struct Spec {
    stage: &'static str,
    since: u32,
    on: bool,
    locked: bool,
}

static GATES: LazyLock<BTreeMap<&'static str, Vec<Spec>>> = LazyLock::new(|| {
    include_str!("features.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.filter_map(parse_spec).collect()))
        })
        .collect()
});

fn parse_spec(word: &'static str) -> Option<Spec> {
    let (stage, rest) = word.split_once('=')?;
    let mut parts = rest.split(':');
    Some(Spec {
        stage,
        since: parts.next()?.strip_prefix("1.")?.parse().ok()?,
        on: parts.next()? == "on",
        locked: parts.next() == Some("locked"),
    })
}

/// What a gate is in a version.
fn spec(gate: &str, minor: u32) -> Option<Spec> {
    GATES
        .get(gate)?
        .iter()
        .rfind(|spec| spec.since <= minor)
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(gates: &str) -> Result<Features, String> {
        Features::parse(gates, Versions::default()).map_err(|e| e.to_string())
    }

    fn emulating(emulated: u32) -> Versions {
        Versions {
            emulated,
            compatible: emulated - 1,
        }
    }

    #[test]
    fn gates_are_known_and_have_defaults() {
        for (feature, name) in Feature::ALL {
            assert!(GATES.contains_key(name));
            assert_eq!(Feature::named(name), Some(feature));
        }
        assert!(GATES.values().all(|specs| !specs.is_empty()));
        let features = parse("").unwrap();
        assert_eq!(features, Features::default());
        assert!(!features.has(Feature::Cbor) && !features.has(Feature::ClusterTrustBundle));
        assert!(features.has(Feature::MutatingAdmissionPolicy) && features.has(Feature::Flagz));
        // What was not on yet.
        let older = Features::parse("", emulating(35)).unwrap();
        assert!(!older.has(Feature::MutatingAdmissionPolicy) && !older.has(Feature::Flagz));
    }

    #[test]
    fn gates_are_set() {
        let given = parse("CBORServingAndStorage=true, ComponentFlagz=0").unwrap();
        assert!(given.has(Feature::Cbor) && !given.has(Feature::Flagz));
        assert!(
            parse("kube:GenericWorkload=T")
                .unwrap()
                .enables("GenericWorkload")
        );
        // Somebody else's, and what is the default anyway.
        assert_eq!(parse("Other=false").unwrap(), Features::default());
        assert_eq!(
            parse("SidecarContainers=true,WatchList=true,AllAlpha=false").unwrap(),
            Features::default()
        );
    }

    #[test]
    fn what_cannot_be_set_is_refused() {
        for (gates, why) in [
            (
                "CBORServingAndStorage",
                "missing bool value for CBORServingAndStorage",
            ),
            (
                "X=maybe",
                "invalid value of X=maybe, err: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
            (
                "SidecarContainers=false",
                "cannot set feature gate SidecarContainers to false, feature is locked to true",
            ),
            (
                "WatchList=false",
                "cannot set feature gates that make no difference in this server: WatchList to false",
            ),
            ("wardle:A=true", "component not registered: wardle"),
            (
                "kube:WatchList=true,WatchList=true",
                "set kube feature gates with default empty prefix or kube: prefix consistently, do not mix use",
            ),
        ] {
            assert_eq!(parse(gates).unwrap_err(), why);
        }
        assert!(
            parse("AllAlpha=true")
                .unwrap_err()
                .contains("GangScheduling to true")
        );
        let young = Features::parse(
            "StorageVersionMigrator=true,CRIListStreaming=false",
            emulating(35),
        );
        assert_eq!(
            young.unwrap_err().to_string(),
            "cannot set feature gate CRIListStreaming to false, feature is PreAlpha at emulated version 1.35, min compatibility version 1.34"
        );
    }
}

//! Which built-in versions are served: `--runtime-config`, and what the emulated version did not have yet.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use fluyt_api::resources::{self, Hidden, Resource};

/// The minor version of Kubernetes that this is, and the oldest that it can emulate.
const MINOR: u32 = 36;
const OLDEST: u32 = 34;

/// Resources that came after the oldest version, and with which one.
const INTRODUCED: [(&str, &str, &str, u32); 2] = [
    (
        "admissionregistration.k8s.io",
        "v1",
        "mutatingadmissionpolicies",
        36,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "mutatingadmissionpolicybindings",
        36,
    ),
];

/// What is served, and as which version.
#[derive(Clone, Debug)]
pub struct Served {
    pub(crate) hidden: Arc<Hidden>,
    /// Minor versions: the emulated one, and the oldest that peers may be of.
    pub(crate) emulated: u32,
    pub(crate) compatible: u32,
}

impl Default for Served {
    fn default() -> Self {
        Self {
            hidden: Arc::default(),
            emulated: MINOR,
            compatible: MINOR - 1,
        }
    }
}

impl Served {
    /// What a value of `--runtime-config` says.
    ///
    /// # Errors
    /// For versions that there are none of.
    pub fn configured(runtime_config: &str) -> anyhow::Result<Self> {
        let flags = Flags {
            runtime_config: runtime_config.split(',').map(str::to_owned).collect(),
            emulated_version: None,
            min_compatibility_version: None,
        };
        flags.served()
    }
}

/// Flags about versions.
#[derive(clap::Args, Clone, Debug)]
pub struct Flags {
    /// Versions and resources to serve or not: GROUP/VERSION[/RESOURCE]=BOOL, api/all, api/ga, comma separated.
    #[arg(long, value_delimiter = ',')]
    runtime_config: Vec<String>,
    /// The version whose API is served: 1.34, 1.35 or 1.36.
    #[arg(long)]
    emulated_version: Option<String>,
    /// The oldest version that other servers of the cluster may be of. One before the emulated one by default.
    #[arg(long)]
    min_compatibility_version: Option<String>,
}

impl Flags {
    /// What the flags say.
    ///
    /// # Errors
    /// For versions that there are none of.
    pub fn served(&self) -> anyhow::Result<Served> {
        let emulated = match &self.emulated_version {
            None => MINOR,
            Some(text) => minor(text).context("--emulated-version")?,
        };
        ensure!(
            (OLDEST..=MINOR).contains(&emulated),
            "emulation version 1.{emulated} is not between [1.{OLDEST}, 1.{MINOR}]"
        );
        let compatible = match &self.min_compatibility_version {
            None => emulated - 1,
            Some(text) => minor(text).context("--min-compatibility-version")?,
        };
        ensure!(
            (OLDEST - 1..=emulated).contains(&compatible),
            "minCompatibilityVersion version 1.{compatible} is not between [1.{}, 1.{emulated}]",
            OLDEST - 1
        );
        let mut hidden: Hidden = resources::builtin()
            .iter()
            .filter(|r| {
                INTRODUCED
                    .iter()
                    .any(|(g, v, p, since)| path(r) == (*g, *v, *p) && *since > emulated)
            })
            .map(path)
            .collect();
        // What is about many is said before what is about one.
        let (general, single): (Vec<&String>, Vec<&String>) = self
            .runtime_config
            .iter()
            .partition(|entry| entry.starts_with("api/") && !entry.starts_with("api/v1"));
        for entry in general.into_iter().chain(single) {
            configure(entry, &mut hidden).context("--runtime-config")?;
        }
        Ok(Served {
            hidden: Arc::new(hidden),
            emulated,
            compatible,
        })
    }
}

fn path(resource: &Resource) -> (&'static str, &'static str, &'static str) {
    (resource.group, resource.version, resource.plural)
}

/// `1.35` or `kube=1.35` -> 35.
fn minor(text: &str) -> anyhow::Result<u32> {
    let version = text.strip_prefix("kube=").unwrap_or(text);
    let minor = version.strip_prefix("1.").and_then(|m| m.parse().ok());
    minor.with_context(|| format!("could not parse \"{text}\" as version"))
}

/// Takes over one entry.
fn configure(entry: &str, hidden: &mut Hidden) -> anyhow::Result<()> {
    let (name, value) = entry.split_once('=').unwrap_or((entry, "true"));
    let served = match value {
        "true" | "1" | "" => true,
        "false" | "0" => false,
        other => bail!("invalid value of {name}={other}"),
    };
    let mut found = false;
    for resource in resources::builtin().iter().filter(|r| selects(name, r)) {
        found = true;
        if served {
            hidden.remove(&path(resource));
        } else {
            hidden.insert(path(resource));
        }
    }
    let stage = matches!(name, "api/alpha" | "api/beta");
    // What is not there need not be turned off, but cannot be turned on.
    ensure!(
        found || stage || !served,
        "{name} is not among the versions of this server"
    );
    Ok(())
}

/// Whether an entry's name is about a resource.
fn selects(name: &str, resource: &Resource) -> bool {
    let is = |stage: &str| resource.version.contains(stage);
    match name {
        "api/all" => return true,
        "api/ga" => return !is("alpha") && !is("beta"),
        "api/beta" => return is("beta"),
        "api/alpha" => return is("alpha"),
        _ => {}
    }
    // The core group has no name: `v1`, `api/v1`, `v1/pods`.
    let name = name.strip_prefix("api/").unwrap_or(name);
    let (group, rest) = if name == "v1" || name.starts_with("v1/") {
        ("", name)
    } else {
        name.split_once('/').unwrap_or((name, ""))
    };
    let (version, plural) = rest.split_once('/').unwrap_or((rest, ""));
    resource.group == group
        && resource.version == version
        && (plural.is_empty() || resource.plural == plural)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emulating(version: Option<&str>) -> anyhow::Result<Served> {
        Flags {
            runtime_config: Vec::new(),
            emulated_version: version.map(str::to_owned),
            min_compatibility_version: None,
        }
        .served()
    }

    #[test]
    fn versions_and_resources_are_turned_off() {
        let is_hidden = |served: &Served, path| served.hidden.contains(&path);
        let served = Served::configured("autoscaling/v1=false,apps/v1/daemonsets=false").unwrap();
        assert!(is_hidden(
            &served,
            ("autoscaling", "v1", "horizontalpodautoscalers")
        ));
        assert!(is_hidden(&served, ("apps", "v1", "daemonsets")));
        assert_eq!(served.hidden.len(), 2);
        // One resource is turned on again, wherever it is said.
        let served = Served::configured("v1/pods=true,api/all=false").unwrap();
        assert!(!is_hidden(&served, ("", "v1", "pods")));
        assert!(is_hidden(&served, ("", "v1", "secrets")));
        assert!(Served::configured("networking.k8s.io/v1beta1").is_err());
        assert!(Served::configured("networking.k8s.io/v1beta1=false,api/beta=true").is_ok());
        assert!(Served::configured("apps/v1=maybe").is_err());
    }

    #[test]
    fn emulation_takes_back_what_is_new() {
        let served = emulating(Some("1.35")).unwrap();
        assert_eq!((served.emulated, served.compatible), (35, 34));
        assert_eq!(served.hidden.len(), 2);
        assert!(emulating(Some("1.33")).is_err());
        assert!(emulating(None).unwrap().hidden.is_empty());
    }
}

//! `--runtime-config`: which groups, versions and resources are wanted.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{bail, ensure};
use fluyt_api::resources::{self, Resource, Stage, compare_versions};

use crate::go_bool;

type Version = (String, String);
type Path = (String, String, String);

/// What is about many versions, in the order in which it is looked at.
const STAGES: [(&str, Option<Stage>); 4] = [
    ("api/all", None),
    ("api/ga", Some(Stage::Stable)),
    ("api/beta", Some(Stage::Beta)),
    ("api/alpha", Some(Stage::Alpha)),
];

/// Groups and versions that upstream knows the types of, though it does not serve them any more or never did.
const KNOWN: [(&str, &[&str]); 17] = [
    ("admission.k8s.io", &["v1", "v1beta1"]),
    ("apiextensions.k8s.io", &["v1beta1"]),
    ("apiregistration.k8s.io", &["v1beta1"]),
    ("apps", &["v1beta1", "v1beta2"]),
    ("authentication.k8s.io", &["v1alpha1", "v1beta1"]),
    ("authorization.k8s.io", &["v1beta1"]),
    ("batch", &["v1beta1"]),
    ("discovery.k8s.io", &["v1beta1"]),
    ("events.k8s.io", &["v1beta1"]),
    ("extensions", &["v1beta1"]),
    (
        "flowcontrol.apiserver.k8s.io",
        &["v1beta1", "v1beta2", "v1beta3"],
    ),
    ("imagepolicy.k8s.io", &["v1alpha1"]),
    ("node.k8s.io", &["v1alpha1", "v1beta1"]),
    ("policy", &["v1beta1"]),
    ("rbac.authorization.k8s.io", &["v1alpha1", "v1beta1"]),
    ("scheduling.k8s.io", &["v1beta1"]),
    ("storage.k8s.io", &["v1alpha1"]),
];

/// What is turned on and off, and what of it was named.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    versions: BTreeMap<Version, bool>,
    resources: BTreeMap<Path, bool>,
    named_versions: BTreeSet<Version>,
    named_resources: BTreeSet<Path>,
}

impl Wanted {
    /// Takes the flag's entries over the defaults: stable versions are served, others are not.
    ///
    /// # Errors
    /// For entries that cannot be read or name a group or version that there is not.
    pub fn parse(entries: &[String]) -> anyhow::Result<Self> {
        let entries = pairs(entries);
        check(&entries)?;
        let mut wanted = Self::default();
        for resource in resources::builtin() {
            let stable = Stage::of(resource.version) == Some(Stage::Stable);
            wanted.versions.insert(version_of(resource), stable);
        }
        for (name, stage) in STAGES {
            let on = match entries.get(name) {
                None => continue,
                Some(&"true") => true,
                Some(&"false") => false,
                Some(other) => bail!("invalid value {name}={other}"),
            };
            for ((_, version), state) in &mut wanted.versions {
                if stage.is_none() || Stage::of(version) == stage {
                    *state = on;
                }
            }
        }
        wanted.prefer(&entries)?;
        Ok(wanted)
    }

    /// Takes over what is said of versions and then of resources, which counts more than what is said of many.
    fn prefer(&mut self, entries: &BTreeMap<&str, &str>) -> anyhow::Result<()> {
        let mut of_resources = Vec::new();
        for (key, value) in entries.iter().filter(|(key, _)| !is_stage(key)) {
            let tokens: Vec<&str> = key.split('/').collect();
            let (group, version) = (tokens[0], tokens[1]);
            ensure!(
                is_version(group, version),
                "group version {} that has not been registered",
                resources::api_version(group, version)
            );
            let on = match *value {
                "" => true,
                value => match go_bool::parse(value) {
                    Ok(on) => on,
                    Err(error) => bail!("invalid value of {key}: {value}, err: {error}"),
                },
            };
            let Some(plural) = tokens.get(2) else {
                let version = (group.to_owned(), version.to_owned());
                self.resources
                    .retain(|(g, v, _), _| (g, v) != (&version.0, &version.1));
                self.name(&version, on);
                continue;
            };
            ensure!(
                plural.to_lowercase() == *plural,
                "invalid key {key}: group/version/resource and resource is always lowercase plural, not {plural:?}"
            );
            of_resources.push((
                (group.to_owned(), version.to_owned(), (*plural).to_owned()),
                on,
            ));
        }
        for (path, on) in of_resources {
            if on {
                self.named_resources.insert(path.clone());
            }
            self.resources.insert(path, on);
        }
        Ok(())
    }

    fn name(&mut self, version: &Version, on: bool) {
        if on {
            self.named_versions.insert(version.clone());
        }
        self.versions.insert(version.clone(), on);
    }

    /// Whether a resource is turned on.
    pub fn has(&self, resource: &Resource) -> bool {
        let of_resource = self.resources.get(&path_of(resource));
        let of_version = || self.versions.get(&version_of(resource));
        of_resource.or_else(of_version).copied().unwrap_or(false)
    }

    /// Whether a resource was turned on by its own name.
    pub fn names(&self, resource: &Resource) -> bool {
        self.named_resources.contains(&path_of(resource))
    }

    /// Whether a version was turned on by its name.
    pub fn names_version(&self, resource: &Resource) -> bool {
        self.named_versions.contains(&version_of(resource))
    }

    /// Turns on what is better than what is on: versions of its group and of its resource, unless it is an alpha. What the
    /// entries say themselves still counts.
    ///
    /// # Errors
    /// As for [`Wanted::parse`], which has said so already.
    pub fn forward(mut self, entries: &[String]) -> anyhow::Result<Self> {
        let counts = |version: &str| Stage::of(version) != Some(Stage::Alpha);
        let better = |than: &str, version: &str| compare_versions(version, than) == Ordering::Less;
        let on: Vec<Version> = (self.versions.iter())
            .filter(|((_, version), on)| **on && counts(version))
            .map(|(version, _)| version.clone())
            .collect();
        for ((group, version), state) in &mut self.versions {
            *state |= on.iter().any(|(g, v)| g == group && better(v, version));
        }
        let on: Vec<Path> = (self.resources.iter())
            .filter(|((_, version, _), on)| **on && counts(version))
            .map(|(path, _)| path.clone())
            .collect();
        for resource in resources::builtin() {
            let (group, version, plural) = path_of(resource);
            if (on.iter()).any(|(g, v, p)| (g, p) == (&group, &plural) && better(v, &version)) {
                self.resources.insert((group, version, plural), true);
            }
        }
        self.prefer(&pairs(entries))?;
        Ok(self)
    }
}

/// The flag's entries: names and what they are set to.
fn pairs(entries: &[String]) -> BTreeMap<&str, &str> {
    entries
        .iter()
        .map(|entry| entry.split_once('=').unwrap_or((entry, "")))
        .map(|(key, value)| (key.trim(), value.trim()))
        .filter(|(key, _)| !key.is_empty() && *key != "api/legacy")
        .map(|(key, value)| {
            let rest = key.strip_prefix("api/").unwrap_or(key);
            // Whatever is said of the core group is said of its version.
            let is_core = rest == "v1" || rest.starts_with("v1/");
            (if is_core { "/v1" } else { key }, value)
        })
        .collect()
}

/// The kinds that priority and fairness is configured by must be served where it is on.
///
/// # Errors
/// When they are turned off.
pub fn check_flow_control(entries: &[String]) -> anyhow::Result<()> {
    let entries = pairs(entries);
    for name in ["flowcontrol.apiserver.k8s.io/v1", "api/ga", "api/all"] {
        match entries.get(name) {
            Some(&"false") => bail!(
                "--runtime-config={name}=false conflicts with --enable-priority-and-fairness=true"
            ),
            Some(&"true") => return Ok(()),
            _ => {}
        }
    }
    Ok(())
}

fn version_of(resource: &Resource) -> Version {
    (resource.group.to_owned(), resource.version.to_owned())
}

fn path_of(resource: &Resource) -> Path {
    let (group, version) = version_of(resource);
    (group, version, resource.plural.to_owned())
}

fn is_stage(key: &str) -> bool {
    STAGES.iter().any(|(name, _)| *name == key)
}

fn is_group(group: &str) -> bool {
    KNOWN.iter().any(|(g, _)| *g == group) || resources::builtin().iter().any(|r| r.group == group)
}

fn is_version(group: &str, version: &str) -> bool {
    let served = || {
        let mut all = resources::builtin().iter();
        all.any(|r| (r.group, r.version) == (group, version))
    };
    let known = KNOWN
        .iter()
        .any(|(g, versions)| *g == group && versions.contains(&version));
    known || served()
}

/// What makes no sense whatever the versions are.
fn check(entries: &BTreeMap<&str, &str>) -> anyhow::Result<()> {
    ensure!(
        entries.len() != 1 || entries.get("api/all") != Some(&"false"),
        "invalid runtime-config with only api/all=false"
    );
    let mut unknown = BTreeSet::new();
    for key in entries.keys().filter(|key| !is_stage(key)) {
        let tokens: Vec<&str> = key.split('/').collect();
        ensure!(
            matches!(tokens.len(), 2 | 3),
            "runtime-config invalid key {key}"
        );
        if !is_group(tokens[0]) {
            unknown.insert(resources::api_version(tokens[0], tokens[1]));
        }
    }
    let unknown: Vec<String> = unknown.into_iter().collect();
    ensure!(
        unknown.is_empty(),
        "unknown api groups {}",
        unknown.join(",")
    );
    Ok(())
}

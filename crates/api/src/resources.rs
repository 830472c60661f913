//! The table of resources: what is served under which path, with which verbs. Discovery, routing and RBAC's notion of a
//! resource all read it. The built-in part is a constant; what CustomResourceDefinitions add is a [`Snapshot`] that changes.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::ops::Deref;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use crate::custom::Definition;
use crate::schema::{Schema, TypeId};
use crate::strategy::{self, Strategy};

/// One served resource in one version.
#[derive(Debug)]
pub struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    pub singular: &'static str,
    pub short_names: Vec<&'static str>,
    pub categories: Vec<&'static str>,
    pub verbs: Vec<&'static str>,
    pub subresources: Vec<Subresource>,
    /// The schema of the kind, if its type is known.
    pub ty: Option<TypeId>,
    /// Where objects are stored below `/registry/`, in upstream's layout; no slash at the end.
    pub storage: &'static str,
    /// When this version of the resource came and goes.
    pub life: Life,
    /// The feature without which it is not served.
    pub gate: Option<&'static str>,
    /// The version that the server works in, as a place in the table, when it is not this one.
    pub(crate) hub: Option<usize>,
    /// What a CustomResourceDefinition says about this version; `None` for built-in resources.
    pub definition: Option<Arc<Definition>>,
}

/// The minor versions of Kubernetes 1 that changed the standing of a version of a resource.
#[derive(Clone, Copy, Debug, Default)]
pub struct Life {
    pub introduced: Option<u32>,
    pub deprecated: Option<u32>,
    /// It is not served from there on.
    pub removed: Option<u32>,
    /// Group, version and kind of what to use instead.
    pub replacement: Option<(&'static str, &'static str, &'static str)>,
}

/// How far a version has come, which its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Alpha,
    Beta,
    Stable,
}

impl Stage {
    /// Of a version's name.
    #[must_use]
    pub fn of(version: &str) -> Option<Self> {
        Precedence::parse(version).map(|p| p.stage)
    }
}

/// What versions are compared by: `v10` is before `v2`, `v1` before `v1beta2`, that before `v1beta1` and `v1alpha3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Precedence {
    stage: Stage,
    major: u32,
    minor: u32,
}

impl Precedence {
    fn parse(version: &str) -> Option<Self> {
        let rest = version.strip_prefix('v')?;
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (major, rest) = rest.split_at(end);
        let (stage, minor) = if rest.is_empty() {
            (Stage::Stable, "0")
        } else if let Some(minor) = rest.strip_prefix("beta") {
            (Stage::Beta, minor)
        } else {
            (Stage::Alpha, rest.strip_prefix("alpha")?)
        };
        Some(Self {
            stage,
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }
}

/// Orders versions as clients are to prefer them: the best first, those with names of another form last, by name.
#[must_use]
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (Precedence::parse(a), Precedence::parse(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// A resource that a request has found: a built-in one, or one that was defined when it was looked up.
#[derive(Clone, Debug)]
pub enum Handle {
    Builtin(&'static Resource),
    Custom(Arc<Resource>),
}

impl Deref for Handle {
    type Target = Resource;

    fn deref(&self) -> &Resource {
        match self {
            Self::Builtin(resource) => resource,
            Self::Custom(resource) => resource,
        }
    }
}

impl From<&'static Resource> for Handle {
    fn from(resource: &'static Resource) -> Self {
        Self::Builtin(resource)
    }
}

/// Built-in resources that are not served: their groups, versions and names.
pub type Hidden = HashSet<(&'static str, &'static str, &'static str)>;

/// Everything that is served at one moment: the built-in table and the established custom resources.
#[derive(Debug, Default)]
pub struct Snapshot {
    hidden: Arc<Hidden>,
    custom: Vec<Arc<Resource>>,
    by_path: HashMap<(&'static str, &'static str, &'static str), usize>,
}

impl Snapshot {
    #[must_use]
    pub fn new(custom: Vec<Arc<Resource>>) -> Self {
        let by_path = custom
            .iter()
            .enumerate()
            .map(|(i, r)| ((r.group, r.version, r.plural), i))
            .collect();
        Self {
            hidden: Arc::default(),
            custom,
            by_path,
        }
    }

    /// The same without some of the built-in resources.
    #[must_use]
    pub fn hiding(self, hidden: Arc<Hidden>) -> Self {
        Self { hidden, ..self }
    }

    fn shows(&self, resource: &Resource) -> bool {
        let path = (resource.group, resource.version, resource.plural);
        self.hidden.is_empty() || !self.hidden.contains(&path)
    }

    /// The resource at a path.
    #[must_use]
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Handle> {
        find(group, version, plural)
            .filter(|r| self.shows(r))
            .map(Handle::Builtin)
            .or_else(|| {
                let index = self.by_path.get(&(group, version, plural))?;
                Some(Handle::Custom(self.custom[*index].clone()))
            })
    }

    /// The resource of a kind.
    #[must_use]
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<Handle> {
        find_kind(group, version, kind)
            .filter(|r| self.shows(r))
            .map(Handle::Builtin)
            .or_else(|| {
                self.custom
                    .iter()
                    .find(|r| r.kind == kind && r.group == group && r.version == version)
                    .cloned()
                    .map(Handle::Custom)
            })
    }

    /// Every resource, the built-in ones first.
    pub fn all(&self) -> impl Iterator<Item = &Resource> {
        let builtin = builtin().iter().filter(|r| self.shows(r));
        builtin.chain(self.custom.iter().map(|r| &**r))
    }

    /// Whether a built-in resource of a group is served.
    #[must_use]
    pub fn has_builtin_group(&self, group: &str) -> bool {
        builtin().iter().any(|r| r.group == group && self.shows(r))
    }

    /// Handles of the custom ones.
    #[must_use]
    pub fn custom(&self) -> &[Arc<Resource>] {
        &self.custom
    }
}

/// The one copy of a name. Names of resources live as long as the program, so that every place can hold them without
/// counting; the same name costs its memory once, however often a definition comes and goes.
#[must_use]
pub fn intern(name: &str) -> &'static str {
    static NAMES: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name) {
        return known;
    }
    let kept: &'static str = Box::leak(name.into());
    names.insert(kept);
    kept
}

#[derive(Debug)]
pub struct Subresource {
    pub name: &'static str,
    /// Group and version when they differ from the parent's.
    pub group_version: Option<(&'static str, &'static str)>,
    pub kind: &'static str,
    pub verbs: Vec<&'static str>,
}

pub(crate) const ALL_VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

impl Resource {
    /// `v1` or `apps/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// `pods` or `deployments.apps`, as errors name it.
    #[must_use]
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Something of the core group that is stored and served to nobody.
    #[must_use]
    pub const fn unserved(plural: &'static str, kind: &'static str, storage: &'static str) -> Self {
        Self {
            group: "",
            version: "v1",
            plural,
            kind,
            namespaced: false,
            singular: "",
            short_names: Vec::new(),
            categories: Vec::new(),
            verbs: Vec::new(),
            subresources: Vec::new(),
            ty: None,
            storage,
            definition: None,
            life: Life {
                introduced: None,
                deprecated: None,
                removed: None,
                replacement: None,
            },
            gate: None,
            hub: None,
        }
    }

    /// Kinds that are answered but never stored (reviews).
    #[must_use]
    pub fn is_virtual(&self) -> bool {
        !self.verbs.contains(&"get")
    }

    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    #[must_use]
    pub fn supports(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// Whether the deletion of an object is answered with the object.
    #[must_use]
    pub fn returns_deleted(&self) -> bool {
        self.definition.is_none()
            && RETURNED
                .iter()
                .any(|(group, all)| *group == self.group && all.contains(&self.plural))
    }

    /// The version of a built-in resource that the server works in: the one that is preferred of all that there are.
    /// The others are converted from and to it.
    #[must_use]
    pub fn hub(&self) -> &Self {
        self.hub.map_or(self, |index| &builtin()[index])
    }

    /// The version that a built-in resource is written to the store in, so that servers of the minor version `compatible`
    /// read it too: the best that they know, unless upstream has said otherwise.
    #[must_use]
    pub fn written_as(&self, compatible: u32) -> &Self {
        let hub = self.hub();
        let said = WRITTEN_AS
            .iter()
            .find(|(group, plural, _)| (*group, *plural) == (hub.group, hub.plural));
        if let Some((group, plural, version)) = said {
            return find(group, version, plural).unwrap_or(hub);
        }
        let known = |r: &Self| r.life.introduced.is_none_or(|minor| minor <= compatible);
        if known(hub) {
            return hub;
        }
        let mut others: Vec<&'static Self> = builtin()
            .iter()
            .filter(|r| (r.group, r.plural) == (hub.group, hub.plural))
            .collect();
        others.sort_by(|a, b| compare_versions(a.version, b.version));
        others.into_iter().find(|r| known(r)).unwrap_or(hub)
    }

    /// What users are told of a built-in version that is on its way out in the minor version `current`.
    #[must_use]
    pub fn deprecation(&self, current: u32) -> Option<String> {
        let since = self.life.deprecated.filter(|minor| *minor <= current)?;
        let mut warning = format!(
            "{} {} is deprecated in v1.{since}+",
            self.api_version(),
            self.kind
        );
        if let Some(removed) = self.life.removed {
            let _ = write!(warning, ", unavailable in v1.{removed}+");
        }
        if let Some((group, version, kind)) = self.life.replacement {
            let _ = write!(warning, "; use {} {kind}", api_version(group, version));
        }
        Some(warning)
    }

    /// The universe that [`Resource::ty`] is a type of.
    #[must_use]
    pub fn schema(&self) -> &Schema {
        match &self.definition {
            Some(definition) => &definition.schema,
            None => Schema::builtin(),
        }
    }

    /// What a schema cannot say about the kind.
    #[must_use]
    pub fn strategy(&self) -> &dyn Strategy {
        match &self.definition {
            Some(definition) => &**definition,
            None => strategy::of(self.group, self.kind),
        }
    }
}

#[must_use]
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Resources whose deletion is answered with the object, not with a status, by their groups.
const RETURNED: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "persistentvolumeclaims",
            "persistentvolumes",
            "pods",
            "podtemplates",
            "resourcequotas",
            "serviceaccounts",
            "services",
        ],
    ),
    (
        "resource.k8s.io",
        &[
            "deviceclasses",
            "devicetaintrules",
            "resourceclaims",
            "resourceclaimtemplates",
            "resourcepoolstatusrequests",
            "resourceslices",
        ],
    ),
    (
        "storage.k8s.io",
        &[
            "csidrivers",
            "csinodes",
            "storageclasses",
            "volumeattachments",
            "volumeattributesclasses",
        ],
    ),
];

/// Resources that are written in another version than the best that the minor before knows: group, plural and version.
const WRITTEN_AS: [(&str, &str, &str); 3] = [
    (
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicies",
        "v1beta1",
    ),
    (
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicybindings",
        "v1beta1",
    ),
    ("resource.k8s.io", "devicetaintrules", "v1alpha3"),
];

/// Every built-in resource, in the table's order.
pub fn builtin() -> &'static [Resource] {
    static TABLE: OnceLock<Vec<Resource>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table: Vec<Resource> = include_str!("../schema/resources.txt")
            .lines()
            .filter(|l| !l.starts_with('#'))
            .map(parse)
            .collect();
        let hubs: Vec<Option<usize>> = table.iter().map(|r| hub_of(&table, r)).collect();
        for (resource, hub) in table.iter_mut().zip(hubs) {
            resource.hub = hub;
        }
        table
    })
}

/// Where the version is that the server works in, unless it is the resource itself.
fn hub_of(table: &[Resource], resource: &Resource) -> Option<usize> {
    let same = |other: &Resource| match resource.group {
        // Events are the core group's, whichever group serves them.
        "events.k8s.io" => other.group.is_empty() && other.plural == resource.plural,
        group => other.group == group && other.plural == resource.plural,
    };
    let (index, best) = table
        .iter()
        .enumerate()
        .filter(|(_, other)| same(other))
        .min_by(|(_, a), (_, b)| compare_versions(a.version, b.version))?;
    let itself = (best.group, best.version) == (resource.group, resource.version);
    (!itself).then_some(index)
}

/// The built-in resource at a path.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    type Path = (&'static str, &'static str, &'static str);
    static INDEX: LazyLock<HashMap<Path, &'static Resource>> = LazyLock::new(|| {
        builtin()
            .iter()
            .map(|r| ((r.group, r.version, r.plural), r))
            .collect()
    });
    INDEX.get(&(group, version, plural)).copied()
}

/// The built-in resource of a kind.
#[must_use]
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    builtin()
        .iter()
        .find(|r| r.kind == kind && r.group == group && r.version == version)
}

fn parse(line: &'static str) -> Resource {
    let mut words = line.split(' ');
    let mut next = || words.next().unwrap_or_default();
    let list = |word: &'static str| {
        if word == "-" {
            Vec::new()
        } else {
            word.split(',').collect()
        }
    };
    let group = match next() {
        "core" => "",
        group => group,
    };
    let (version, plural, kind) = (next(), next(), next());
    let namespaced = next() == "Namespaced";
    let (singular, short_names, categories) = (next(), list(next()), list(next()));
    let verbs = match next() {
        "*" => ALL_VERBS.to_vec(),
        verbs => list(verbs),
    };
    let life = parse_life(next());
    let gate = Some(next()).filter(|gate| *gate != "-");
    Resource {
        group,
        version,
        plural,
        kind,
        namespaced,
        singular,
        short_names,
        categories,
        verbs,
        subresources: words.map(parse_subresource).collect(),
        ty: type_of(group, version, kind),
        storage: storage(group, plural),
        life,
        gate,
        hub: None,
        definition: None,
    }
}

fn parse_life(word: &'static str) -> Life {
    let mut parts = word.split(',').map(|part| Some(part).filter(|p| *p != "-"));
    let mut next = || parts.next().flatten();
    let minor = |part: &str| part.strip_prefix("1.")?.parse().ok();
    Life {
        introduced: next().and_then(minor),
        deprecated: next().and_then(minor),
        removed: next().and_then(minor),
        replacement: next().and_then(|path| {
            let (group_version, kind) = path.rsplit_once('.')?;
            let (group, version) = group_version.split_once('/')?;
            Some((group, version, kind))
        }),
    }
}

fn parse_subresource(word: &'static str) -> Subresource {
    let (name, rest) = word.split_once('=').unwrap_or((word, ""));
    let (kind, verbs) = rest.split_once(':').unwrap_or((rest, ""));
    let (group_version, kind) = match kind.rsplit_once('.') {
        Some((gv, kind)) => (gv.split_once('/'), kind),
        None => (None, kind),
    };
    Subresource {
        name,
        group_version,
        kind,
        verbs: verbs.split(',').collect(),
    }
}

/// The schema type of a kind: OpenAPI names its package after the first label of the group.
#[must_use]
pub fn type_of(group: &str, version: &str, kind: &str) -> Option<TypeId> {
    let schema = Schema::builtin();
    let package = match group {
        "" => "io.k8s.api.core".to_owned(),
        "apiextensions.k8s.io" => {
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions".to_owned()
        }
        "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration".to_owned(),
        "internal.apiserver.k8s.io" => "io.k8s.api.apiserverinternal".to_owned(),
        _ => format!("io.k8s.api.{}", group.split('.').next().unwrap_or_default()),
    };
    schema
        .find(&format!("{package}.{version}.{kind}"))
        .or_else(|| schema.find(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")))
}

fn storage(group: &str, plural: &'static str) -> &'static str {
    match (group, plural) {
        ("", "services") => "services/specs",
        ("", "endpoints") => "services/endpoints",
        ("", "nodes") => "minions",
        ("", "replicationcontrollers") => "controllers",
        ("networking.k8s.io", "ingresses") => "ingress",
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            "apiextensions.k8s.io/customresourcedefinitions"
        }
        ("apiregistration.k8s.io", "apiservices") => "apiregistration.k8s.io/apiservices",
        _ => plural,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_the_well_known_facts() {
        let pods = find("", "v1", "pods").unwrap();
        assert_eq!(pods.short_names, ["po"]);
        assert!(pods.namespaced && pods.ty.is_some() && pods.supports("watch"));
        assert_eq!(
            pods.subresource("eviction").unwrap().group_version,
            Some(("policy", "v1"))
        );
        assert_eq!(find("", "v1", "nodes").unwrap().storage, "minions");
        assert_eq!(
            find("apps", "v1", "deployments").unwrap().group_resource(),
            "deployments.apps"
        );
        assert!(
            find("authorization.k8s.io", "v1", "subjectaccessreviews")
                .unwrap()
                .is_virtual()
        );
    }

    #[test]
    fn versions_are_ordered_as_clients_prefer_them() {
        let mut versions = [
            "v1alpha3", "zeta", "v1beta1", "v2", "v1", "v10", "v1beta2", "v",
        ];
        versions.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(
            versions,
            [
                "v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha3", "v", "zeta"
            ]
        );
        assert_eq!(Stage::of("v1beta1"), Some(Stage::Beta));
        assert_eq!(Stage::of("v1gamma1"), None);
    }

    #[test]
    fn one_version_is_worked_in_and_one_is_written() {
        let path = |r: &Resource| (r.group, r.version);
        let claims = find("resource.k8s.io", "v1beta1", "resourceclaims").unwrap();
        assert_eq!(path(claims.hub()), ("resource.k8s.io", "v1"));
        let events = find("events.k8s.io", "v1", "events").unwrap();
        assert_eq!(path(events.hub()), ("", "v1"));
        let scalers = find("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        assert_eq!(scalers.hub().version, "v2");
        // A server of 1.33 does not know v1 of claims.
        assert_eq!(claims.written_as(35).version, "v1");
        assert_eq!(claims.written_as(33).version, "v1beta2");
        assert_eq!(claims.written_as(32).version, "v1beta1");
        let rules = find("resource.k8s.io", "v1beta2", "devicetaintrules").unwrap();
        assert_eq!(rules.written_as(36).version, "v1alpha3");
    }

    #[test]
    fn deprecations_are_said_as_upstream_says_them() {
        let of = |group, version, plural| find(group, version, plural).unwrap().deprecation(36);
        assert_eq!(
            of("", "v1", "endpoints").unwrap(),
            "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"
        );
        assert_eq!(
            of("", "v1", "componentstatuses").unwrap(),
            "v1 ComponentStatus is deprecated in v1.19+"
        );
        assert_eq!(
            of("storage.k8s.io", "v1beta1", "volumeattributesclasses").unwrap(),
            "storage.k8s.io/v1beta1 VolumeAttributesClass is deprecated in v1.34+, unavailable in v1.37+; \
             use storage.k8s.io/v1 VolumeAttributesClass"
        );
        assert_eq!(
            of("certificates.k8s.io", "v1beta1", "clustertrustbundles"),
            None
        );
    }

    #[test]
    fn every_resource_has_a_schema() {
        for resource in builtin() {
            assert!(
                resource.ty.is_some(),
                "{} {}",
                resource.api_version(),
                resource.kind
            );
        }
    }
}

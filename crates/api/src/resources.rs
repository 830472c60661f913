//! The table of resources: what is served under which path, with which verbs. Discovery, routing and RBAC's notion of a
//! resource all read it. The built-in part is a constant; what CustomResourceDefinitions add is a [`Snapshot`] that changes.

use std::collections::{HashMap, HashSet};
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
    /// What a CustomResourceDefinition says about this version; `None` for built-in resources.
    pub definition: Option<Arc<Definition>>,
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

/// Every built-in resource, in the table's order.
pub fn builtin() -> &'static [Resource] {
    static TABLE: OnceLock<Vec<Resource>> = OnceLock::new();
    TABLE.get_or_init(|| {
        include_str!("../schema/resources.txt")
            .lines()
            .filter(|l| !l.starts_with('#'))
            .map(parse)
            .collect()
    })
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
        definition: None,
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

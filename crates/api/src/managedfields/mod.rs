//! Managed fields and server-side apply: who owns which field of an object, and merging what an applier wants.
//!
//! [`FieldManager::update`] keeps track of ownership for every other writing verb; [`FieldManager::apply`] merges a
//! configuration, refuses to take fields from others without `force`, and removes what its applier gave up.

mod compare;
mod entries;
mod merge;
mod reset;
mod scale;
mod served;
mod set;
mod shape;
mod validate;

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::error::{Cause, Error, Reason};
use crate::meta;
use crate::schema::{Schema, TypeId};

use compare::{Comparison, compare, to_set};
use entries::{Entry, Managed};
use shape::Shape;

pub use entries::{Manager, Operation, equal_but_for_times};
pub use reset::reset_fields;
pub use scale::{from_scale, to_scale};
pub use served::{Alone, Served};
pub use set::{PathElement, Set};
pub use shape::OBJECT_META;

/// The annotation in which `kubectl apply` keeps what it applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Owns what an object had before anybody applied to it, when ownership was not tracked until then.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// The versions in which a resource's objects can be seen.
pub trait Versions {
    /// The schema of an `apiVersion`; `None` when it is not served (any more). No type: objects have no schema.
    fn schema(&self, api_version: &str) -> Option<(&Schema, Option<TypeId>)>;

    /// An object in another version.
    fn convert<'v>(&self, object: &'v Value, from: &str, to: &str) -> Option<Cow<'v, Value>>;
}

/// Keeps the managed fields of a resource's objects, as one endpoint writes them.
pub struct FieldManager<'a> {
    pub versions: &'a dyn Versions,
    /// The version in which objects are handed to [`FieldManager::update`].
    pub stored: &'a str,
    /// The version of the request, and so of the fields that its manager owns.
    pub requested: &'a str,
    pub subresource: &'a str,
    /// Paths that this endpoint does not change, whatever it is sent; nobody comes to own them through it.
    pub reset: &'a [&'a [&'a str]],
    /// Now, as a `Time`.
    pub now: &'a str,
}

/// The members of `metadata` that the server sets, and what names the object.
const STRIPPED: [&[&str]; 12] = [
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:clusterName"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:resourceVersion"],
];

/// A path that somebody else owns.
struct Conflict {
    manager: Manager,
    path: String,
    keys: Vec<String>,
}

/// Why an apply did not work.
enum Refused {
    Conflicts(Vec<Conflict>),
    Error(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl FieldManager<'_> {
    /// Records in `new` what changed from `old` (null: it is being created) as `manager`'s doing.
    pub fn update(&self, old: &Value, new: &mut Value, manager: &str) {
        let base = self.base(old, new);
        let creating = meta::uid(old).is_empty();
        let managed = match base {
            // An object that nobody tracks stays untracked until it is applied.
            Base::Live(list) if list.is_null() && !creating => Value::Null,
            Base::Live(list) => {
                let comparisons = self.comparisons(self.stored, old, new);
                if comparisons.own().is_same() {
                    list
                } else {
                    match Managed::decode(&list, true) {
                        Ok(managed) => self.record(managed, comparisons, manager).encode(),
                        Err(_) => Value::Null,
                    }
                }
            }
            Base::Given(managed) if managed.is_empty() && !creating => Value::Null,
            Base::Given(managed) => {
                let comparisons = self.comparisons(self.stored, old, new);
                self.record(managed, comparisons, manager).encode()
            }
        };
        meta::set(new, "managedFields", managed);
    }

    /// The managed fields to start from: those that the request carries if they make sense, else the object's own.
    fn base(&self, old: &Value, new: &Value) -> Base {
        let (live, given) = (
            &old["metadata"]["managedFields"],
            &new["metadata"]["managedFields"],
        );
        if !self.subresource.is_empty() || given.is_null() || given == live {
            return Base::Live(live.clone());
        }
        if entries::is_reset(given) {
            return Base::Given(Managed::default());
        }
        match Managed::decode(given, false) {
            Ok(managed) if !managed.is_empty() => Base::Given(managed),
            _ => Base::Live(live.clone()),
        }
    }

    /// Compares two objects that are in the version `at`.
    fn comparisons<'v>(&'v self, at: &'v str, old: &'v Value, new: &'v Value) -> Comparisons<'v> {
        let mut comparisons = Comparisons {
            manager: self,
            old,
            new,
            at,
            by_version: BTreeMap::new(),
        };
        comparisons.load(self.requested);
        comparisons
    }

    /// Others lose what changed, the writer gets it.
    fn record(
        &self,
        mut managed: Managed,
        mut comparisons: Comparisons<'_>,
        manager: &str,
    ) -> Managed {
        managed.0.retain_mut(|entry| {
            let Some(changed) = comparisons.of(&entry.manager.api_version) else {
                return false;
            };
            entry.set = std::mem::take(&mut entry.set).difference(changed.touched());
            !entry.set.is_empty()
        });
        let own = comparisons.into_own();
        let set = own.modified.union(own.added).difference(stripped());
        if !set.is_empty() {
            let writer = self.writer(manager, Operation::Update);
            match managed.find_mut(&writer) {
                Some(entry) => {
                    entry.set = std::mem::take(&mut entry.set).union(set);
                    entry.time = Some(self.now.to_owned());
                }
                None => managed.0.push(Entry {
                    manager: writer,
                    time: Some(self.now.to_owned()),
                    set,
                }),
            }
        }
        managed.cap_update_managers();
        managed
    }

    fn writer(&self, name: &str, operation: Operation) -> Manager {
        Manager {
            name: if name.is_empty() { "unknown" } else { name }.to_owned(),
            operation,
            api_version: self.requested.to_owned(),
            subresource: self.subresource.to_owned(),
        }
    }

    fn shape(&self, api_version: &str) -> Option<Shape<'_>> {
        let (schema, ty) = self.versions.schema(api_version)?;
        Some(Shape::root(schema, ty))
    }

    fn without_reset(&self, mut set: Set) -> Set {
        for path in self.reset {
            let keys: Vec<String> = path.iter().map(|name| set::field_key(name)).collect();
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            set.remove_subtree(&keys);
        }
        set
    }

    /// Merges a configuration into the present object (null: there is none). All are in the requested version.
    ///
    /// # Errors
    /// 400 for a configuration of another kind or with managed fields, 409 with a cause per field for conflicts, and
    /// upstream's 500 for one that does not fit the schema.
    pub fn apply(
        &self,
        live: &Value,
        config: &Value,
        kind: &str,
        manager: &str,
        force: bool,
    ) -> Result<Value, Error> {
        let (api_version, of_kind) = (
            config["apiVersion"].as_str().unwrap_or_default(),
            config["kind"].as_str().unwrap_or_default(),
        );
        if api_version != self.requested || of_kind != kind {
            return Err(Error::bad_request(format!(
                "invalid object type: {}",
                group_version_kind(config)
            )));
        }
        let managed = Managed::decode(&live["metadata"]["managedFields"], true)
            .map_err(|why| unknown(format!("failed to decode managed fields: {why}")))?;
        let applied = match self.attempt(live, config, managed.clone(), manager, force) {
            Err(Refused::Conflicts(conflicts)) if manager == KUBECTL => {
                match self.allowed_by_last_applied(live) {
                    None => Err(Refused::Conflicts(conflicts)),
                    Some(allowed) => {
                        let left: Vec<Conflict> = conflicts
                            .into_iter()
                            .filter(|c| {
                                let keys: Vec<&str> = c.keys.iter().map(String::as_str).collect();
                                !allowed.contains(&keys)
                            })
                            .collect();
                        if left.is_empty() {
                            self.attempt(live, config, managed, manager, true)
                        } else {
                            Err(Refused::Conflicts(left))
                        }
                    }
                }
            }
            done => done,
        };
        let mut object = applied.map_err(|refused| match refused {
            Refused::Conflicts(conflicts) => conflict_error(conflicts),
            Refused::Error(error) => error,
        })?;
        if manager == KUBECTL
            && meta::annotation(&object, LAST_APPLIED).is_some_and(|text| !text.is_empty())
        {
            object["metadata"]["annotations"][LAST_APPLIED] = last_applied(config).into();
        }
        Ok(object)
    }

    fn attempt(
        &self,
        live: &Value,
        config: &Value,
        mut managed: Managed,
        manager: &str,
        force: bool,
    ) -> Result<Value, Refused> {
        if managed.is_empty() {
            let comparisons = self.comparisons(self.requested, &Value::Null, live);
            managed = self.record(managed, comparisons, BEFORE_FIRST_APPLY);
        }
        if !config["metadata"]["managedFields"].is_null() {
            return Err(Error::bad_request("metadata.managedFields must be nil").into());
        }
        let Some((schema, ty)) = self.versions.schema(self.requested) else {
            return Err(unknown(format!("no schema for {}", self.requested)).into());
        };
        let shape = Shape::root(schema, ty);
        if let Some(ty) = ty {
            validate::validate(schema, ty, config).map_err(|why| {
                unknown(format!(
                    "failed to create typed patch object ({}/{}; {}): {why}",
                    meta::namespace(config),
                    meta::name(config),
                    group_version_kind(config)
                ))
            })?;
        }
        self.reconcile(&mut managed);
        let mut before = live.clone();
        if before.is_null() {
            before = json!({});
        } else {
            meta::set(&mut before, "managedFields", Value::Null);
        }
        let merged = merge::merge(shape, &before, config);

        let writer = self.writer(manager, Operation::Apply);
        let last = managed.take(&writer);
        let wanted = self.without_reset(to_set(shape, config));
        let pruned = match &last {
            Some(last) if !last.set.is_empty() => self.prune(merged, &managed, &wanted, last)?,
            _ => merged,
        };
        let mut comparisons = self.comparisons(self.requested, &before, &pruned);
        if !force {
            let conflicts = conflicts(&managed, &mut comparisons)?;
            if !conflicts.is_empty() {
                return Err(Refused::Conflicts(conflicts));
            }
        }
        managed.0.retain_mut(|entry| {
            let Some(changed) = comparisons.of(&entry.manager.api_version) else {
                return false;
            };
            entry.set = std::mem::take(&mut entry.set).difference(changed.touched());
            !entry.set.is_empty()
        });
        let changes = before != pruned;
        let set = wanted.difference(stripped());
        if !set.is_empty() {
            let time = last.and_then(|last| last.time);
            managed.0.push(Entry {
                manager: writer,
                time: if changes {
                    Some(self.now.to_owned())
                } else {
                    time
                },
                set,
            });
        }
        drop(comparisons);
        let mut object = if changes { pruned } else { before };
        meta::set(&mut object, "managedFields", managed.encode());
        Ok(object)
    }

    /// Sets that were made under another schema.
    fn reconcile(&self, managed: &mut Managed) {
        for entry in &mut managed.0 {
            if let Some(shape) = self.shape(&entry.manager.api_version)
                && let Some(set) = merge::reconciled(shape, &entry.set)
            {
                entry.set = set;
            }
        }
    }

    /// Removes from the merged object what its applier applied last time and does not now, and nobody else owns.
    fn prune(
        &self,
        merged: Value,
        others: &Managed,
        wanted: &Set,
        last: &Entry,
    ) -> Result<Value, Error> {
        let version = last.manager.api_version.as_str();
        let convert = |object: &Value, from: &str, to: &str| {
            self.versions.convert(object, from, to).map(Cow::into_owned)
        };
        let (Some(at_last), Some(shape)) = (
            convert(&merged, self.requested, version),
            self.shape(version),
        ) else {
            return Ok(merged);
        };
        let given_up = merge::with_named_fields(shape, &last.set);
        let mut pruned = merge::remove(shape, &at_last, &given_up);
        let mut pruned_at = version.to_owned();

        // What others own, or this applier still wants, stays.
        let mut owned: BTreeMap<&str, Set> = BTreeMap::new();
        owned.insert(self.requested, wanted.clone());
        for entry in &others.0 {
            let set = owned.entry(&entry.manager.api_version).or_default();
            *set = std::mem::take(set).union(entry.set.clone());
        }
        let mut versions: Vec<&str> = owned.keys().copied().collect();
        versions.sort_by_key(|v| *v != version);
        for at in versions {
            let (Some(shape), Some(full), Some(cut)) = (
                self.shape(at),
                convert(&merged, self.requested, at),
                convert(&pruned, &pruned_at, at),
            ) else {
                continue;
            };
            let named = |set: &Set| merge::with_named_fields(shape, set);
            let kept = named(&to_set(shape, &cut)).union(named(&owned[at]));
            let gone = named(&to_set(shape, &full)).difference(&kept);
            pruned = merge::remove(shape, &full, &gone);
            at.clone_into(&mut pruned_at);
        }

        // What this applier never owned stays too.
        let Some(cut) = convert(&pruned, &pruned_at, version) else {
            return Ok(merged);
        };
        let named = |set: &Set| merge::with_named_fields(shape, set);
        let gone = named(&to_set(shape, &at_last))
            .difference(&named(&to_set(shape, &cut)))
            .intersection(&named(&last.set));
        let pruned = merge::remove(shape, &at_last, &gone);
        convert(&pruned, version, self.requested)
            .ok_or_else(|| unknown("failed to convert pruned object".to_owned()))
    }

    /// What `kubectl apply` applied on the client's side and nobody changed since: kubectl may take it over.
    fn allowed_by_last_applied(&self, live: &Value) -> Option<Set> {
        let text = meta::annotation(live, LAST_APPLIED).filter(|t| !t.is_empty())?;
        let last: Value = serde_json::from_str(text).ok()?;
        if last["apiVersion"] != self.requested {
            return None;
        }
        let shape = self.shape(self.requested)?;
        let found = compare(shape, &last, live);
        Some(
            to_set(shape, &last)
                .difference(&found.modified)
                .difference(&found.added)
                .difference(&found.removed),
        )
    }
}

const KUBECTL: &str = "kubectl";

enum Base {
    /// The object's own list.
    Live(Value),
    Given(Managed),
}

fn stripped() -> &'static Set {
    static SET: OnceLock<Set> = OnceLock::new();
    SET.get_or_init(|| {
        let mut set = Set::default();
        for path in STRIPPED {
            set.insert(path.iter().map(|key| Cow::Borrowed(*key)));
        }
        set
    })
}

/// What changed, in each version that some manager thinks in.
struct Comparisons<'a> {
    manager: &'a FieldManager<'a>,
    old: &'a Value,
    new: &'a Value,
    /// The version of `old` and `new`.
    at: &'a str,
    by_version: BTreeMap<String, Option<Changed>>,
}

struct Changed {
    found: Comparison,
    touched: OnceCell<Set>,
}

impl Changed {
    /// Every path that is not as it was.
    fn touched(&self) -> &Set {
        self.touched.get_or_init(|| {
            let Comparison {
                removed,
                modified,
                added,
            } = &self.found;
            let union = removed.clone().union(modified.clone());
            union.union(added.clone())
        })
    }
}

impl std::ops::Deref for Changed {
    type Target = Comparison;

    fn deref(&self) -> &Comparison {
        &self.found
    }
}

impl Comparisons<'_> {
    fn load(&mut self, version: &str) {
        if self.by_version.contains_key(version) {
            return;
        }
        let compared = self.compare(version);
        self.by_version.insert(version.to_owned(), compared);
    }

    fn compare(&self, version: &str) -> Option<Changed> {
        let manager = self.manager;
        let shape = manager.shape(version)?;
        let old = manager.versions.convert(self.old, self.at, version)?;
        let new = manager.versions.convert(self.new, self.at, version)?;
        let empty = json!({});
        let object = |value: &'_ Value| value.is_object();
        let found = compare(
            shape,
            if object(&old) { &old } else { &empty },
            if object(&new) { &new } else { &empty },
        );
        let found = Comparison {
            removed: manager.without_reset(found.removed),
            modified: manager.without_reset(found.modified),
            added: manager.without_reset(found.added),
        };
        Some(Changed {
            found,
            touched: OnceCell::new(),
        })
    }

    /// What changed in a version; `None` when it is not served.
    fn of(&mut self, version: &str) -> Option<&Changed> {
        self.load(version);
        self.by_version.get(version)?.as_ref()
    }

    /// As [`Comparisons::own`].
    fn into_own(mut self) -> Comparison {
        let own = self.by_version.remove(self.manager.requested).flatten();
        own.map_or_else(Comparison::default, |changed| changed.found)
    }

    /// What changed in the requested version.
    fn own(&self) -> &Comparison {
        static NOTHING: OnceLock<Comparison> = OnceLock::new();
        match self.by_version.get(self.manager.requested) {
            Some(Some(changed)) => &changed.found,
            _ => NOTHING.get_or_init(Comparison::default),
        }
    }
}

fn conflicts(others: &Managed, comparisons: &mut Comparisons<'_>) -> Result<Vec<Conflict>, Error> {
    let mut conflicts = Vec::new();
    for entry in &others.0 {
        let Some(changed) = comparisons.of(&entry.manager.api_version) else {
            continue;
        };
        let taken = changed.modified.clone().union(changed.added.clone());
        let paths = entry.set.intersection(&taken).paths().map_err(unknown)?;
        for path in paths {
            conflicts.push(Conflict {
                manager: entry.manager.clone(),
                path: path.iter().map(ToString::to_string).collect(),
                keys: path.iter().map(PathElement::to_key).collect(),
            });
        }
    }
    let key = |m: &Manager| {
        (
            m.name.clone(),
            m.operation,
            m.api_version.clone(),
            m.subresource.clone(),
        )
    };
    conflicts.sort_by_key(|c| key(&c.manager));
    Ok(conflicts)
}

fn conflict_error(conflicts: Vec<Conflict>) -> Error {
    let message = match conflicts.as_slice() {
        [one] => format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager.describe(),
            one.path
        ),
        many => {
            let mut lines = Vec::new();
            let mut last = None;
            for conflict in many {
                if last.is_none_or(|l: &Manager| !l.is(&conflict.manager)) {
                    lines.push(format!("conflicts with {}:", conflict.manager.describe()));
                    last = Some(&conflict.manager);
                }
                lines.push(format!("- {}", conflict.path));
            }
            format!(
                "Apply failed with {} conflicts: {}",
                many.len(),
                lines.join("\n")
            )
        }
    };
    let mut error = Error::new(Reason::Conflict, message);
    error.causes = conflicts
        .into_iter()
        .map(|conflict| Cause {
            reason: "FieldManagerConflict",
            message: format!("conflict with {}", conflict.manager.describe()),
            field: conflict.path,
        })
        .collect();
    error
}

/// An error that upstream does not classify.
fn unknown(message: String) -> Error {
    Error::new(Reason::Unknown, message)
}

/// `apps/v1, Kind=Deployment`
fn group_version_kind(object: &Value) -> String {
    let (version, kind) = (
        object["apiVersion"].as_str().unwrap_or_default(),
        object["kind"].as_str().unwrap_or_default(),
    );
    let slash = if version.contains('/') { "" } else { "/" };
    format!("{slash}{version}, Kind={kind}")
}

/// What `kubectl apply` would leave in its annotation for a configuration.
fn last_applied(config: &Value) -> String {
    let mut config = config.clone();
    if let Some(annotations) = config["metadata"]
        .get_mut("annotations")
        .and_then(Value::as_object_mut)
    {
        annotations.remove(LAST_APPLIED);
        if annotations.is_empty() {
            meta::metadata(&mut config).remove("annotations");
        }
    }
    format!("{config}\n")
}

#[cfg(test)]
mod tests;

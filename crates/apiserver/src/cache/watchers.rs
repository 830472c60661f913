//! Who hears of which changes. A watcher is kept with others that look at the same part of a resource, so that a change is
//! shown to those alone who may want to see it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use fluyt_api::resources::Resource;
use fluyt_api::selector::{FieldSelector, LabelSelector};
use parking_lot::Mutex;

use super::queue::{Events, Sender, queue};
use super::{Change, Entry, WatchEvent};

/// Events a watcher may have waiting; one that falls further behind is ended and must list again.
pub(super) const QUEUE: usize = 1024;

/// Which objects a list or watch is about.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub namespace: String,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

/// The narrowest part of a resource, of those that are easy to find, that has all objects of a filter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    Everything,
    Namespace(Box<str>),
    /// By key.
    Object(Box<str>),
    /// By the value of the indexed field.
    Field(Box<str>),
}

/// How the objects of a resource can be found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub indexed: Option<&'static str>,
    pub namespaced: bool,
}

impl Layout {
    pub(super) fn of(resource: &Resource) -> Self {
        Self {
            indexed: resource.strategy().indexed_field(),
            namespaced: resource.namespaced,
        }
    }

    /// The value of the indexed field; empty when there is none.
    pub(super) fn value<'e>(&self, entry: &'e Entry) -> &'e str {
        self.indexed.map_or("", |field| entry.field(field))
    }

    /// Where watchers of a changed object may be.
    fn scopes(self, event: &WatchEvent) -> impl Iterator<Item = Scope> {
        let entry = &event.entry;
        let namespace = Some(entry.namespace()).filter(|namespace| !namespace.is_empty());
        let now = self.value(entry);
        let before = event.previous.as_deref().map_or("", |p| self.value(p));
        let values = [now, if before == now { "" } else { before }].into_iter();
        let values = values.filter(|value| !value.is_empty());
        [Scope::Everything, Scope::Object((&*entry.key).into())]
            .into_iter()
            .chain(namespace.map(|namespace| Scope::Namespace(namespace.into())))
            .chain(values.map(|value| Scope::Field(value.into())))
    }
}

impl Filter {
    #[must_use]
    pub fn matches(&self, entry: &Entry) -> bool {
        (self.namespace.is_empty() || entry.namespace() == self.namespace)
            && (self.labels.is_everything()
                || self.labels.matches_with(|key| entry.labels.get(key)))
            && (self.fields.is_everything() || self.fields.matches(|f| entry.field(f).into()))
    }

    /// Everything in its namespace, if it has one.
    #[must_use]
    pub fn selects_all(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Where to look for its objects.
    pub(super) fn scope(&self, layout: Layout) -> Scope {
        let required = |field: &str| self.fields.exact(field).filter(|value| !value.is_empty());
        let namespace = match self.namespace.as_str() {
            "" => required("metadata.namespace"),
            namespace => Some(namespace),
        };
        match (required("metadata.name"), namespace) {
            (Some(name), _) if !layout.namespaced => return Scope::Object(name.into()),
            (Some(name), Some(namespace)) => {
                return Scope::Object(format!("{namespace}/{name}").into());
            }
            _ => {}
        }
        if let Some(value) = layout.indexed.and_then(required) {
            return Scope::Field(value.into());
        }
        if let Some(namespace) = namespace {
            return Scope::Namespace(namespace.into());
        }
        Scope::Everything
    }

    /// How a watcher with this filter sees a change, if at all.
    fn sees(&self, event: &WatchEvent) -> Option<Change> {
        let before = event.previous.as_ref().is_some_and(|p| self.matches(p));
        let now = !event.is_deletion() && self.matches(&event.entry);
        match (before, now) {
            (false, true) => Some(Change::Added),
            (true, true) => Some(Change::Modified),
            (true, false) => Some(Change::Deleted),
            (false, false) => None,
        }
    }
}

struct Watcher {
    id: u64,
    filter: Filter,
    /// It sees all that is in its scope.
    unfiltered: bool,
    sender: Sender,
}

impl Watcher {
    /// Whether it goes on: one that does not keep up does not.
    fn tell(&self, event: &Arc<WatchEvent>) -> bool {
        let seen = if self.unfiltered {
            Some(event.change())
        } else {
            self.filter.sees(event)
        };
        seen.is_none_or(|change| self.sender.send((change, event.clone())))
    }
}

/// All watchers of a resource.
#[derive(Default)]
pub(super) struct Watchers(Arc<Mutex<Registry>>);

#[derive(Default)]
struct Registry {
    by_scope: HashMap<Scope, Vec<Watcher>>,
    count: usize,
    next_id: u64,
}

/// A running watch; dropping it ends it.
pub struct Subscription {
    /// They end when the watcher fell too far behind.
    pub events: Events,
    id: u64,
    scope: Scope,
    registry: Arc<Mutex<Registry>>,
}

impl Watchers {
    /// A new one, which hears of what was before `backlog` first.
    pub(super) fn attach<'e>(
        &self,
        filter: Filter,
        layout: Layout,
        backlog: impl Iterator<Item = &'e Arc<WatchEvent>>,
    ) -> Subscription {
        let missed: VecDeque<_> = backlog
            .filter_map(|event| Some((filter.sees(event)?, event.clone())))
            .collect();
        let most = QUEUE.max(missed.len());
        let (sender, events) = queue(missed, most);
        let mut registry = self.0.lock();
        registry.next_id += 1;
        registry.count += 1;
        let (id, scope) = (registry.next_id, filter.scope(layout));
        let narrow = matches!(scope, Scope::Object(_) | Scope::Field(_));
        let watcher = Watcher {
            id,
            unfiltered: !narrow && filter.selects_all(),
            filter,
            sender,
        };
        registry
            .by_scope
            .entry(scope.clone())
            .or_default()
            .push(watcher);
        Subscription {
            events,
            id,
            scope,
            registry: self.0.clone(),
        }
    }

    /// Tells all whom a change may concern.
    pub(super) fn tell(&self, event: &Arc<WatchEvent>, layout: Layout) {
        let mut registry = self.0.lock();
        if registry.count == 0 {
            return;
        }
        for scope in layout.scopes(event) {
            registry.keep(&scope, |watcher| watcher.tell(event));
        }
    }

    /// Ends all of them: what they missed cannot be told.
    pub(super) fn end(&self) {
        let mut registry = self.0.lock();
        registry.by_scope.clear();
        registry.count = 0;
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().count
    }
}

impl Registry {
    /// Lets watchers of a scope go on as long as they want to.
    fn keep(&mut self, scope: &Scope, goes_on: impl Fn(&Watcher) -> bool) {
        let Some(watchers) = self.by_scope.get_mut(scope) else {
            return;
        };
        let before = watchers.len();
        watchers.retain(goes_on);
        self.count -= before - watchers.len();
        if watchers.is_empty() {
            self.by_scope.remove(scope);
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let id = self.id;
        self.registry
            .lock()
            .keep(&self.scope, |watcher| watcher.id != id);
    }
}

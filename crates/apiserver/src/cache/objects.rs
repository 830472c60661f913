//! The objects of a resource, in order: cheap to copy, and found by key, by namespace and by an indexed field.

use std::sync::Arc;

use fluyt_api::resources::Resource;
use imbl::OrdMap;

use super::watchers::{Layout, Scope};
use super::{Entry, Filter};

/// All objects at one moment.
#[derive(Clone)]
pub struct Objects {
    pub entries: OrdMap<Arc<str>, Arc<Entry>>,
    /// Those that have the indexed field, by its value and their key.
    by_field: OrdMap<(Arc<str>, Arc<str>), Arc<Entry>>,
    /// How many there are in each namespace that has any.
    in_namespace: OrdMap<Box<str>, usize>,
    layout: Layout,
}

impl Objects {
    /// Some or all of a resource's objects.
    pub fn of(resource: &Resource, entries: impl IntoIterator<Item = Arc<Entry>>) -> Self {
        let mut objects = Self {
            entries: OrdMap::new(),
            by_field: OrdMap::new(),
            in_namespace: OrdMap::new(),
            layout: Layout::of(resource),
        };
        for entry in entries {
            objects.insert(entry);
        }
        objects
    }

    pub(super) fn insert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        let place = self.place(&entry);
        let previous = self.entries.insert(entry.key.clone(), entry.clone());
        let before = previous.as_ref().and_then(|previous| self.place(previous));
        if let Some(before) = before.filter(|before| Some(before) != place.as_ref()) {
            self.by_field.remove(&before);
        }
        if previous.is_none() {
            match self.in_namespace.get_mut(entry.namespace()) {
                Some(count) => *count += 1,
                None => drop(self.in_namespace.insert(entry.namespace().into(), 1)),
            }
        }
        if let Some(place) = place {
            self.by_field.insert(place, entry);
        }
        previous
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<Arc<Entry>> {
        let removed = self.entries.remove(key)?;
        if let Some(place) = self.place(&removed) {
            self.by_field.remove(&place);
        }
        let namespace = removed.namespace();
        match self.in_namespace.get_mut(namespace) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.in_namespace.remove(namespace)),
        }
        Some(removed)
    }

    /// How many objects there are in a namespace, or in all of them.
    pub fn count(&self, namespace: &str) -> usize {
        match namespace {
            "" => self.entries.len(),
            namespace => self
                .in_namespace
                .get(namespace)
                .copied()
                .unwrap_or_default(),
        }
    }

    fn place(&self, entry: &Entry) -> Option<(Arc<str>, Arc<str>)> {
        let value = self.layout.value(entry);
        (!value.is_empty()).then(|| (value.into(), entry.key.clone()))
    }

    /// Those that a filter lets through, in the order of their keys, from one key on.
    pub fn select<'a>(
        &'a self,
        filter: &'a Filter,
        start: &'a str,
    ) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a> {
        let matching = move |entry: &&Arc<Entry>| filter.matches(entry);
        match filter.scope(self.layout) {
            Scope::Everything => Box::new(self.from(start, "").filter(matching)),
            Scope::Namespace(namespace) => {
                let prefix = format!("{namespace}/");
                Box::new(self.from(start, &prefix).filter(matching))
            }
            Scope::Object(key) => {
                let found = self.entries.get(&*key).filter(move |_| *start <= *key);
                Box::new(found.into_iter().filter(matching))
            }
            Scope::Field(value) => Box::new(
                self.with_field(&value, start)
                    .filter(move |entry| filter.matches(entry)),
            ),
        }
    }

    /// Those whose indexed field has a value.
    pub fn with_field<'a>(
        &'a self,
        value: &str,
        start: &str,
    ) -> impl Iterator<Item = &'a Arc<Entry>> + use<'a> {
        let value: Arc<str> = value.into();
        self.by_field
            .range((value.clone(), Arc::from(start))..)
            .take_while(move |((v, _), _)| *v == value)
            .map(|(_, entry)| entry)
    }

    /// Those whose keys begin with a prefix, from one key on.
    fn from<'a>(
        &'a self,
        start: &str,
        prefix: &str,
    ) -> impl Iterator<Item = &'a Arc<Entry>> + use<'a> {
        let prefix = prefix.to_owned();
        self.entries
            .range(Arc::from(start.max(&prefix))..)
            .map(|(_, entry)| entry)
            .take_while(move |entry| entry.key.starts_with(&prefix))
    }
}

#[cfg(test)]
mod tests {
    use fluyt_api::resources;
    use fluyt_api::selector::FieldSelector;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::Change;
    use super::*;

    fn pod(namespace: u8, name: u8, node: u8) -> Arc<Entry> {
        let pods = resources::find("", "v1", "pods").unwrap();
        let node = if node == 0 {
            String::new()
        } else {
            format!("n{node}")
        };
        let object = json!({"metadata": {"name": format!("p{name}"), "namespace": format!("d{namespace}")}, "spec": {"nodeName": node}});
        let key = format!("d{namespace}/p{name}");
        Arc::new(Entry::new(pods, &key, 1, Change::Added, &object))
    }

    proptest! {
        /// Whatever the way to them, objects are found as if one looked at all.
        #[test]
        fn the_narrow_way_finds_the_same(
            steps in prop::collection::vec((0..3_u8, 0..4_u8, prop::option::of(0..3_u8)), 0..60),
            start in prop::option::of((0..3_u8, 0..4_u8)),
            namespace in prop::option::of(0..3_u8),
            name in prop::option::of(0..4_u8),
            node in prop::option::of(0..3_u8),
        ) {
            let pods = resources::find("", "v1", "pods").unwrap();
            let mut objects = Objects::of(pods, []);
            for (namespace, name, node) in steps {
                match node {
                    Some(node) => drop(objects.insert(pod(namespace, name, node))),
                    None => drop(objects.remove(&format!("d{namespace}/p{name}"))),
                }
            }
            let mut terms = Vec::new();
            terms.extend(name.map(|n| format!("metadata.name=p{n}")));
            terms.extend(node.map(|n| if n == 0 { "spec.nodeName=".into() } else { format!("spec.nodeName=n{n}") }));
            let filter = Filter {
                namespace: namespace.map(|n| format!("d{n}")).unwrap_or_default(),
                fields: FieldSelector::parse(&terms.join(",")).unwrap(),
                ..Filter::default()
            };
            let start = start.map(|(ns, n)| format!("d{ns}/p{n}")).unwrap_or_default();
            let found: Vec<_> = objects.select(&filter, &start).map(|e| e.key.clone()).collect();
            let all = objects.entries.values().filter(|e| *e.key >= *start && filter.matches(e));
            let all: Vec<_> = all.map(|e| e.key.clone()).collect();
            prop_assert_eq!(found, all);
            for namespace in (0..3).map(|n| format!("d{n}")) {
                let there = objects.entries.values().filter(|e| e.namespace() == namespace);
                prop_assert_eq!(objects.count(&namespace), there.count());
            }
            prop_assert_eq!(objects.count(""), objects.entries.len());
        }
    }
}

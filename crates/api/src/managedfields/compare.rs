//! What changed between two objects, field by field.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::Set;
use super::shape::{Parts, Path, Shape};

/// The paths in which two objects differ. No path is in more than one of them.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    pub removed: Set,
    pub modified: Set,
    pub added: Set,
}

impl Comparison {
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }
}

/// Compares two objects of a shape.
#[must_use]
pub fn compare(shape: Shape<'_>, old: &Value, new: &Value) -> Comparison {
    let mut walk = Walk {
        path: Path::default(),
        found: Comparison::default(),
    };
    walk.values(shape, Some(old), Some(new));
    walk.found
}

/// Every path that an object states.
#[must_use]
pub fn to_set(shape: Shape<'_>, object: &Value) -> Set {
    let mut walk = Collect {
        path: Path::default(),
        set: Set::default(),
    };
    walk.value(shape, object);
    walk.set
}

struct Walk<'v> {
    path: Path<'v>,
    found: Comparison,
}

fn fields(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn length(value: Option<&Value>) -> usize {
    value.and_then(Value::as_array).map_or(0, Vec::len)
}

impl<'v> Walk<'v> {
    /// Compares what is at a path; at most one side is absent.
    fn values(&mut self, shape: Shape<'v>, old: Option<&'v Value>, new: Option<&'v Value>) {
        if old == new || self.path.is_managed_fields() {
            return;
        }
        let parts = |side: Option<&Value>| side.map(|v| shape.parts(v));
        match (parts(old), parts(new)) {
            (Some(before), Some(now)) if before != now => {
                // Of two different natures: each side is accounted for by its own.
                self.by_parts(before, shape, old, new);
                self.by_parts(now, shape, old, new);
            }
            (Some(parts), _) | (None, Some(parts)) => self.by_parts(parts, shape, old, new),
            (None, None) => {}
        }
    }

    fn by_parts(
        &mut self,
        parts: Parts,
        shape: Shape<'v>,
        old: Option<&'v Value>,
        new: Option<&'v Value>,
    ) {
        match parts {
            Parts::None => return self.leaf(old, new),
            Parts::Map => {
                let count = |side| fields(side).map_or(0, Map::len);
                if count(old) == 0 && count(new) == 0 && shape.always().next().is_none() {
                    return self.leaf(old, new);
                }
                self.maps(shape, old, new);
            }
            Parts::List => {
                if length(old) == 0 && length(new) == 0 {
                    return self.leaf(old, new);
                }
                self.lists(shape, old, new);
            }
        }
        self.whole(old, new);
    }

    /// A value that is there on one side only is itself a path.
    fn whole(&mut self, old: Option<&Value>, new: Option<&Value>) {
        match (old, new) {
            (None, _) => self.found.added.insert(self.path.keys()),
            (_, None) => self.found.removed.insert(self.path.keys()),
            _ => {}
        }
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>) {
        match (old, new) {
            (Some(old), Some(new)) if old != new => self.found.modified.insert(self.path.keys()),
            (Some(_), Some(_)) => {}
            _ => self.whole(old, new),
        }
    }

    fn maps(&mut self, shape: Shape<'v>, old: Option<&'v Value>, new: Option<&'v Value>) {
        let (before, now) = (fields(old), fields(new));
        // What is always there is there when what holds it is.
        let get = |side: Option<&'v Value>, map: Option<&'v Map<String, Value>>, name: &str| {
            map.and_then(|m| m.get(name))
                .or_else(|| side.is_some().then(|| shape.implied(name)).flatten())
        };
        let mut step = |name: &'v str| {
            let (was, is) = (get(old, before, name), get(new, now, name));
            if was != is {
                self.path.field(name);
                self.values(shape.field(name), was, is);
                self.path.pop();
            }
        };
        let keys = |map: Option<&'v Map<String, Value>>| map.into_iter().flat_map(Map::keys);
        let has = |map: Option<&Map<String, Value>>, name: &str| {
            map.is_some_and(|m| m.contains_key(name))
        };
        for name in keys(now) {
            step(name);
        }
        for name in keys(before).filter(|name| !has(now, name)) {
            step(name);
        }
        if old.is_some() != new.is_some() {
            for name in shape.always().filter(|n| !has(now, n) && !has(before, n)) {
                step(name);
            }
        }
    }

    fn lists(&mut self, shape: Shape<'v>, old: Option<&'v Value>, new: Option<&'v Value>) {
        /// Items of both sides under one key.
        type Pair<'v> = (Vec<&'v Value>, Vec<&'v Value>);
        let mut pairs: BTreeMap<String, Pair<'v>> = BTreeMap::new();
        for (key, item) in shape.items(old) {
            pairs.entry(key).or_default().0.push(item);
        }
        for (key, item) in shape.items(new) {
            pairs.entry(key).or_default().1.push(item);
        }
        for (key, (old, new)) in pairs {
            self.path.item(key);
            // Duplicates are compared as a whole, and replace or are replaced by a single item.
            match (old.len() > 1, new.len() > 1) {
                (false, false) => {
                    self.values(shape.item(), old.first().copied(), new.first().copied());
                }
                (true, true) if old != new => self.found.modified.insert(self.path.keys()),
                (true, true) => {}
                (true, false) => {
                    if let Some(new) = new.first() {
                        self.values(shape.item(), None, Some(new));
                    }
                    self.found.removed.insert(self.path.keys());
                }
                (false, true) => {
                    if let Some(old) = old.first() {
                        self.values(shape.item(), Some(old), None);
                    }
                    self.found.added.insert(self.path.keys());
                }
            }
            self.path.pop();
        }
    }
}

struct Collect<'v> {
    path: Path<'v>,
    set: Set,
}

impl<'v> Collect<'v> {
    fn value(&mut self, shape: Shape<'v>, value: &'v Value) {
        match shape.parts(value) {
            Parts::None => self.set.insert(self.path.keys()),
            Parts::Map => {
                for (name, child) in fields(Some(value)).into_iter().flatten() {
                    self.path.field(name);
                    if !self.path.is_managed_fields() {
                        self.value(shape.field(name), child);
                        let empty = child.is_null() || child.as_object().is_some_and(Map::is_empty);
                        // A key of a map is a member whatever is below it; so is what has nothing below it.
                        if empty || !shape.names(name) {
                            self.set.insert(self.path.keys());
                        }
                    }
                    self.path.pop();
                }
            }
            Parts::List => {
                let mut items: BTreeMap<String, Option<&Value>> = BTreeMap::new();
                for (key, item) in shape.items(Some(value)) {
                    items
                        .entry(key)
                        .and_modify(|present| *present = None)
                        .or_insert(Some(item));
                }
                for (key, item) in items {
                    self.path.item(key);
                    // Of duplicates only their being there is owned.
                    if let Some(item) = item {
                        self.value(shape.item(), item);
                    }
                    self.set.insert(self.path.keys());
                    self.path.pop();
                }
            }
        }
    }
}

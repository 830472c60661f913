//! Merging an applied configuration into an object, and removing what nobody wants any more.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::set::{Below, Set, field_key};
use super::shape::{Parts, Shape};

/// Merges `applied` into `live`. Neither may have items without identity; `applied` no duplicates either.
#[must_use]
pub fn merge(shape: Shape<'_>, live: &Value, applied: &Value) -> Value {
    values(shape, Some(live), Some(applied)).unwrap_or(Value::Null)
}

fn values(shape: Shape<'_>, live: Option<&Value>, applied: Option<&Value>) -> Option<Value> {
    let parts = match (live, applied) {
        (_, Some(value)) | (Some(value), None) => shape.parts(value),
        (None, None) => return None,
    };
    let empty = |side: Option<&Value>| match side {
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        _ => true,
    };
    if parts == Parts::None || (empty(live) && empty(applied)) {
        return applied.or(live).cloned();
    }
    if parts == Parts::Map {
        maps(shape, live, applied)
    } else {
        lists(shape, live, applied)
    }
}

fn maps(shape: Shape<'_>, live: Option<&Value>, applied: Option<&Value>) -> Option<Value> {
    let (live, applied) = (
        live.and_then(Value::as_object),
        applied.and_then(Value::as_object),
    );
    let mut out = Map::new();
    for (name, value) in live.into_iter().flatten() {
        let other = applied.and_then(|m| m.get(name));
        if let Some(merged) = values(shape.field(name), Some(value), other) {
            out.insert(name.clone(), merged);
        }
    }
    for (name, value) in applied.into_iter().flatten() {
        if live.is_none_or(|m| !m.contains_key(name))
            && let Some(merged) = values(shape.field(name), None, Some(value))
        {
            out.insert(name.clone(), merged);
        }
    }
    (!out.is_empty()).then_some(Value::Object(out))
}

/// The order of the applied items wins, and live items that are not applied stay behind what they followed. Duplicates in
/// the live list stay as they are until they are applied, which replaces them all by one.
fn lists(shape: Shape<'_>, live: Option<&Value>, applied: Option<&Value>) -> Option<Value> {
    let (live, applied) = (shape.items(live), shape.items(applied));
    let mut by_key: BTreeMap<&str, Option<&Value>> = BTreeMap::new();
    for (key, item) in &live {
        by_key
            .entry(key)
            .and_modify(|present| *present = None)
            .or_insert(Some(item));
    }
    let wanted: BTreeSet<&str> = applied.iter().map(|(key, _)| &**key).collect();
    let mut out = Vec::with_capacity(live.len().max(applied.len()));
    let mut take = |live: Option<&Value>, applied: Option<&Value>| {
        out.extend(values(shape.item(), live, applied));
    };
    // The applied items that are live as well, in the order in which they are to appear.
    let mut shared = applied
        .iter()
        .map(|(key, _)| &**key)
        .filter(|key| by_key.contains_key(key));
    let mut next_shared = shared.next();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let (mut l, mut a) = (0, 0);
    while l < live.len() || a < applied.len() {
        if let (Some((here, _)), Some((want, item))) = (live.get(l), applied.get(a)) {
            if here == want {
                done.insert(here);
                take(by_key.get(&**here).copied().flatten(), Some(item));
                (l, a) = (l + 1, a + 1);
                next_shared = shared.next();
                continue;
            }
            if wanted.contains(&**here) && next_shared.is_some_and(|next| next != here) {
                // Applied too, but its turn is another.
                l += 1;
                continue;
            }
        }
        if let Some((here, item)) = live.get(l) {
            if !wanted.contains(&**here) {
                take(Some(item), None);
                l += 1;
                continue;
            }
            if done.contains(&**here) {
                l += 1;
            }
        }
        if let Some((want, item)) = applied.get(a) {
            done.insert(want);
            take(by_key.get(&**want).copied().flatten(), Some(item));
            a += 1;
            if next_shared == Some(want) {
                next_shared = shared.next();
            }
        }
    }
    (!out.is_empty()).then_some(Value::Array(out))
}

/// The object without the members of a set. Objects and lists that something was removed from stay, even if empty.
#[must_use]
pub fn remove(shape: Shape<'_>, object: &Value, gone: &Set) -> Value {
    without(shape, object, gone.below())
}

fn without(shape: Shape<'_>, value: &Value, gone: Below<'_>) -> Value {
    match (shape.parts(value), value) {
        (Parts::Map, Value::Object(map)) => {
            let mut out = Map::new();
            for (name, child) in map {
                match gone.child(&field_key(name)) {
                    None => {
                        out.insert(name.clone(), child.clone());
                    }
                    Some(below) if below.is_member => {}
                    Some(below) => {
                        out.insert(name.clone(), without(shape.field(name), child, below));
                    }
                }
            }
            Value::Object(out)
        }
        (Parts::List, Value::Array(items)) => items
            .iter()
            .filter_map(|item| {
                let identity = shape.identity(item).ok();
                match identity.and_then(|i| gone.child(&i.to_key())) {
                    None => Some(item.clone()),
                    Some(below) if below.is_member => None,
                    Some(below) => Some(without(shape.item(), item, below)),
                }
            })
            .collect(),
        (_, value) => value.clone(),
    }
}

/// The set, and of the fields that lie on the way to its members those that the schema names: removing is about them too.
#[must_use]
pub fn with_named_fields(shape: Shape<'_>, set: &Set) -> Set {
    fn walk<'k>(
        shape: Shape<'_>,
        at: Below<'k>,
        path: &mut Vec<&'k str>,
        found: &mut Vec<Vec<&'k str>>,
    ) {
        for key in at.keys() {
            let Some(child) = at.child(key) else { continue };
            path.push(key);
            let named = key.strip_prefix("f:").is_some_and(|n| shape.names(n));
            if named && !child.is_member {
                found.push(path.clone());
            }
            walk(shape.below(key), child, path, found);
            path.pop();
        }
    }
    let mut found = Vec::new();
    walk(shape, set.below(), &mut Vec::new(), &mut found);
    let mut full = set.clone();
    for path in found {
        full.insert(path.into_iter().map(Into::into));
    }
    full
}

/// A set as of a schema under which some fields have become owned as a whole: paths below those are about the whole now.
#[must_use]
pub fn reconciled(shape: Shape<'_>, set: &Set) -> Option<Set> {
    fn walk<'k>(
        shape: Shape<'_>,
        at: Below<'k>,
        path: &mut Vec<&'k str>,
        found: &mut Vec<Vec<&'k str>>,
    ) {
        for key in at.keys() {
            let Some(child) = at.child(key).filter(Below::has_children) else {
                continue;
            };
            path.push(key);
            let shape = shape.below(key);
            if shape.is_leaf() {
                found.push(path.clone());
            } else {
                walk(shape, child, path, found);
            }
            path.pop();
        }
    }
    let mut found = Vec::new();
    walk(shape, set.below(), &mut Vec::new(), &mut found);
    if found.is_empty() {
        return None;
    }
    let mut set = set.clone();
    for path in found {
        set.remove_subtree(&path);
        set.insert(path.into_iter().map(Into::into));
    }
    Some(set)
}

//! Sets of field paths in the form in which `fieldsV1` stores them: a trie whose keys are path elements, where `{}` or a
//! `.` says that the path itself belongs to the set. Working on the stored form saves parsing it at every write.

use std::cmp::Ordering;
use std::fmt::Write as _;

use serde_json::{Map, Value};

/// A set of field paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set(Map<String, Value>);

/// The key that says that the path so far is itself a member.
const SELF: &str = ".";

/// One step of a path.
#[derive(Clone, Debug, PartialEq)]
pub enum PathElement {
    /// `f:` a field of an object or a key of a map.
    Field(String),
    /// `k:` an item of a list, by the values of its key fields, in order of their names.
    Key(Vec<(String, Value)>),
    /// `v:` an item of a set.
    Value(Value),
    /// `i:` an item of a list by its place.
    Index(i64),
}

impl PathElement {
    /// Parses a key of `fieldsV1`; `None` for a kind of element that nobody knows, which upstream skips.
    ///
    /// # Errors
    /// When the key is malformed.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let Some((kind, rest)) = text.split_at_checked(2) else {
            return Err("key must be 2 characters long:".into());
        };
        if !kind.ends_with(':') {
            return Err(format!("missing colon: {text}"));
        }
        let json = |text: &str| serde_json::from_str(text).map_err(|e| e.to_string());
        Ok(Some(match kind {
            "f:" => Self::Field(rest.to_owned()),
            "v:" => Self::Value(json(rest)?),
            "i:" => Self::Index(rest.parse().map_err(|_| format!("invalid index: {rest}"))?),
            "k:" => match json(rest)? {
                Value::Object(map) => Self::Key(map.into_iter().collect()),
                _ => return Err(format!("invalid key: {rest}")),
            },
            _ => return Ok(None),
        }))
    }

    /// The element as a key of `fieldsV1`.
    #[must_use]
    pub fn to_key(&self) -> String {
        match self {
            Self::Field(name) => field_key(name),
            Self::Key(fields) => {
                let mut key = String::from("k:{");
                for (i, (name, value)) in fields.iter().enumerate() {
                    if i > 0 {
                        key.push(',');
                    }
                    write_json(&mut key, &Value::String(name.clone()));
                    key.push(':');
                    write_json(&mut key, value);
                }
                key.push('}');
                key
            }
            Self::Value(value) => {
                let mut key = String::from("v:");
                write_json(&mut key, value);
                key
            }
            Self::Index(at) => format!("i:{at}"),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }

    /// Upstream's order: fields, keys, values, indices; numbers as numbers.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Value(a), Self::Value(b)) => compare_scalars(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => {
                for ((name, value), (other_name, other_value)) in a.iter().zip(b) {
                    let order = name
                        .cmp(other_name)
                        .then_with(|| compare_scalars(value, other_value));
                    if order != Ordering::Equal {
                        return order;
                    }
                }
                a.len().cmp(&b.len())
            }
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

/// `.spec.containers[name="a"].image`, one element of it.
impl std::fmt::Display for PathElement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(fields) => {
                f.write_char('[')?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    let comma = if i > 0 { "," } else { "" };
                    write!(f, "{comma}{name}={value}")?;
                }
                f.write_char(']')
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(at) => write!(f, "[{at}]"),
        }
    }
}

/// The key of a named field.
#[must_use]
pub fn field_key(name: &str) -> String {
    let mut key = String::with_capacity(name.len() + 2);
    key.push_str("f:");
    key.push_str(name);
    key
}

/// JSON as Go writes it: characters that HTML minds are escaped.
fn write_json(text: &mut String, value: &Value) {
    for c in value.to_string().chars() {
        match c {
            '<' => text.push_str("\\u003c"),
            '>' => text.push_str("\\u003e"),
            '&' => text.push_str("\\u0026"),
            c => text.push(c),
        }
    }
}

fn compare_scalars(a: &Value, b: &Value) -> Ordering {
    let rank = |v: &Value| match v {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    };
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a
                .as_f64()
                .partial_cmp(&b.as_f64())
                .unwrap_or(Ordering::Equal),
        },
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        _ => rank(a).cmp(&rank(b)),
    }
}

/// Whether a trie node is itself a member.
fn is_member(node: &Map<String, Value>) -> bool {
    node.is_empty() || node.contains_key(SELF)
}

fn empty() -> Value {
    Value::Object(Map::new())
}

/// Puts a node's children and membership back together; `None` when nothing is left of it.
fn rebuilt(member: bool, mut children: Map<String, Value>) -> Option<Map<String, Value>> {
    match (member, children.is_empty()) {
        (false, true) => return None,
        (true, false) => {
            children.insert(SELF.to_owned(), empty());
        }
        _ => {}
    }
    Some(children)
}

impl Set {
    /// Takes over a stored `fieldsV1`, bringing it into canonical form.
    ///
    /// # Errors
    /// When it is not an object of objects, or a key is malformed.
    pub fn parse(fields: &Value) -> Result<Self, String> {
        fn canonical(node: &Value) -> Result<Map<String, Value>, String> {
            let Value::Object(map) = node else {
                return Err(format!("expected an object, got {node}"));
            };
            let mut out = Map::new();
            for (key, child) in map {
                if key == SELF {
                    out.insert(key.clone(), empty());
                } else if let Some(element) = PathElement::parse(key)? {
                    out.insert(element.to_key(), Value::Object(canonical(child)?));
                }
            }
            if out.len() == 1 && out.contains_key(SELF) {
                out.clear();
            }
            Ok(out)
        }
        let mut map = match fields {
            Value::Null => Map::new(),
            fields => canonical(fields)?,
        };
        // Nobody owns the object as a whole.
        map.remove(SELF);
        Ok(Self(map))
    }

    /// Takes over what this server wrote.
    #[must_use]
    pub fn trusted(fields: Value) -> Self {
        match fields {
            Value::Object(map) => Self(map),
            _ => Self::default(),
        }
    }

    #[must_use]
    pub fn into_json(self) -> Value {
        Value::Object(self.0)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the path made of `keys`; the empty path is not tracked.
    pub fn insert<'a>(&mut self, keys: impl IntoIterator<Item = std::borrow::Cow<'a, str>>) {
        let mut node = &mut self.0;
        // Whether `node` is a member so far because it has no children.
        let mut bare_member = false;
        let mut at_root = true;
        for key in keys {
            if bare_member {
                node.insert(SELF.to_owned(), empty());
            }
            let present = node.contains_key(&*key);
            let child = node.entry(key.into_owned()).or_insert_with(empty);
            let Value::Object(child) = child else { return };
            bare_member = present && child.is_empty();
            at_root = false;
            node = child;
        }
        if !at_root && !node.is_empty() {
            node.insert(SELF.to_owned(), empty());
        }
    }

    #[must_use]
    pub fn below(&self) -> Below<'_> {
        Below::root(&self.0)
    }

    /// Whether the path made of `keys` is a member.
    #[must_use]
    pub fn contains(&self, keys: &[&str]) -> bool {
        let mut at = self.below();
        for key in keys {
            match at.child(key) {
                Some(child) => at = child,
                None => return false,
            }
        }
        at.is_member
    }

    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        fn add(into: &mut Map<String, Value>, from: Map<String, Value>) {
            for (key, node) in from {
                if key == SELF {
                    continue;
                }
                match (into.get_mut(&key), node) {
                    (Some(Value::Object(present)), Value::Object(node)) => {
                        let member = is_member(present) || is_member(&node);
                        add(present, node);
                        if member && !present.is_empty() {
                            present.insert(SELF.to_owned(), empty());
                        }
                    }
                    (_, node) => {
                        into.insert(key, node);
                    }
                }
            }
        }
        if self.is_empty() {
            return other;
        }
        add(&mut self.0, other.0);
        self
    }

    /// The paths of this set that are not in `other`.
    #[must_use]
    pub fn difference(mut self, other: &Self) -> Self {
        fn subtract(from: &mut Map<String, Value>, other: &Map<String, Value>) {
            for (key, removed) in other {
                if key == SELF {
                    continue;
                }
                let (Some(Value::Object(node)), Value::Object(removed)) =
                    (from.get_mut(key), removed)
                else {
                    continue;
                };
                let member = is_member(node) && !is_member(removed);
                let mut node = std::mem::take(node);
                node.remove(SELF);
                subtract(&mut node, removed);
                match rebuilt(member, node) {
                    Some(node) => from.insert(key.clone(), Value::Object(node)),
                    None => from.remove(key),
                };
            }
        }
        subtract(&mut self.0, &other.0);
        self
    }

    /// The paths that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        fn both(a: &Map<String, Value>, b: &Map<String, Value>) -> Map<String, Value> {
            let mut out = Map::new();
            for (key, node) in a {
                if key == SELF {
                    continue;
                }
                let (Value::Object(node), Some(Value::Object(other))) = (node, b.get(key)) else {
                    continue;
                };
                let member = is_member(node) && is_member(other);
                if let Some(node) = rebuilt(member, both(node, other)) {
                    out.insert(key.clone(), Value::Object(node));
                }
            }
            out
        }
        Self(both(&self.0, &other.0))
    }

    /// Drops a path and everything below it.
    pub fn remove_subtree(&mut self, keys: &[&str]) {
        fn cut(node: &mut Map<String, Value>, keys: &[&str]) {
            let Some((first, rest)) = keys.split_first() else {
                return;
            };
            if rest.is_empty() {
                node.remove(*first);
                return;
            }
            let Some(Value::Object(child)) = node.get_mut(*first) else {
                return;
            };
            if child.is_empty() {
                return;
            }
            cut(child, rest);
            if child.is_empty() {
                node.remove(*first);
            }
        }
        cut(&mut self.0, keys);
    }

    /// Every member, those of a level before those below it, as upstream walks a set.
    ///
    /// # Errors
    /// When a key is malformed.
    pub fn paths(&self) -> Result<Vec<Vec<PathElement>>, String> {
        fn walk(
            node: &Map<String, Value>,
            prefix: &mut Vec<PathElement>,
            out: &mut Vec<Vec<PathElement>>,
        ) -> Result<(), String> {
            let mut elements = sorted(node)?;
            for (element, child) in &elements {
                if is_member(child) {
                    let mut path = prefix.clone();
                    path.push(element.clone());
                    out.push(path);
                }
            }
            for (element, child) in elements.drain(..) {
                prefix.push(element);
                walk(child, prefix, out)?;
                prefix.pop();
            }
            Ok(())
        }
        let mut out = Vec::new();
        walk(&self.0, &mut Vec::new(), &mut out)?;
        Ok(out)
    }

    /// The `fieldsV1` text with its keys in upstream's order.
    #[must_use]
    pub fn to_text(fields: &Value) -> String {
        fn write(map: &Map<String, Value>, text: &mut String) {
            text.push('{');
            if let Some(Value::Object(own)) = map.get(SELF) {
                put(SELF, own, text);
            }
            let children = map.iter().filter(|(key, _)| *key != SELF);
            // Names are in order as they are; only keys and values of items are not.
            let names_only = children.clone().all(|(key, _)| key.starts_with("f:"));
            match (!names_only).then(|| sorted(map)) {
                Some(Ok(children)) => {
                    for (element, child) in children {
                        put(&element.to_key(), child, text);
                    }
                }
                _ => {
                    for (key, child) in children {
                        if let Value::Object(child) = child {
                            put(key, child, text);
                        }
                    }
                }
            }
            text.push('}');
        }
        fn put(key: &str, node: &Map<String, Value>, text: &mut String) {
            if !text.ends_with('{') {
                text.push(',');
            }
            if key.contains(['"', '\\']) || key.chars().any(char::is_control) {
                let _ = write!(text, "{}:", Value::from(key));
            } else {
                text.push('"');
                text.push_str(key);
                text.push_str("\":");
            }
            write(node, text);
        }
        let mut text = String::new();
        match fields {
            Value::Object(map) => write(map, &mut text),
            _ => text.push_str("{}"),
        }
        text
    }
}

/// Path elements and what is below them.
type Children<'a> = Vec<(PathElement, &'a Map<String, Value>)>;

/// The children of a node in upstream's order.
fn sorted(node: &Map<String, Value>) -> Result<Children<'_>, String> {
    let mut elements = Vec::with_capacity(node.len());
    for (key, child) in node {
        if key == SELF {
            continue;
        }
        if let (Some(element), Value::Object(child)) = (PathElement::parse(key)?, child) {
            elements.push((element, child));
        }
    }
    elements.sort_by(|(a, _), (b, _)| a.compare(b));
    Ok(elements)
}

/// What a set has at and below a path.
#[derive(Clone, Copy, Debug)]
pub struct Below<'a> {
    map: &'a Map<String, Value>,
    /// The path itself is a member.
    pub is_member: bool,
}

impl<'a> Below<'a> {
    fn root(map: &'a Map<String, Value>) -> Self {
        Self {
            map,
            is_member: false,
        }
    }

    #[must_use]
    pub fn child(&self, key: &str) -> Option<Below<'a>> {
        match self.map.get(key) {
            Some(Value::Object(map)) if key != SELF => Some(Below {
                map,
                is_member: is_member(map),
            }),
            _ => None,
        }
    }

    /// Whether paths below this one are members.
    #[must_use]
    pub fn has_children(&self) -> bool {
        self.map.keys().any(|key| key != SELF)
    }

    /// Keys of the elements below.
    pub fn keys(&self) -> impl Iterator<Item = &'a String> + use<'a> {
        self.map.keys().filter(|key| *key != SELF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    fn of(paths: &BTreeSet<Vec<&'static str>>) -> Set {
        let mut set = Set::default();
        for path in paths {
            set.insert(path.iter().map(|k| (*k).into()));
        }
        set
    }

    fn members(set: &Set) -> BTreeSet<Vec<String>> {
        let paths = set.paths().unwrap();
        let keys = |path: Vec<PathElement>| path.iter().map(PathElement::to_key).collect();
        paths.into_iter().map(keys).collect()
    }

    fn owned(paths: BTreeSet<Vec<&'static str>>) -> BTreeSet<Vec<String>> {
        let own = |path: Vec<&str>| path.into_iter().map(Into::into).collect();
        paths.into_iter().map(own).collect()
    }

    fn paths() -> impl Strategy<Value = BTreeSet<Vec<&'static str>>> {
        let key = prop::sample::select(vec!["f:a", "f:b", "k:{\"n\":1}", "v:\"x\""]);
        prop::collection::btree_set(prop::collection::vec(key, 1..4), 0..8)
    }

    proptest! {
        #[test]
        fn operations_are_those_of_sets(a in paths(), b in paths()) {
            let (x, y) = (of(&a), of(&b));
            prop_assert_eq!(members(&x), owned(a.clone()));
            let union: BTreeSet<_> = a.union(&b).cloned().collect();
            prop_assert_eq!(members(&x.clone().union(y.clone())), owned(union.clone()));
            prop_assert_eq!(&x.clone().union(y.clone()), &of(&union));
            let difference: BTreeSet<_> = a.difference(&b).cloned().collect();
            prop_assert_eq!(&x.clone().difference(&y), &of(&difference));
            let both: BTreeSet<_> = a.intersection(&b).cloned().collect();
            prop_assert_eq!(&x.intersection(&y), &of(&both));
            let text = Set::to_text(&x.clone().into_json());
            prop_assert_eq!(Set::parse(&serde_json::from_str(&text).unwrap()).unwrap(), x);
        }
    }

    #[test]
    fn keys_are_ordered_as_upstream_does() {
        let mut set = Set::default();
        for port in [443, 80, 8080] {
            let element = PathElement::Key(vec![("port".into(), port.into())]);
            set.insert(["f:ports".into(), element.to_key().into()]);
        }
        set.insert(["f:ports".into()]);
        assert_eq!(
            Set::to_text(&set.into_json()),
            r#"{"f:ports":{".":{},"k:{\"port\":80}":{},"k:{\"port\":443}":{},"k:{\"port\":8080}":{}}}"#
        );
    }

    #[test]
    fn malformed_sets_are_refused_and_unknown_elements_skipped() {
        assert!(Set::parse(&json!({"f": {}})).is_err());
        assert!(Set::parse(&json!({"fx": {}})).is_err());
        assert!(Set::parse(&json!({"k:1": {}})).is_err());
        assert!(Set::parse(&json!({"f:a": 1})).is_err());
        assert!(Set::parse(&json!({"z:a": {}})).unwrap().is_empty());
        let reordered = Set::parse(&json!({"k:{\"b\":1, \"a\":2}": {".": {}}})).unwrap();
        assert!(reordered.contains(&["k:{\"a\":2,\"b\":1}"]));
    }

    #[test]
    fn paths_read_as_upstream_writes_them() {
        let key = PathElement::parse("k:{\"containerPort\":80,\"protocol\":\"TCP\"}");
        assert_eq!(
            key.unwrap().unwrap().to_string(),
            "[containerPort=80,protocol=\"TCP\"]"
        );
        let value = PathElement::parse("v:\"a/x\"").unwrap().unwrap();
        assert_eq!(value.to_string(), "[=\"a/x\"]");
    }
}

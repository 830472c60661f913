//! A value and its place in an object.

use std::fmt;

use serde_json::{Map, Value};

/// A value, absent or not, with the way that leads to it. The way is a chain of borrowed steps: it costs nothing until it
/// is written out, as `spec.containers[0].name`.
#[derive(Clone, Copy)]
pub struct At<'v, 'p> {
    value: &'v Value,
    parent: Option<&'p At<'v, 'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Field(&'p str),
    Index(usize),
    Key(&'p str),
}

impl<'v, 'p> At<'v, 'p> {
    /// The object itself, whose place is empty.
    #[must_use]
    pub fn root(value: &'v Value) -> Self {
        Self::named(value, "")
    }

    /// A value whose place is called `name`, which may be a path of several steps.
    #[must_use]
    pub fn named(value: &'v Value, name: &'p str) -> Self {
        Self {
            value,
            parent: None,
            step: Step::Field(name),
        }
    }

    fn child(&'p self, value: &'v Value, step: Step<'p>) -> Self {
        At {
            value,
            parent: Some(self),
            step,
        }
    }

    #[must_use]
    pub fn field(&'p self, name: &'p str) -> At<'v, 'p> {
        self.child(&self.value[name], Step::Field(name))
    }

    /// A field that errors call by another name.
    #[must_use]
    pub fn field_as(&'p self, name: &'p str, called: &'p str) -> At<'v, 'p> {
        self.child(&self.value[name], Step::Field(called))
    }

    /// A place below this one with a value from elsewhere.
    #[must_use]
    pub fn place(&'p self, name: &'p str, value: &'v Value) -> At<'v, 'p> {
        self.child(value, Step::Field(name))
    }

    #[must_use]
    pub fn index(&'p self, index: usize) -> At<'v, 'p> {
        self.child(&self.value[index], Step::Index(index))
    }

    #[must_use]
    pub fn key(&'p self, key: &'p str) -> At<'v, 'p> {
        self.child(&self.value[key], Step::Key(key))
    }

    /// The items of a list; nothing when it is absent.
    pub fn items(&'p self) -> impl DoubleEndedIterator<Item = At<'v, 'p>> {
        self.list()
            .iter()
            .enumerate()
            .map(|(i, value)| self.child(value, Step::Index(i)))
    }

    /// The entries of a map; nothing when it is absent.
    pub fn entries(&'p self) -> impl Iterator<Item = (&'v str, At<'v, 'p>)>
    where
        'v: 'p,
    {
        self.map()
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), self.child(value, Step::Key(key))))
    }

    #[must_use]
    pub fn value(&self) -> &'v Value {
        self.value
    }

    #[must_use]
    pub fn get(&self, field: &str) -> &'v Value {
        &self.value[field]
    }

    /// The string, empty when it is absent.
    #[must_use]
    pub fn str(&self) -> &'v str {
        self.value.as_str().unwrap_or_default()
    }

    /// The string at `field`, empty when it is absent.
    #[must_use]
    pub fn text(&self, field: &str) -> &'v str {
        self.value[field].as_str().unwrap_or_default()
    }

    #[must_use]
    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    #[must_use]
    pub fn is_true(&self) -> bool {
        *self.value == Value::Bool(true)
    }

    /// Whether there is a value.
    #[must_use]
    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    #[must_use]
    pub fn list(&self) -> &'v [Value] {
        self.value.as_array().map_or(&[], Vec::as_slice)
    }

    #[must_use]
    pub fn map(&self) -> Option<&'v Map<String, Value>> {
        self.value.as_object()
    }

    /// Whether a list, map or string is absent or has nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self.value {
            Value::Array(items) => items.is_empty(),
            Value::Object(entries) => entries.is_empty(),
            Value::String(text) => text.is_empty(),
            other => other.is_null(),
        }
    }
}

impl fmt::Display for At<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Field("") => Ok(()),
            Step::Field(name) => {
                let separate = self.parent.is_some_and(|p| !p.is_nameless());
                write!(f, "{}{name}", if separate { "." } else { "" })
            }
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

impl At<'_, '_> {
    fn is_nameless(&self) -> bool {
        matches!(self.step, Step::Field("")) && self.parent.is_none_or(At::is_nameless)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_place_is_written_as_upstream_writes_it() {
        let object = json!({"spec": {"ports": [{"port": 1}], "limits": {"cpu": "1"}}});
        let root = At::root(&object);
        let spec = root.field("spec");
        let ports = spec.field("ports");
        let port = ports.items().next().unwrap();
        assert_eq!(port.field("port").to_string(), "spec.ports[0].port");
        assert_eq!(port.field("port").int(), Some(1));
        let limits = spec.field("limits");
        let (name, cpu) = limits.entries().next().unwrap();
        assert_eq!(
            (name, cpu.to_string().as_str()),
            ("cpu", "spec.limits[cpu]")
        );
        assert_eq!(root.to_string(), "");
        assert!(!spec.field("x").field("y").is_set());
    }
}

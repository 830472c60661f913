//! Whether an applied configuration fits the schema: it must name known fields only, have values of the right sort, and lists
//! whose items can be told apart.

use std::collections::BTreeSet;

use serde_json::Value;

use super::shape::Shape;
use crate::schema::{Field, Kind, ListType, Schema, TypeId};

/// Checks a configuration against its type.
///
/// # Errors
/// Every problem with its path, in upstream's words.
pub fn validate(schema: &Schema, ty: TypeId, object: &Value) -> Result<(), String> {
    let mut walk = Walk {
        schema,
        path: String::new(),
        problems: Vec::new(),
    };
    walk.object(ty, object);
    match walk.problems.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("errors:\n  {}", many.join("\n  "))),
    }
}

struct Walk<'s> {
    schema: &'s Schema,
    path: String,
    problems: Vec<String>,
}

impl Walk<'_> {
    fn problem(&mut self, what: impl std::fmt::Display) {
        self.problems.push(if self.path.is_empty() {
            what.to_string()
        } else {
            format!("{}: {what}", self.path)
        });
    }

    fn step(&mut self, element: impl std::fmt::Display, inside: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(&element.to_string());
        inside(self);
        self.path.truncate(length);
    }

    fn object(&mut self, ty: TypeId, value: &Value) {
        let ty = self.schema.get(ty);
        let map = match value {
            Value::Object(map) => map,
            Value::Null => return,
            other => return self.problem(format!("expected map, got {}", go(other))),
        };
        for (name, value) in map {
            match (ty.field(name), &ty.rest) {
                (Some(field), _) => self.step(format!(".{name}"), |walk| walk.field(field, value)),
                (None, Some(rest)) => self.step(format!(".{name}"), |walk| walk.value(rest, value)),
                (None, None) => {
                    // As upstream, which looks no further in this object.
                    return self.step(format!(".{name}"), |walk| {
                        walk.problem("field not declared in schema");
                    });
                }
            }
        }
    }

    fn field(&mut self, field: &Field, value: &Value) {
        match (&field.kind, value) {
            (Kind::List(item), Value::Array(items)) if field.list != ListType::Atomic => {
                self.items(Shape::list(self.schema, item, &field.list), item, items);
            }
            _ => self.value(&field.kind, value),
        }
    }

    /// The items of a list in which each has an identity.
    fn items(&mut self, shape: Shape<'_>, kind: &Kind, items: &[Value]) {
        let mut seen = BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            let identity = match shape.identity(item) {
                Ok(identity) => identity,
                Err(why) => return self.problem(format!("element {index}: {why}")),
            };
            if !seen.insert(identity.to_key()) {
                self.problem(format!("duplicate entries for key {identity}"));
            }
            self.step(identity, |walk| walk.value(kind, item));
        }
    }

    fn value(&mut self, kind: &Kind, value: &Value) {
        if value.is_null() {
            return;
        }
        match (kind, value) {
            (Kind::Object(ty), value) => self.object(*ty, value),
            (Kind::List(item), Value::Array(items)) => {
                for (index, value) in items.iter().enumerate() {
                    self.step(format!("[{index}]"), |walk| walk.value(item, value));
                }
            }
            (Kind::Map(item), Value::Object(map)) => {
                for (name, value) in map {
                    self.step(format!(".{name}"), |walk| walk.value(item, value));
                }
            }
            (Kind::List(_), other) => self.problem(format!("expected list, got {}", go(other))),
            (Kind::Map(_), other) => self.problem(format!("expected map, got {}", go(other))),
            (Kind::String | Kind::Bytes, other) if !other.is_string() => {
                self.problem(format!("expected string, got {}", go_syntax(other)));
            }
            (Kind::Bool, other) if !other.is_boolean() => {
                self.problem(format!("expected boolean, got {}", go(other)));
            }
            (Kind::Int32 | Kind::Int64 | Kind::Double, other) if !other.is_number() => {
                self.problem(format!(
                    "expected numeric (int or float), got {}",
                    go_type(other)
                ));
            }
            (
                Kind::Quantity | Kind::IntOrString | Kind::Time | Kind::MicroTime,
                other @ (Value::Array(_) | Value::Object(_)),
            ) => self.problem(format!("expected any scalar, got {}", go(other))),
            _ => {}
        }
    }
}

/// A value as Go prints what holds it, with `%v`.
fn go(value: &Value) -> String {
    fn plain(value: &Value) -> String {
        match value {
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(plain).collect();
                format!("[{}]", items.join(" "))
            }
            Value::Object(map) => {
                let fields: Vec<String> = map
                    .iter()
                    .map(|(k, v)| format!("{k}:{}", plain(v)))
                    .collect();
                format!("map[{}]", fields.join(" "))
            }
            Value::String(text) => text.clone(),
            Value::Null => "<nil>".to_owned(),
            other => other.to_string(),
        }
    }
    format!("&{{{}}}", plain(value))
}

/// The same with `%#v`.
fn go_syntax(value: &Value) -> String {
    fn plain(value: &Value) -> String {
        match value {
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(plain).collect();
                format!("[]interface {{}}{{{}}}", items.join(", "))
            }
            Value::Object(map) => {
                let fields: Vec<String> = map
                    .iter()
                    .map(|(k, v)| format!("{k:?}:{}", plain(v)))
                    .collect();
                format!("map[string]interface {{}}{{{}}}", fields.join(", "))
            }
            Value::Null => "interface {}(nil)".to_owned(),
            other => other.to_string(),
        }
    }
    format!("&value.valueUnstructured{{Value:{}}}", plain(value))
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
        _ => "<nil>",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: Value) -> String {
        let schema = Schema::builtin();
        let ty = schema.find("io.k8s.api.core.v1.Pod").unwrap();
        validate(schema, ty, &json!({"spec": spec})).unwrap_err()
    }

    #[test]
    fn problems_are_told_as_upstream_does() {
        assert_eq!(
            pod(json!({"containerz": []})),
            ".spec.containerz: field not declared in schema"
        );
        assert_eq!(
            pod(json!({"containers": [{"name": "a"}, {"name": "a"}]})),
            ".spec.containers: duplicate entries for key [name=\"a\"]"
        );
        assert_eq!(
            pod(
                json!({"containers": [{"name": 1, "ports": []}], "topologySpreadConstraints": ["x"]})
            ),
            "errors:\n  .spec.containers[name=1].name: expected string, got &value.valueUnstructured{Value:1}\n  .spec.topologySpreadConstraints: element 0: associative list with keys may not have non-map elements"
        );
        assert_eq!(
            pod(json!({"containers": [{"name": "a", "stdin": "x"}], "priority": "x"})),
            "errors:\n  .spec.containers[name=\"a\"].stdin: expected boolean, got &{x}\n  .spec.priority: expected numeric (int or float), got string"
        );
    }
}

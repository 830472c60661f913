//! Empty lists and maps that a request gives. They mean what none means and are not kept, but a message that shows a value
//! shows the one that was given.

use std::collections::HashMap;

use fluyt_api::resources::Resource;
use fluyt_api::schema::{Kind, Schema};
use fluyt_api::validation::Errors;
use serde_json::Value;

/// Where an object has empty lists and maps, and which.
#[derive(Debug, Default)]
pub(super) struct Empties(Vec<(String, &'static str)>);

/// A step on the way to a value.
#[derive(Clone, Copy)]
enum Step<'v> {
    Field(&'v str),
    Index(usize),
    Key(&'v str),
}

impl Empties {
    pub(super) fn of(resource: &Resource, object: &Value) -> Self {
        let mut found = Self::default();
        if let Some(ty) = resource.ty {
            let mut path = Vec::new();
            found.collect(resource.schema(), &Kind::Object(ty), object, &mut path);
        }
        found
    }

    fn collect<'v>(
        &mut self,
        schema: &Schema,
        kind: &Kind,
        value: &'v Value,
        path: &mut Vec<Step<'v>>,
    ) {
        let mut visit = |kind: &Kind, step: Step<'v>, value: &'v Value| {
            path.push(step);
            self.collect(schema, kind, value, path);
            path.pop();
        };
        match (kind, value) {
            (Kind::Object(ty), Value::Object(entries)) => {
                let ty = schema.get(*ty);
                for (name, value) in entries {
                    if let Some(field) = ty.field(name) {
                        visit(&field.kind, Step::Field(name), value);
                    }
                }
            }
            (Kind::List(_), Value::Array(items)) if items.is_empty() => {
                self.0.push((place(path), "[]"));
            }
            (Kind::Map(_), Value::Object(entries)) if entries.is_empty() => {
                self.0.push((place(path), "{}"));
            }
            (Kind::List(item), Value::Array(items)) => {
                for (i, value) in items.iter().enumerate() {
                    visit(item, Step::Index(i), value);
                }
            }
            (Kind::Map(item), Value::Object(entries)) => {
                for (key, value) in entries {
                    visit(item, Step::Key(key), value);
                }
            }
            _ => {}
        }
    }

    /// Puts what was given where messages show nothing.
    pub(super) fn tell(&self, errors: &mut Errors) {
        let given: HashMap<&str, _> = self
            .0
            .iter()
            .map(|(place, given)| (&**place, given))
            .collect();
        for cause in &mut errors.0 {
            let Some(given) = given.get(&*cause.field) else {
                continue;
            };
            for kind in ["Invalid value: ", "Unsupported value: "] {
                let rest = cause.message.strip_prefix(kind);
                if let Some(rest) = rest.and_then(|r| r.strip_prefix("null")) {
                    cause.message = format!("{kind}{given}{rest}");
                    break;
                }
            }
        }
    }
}

/// A path as errors write it.
fn place(path: &[Step<'_>]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for step in path {
        let _ = match step {
            Step::Field(name) if text.is_empty() => write!(text, "{name}"),
            Step::Field(name) => write!(text, ".{name}"),
            Step::Index(index) => write!(text, "[{index}]"),
            Step::Key(key) => write!(text, "[{key}]"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_show_what_was_given() {
        let pods = fluyt_api::resources::find("", "v1", "pods").unwrap();
        let object = json!({"spec": {"containers": [{"env": []}], "nodeSelector": {}, "tolerations": [{}], "dnsConfig": {}}});
        let given = Empties::of(pods, &object);
        let mut errors = Errors::default();
        let fields = [
            "spec.containers[0].env",
            "spec.nodeSelector",
            "spec.tolerations",
            "spec.dnsConfig",
        ];
        for field in fields {
            errors.invalid(field, &Value::Null, "why");
        }
        given.tell(&mut errors);
        let told: Vec<&str> = errors.0.iter().map(|c| c.message.as_str()).collect();
        let expected = [
            "Invalid value: []: why",
            "Invalid value: {}: why",
            "Invalid value: null: why",
            "Invalid value: null: why",
        ];
        assert_eq!(told, expected);
    }
}

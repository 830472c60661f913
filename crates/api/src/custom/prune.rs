//! Pruning: what a structural schema does not specify is removed from an object, and named for field validation.

use serde_json::{Map, Value};

use super::structural::{Additional, Structural};

/// Fields that every resource has, whatever its schema says.
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Removes unspecified fields of a custom resource and returns their paths.
pub fn prune(schema: &Structural, object: &mut Value) -> Vec<String> {
    let mut pruning = Pruning {
        path: Vec::new(),
        unknown: Vec::new(),
    };
    if let Value::Object(map) = object {
        pruning.object(Some(schema), map, true);
    }
    pruning.unknown
}

/// The same for a value below the root, whose unknown parts nobody asks for.
pub(crate) fn prune_value(schema: &Structural, value: &mut Value) {
    let mut pruning = Pruning {
        path: Vec::new(),
        unknown: Vec::new(),
    };
    pruning.value(Some(schema), value);
}

struct Pruning {
    path: Vec<String>,
    unknown: Vec<String>,
}

impl Pruning {
    fn value(&mut self, schema: Option<&Structural>, value: &mut Value) {
        match value {
            Value::Object(map) => {
                let root = schema.is_some_and(|s| s.embedded_resource);
                self.object(schema, map, root);
            }
            Value::Array(items) => {
                let preserved = schema.is_some_and(|s| s.preserve_unknown_fields);
                let schema = schema.and_then(|s| s.items.as_deref());
                if schema.is_none() && preserved {
                    return;
                }
                for (i, item) in items.iter_mut().enumerate() {
                    self.path.push(format!("[{i}]"));
                    self.value(schema, item);
                    self.path.pop();
                }
            }
            _ => {}
        }
    }

    fn object(&mut self, schema: Option<&Structural>, map: &mut Map<String, Value>, root: bool) {
        let mut unknown = Vec::new();
        for (name, value) in map.iter_mut() {
            if root && META.contains(&name.as_str()) {
                continue;
            }
            let Some(schema) = schema else {
                unknown.push(name.clone());
                continue;
            };
            let child = match (schema.properties.get(name.as_str()), &schema.additional) {
                (Some(property), _) => property,
                (None, Additional::Schema(values)) => values,
                (None, Additional::Bool(true)) => continue,
                (None, _) if schema.preserve_unknown_fields => continue,
                (None, _) => {
                    unknown.push(name.clone());
                    continue;
                }
            };
            self.path.push(name.clone());
            self.value(Some(child), value);
            self.path.pop();
        }
        for name in unknown {
            map.remove(&name);
            self.path.push(name);
            self.unknown.push(crate::decode::join(&self.path));
            self.path.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_specified_and_preserved_fields_stay() {
        let schema = Structural::parse(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "string"},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"typed": {"type": "object"}}},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "integer"}}}},
            "list": {"type": "array", "items": {"type": "object"}}}}}}),
        );
        let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a"}, "extra": 1, "spec": {
            "a": "x", "b": 1, "free": {"y": {"z": 1}, "typed": {"u": 1}},
            "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"q": 1}, "status": {}},
            "map": {"k": {"x": 1, "y": 2}}, "list": [{"m": 1}]}});
        let mut unknown = prune(&schema, &mut object);
        unknown.sort();
        assert_eq!(
            unknown,
            [
                "extra",
                "spec.b",
                "spec.free.typed.u",
                "spec.list[0].m",
                "spec.map.k.y",
                "spec.pod.spec.q",
                "spec.pod.status"
            ]
        );
        assert_eq!(object["spec"]["free"]["y"]["z"], 1);
        assert_eq!(object["spec"]["pod"]["kind"], "Pod");
    }
}

//! Pruning: what a structural schema does not specify is removed from an object, and named for field validation.

use serde_json::{Map, Value};

use super::structural::{Additional, Structural};
use crate::decode::Path;

/// Fields that every resource has, whatever its schema says.
const META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Removes unspecified fields of a custom resource and returns their paths.
pub fn prune(schema: &Structural, object: &mut Value) -> Vec<String> {
    let mut pruning = Pruning::default();
    if let Value::Object(map) = object {
        pruning.object(Some(schema), Path::ROOT, map, true);
    }
    pruning.unknown
}

/// The same for a value below the root, whose unknown parts nobody asks for.
pub(crate) fn prune_value(schema: &Structural, value: &mut Value) {
    Pruning::default().value(Some(schema), Path::ROOT, value);
}

#[derive(Default)]
struct Pruning {
    unknown: Vec<String>,
}

impl Pruning {
    fn value(&mut self, schema: Option<&Structural>, path: Path<'_>, value: &mut Value) {
        match value {
            Value::Object(map) => {
                let root = schema.is_some_and(|s| s.embedded_resource);
                self.object(schema, path, map, root);
            }
            Value::Array(items) => {
                let preserved = schema.is_some_and(|s| s.preserve_unknown_fields);
                let schema = schema.and_then(|s| s.items.as_deref());
                if schema.is_none() && preserved {
                    return;
                }
                for (i, item) in items.iter_mut().enumerate() {
                    self.value(schema, path.item(i), item);
                }
            }
            _ => {}
        }
    }

    fn object(
        &mut self,
        schema: Option<&Structural>,
        path: Path<'_>,
        map: &mut Map<String, Value>,
        root: bool,
    ) {
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
            self.value(Some(child), path.field(name), value);
        }
        for name in unknown {
            map.remove(&name);
            self.unknown.push(path.field(&name).to_string());
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

//! Static defaults: a walk that inserts what the schema says an absent field means. Defaults that depend on other fields
//! are a [`crate::strategy::Strategy`]'s.

use serde_json::Value;

use crate::schema::{Kind, Schema, TypeId};

/// Fills in defaults in every object that is present, and in those that a default makes present.
pub fn apply(schema: &Schema, ty: TypeId, object: &mut Value) {
    let Value::Object(map) = object else { return };
    for field in &schema.get(ty).fields {
        if let Some(default) = &field.default
            && !map.contains_key(&*field.name)
        {
            map.insert(field.name.to_string(), default.clone());
        }
        if let Some(value) = map.get_mut(&*field.name) {
            apply_kind(schema, &field.kind, value);
        }
    }
}

fn apply_kind(schema: &Schema, kind: &Kind, value: &mut Value) {
    match (kind, value) {
        (Kind::Object(ty), value) => apply(schema, *ty, value),
        (Kind::List(item), Value::Array(items)) => {
            for value in items {
                apply_kind(schema, item, value);
            }
        }
        (Kind::Map(item), Value::Object(entries)) => {
            for value in entries.values_mut() {
                apply_kind(schema, item, value);
            }
        }
        _ => {}
    }
}

/// Removes null fields of typed objects; free-form JSON keeps its own.
pub fn strip_nulls(schema: &Schema, ty: TypeId, object: &mut Value) {
    let Value::Object(map) = object else { return };
    map.retain(|_, v| !v.is_null());
    for (name, value) in map {
        if let Some(field) = schema.get(ty).field(name) {
            strip_kind(schema, &field.kind, value);
        }
    }
}

fn strip_kind(schema: &Schema, kind: &Kind, value: &mut Value) {
    match (kind, value) {
        (Kind::Object(ty), value) => strip_nulls(schema, *ty, value),
        (Kind::List(item), Value::Array(items)) => {
            for value in items {
                strip_kind(schema, item, value);
            }
        }
        (Kind::Map(item), Value::Object(entries)) => {
            for value in entries.values_mut() {
                strip_kind(schema, item, value);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_reach_nested_objects_and_keep_what_is_set() {
        let schema = Schema::builtin();
        let mut pod = json!({"spec": {"restartPolicy": "Never", "containers": [{"ports": [{"containerPort": 80}]}]}});
        apply(
            schema,
            schema.find("io.k8s.api.core.v1.Pod").unwrap(),
            &mut pod,
        );
        assert_eq!(pod["spec"]["restartPolicy"], "Never");
        assert_eq!(pod["spec"]["dnsPolicy"], "ClusterFirst");
        assert_eq!(pod["spec"]["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(pod["spec"]["containers"][0]["resources"], json!({}));
    }
}

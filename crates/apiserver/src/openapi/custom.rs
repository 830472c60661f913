//! Schemas of custom resources.

use fluyt_api::resources::Resource;
use fluyt_api::schema;
use serde_json::{Map, Value, json};

use super::schemas::{META, refer};

/// What is added to an object's schema, wherever there is an object with metadata.
fn object_fields(properties: &mut Map<String, Value>) {
    let text = |field: &str| schema::description("io.k8s.api.core.v1.Pod", field);
    for field in ["apiVersion", "kind"] {
        let schema = json!({"type": "string", "description": text(field)});
        properties.insert(field.into(), schema);
    }
    let metadata = json!({
        "allOf": [refer(&format!("{META}.ObjectMeta"))], "description": text("metadata"),
    });
    properties.insert("metadata".into(), metadata);
}

/// A custom resource's schema with the fields that every object has. With `v2`, without what version 2 has no words for:
/// clients of it refuse unknown fields wherever there are properties.
#[must_use]
pub fn schema_of(resource: &Resource, schema: &Value, v2: bool) -> Value {
    let mut schema = if schema.is_object() {
        schema.clone()
    } else {
        json!({"x-kubernetes-preserve-unknown-fields": true})
    };
    let free = schema["x-kubernetes-preserve-unknown-fields"] == true;
    if free && (v2 || !schema["properties"].is_object()) {
        let kept = if v2 { Value::Null } else { true.into() };
        schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": kept});
        if v2 && let Some(map) = schema.as_object_mut() {
            map.retain(|_, v| !v.is_null());
        }
    } else {
        if v2 {
            simplify(&mut schema);
        }
        embed(&mut schema, v2);
        schema["type"] = "object".into();
        let properties = fluyt_api::meta::child(&mut schema, "properties");
        object_fields(properties);
    }
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": resource.group, "version": resource.version, "kind": resource.kind}]);
    let selectable = resource.strategy().selectable_fields();
    if !selectable.is_empty() && !v2 {
        schema["x-kubernetes-selectable-fields"] = selectable
            .iter()
            .map(|path| json!({"fieldPath": path}))
            .collect();
    }
    schema
}

/// Calls `visit` for every schema directly inside one.
fn inner(schema: &mut Value, visit: &mut dyn FnMut(&mut Value)) {
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(&mut *visit);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(of) = schema.get_mut(name).filter(|of| of.is_object()) {
            visit(of);
        }
    }
}

/// Objects inside an object have metadata as well.
fn embed(schema: &mut Value, v2: bool) {
    inner(schema, &mut |of| {
        embed(of, v2);
        let free = of["x-kubernetes-preserve-unknown-fields"] == true;
        if of["x-kubernetes-embedded-resource"] == true && !(v2 && free) {
            object_fields(fluyt_api::meta::child(of, "properties"));
            let mut required = of["required"].as_array().cloned().unwrap_or_default();
            for field in ["kind", "apiVersion"] {
                if !required.iter().any(|r| r == field) {
                    required.push(field.into());
                }
            }
            of["required"] = required.into();
        }
        if let Some(map) = of.as_object_mut() {
            // Looking for a mark must not leave it behind.
            map.retain(|_, v| !v.is_null());
        }
    });
}

/// Into version 2: no alternatives, no null, and nothing inside of what may hold unknown fields.
fn simplify(schema: &mut Value) {
    let nullable: Vec<String> = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, of)| of["nullable"] == true)
        .map(|(name, _)| name.clone())
        .collect();
    inner(schema, &mut simplify);
    let Some(map) = schema.as_object_mut() else {
        return;
    };
    for word in ["allOf", "anyOf", "oneOf", "not", "default"] {
        map.remove(word);
    }
    if map.remove("nullable") == Some(true.into()) {
        for word in ["type", "items", "properties"] {
            map.remove(word);
        }
    }
    let is = |map: &Map<String, Value>, word: &str| map.get(word) == Some(&true.into());
    if is(map, "x-kubernetes-preserve-unknown-fields") {
        map.remove("items");
        map.remove("properties");
        if map.get("type") == Some(&"object".into()) {
            map.remove("type");
        }
    }
    if map.get("type") == Some(&"array".into()) && !map.contains_key("items") {
        map.remove("type");
    }
    if let Some(required) = map.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !nullable.iter().any(|n| name == n.as_str()));
        if required.is_empty() {
            map.remove("required");
        }
    }
    map.retain(|_, v| !v.is_null());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_has_no_alternatives_and_no_null() {
        let mut schema = json!({
            "type": "object", "required": ["a", "b"],
            "properties": {
                "a": {"type": "string", "nullable": true},
                "b": {"type": "integer", "anyOf": [{"minimum": 1}], "default": 3},
                "c": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"d": {"type": "string"}}},
                "e": {"type": "array", "items": {"type": "string", "nullable": true}},
            },
        });
        simplify(&mut schema);
        let expected = json!({
            "type": "object", "required": ["b"],
            "properties": {
                "a": {}, "b": {"type": "integer"},
                "c": {"x-kubernetes-preserve-unknown-fields": true},
                "e": {"type": "array", "items": {}},
            },
        });
        assert_eq!(schema, expected);
    }
}

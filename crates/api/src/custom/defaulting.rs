//! Defaults of a structural schema, and the nulls that stand in their way.

use serde_json::Value;

use super::structural::Structural;

/// Drops nulls that a schema neither allows nor defaults, then fills in defaults at every depth.
pub fn apply(schema: &Structural, value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|name, value| {
                let property = schema.properties.get(name.as_str());
                !property.is_some_and(|p| value.is_null() && !p.nullable && p.default.is_none())
            });
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else {
                    continue;
                };
                if map
                    .get(&**name)
                    .is_none_or(|v| v.is_null() && !property.nullable)
                {
                    map.insert(name.to_string(), default.clone());
                }
            }
            for (name, value) in map.iter_mut() {
                if let Some(property) = schema.properties.get(name.as_str()) {
                    apply(property, value);
                } else if let Some(values) = schema.additional_schema() {
                    replace_null(values, value);
                    apply(values, value);
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = &schema.items else { return };
            for item in items {
                replace_null(schema, item);
                apply(schema, item);
            }
        }
        _ => {}
    }
}

fn replace_null(schema: &Structural, value: &mut Value) {
    if let Some(default) = &schema.default
        && value.is_null()
        && !schema.nullable
    {
        *value = default.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_fill_gaps_and_replace_forbidden_nulls() {
        let schema = Structural::parse(&json!({"type": "object", "properties": {
            "a": {"type": "string", "default": "x"},
            "b": {"type": "string"},
            "c": {"type": "string", "nullable": true, "default": "y"},
            "d": {"type": "object", "default": {}, "properties": {"n": {"type": "integer", "default": 1}}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"m": {"type": "integer", "default": 2}}}}}}));
        let mut value = json!({"a": null, "b": null, "c": null, "l": [{}]});
        apply(&schema, &mut value);
        assert_eq!(
            value,
            json!({"a": "x", "c": null, "d": {"n": 1}, "l": [{"m": 2}]})
        );
    }
}

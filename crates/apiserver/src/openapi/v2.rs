//! OpenAPI v2 of v3: the same paths and schemas in the older words.

use serde_json::{Map, Value, json};

use super::schemas::REFERENCE;

/// The order in which formats are listed.
const ORDER: [&str; 13] = [
    "text/plain",
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/cbor",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
    "application/cbor-seq",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/apply-patch+cbor",
];

/// A path's item.
#[must_use]
pub fn path_item(item: Value) -> Value {
    let Value::Object(item) = item else {
        return item;
    };
    let mut converted = Map::new();
    let mut shared: Vec<Value> = Vec::new();
    for (name, value) in item {
        if name == "parameters" {
            shared.extend(parameters(value));
        } else {
            converted.insert(name, operation(value));
        }
    }
    if !shared.is_empty() {
        sort(&mut shared);
        converted.insert("parameters".into(), shared.into());
    }
    converted.into()
}

fn sort(parameters: &mut [Value]) {
    parameters.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
}

fn operation(value: Value) -> Value {
    let Value::Object(mut operation) = value else {
        return value;
    };
    let mut own = operation
        .remove("parameters")
        .map_or_else(Vec::new, parameters);
    let mut produces = Vec::new();
    if let Some(Value::Object(responses)) = operation.get_mut("responses") {
        for response in responses.values_mut() {
            let Some(content) = response.as_object_mut().and_then(|r| r.remove("content")) else {
                continue;
            };
            produces = formats(&content);
            response["schema"] = schema_of(&content);
        }
    }
    // What is not about resources takes what it gives, as far as it is said.
    let mut consumes = if operation.contains_key("x-kubernetes-action") {
        vec!["*/*".to_owned()]
    } else if produces.len() > 1 || operation.get("tags") == Some(&json!(["version"])) {
        produces.clone()
    } else {
        Vec::new()
    };
    if let Some(body) = operation.remove("requestBody") {
        consumes = formats(&body["content"]);
        let mut parameter = json!({"in": "body", "name": "body"});
        if body["required"] == true {
            parameter["required"] = true.into();
        }
        parameter["schema"] = schema_of(&body["content"]);
        own.push(parameter);
    }
    if !own.is_empty() {
        sort(&mut own);
        operation.insert("parameters".into(), own.into());
    }
    if !consumes.is_empty() {
        operation.insert("consumes".into(), consumes.into());
    }
    operation.insert("produces".into(), produces.into());
    operation.insert("schemes".into(), json!(["https"]));
    operation.into()
}

fn formats(content: &Value) -> Vec<String> {
    let mut formats: Vec<String> = content
        .as_object()
        .into_iter()
        .flatten()
        .map(|(format, _)| format.clone())
        .collect();
    formats.sort_by_key(|f| ORDER.iter().position(|o| o == f).unwrap_or(0));
    formats
}

/// All formats have the same schema.
fn schema_of(content: &Value) -> Value {
    let first = content.as_object().and_then(|c| c.values().next());
    let mut schema = first.map_or(Value::Null, |of| of["schema"].clone());
    definition(&mut schema);
    schema
}

fn parameters(list: Value) -> Vec<Value> {
    let Value::Array(list) = list else {
        return Vec::new();
    };
    list.into_iter()
        .map(|mut parameter| {
            let schema = parameter.as_object_mut().and_then(|p| p.remove("schema"));
            if let (Some(Value::Object(schema)), Some(parameter)) =
                (schema, parameter.as_object_mut())
            {
                parameter.extend(schema);
            }
            parameter
        })
        .collect()
}

/// A schema: references stand beside what is said of them, there are no defaults, and no alternatives.
pub fn definition(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    map.remove("default");
    if let Some(reference) = map.remove("$ref") {
        let name = reference.as_str().unwrap_or_default();
        let name = name.strip_prefix(REFERENCE).unwrap_or(name);
        map.insert("$ref".into(), format!("#/definitions/{name}").into());
    }
    if let Some(Value::Array(of)) = map.get("allOf")
        && let [Value::Object(only)] = of.as_slice()
    {
        let only = only.clone();
        map.remove("allOf");
        map.extend(only);
        return definition(schema);
    }
    // A number or a string.
    if map.remove("oneOf").is_some() {
        map.insert("type".into(), "string".into());
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(definition);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(of) = map.get_mut(name) {
            definition(of);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_stands_beside_its_description() {
        let mut schema = json!({"properties": {"a": {
            "allOf": [{"$ref": "#/components/schemas/x.Y"}], "default": {}, "description": "d",
        }}});
        definition(&mut schema);
        let expected =
            json!({"properties": {"a": {"$ref": "#/definitions/x.Y", "description": "d"}}});
        assert_eq!(schema, expected);
    }

    #[test]
    fn the_body_becomes_a_parameter() {
        let content = json!({"*/*": {"schema": {"$ref": "#/components/schemas/x.Y"}}});
        let item = json!({
            "parameters": [{"name": "name", "in": "path", "schema": {"type": "string"}}],
            "put": {
                "requestBody": {"content": content, "required": true},
                "responses": {"200": {"description": "OK", "content": content}},
            },
        });
        let expected = json!({
            "parameters": [{"name": "name", "in": "path", "type": "string"}],
            "put": {
                "parameters": [
                    {"in": "body", "name": "body", "required": true, "schema": {"$ref": "#/definitions/x.Y"}},
                ],
                "consumes": ["*/*"], "produces": ["*/*"], "schemes": ["https"],
                "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/x.Y"}}},
            },
        });
        assert_eq!(path_item(item), expected);
    }
}

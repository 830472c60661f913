//! OpenAPI v3, generated from the schema and the table of resources when asked for.

use std::collections::BTreeSet;

use fluyt_api::resources::{Resource, Snapshot};
use fluyt_api::schema::{self, Field, Kind, ListType, Schema, TypeId};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::http::{self as responses, Body};
use crate::request::Query;

/// Answers `/openapi/v3` and what is below it; `None` for other paths.
#[must_use]
pub fn handle(served: &Snapshot, path: &str, _query: &Query) -> Option<Response<Body>> {
    let rest = path.strip_prefix("/openapi/v3")?.trim_matches('/');
    if rest.is_empty() {
        return Some(responses::json(StatusCode::OK, &index(served)));
    }
    let (group, version) = match rest.split('/').collect::<Vec<_>>().as_slice() {
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return None,
    };
    Some(responses::json(
        StatusCode::OK,
        &document(served, group, version)?,
    ))
}

fn group_versions(served: &Snapshot) -> BTreeSet<(&'static str, &'static str)> {
    served.all().map(|r| (r.group, r.version)).collect()
}

fn prefix(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

fn index(served: &Snapshot) -> Value {
    let mut paths = Map::new();
    for (group, version) in group_versions(served) {
        let path = prefix(group, version);
        let hash = hash(served, group, version);
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// Of a document's content: the program, and the custom resources that are part of it.
fn hash(served: &Snapshot, group: &str, version: &str) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    for resource in served.custom() {
        if resource.group == group && resource.version == version {
            let definition = resource.definition.as_ref();
            let schema = definition.map(|d| d.openapi.to_string());
            (resource.plural, resource.kind, schema).hash(&mut hasher);
        }
    }
    format!("{:016X}", hasher.finish())
}

fn document(served: &Snapshot, group: &str, version: &str) -> Option<Value> {
    let served: Vec<&Resource> = served
        .all()
        .filter(|r| r.group == group && r.version == version)
        .collect();
    if served.is_empty() {
        return None;
    }
    let mut components = Components {
        schema: Schema::builtin(),
        schemas: Map::new(),
    };
    let mut paths = Map::new();
    for resource in served {
        let Some(ty) = resource.ty else { continue };
        if let Some(definition) = &resource.definition {
            let name = &definition.schema.get(ty).name;
            if let Some(meta) = Schema::builtin().find(OBJECT_META) {
                components.add(meta);
            }
            let schema = custom_schema(resource, &definition.openapi);
            components.schemas.insert(name.to_string(), schema);
            let reference = json!({"$ref": format!("#/components/schemas/{name}")});
            paths.extend(path_items(resource, &reference));
            continue;
        }
        components.add(ty);
        components.mark(ty, resource);
        let reference =
            json!({"$ref": format!("#/components/schemas/{}", Schema::builtin().get(ty).name)});
        for (path, item) in path_items(resource, &reference) {
            paths.insert(path, item);
        }
    }
    Some(json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": crate::VERSION},
        "paths": paths, "components": {"schemas": components.schemas},
    }))
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// A custom resource's schema with the fields that every object has.
fn custom_schema(resource: &Resource, schema: &Value) -> Value {
    let mut schema = schema.clone();
    if !schema.is_object() {
        schema = json!({"type": "object"});
    }
    let object_meta = Schema::builtin().find(OBJECT_META);
    let text = |field: &str| {
        let pod = "io.k8s.api.core.v1.Pod";
        schema::description(pod, field).unwrap_or_default()
    };
    schema["properties"]["apiVersion"] =
        json!({"type": "string", "description": text("apiVersion")});
    schema["properties"]["kind"] = json!({"type": "string", "description": text("kind")});
    if object_meta.is_some() {
        schema["properties"]["metadata"] = json!({
            "description": text("metadata"),
            "allOf": [{"$ref": format!("#/components/schemas/{OBJECT_META}")}],
        });
    }
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": resource.group, "version": resource.version, "kind": resource.kind}]);
    schema
}

/// The collection's path and the object's.
fn path_items(resource: &Resource, reference: &Value) -> Vec<(String, Value)> {
    let base = format!("/{}", prefix(resource.group, resource.version));
    let collection = if resource.namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", resource.plural)
    } else {
        format!("{base}/{}", resource.plural)
    };
    let mut on_collection = Map::new();
    let mut on_object = Map::new();
    for verb in &resource.verbs {
        let (method, action, item) = match *verb {
            "create" => ("post", "post", &mut on_collection),
            "list" => ("get", "list", &mut on_collection),
            "deletecollection" => ("delete", "deletecollection", &mut on_collection),
            "get" => ("get", "get", &mut on_object),
            "update" => ("put", "put", &mut on_object),
            "patch" => ("patch", "patch", &mut on_object),
            "delete" => ("delete", "delete", &mut on_object),
            _ => continue,
        };
        item.insert(method.into(), operation(resource, action, reference));
    }
    let mut items = vec![(collection.clone(), Value::Object(on_collection))];
    if !on_object.is_empty() {
        items.push((format!("{collection}/{{name}}"), Value::Object(on_object)));
    }
    items
}

fn operation(resource: &Resource, action: &str, reference: &Value) -> Value {
    let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let names: &[&str] = match action {
        "post" | "put" => &["dryRun", "fieldManager", "fieldValidation"],
        "patch" => &["dryRun", "fieldManager", "fieldValidation", "force"],
        "delete" | "deletecollection" => &[
            "dryRun",
            "gracePeriodSeconds",
            "orphanDependents",
            "propagationPolicy",
        ],
        "list" => &[
            "allowWatchBookmarks",
            "continue",
            "fieldSelector",
            "labelSelector",
            "limit",
            "resourceVersion",
            "resourceVersionMatch",
            "sendInitialEvents",
            "timeoutSeconds",
            "watch",
        ],
        _ => &[],
    };
    let content = json!({"application/json": {"schema": reference}});
    let mut operation = json!({
        "operationId": format!("{action}{}", resource.kind),
        "parameters": names.iter().map(|n| parameter(n)).collect::<Vec<_>>(),
        "responses": {"200": {"description": "OK", "content": content}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
    });
    if matches!(action, "post" | "put" | "patch") {
        operation["requestBody"] = json!({"content": content, "required": true});
    }
    operation
}

struct Components {
    schema: &'static Schema,
    schemas: Map<String, Value>,
}

impl Components {
    /// Adds a type and everything it refers to.
    fn add(&mut self, id: TypeId) {
        let ty = self.schema.get(id);
        if self.schemas.contains_key(&*ty.name) {
            return;
        }
        self.schemas.insert(ty.name.to_string(), Value::Null);
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in &ty.fields {
            if field.required {
                required.push(Value::from(&*field.name));
            }
            properties.insert(field.name.to_string(), self.field(&ty.name, field));
        }
        let mut schema = json!({"type": "object", "properties": properties});
        if let Some(text) = schema::description(&ty.name, "") {
            schema["description"] = text.into();
        }
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        if ty.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        self.schemas.insert(ty.name.to_string(), schema);
    }

    /// Says of which kind a type is.
    fn mark(&mut self, id: TypeId, resource: &Resource) {
        let name = &self.schema.get(id).name;
        if let Some(schema) = self.schemas.get_mut(&**name) {
            schema["x-kubernetes-group-version-kind"] = json!([{"group": resource.group, "version": resource.version, "kind": resource.kind}]);
        }
    }

    fn field(&mut self, ty: &str, field: &Field) -> Value {
        let mut schema = self.kind(&field.kind);
        // A reference stands alone; what is said besides it goes around it.
        if schema.get("$ref").is_some() {
            schema = json!({"allOf": [schema]});
        }
        if let Some(text) = schema::description(ty, &field.name) {
            schema["description"] = text.into();
        }
        if let Some(default) = &field.default {
            schema["default"] = default.clone();
        }
        match &field.list {
            ListType::Atomic if matches!(field.kind, Kind::List(_)) => {
                schema["x-kubernetes-list-type"] = "atomic".into()
            }
            ListType::Atomic => {}
            ListType::Set => schema["x-kubernetes-list-type"] = "set".into(),
            ListType::Map(keys) => {
                schema["x-kubernetes-list-type"] = "map".into();
                schema["x-kubernetes-list-map-keys"] =
                    keys.iter().map(|k| Value::from(&**k)).collect();
            }
        }
        let strategy = match (field.patch.merge, field.patch.retain_keys) {
            (true, true) => "merge,retainKeys",
            (true, false) => "merge",
            (false, true) => "retainKeys",
            (false, false) => "",
        };
        if !strategy.is_empty() {
            schema["x-kubernetes-patch-strategy"] = strategy.into();
        }
        if let Some(key) = &field.patch.merge_key {
            schema["x-kubernetes-patch-merge-key"] = (**key).into();
        }
        schema
    }

    fn kind(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::String | Kind::Quantity => json!({"type": "string"}),
            Kind::Int32 => json!({"type": "integer", "format": "int32"}),
            Kind::Int64 => json!({"type": "integer", "format": "int64"}),
            Kind::Bool => json!({"type": "boolean"}),
            Kind::Double => json!({"type": "number", "format": "double"}),
            Kind::Bytes => json!({"type": "string", "format": "byte"}),
            Kind::Time | Kind::MicroTime => json!({"type": "string", "format": "date-time"}),
            Kind::IntOrString => {
                json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
            }
            Kind::Json => json!({"type": "object"}),
            Kind::Object(id) => {
                self.add(*id);
                json!({"$ref": format!("#/components/schemas/{}", self.schema.get(*id).name)})
            }
            Kind::List(item) => json!({"type": "array", "items": self.kind(item)}),
            Kind::Map(item) => json!({"type": "object", "additionalProperties": self.kind(item)}),
        }
    }
}

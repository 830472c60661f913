//! Documents: one for every group and version in OpenAPI v3, one of everything in v2. They are made when somebody asks for
//! them: the schema says all of it, and clients keep what they get.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::OnceLock;

use fluyt_api::resources::{Resource, Snapshot};
use fluyt_api::schema::Schema;
use serde_json::{Map, Value, json};

use super::operations::{self, Paths};
use super::schemas::{META, Schemas};
use super::{custom, v2};

/// Documents of paths that are not resources.
const PLAIN: [&str; 5] = [
    ".well-known/openid-configuration",
    "api",
    "apis",
    "openid/v1/jwks",
    "version",
];

/// What there is a document of: `api/v1`, `apis/apps/v1`, `apis/apps`, `version`.
#[must_use]
pub fn keys(served: &Snapshot) -> BTreeSet<String> {
    let mut keys: BTreeSet<String> = PLAIN.iter().map(|k| (*k).to_owned()).collect();
    for resource in served.all() {
        keys.insert(key(resource));
        if !resource.group.is_empty() {
            keys.insert(format!("apis/{}", resource.group));
        }
    }
    keys
}

fn key(resource: &Resource) -> String {
    match resource.group {
        "" => format!("api/{}", resource.version),
        group => format!("apis/{group}/{}", resource.version),
    }
}

/// Of a document's content: of the program, and of the custom resources that are part of it.
#[must_use]
pub fn hash(served: &Snapshot, key: &str, cbor: bool) -> String {
    let mut hasher = DefaultHasher::new();
    (fingerprint(), key, cbor).hash(&mut hasher);
    let of_key = served.all().filter(|r| self::key(r) == key);
    of_key.for_each(|r| (r.version, r.plural).hash(&mut hasher));
    for resource in served.custom().iter().filter(|r| self::key(r) == key) {
        hash_custom(resource, &mut hasher);
    }
    format!("{:016X}", hasher.finish())
}

/// The same of the document of everything, besides what other servers have added to it.
#[must_use]
pub fn hash_all(served: &Snapshot, cbor: bool, added: &[Value]) -> String {
    let mut hasher = DefaultHasher::new();
    (fingerprint(), cbor).hash(&mut hasher);
    let all = served.all();
    all.for_each(|r| (r.group, r.version, r.plural).hash(&mut hasher));
    for resource in served.custom() {
        hash_custom(resource, &mut hasher);
    }
    for document in added {
        document.to_string().hash(&mut hasher);
    }
    format!("{:016X}", hasher.finish())
}

fn hash_custom(resource: &Resource, hasher: &mut DefaultHasher) {
    let definition = resource.definition.as_ref();
    let schema = definition.map(|d| d.openapi.to_string());
    let subresources: Vec<&str> = resource.subresources.iter().map(|s| s.name).collect();
    let names = (resource.plural, resource.kind, resource.namespaced);
    (names, subresources, schema).hash(hasher);
    resource.strategy().selectable_fields().hash(hasher);
}

/// Of everything that is built in: the core group's document stands for it, with the program's version.
fn fingerprint() -> u64 {
    static FINGERPRINT: OnceLock<u64> = OnceLock::new();
    *FINGERPRINT.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        if let Some(core) = v3(&Snapshot::default(), "api/v1", false) {
            core.to_string().hash(&mut hasher);
        }
        hasher.finish()
    })
}

/// The v3 document of a key; `None` when there is none.
#[must_use]
pub fn v3(served: &Snapshot, key: &str, cbor: bool) -> Option<Value> {
    let mut schemas = Schemas::new(cbor);
    let paths = paths(served, key, &mut schemas, false)?;
    let schemas: Map<String, Value> = schemas.all.into_iter().collect();
    let paths: Map<String, Value> = paths.into_iter().collect();
    Some(json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"BearerToken": bearer()}},
    }))
}

/// The v2 document, into which those of other servers are merged.
#[must_use]
pub fn v2(served: &Snapshot, cbor: bool, others: Vec<Value>) -> Value {
    let mut schemas = Schemas::new(cbor);
    let mut all = Map::new();
    for key in keys(served) {
        let paths = paths(served, &key, &mut schemas, true).unwrap_or_default();
        all.extend(paths.into_iter().map(|(p, item)| (p, v2::path_item(item))));
    }
    let mut definitions: Map<String, Value> = schemas
        .all
        .into_iter()
        .map(|(name, mut schema)| {
            v2::definition(&mut schema);
            (name, schema)
        })
        .collect();
    for other in others {
        let Value::Object(mut other) = other else {
            continue;
        };
        // What is here already is not replaced: shared types are the same everywhere.
        for (known, part) in [(&mut all, "paths"), (&mut definitions, "definitions")] {
            if let Some(Value::Object(map)) = other.remove(part) {
                for (name, value) in map {
                    known.entry(name).or_insert(value);
                }
            }
        }
    }
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": all, "definitions": definitions,
        "security": [{"BearerToken": []}],
        "securityDefinitions": {"BearerToken": bearer()},
    })
}

fn info() -> Value {
    let version = crate::VERSION.trim_start_matches('v');
    let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    json!({"title": "Kubernetes", "version": minor})
}

fn bearer() -> Value {
    json!({
        "type": "apiKey", "in": "header", "name": "authorization",
        "description": "Bearer Token authentication",
    })
}

/// The paths of a key, whose types are added to the schemas.
fn paths(served: &Snapshot, key: &str, schemas: &mut Schemas, v2: bool) -> Option<Paths> {
    let text = json!({"type": "string"});
    match key {
        "version" => {
            let info = schemas.reference("io.k8s.apimachinery.pkg.version.Info");
            let names = [
                "getCodeVersion",
                "version",
                "get the version information for this server",
            ];
            return Some(operations::plain(key, names, "application/json", &info));
        }
        "openid/v1/jwks" => {
            let names = [
                "getServiceAccountIssuerOpenIDKeyset",
                "openid",
                "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
            ];
            let format = "application/jwk-set+json";
            return Some(operations::plain(key, names, format, &text));
        }
        ".well-known/openid-configuration" => {
            let names = [
                "getServiceAccountIssuerOpenIDConfiguration",
                "WellKnown",
                "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'",
            ];
            return Some(operations::plain(key, names, "application/json", &text));
        }
        "api" | "apis" => return Some(operations::discovery(schemas, key)),
        _ => {}
    }
    let resources: Vec<&Resource> = served.all().filter(|r| self::key(r) == key).collect();
    let is_group = || {
        let group = key.strip_prefix("apis/").filter(|g| !g.contains('/'));
        group.is_some_and(|group| served.all().any(|r| r.group == group))
    };
    if resources.is_empty() && !is_group() {
        return None;
    }
    let mut paths = operations::discovery(schemas, key);
    for resource in resources {
        paths.extend(resource_paths(resource, schemas, v2));
    }
    Some(paths)
}

fn resource_paths(resource: &Resource, schemas: &mut Schemas, v2: bool) -> Paths {
    let Some(ty) = resource.ty else {
        return Paths::new();
    };
    let item = match &resource.definition {
        Some(definition) => {
            schemas.reference(&format!("{META}.ObjectMeta"));
            let name = definition.schema.get(ty).name.to_string();
            let schema = custom::schema_of(resource, &definition.openapi, v2);
            schemas.all.insert(name.clone(), schema);
            name
        }
        None => {
            let name = Schema::builtin().get(ty).name.to_string();
            schemas.add(ty);
            schemas.mark(&name, resource.group, resource.version, resource.kind);
            name
        }
    };
    operations::of(resource, &item, schemas)
}

//! A structural schema as the [`Schema`] that apply, patches and managed fields work on.

use super::structural::{Additional, Structural};
use crate::schema::{Field, Kind, ListType, PatchStrategy, Schema, Type, TypeId};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The types of one version of a custom resource; the last one is the resource itself.
#[must_use]
pub fn schema_of(name: &str, root: &Structural) -> (Schema, TypeId) {
    let mut schema = Schema::default();
    let id = resource_type(&mut schema, name, root);
    (schema, id)
}

/// An object with `apiVersion`, `kind` and `metadata` besides what the structural schema says.
fn resource_type(schema: &mut Schema, name: &str, node: &Structural) -> TypeId {
    let mut ty = object_type(schema, name, node);
    ty.fields
        .retain(|f| !["apiVersion", "kind", "metadata"].contains(&&*f.name));
    ty.fields.push(field("apiVersion", Kind::String));
    ty.fields.push(field("kind", Kind::String));
    let meta = Schema::builtin()
        .find(OBJECT_META)
        .map(|id| schema.import(Schema::builtin(), id));
    if let Some(meta) = meta {
        ty.fields.push(field("metadata", Kind::Object(meta)));
    }
    schema.insert(ty)
}

fn object_type(schema: &mut Schema, name: &str, node: &Structural) -> Type {
    let fields = node
        .properties
        .iter()
        .map(|(property, child)| Field {
            required: node.validation.required.contains(property),
            ..structural_field(schema, &format!("{name}.{property}"), property, child)
        })
        .collect();
    Type {
        name: name.into(),
        fields,
        atomic: node.atomic,
        rest: node.preserve_unknown_fields.then_some(Kind::Json),
    }
}

fn structural_field(schema: &mut Schema, name: &str, property: &str, node: &Structural) -> Field {
    Field {
        list: node.list.clone(),
        default: node.default.clone(),
        atomic: node.atomic,
        ..field(property, kind(schema, name, node))
    }
}

fn field(name: &str, kind: Kind) -> Field {
    Field {
        name: name.into(),
        kind,
        path: Box::default(),
        required: false,
        // A custom resource's zeros are the client's own.
        omit_zero: false,
        list: ListType::Atomic,
        patch: PatchStrategy::default(),
        default: None,
        atomic: false,
        granular: false,
        by_value: false,
    }
}

fn kind(schema: &mut Schema, name: &str, node: &Structural) -> Kind {
    if node.int_or_string {
        return Kind::IntOrString;
    }
    match &*node.ty {
        "string" => Kind::String,
        "integer" if &*node.validation.format == "int32" => Kind::Int32,
        "integer" => Kind::Int64,
        "number" => Kind::Double,
        "boolean" => Kind::Bool,
        "array" => match &node.items {
            Some(items) => Kind::List(Box::new(kind(schema, &format!("{name}.items"), items))),
            None => Kind::List(Box::new(Kind::Json)),
        },
        "object" if node.embedded_resource => Kind::Object(resource_type(schema, name, node)),
        "object" => match &node.additional {
            Additional::Schema(value) => {
                Kind::Map(Box::new(kind(schema, &format!("{name}.values"), value)))
            }
            Additional::Bool(true) => Kind::Map(Box::new(Kind::Json)),
            _ if node.properties.is_empty() && node.preserve_unknown_fields => Kind::Json,
            _ => {
                let ty = object_type(schema, name, node);
                Kind::Object(schema.insert(ty))
            }
        },
        _ => Kind::Json,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_maps_and_metadata_are_typed() {
        let root = Structural::parse(
            &json!({"type": "object", "required": ["spec"], "properties": {"spec": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}, "x-kubernetes-map-type": "atomic"},
                "size": {"x-kubernetes-int-or-string": true}, "n": {"type": "integer", "default": 3}}}}}),
        );
        let (schema, id) = schema_of("io.example.v1.Widget", &root);
        let ty = schema.get(id);
        assert!(ty.field("spec").unwrap().required);
        let Kind::Object(meta) = ty.field("metadata").unwrap().kind else {
            panic!("metadata is an object");
        };
        assert!(schema.get(meta).field("ownerReferences").is_some());
        let Kind::Object(spec) = ty.field("spec").unwrap().kind else {
            panic!("spec is an object");
        };
        let spec = schema.get(spec);
        assert_eq!(spec.rest, Some(Kind::Json));
        assert_eq!(
            spec.field("ports").unwrap().list,
            ListType::Map(["name".into()].into())
        );
        assert!(spec.field("labels").unwrap().atomic);
        assert_eq!(spec.field("size").unwrap().kind, Kind::IntOrString);
        assert_eq!(spec.field("n").unwrap().default, Some(json!(3)));
    }
}

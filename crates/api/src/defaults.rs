//! Static defaults: a walk that inserts what the schema says an absent field means. Defaults that depend on other fields
//! are a [`crate::strategy::Strategy`]'s.

use serde_json::Value;

use crate::quantity::Quantity;
use crate::schema::{Field, Kind, Schema, TypeId};

/// Fills in defaults in every object that is present, and in those that a default makes present.
pub fn apply(schema: &Schema, ty: TypeId, object: &mut Value) {
    let walk = Walk {
        schema,
        strip: false,
        fill: true,
        stored: false,
    };
    walk.object(ty, object);
}

/// Removes from typed objects what means the same as nothing: null, and where zero has no meaning of its own, zero and
/// empty lists and maps. Free-form JSON keeps its own.
pub fn strip_absent(schema: &Schema, ty: TypeId, object: &mut Value) {
    let walk = Walk {
        schema,
        strip: true,
        fill: false,
        stored: false,
    };
    walk.object(ty, object);
}

/// Both in one walk.
pub fn normalise(schema: &Schema, ty: TypeId, object: &mut Value) {
    let walk = Walk {
        schema,
        strip: true,
        fill: true,
        stored: false,
    };
    walk.object(ty, object);
}

/// Both, and what a stored object does not tell apart: an empty list from none. Where a list must be, Go writes that as
/// null.
pub fn as_stored(schema: &Schema, ty: TypeId, object: &mut Value) {
    let walk = Walk {
        schema,
        strip: true,
        fill: true,
        stored: true,
    };
    walk.object(ty, object);
}

#[derive(Clone, Copy)]
struct Walk<'s> {
    schema: &'s Schema,
    strip: bool,
    fill: bool,
    stored: bool,
}

impl Walk<'_> {
    /// Fields and keys are both in order of name, so that one pass over each will do.
    fn object(self, ty: TypeId, object: &mut Value) {
        let Value::Object(map) = object else { return };
        let described = self.schema.get(ty);
        let of_api = described.name.starts_with("io.k8s.api.");
        let mut fields = described.fields.iter().peekable();
        let mut missing: Vec<&Field> = Vec::new();
        map.retain(|name, value| {
            while let Some(field) = fields.next_if(|f| *f.name < **name) {
                missing.push(field);
            }
            let Some(field) = fields.next_if(|f| *f.name == **name) else {
                return !self.strip || !value.is_null();
            };
            let nothing = self.stored && field.must_be_a_list() && is_empty(value);
            if nothing || self.strip && (field.is_absent(value) || stored_empty(value, of_api)) {
                missing.push(field);
                return false;
            }
            self.value(&field.kind, value);
            true
        });
        if !self.fill {
            return;
        }
        for field in missing.into_iter().chain(fields) {
            if let Some(mut value) = field.when_absent() {
                self.value(&field.kind, &mut value);
                map.insert(field.name.to_string(), value);
            } else if self.stored && field.must_be_a_list() {
                map.insert(field.name.to_string(), Value::Null);
            }
        }
    }

    fn value(self, kind: &Kind, value: &mut Value) {
        match (kind, value) {
            (Kind::Object(ty), value) => self.object(*ty, value),
            (Kind::List(item), Value::Array(items)) => {
                for value in items {
                    self.value(item, value);
                }
            }
            (Kind::Map(item), Value::Object(entries)) => {
                for value in entries.values_mut() {
                    self.value(item, value);
                }
            }
            (Kind::Quantity, value) if self.strip => canonicalise(value),
            _ => {}
        }
    }
}

/// Upstream stores objects of the API's own groups as protobuf, where an empty list and none are the same.
fn stored_empty(value: &Value, of_api: bool) -> bool {
    of_api && value.as_array().is_some_and(Vec::is_empty)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

/// Quantities are written in one way only.
fn canonicalise(value: &mut Value) {
    let quantity = match value {
        Value::String(text) => text.parse::<Quantity>(),
        Value::Number(number) => number.to_string().parse(),
        _ => return,
    };
    if let Ok(quantity) = quantity {
        let written = quantity.to_string();
        if *value != *written {
            *value = written.into();
        }
    }
}

impl Field {
    fn must_be_a_list(&self) -> bool {
        let always = self.required || self.default == Some(Value::Null);
        always && matches!(self.kind, Kind::List(_) | Kind::Map(_))
    }

    /// What an absent field means: its default, or what upstream writes of a value that it always holds.
    fn when_absent(&self) -> Option<Value> {
        if let Some(default) = &self.default {
            return Some(default.clone());
        }
        match &self.kind {
            Kind::Object(_) if self.by_value => Some(Value::Object(serde_json::Map::new())),
            Kind::Int32 | Kind::Int64 if self.required => Some(0.into()),
            Kind::Bool if self.required => Some(false.into()),
            Kind::String if self.required => Some("".into()),
            Kind::List(_) | Kind::Map(_) if self.required => Some(Value::Null),
            _ => None,
        }
    }

    /// Whether clients could not tell the value from no value at all.
    fn is_absent(&self, value: &Value) -> bool {
        if self.default.as_ref() == Some(value) {
            return false;
        }
        match (&self.kind, value) {
            (_, Value::Null) => true,
            _ if !self.omit_zero => false,
            (Kind::String | Kind::Bytes, Value::String(text)) => text.is_empty(),
            (Kind::Bool, Value::Bool(value)) => !value,
            (Kind::Int32 | Kind::Int64, Value::Number(number)) => number.as_i64() == Some(0),
            // Where nothing is written as null, an empty list is something else.
            (Kind::List(_), Value::Array(items)) => items.is_empty() && self.default.is_none(),
            (Kind::Map(_), Value::Object(entries)) => entries.is_empty() && self.default.is_none(),
            _ => false,
        }
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

    #[test]
    fn where_a_list_must_be_none_is_null() {
        let schema = Schema::builtin();
        let slice = schema
            .find("io.k8s.api.discovery.v1.EndpointSlice")
            .unwrap();
        for mut object in [json!({"endpoints": [], "ports": []}), json!({})] {
            as_stored(schema, slice, &mut object);
            assert!(object["endpoints"].is_null() && object.get("endpoints").is_some());
        }
    }

    #[test]
    fn what_means_nothing_does_not_stay() {
        let schema = Schema::builtin();
        let node = schema.find("io.k8s.api.core.v1.Node").unwrap();
        let mut object = json!({
            "metadata": {"name": "n", "labels": {}, "finalizers": [], "creationTimestamp": null},
            "spec": {"taints": [], "unschedulable": false, "podCIDR": ""},
            "status": {"images": [{"names": []}]},
        });
        strip_absent(schema, node, &mut object);
        assert_eq!(
            object,
            json!({"metadata": {"name": "n"}, "spec": {}, "status": {"images": [{}]}})
        );
        // Where it does mean something.
        let deployment = schema.find("io.k8s.api.apps.v1.Deployment").unwrap();
        let mut object = json!({"spec": {"replicas": 0, "selector": {}, "paused": false, "template": {"spec": {
            "automountServiceAccountToken": false, "securityContext": {"runAsUser": 0}}}}});
        let mut wanted = object.clone();
        wanted["spec"].as_object_mut().unwrap().remove("paused");
        strip_absent(schema, deployment, &mut object);
        assert_eq!(object, wanted);
    }
}

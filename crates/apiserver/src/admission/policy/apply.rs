//! Applying a partial object: what it says goes in, what it does not say stays. Lists are merged by their keys.

use fluyt_api::resources::Resource;
use fluyt_api::schema::{Kind, ListType, Schema, TypeId};
use serde_json::Value;

/// Merges an apply configuration into an object.
///
/// # Errors
/// When the configuration is no object, or wants to change what names the object.
pub fn merge(resource: &Resource, object: &mut Value, applied: &Value) -> Result<(), String> {
    if !applied.is_object() {
        return Err("must evaluate to Object but got something else".into());
    }
    for (path, name) in [
        ("/metadata/name", "name"),
        ("/metadata/namespace", "namespace"),
        ("/kind", "kind"),
        ("/apiVersion", "apiVersion"),
    ] {
        if let Some(new) = applied.pointer(path)
            && object.pointer(path).is_some_and(|old| old != new)
        {
            return Err(format!(
                "{name} may not be changed by an apply configuration"
            ));
        }
    }
    merge_object(resource.schema(), resource.ty, object, applied);
    Ok(())
}

fn merge_object(schema: &Schema, ty: Option<TypeId>, target: &mut Value, applied: &Value) {
    let (Value::Object(map), Value::Object(new)) = (&mut *target, applied) else {
        *target = applied.clone();
        return;
    };
    for (name, value) in new {
        let field = ty.and_then(|ty| schema.get(ty).field(name));
        let slot = map.entry(name.clone()).or_insert(Value::Null);
        match field {
            Some(field) if field.atomic => *slot = value.clone(),
            Some(field) => merge_kind(schema, &field.kind, &field.list, slot, value),
            None => merge_object(schema, None, slot, value),
        }
    }
}

fn merge_kind(schema: &Schema, kind: &Kind, list: &ListType, target: &mut Value, applied: &Value) {
    match (kind, list) {
        (Kind::Object(ty), _) if !schema.get(*ty).atomic => {
            merge_object(schema, Some(*ty), target, applied)
        }
        (Kind::Map(_), _) => merge_object(schema, None, target, applied),
        (Kind::List(_), ListType::Set) => {
            let (Value::Array(items), Value::Array(new)) = (&mut *target, applied) else {
                *target = applied.clone();
                return;
            };
            for item in new {
                if !items.contains(item) {
                    items.push(item.clone());
                }
            }
        }
        (Kind::List(item), ListType::Map(keys)) => {
            let (Value::Array(items), Value::Array(new)) = (&mut *target, applied) else {
                *target = applied.clone();
                return;
            };
            for value in new {
                let same = |i: &&mut Value| {
                    keys.iter().all(|k| {
                        let default = match &**item {
                            Kind::Object(ty) => {
                                schema.get(*ty).field(k).and_then(|f| f.default.as_ref())
                            }
                            _ => None,
                        };
                        i.get(&**k).or(default) == value.get(&**k).or(default)
                    })
                };
                match items.iter_mut().find(same) {
                    Some(present) => merge_kind(schema, item, &ListType::Atomic, present, value),
                    None => items.push(value.clone()),
                }
            }
        }
        _ => *target = applied.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_merge_by_key_and_the_rest_stays() {
        let pods = fluyt_api::resources::find("", "v1", "pods").unwrap();
        let mut pod = json!({"metadata": {"name": "a", "labels": {"x": "1"}}, "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": "n"}});
        let applied = json!({"metadata": {"labels": {"y": "2"}}, "spec": {"containers": [{"name": "c", "tty": true}, {"name": "d", "image": "j"}]}});
        merge(pods, &mut pod, &applied).unwrap();
        assert_eq!(pod["metadata"]["labels"], json!({"x": "1", "y": "2"}));
        assert_eq!(
            pod["spec"]["containers"],
            json!([{"name": "c", "image": "i", "tty": true}, {"name": "d", "image": "j"}])
        );
        assert!(merge(pods, &mut pod, &json!({"metadata": {"name": "b"}})).is_err());
    }
}

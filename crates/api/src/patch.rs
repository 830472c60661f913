//! The three client-side patch formats: JSON patch ([`crate::json_patch`]), merge patch (RFC 7386) and strategic merge patch.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::decode::{json_error, kind_of};
use crate::error::{Error, Reason};
use crate::json_patch::{Patch, Refused};
use crate::schema::{Field, Kind, Schema, TypeId};

/// Applies a JSON patch.
///
/// # Errors
/// 400 when the patch is malformed, 422 when an operation fails.
pub fn json_patch(object: &mut Value, patch: &[u8]) -> Result<(), Error> {
    let patch = Patch::decode(patch).map_err(|refused| match refused {
        Refused::Malformed(why) => Error::bad_request(why),
        Refused::TooLarge(why) => Error::new(Reason::RequestEntityTooLarge, why),
    })?;
    patch.apply(object).map_err(|_| {
        let message = "the server rejected our request due to an error in our request";
        Error::generic(Reason::Invalid, message)
    })
}

/// Applies a merge patch.
///
/// # Errors
/// 400 when the patch is not a JSON object.
pub fn merge_patch(object: &mut Value, patch: &[u8]) -> Result<(), Error> {
    merge(object, parse_object(patch)?.into());
    Ok(())
}

/// Nulls remove, wherever they are in something that is new: in lists too, unless the list replaces an object.
fn merge(object: &mut Value, mut patch: Value) {
    match (object, &mut patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (name, change) in std::mem::take(patch) {
                match object.get_mut(&name) {
                    _ if change.is_null() => {
                        object.remove(&name);
                    }
                    Some(present) => merge(present, change),
                    None => {
                        object.insert(name, without_nulls(change));
                    }
                }
            }
        }
        (object @ Value::Object(_), _) => *object = patch,
        (object, _) => *object = without_nulls(patch),
    }
}

/// Without the members of objects that are null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, member)| !member.is_null())
            .map(|(name, member)| (name, without_nulls(member)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// Applies a strategic merge patch over the type's schema.
///
/// # Errors
/// 400 when the patch is not a JSON object, uses an unknown directive or lacks a merge key.
pub fn strategic_merge_patch(
    schema: &Schema,
    ty: TypeId,
    object: &mut Value,
    patch: &[u8],
) -> Result<(), Error> {
    let patch = parse_object(patch)?;
    merge_object(schema, Some(ty), object, patch).map_err(Error::bad_request)
}

fn parse_object(patch: &[u8]) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(patch) {
        Ok(Value::Object(patch)) => Ok(patch),
        Ok(Value::Null) => Err(Error::bad_request("Invalid JSON Patch")),
        Ok(other) => {
            let kind = kind_of(&other);
            Err(Error::bad_request(format!(
                "error decoding patch: json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
            )))
        }
        Err(e) => {
            let why = json_error(&e);
            Err(Error::bad_request(format!("error decoding patch: {why}")))
        }
    }
}

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVE: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

fn merge_object(
    schema: &Schema,
    ty: Option<TypeId>,
    target: &mut Value,
    mut patch: Map<String, Value>,
) -> Result<(), String> {
    match patch
        .remove(DIRECTIVE)
        .as_ref()
        .map(|d| d.as_str().unwrap_or_default())
    {
        None | Some("merge") => {}
        Some("replace") => {
            *target = Value::Object(patch);
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some(other) => return Err(format!("unknown patch type: {other}")),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else {
        return Ok(());
    };
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        let keys = keys.as_array().ok_or("$retainKeys must be a list")?;
        let kept: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
        map.retain(|key, _| kept.contains(key.as_str()));
    }
    let mut orders = Vec::new();
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix(ELEMENT_ORDER) {
            orders.push((list.to_owned(), value));
            continue;
        }
        if let Some(list) = name.strip_prefix(DELETE_PRIMITIVE) {
            let removed = value
                .as_array()
                .ok_or("$deleteFromPrimitiveList must be a list")?;
            let removed: HashSet<&Value> = removed.iter().collect();
            if let Some(Value::Array(items)) = map.get_mut(list) {
                items.retain(|item| !removed.contains(item));
            }
            continue;
        }
        if value.is_null() {
            map.remove(&name);
            continue;
        }
        let field = ty.and_then(|ty| schema.get(ty).field(&name));
        merge_field(schema, field, map, name, value)?;
    }
    for (list, order) in orders {
        let field = ty.and_then(|ty| schema.get(ty).field(&list));
        let key = field.and_then(|f| f.patch.merge_key.as_deref());
        if let (Some(Value::Array(items)), Value::Array(order)) = (map.get_mut(&list), order) {
            apply_order(items, &order, key);
        }
    }
    Ok(())
}

fn merge_field(
    schema: &Schema,
    field: Option<&Field>,
    map: &mut Map<String, Value>,
    name: String,
    value: Value,
) -> Result<(), String> {
    match value {
        Value::Object(patch) => {
            let ty = field.and_then(|f| match &f.kind {
                Kind::Object(ty) => Some(*ty),
                Kind::Map(item) => match **item {
                    Kind::Object(ty) => Some(ty),
                    _ => None,
                },
                _ => None,
            });
            let slot = map.entry(name).or_insert(Value::Null);
            match field.map(|f| &f.kind) {
                Some(Kind::Map(_)) => merge_map(schema, ty, slot, patch),
                _ => merge_object(schema, ty, slot, patch),
            }
        }
        Value::Array(patch) if field.is_some_and(|f| f.patch.merge) => {
            let slot = map
                .entry(name.clone())
                .or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = slot else {
                return Err(format!("{name} is not a list"));
            };
            let field = field.filter(|f| f.patch.merge_key.is_some());
            match field {
                Some(field) => merge_keyed_list(schema, field, items, patch),
                None => {
                    let before = items.clone();
                    let mut known: HashSet<&Value> = before.iter().collect();
                    items.extend(patch.iter().filter(|item| known.insert(item)).cloned());
                    merged_order(items, &before, &patch, None);
                    Ok(())
                }
            }
        }
        other => {
            map.insert(name, without_directives(other));
            Ok(())
        }
    }
}

/// A map's values are merged one by one under the type of its items.
fn merge_map(
    schema: &Schema,
    item: Option<TypeId>,
    target: &mut Value,
    mut patch: Map<String, Value>,
) -> Result<(), String> {
    if patch.get(DIRECTIVE).is_some_and(|d| d == "replace") {
        patch.remove(DIRECTIVE);
        *target = Value::Object(patch);
        return Ok(());
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else {
        return Ok(());
    };
    for (key, value) in patch {
        match value {
            Value::Null => {
                map.remove(&key);
            }
            Value::Object(patch) => {
                merge_object(schema, item, map.entry(key).or_insert(Value::Null), patch)?
            }
            other => {
                map.insert(key, other);
            }
        }
    }
    Ok(())
}

fn merge_keyed_list(
    schema: &Schema,
    field: &Field,
    items: &mut Vec<Value>,
    patch: Vec<Value>,
) -> Result<(), String> {
    let key = field.patch.merge_key.as_deref().unwrap_or_default();
    let item_type = match &field.kind {
        Kind::List(item) => match **item {
            Kind::Object(ty) => Some(ty),
            _ => None,
        },
        _ => None,
    };
    if patch
        .iter()
        .any(|p| p.get(DIRECTIVE).is_some_and(|d| d == "replace"))
    {
        *items = patch
            .into_iter()
            .filter(|p| p.get(DIRECTIVE).is_none())
            .collect();
        return Ok(());
    }
    let (before, named) = (items.clone(), patch.clone());
    let mut places: HashMap<Value, Vec<usize>> = HashMap::new();
    for (i, item) in before.iter().enumerate() {
        if let Some(identity) = item.get(key) {
            places.entry(identity.clone()).or_default().push(i);
        }
    }
    // What is deleted leaves its place empty until the end.
    let mut merged: Vec<Option<Value>> = std::mem::take(items).into_iter().map(Some).collect();
    for item in patch {
        let Value::Object(mut item) = item else {
            return Err(format!("list {} must hold objects", field.name));
        };
        let identity = item.get(key).cloned().ok_or_else(|| {
            format!(
                "map: {} does not contain declared merge key: {key}",
                Value::Object(item.clone())
            )
        })?;
        if item.get(DIRECTIVE).is_some_and(|d| d == "delete") {
            for place in places.remove(&identity).into_iter().flatten() {
                merged[place] = None;
            }
            continue;
        }
        let present = places.get(&identity).and_then(|places| places.first());
        match present.and_then(|place| merged[*place].as_mut()) {
            Some(present) => merge_object(schema, item_type, present, item)?,
            None => {
                item.remove(DIRECTIVE);
                let mut fresh = Value::Object(Map::new());
                merge_object(schema, item_type, &mut fresh, item)?;
                places.insert(identity, vec![merged.len()]);
                merged.push(Some(fresh));
            }
        }
    }
    items.extend(merged.into_iter().flatten());
    merged_order(items, &before, &named, Some(key));
    Ok(())
}

/// What an item of a list is known by: its merge key, or itself.
fn identity(item: &Value, key: Option<&str>) -> Value {
    match key {
        Some(key) => item.get(key).cloned().unwrap_or(Value::Null),
        None => item.clone(),
    }
}

/// Where in a list the first item of each identity is.
fn places(list: &[Value], key: Option<&str>) -> HashMap<Value, usize> {
    let places = list.iter().enumerate().rev();
    places.map(|(i, item)| (identity(item, key), i)).collect()
}

/// The order of a merged list: the items that the patch names in the patch's order, each of the others before the next
/// of these that it was before already, and what is left at the end.
fn merged_order(items: &mut Vec<Value>, before: &[Value], patch: &[Value], key: Option<&str>) {
    let (before, patch) = (places(before, key), places(patch, key));
    let place =
        |list: &HashMap<Value, usize>, item: &Value| list.get(&identity(item, key)).copied();
    let all = std::mem::take(items);
    let (mut named, others): (Vec<Value>, Vec<Value>) = all
        .into_iter()
        .partition(|item| place(&patch, item).is_some());
    named.sort_by_cached_key(|item| place(&patch, item));
    let mut named = named.into_iter().peekable();
    for other in others {
        let own = place(&before, &other);
        while let Some(next) = named.next_if(|next| {
            let of_next = place(&before, next);
            !matches!((own, of_next), (Some(own), Some(of_next)) if own < of_next)
        }) {
            items.push(next);
        }
        items.push(other);
    }
    items.extend(named);
}

/// Puts the items that `order` names into that order; others keep their place relative to their predecessor.
fn apply_order(items: &mut [Value], order: &[Value], key: Option<&str>) {
    let wanted = places(order, key);
    let rank = |item: &Value| wanted.get(&identity(item, key));
    let mut named: Vec<Value> = items
        .iter()
        .filter(|i| rank(i).is_some())
        .cloned()
        .collect();
    named.sort_by_cached_key(|i| rank(i));
    let mut named = named.into_iter();
    for item in items.iter_mut().filter(|i| rank(i).is_some()) {
        if let Some(next) = named.next() {
            *item = next;
        }
    }
}

fn without_directives(value: Value) -> Value {
    match value {
        Value::Array(items) => items
            .into_iter()
            .filter(|i| i.get(DIRECTIVE).is_none_or(|d| d != "replace"))
            .map(without_directives)
            .collect(),
        Value::Object(mut map) => {
            map.remove(DIRECTIVE);
            Value::Object(
                map.into_iter()
                    .map(|(k, v)| (k, without_directives(v)))
                    .collect(),
            )
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn strategic(mut object: Value, patch: Value) -> Value {
        let schema = Schema::builtin();
        let ty = schema.find("io.k8s.api.core.v1.Pod").unwrap();
        strategic_merge_patch(schema, ty, &mut object, patch.to_string().as_bytes()).unwrap();
        object
    }

    #[test]
    fn lists_merge_by_key() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}});
        let patched = strategic(
            pod.clone(),
            json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c"}]}}),
        );
        assert_eq!(
            patched["spec"]["containers"],
            json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c"}])
        );
        let deleted = strategic(
            pod,
            json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
        );
        assert_eq!(
            deleted["spec"]["containers"],
            json!([{"name": "b", "image": "1"}])
        );
    }

    #[test]
    fn what_a_patch_adds_comes_before_what_it_does_not_name() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}});
        let patched = strategic(
            pod,
            json!({"spec": {"containers": [{"name": "new"}, {"name": "c"}, {"name": "last"}]}}),
        );
        let names: Vec<&str> = patched["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|c| c["name"].as_str())
            .collect();
        assert_eq!(names, ["new", "a", "b", "c", "last"]);
    }

    #[test]
    fn directives() {
        let pod = json!({"metadata": {"finalizers": ["a/x", "b/y"], "labels": {"a": "1", "b": "2"}}, "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
        let patched = strategic(
            pod.clone(),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/x"], "labels": {"$patch": "replace", "c": "3"}}}),
        );
        assert_eq!(
            patched["metadata"],
            json!({"finalizers": ["b/y"], "labels": {"c": "3"}})
        );
        let patched = strategic(
            pod,
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}}),
        );
        assert_eq!(
            patched["spec"]["volumes"],
            json!([{"name": "v", "hostPath": {"path": "/x"}}])
        );
    }

    #[test]
    fn element_order_is_kept() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let patched = strategic(
            pod,
            json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}], "containers": [{"name": "c"}]}}),
        );
        assert_eq!(
            patched["spec"]["containers"],
            json!([{"name": "c"}, {"name": "b"}, {"name": "a"}])
        );
    }

    #[test]
    fn a_missing_merge_key_is_refused() {
        let schema = Schema::builtin();
        let ty = schema.find("io.k8s.api.core.v1.Pod").unwrap();
        let mut pod = json!({});
        let error = strategic_merge_patch(
            schema,
            ty,
            &mut pod,
            br#"{"spec":{"containers":[{"image":"x"}]}}"#,
        )
        .unwrap_err();
        assert!(
            error
                .message
                .contains("does not contain declared merge key: name")
        );
    }

    #[test]
    fn merge_patch_takes_nulls_for_removals() {
        let mut object = json!({"gone": 1, "map": {"a": 1, "b": 2}, "list": [1], "to": {}});
        let patch = json!({
            "gone": null, "map": {"a": null, "c": {"d": null}}, "list": [{"x": null, "y": 1}],
            "new": [{"x": null}], "to": [{"x": null}],
        });
        merge_patch(&mut object, patch.to_string().as_bytes()).unwrap();
        assert_eq!(
            object,
            json!({"map": {"b": 2, "c": {}}, "list": [{"y": 1}], "new": [{}], "to": [{"x": null}]})
        );
    }

    fn arbitrary_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(
                    "(spec|containers|name|metadata|labels|\\$patch)",
                    inner,
                    0..4
                )
                .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn patches_never_panic(object in arbitrary_json(), patch in arbitrary_json()) {
            let schema = Schema::builtin();
            let ty = schema.find("io.k8s.api.core.v1.Pod").unwrap();
            let bytes = patch.to_string();
            let _ = strategic_merge_patch(schema, ty, &mut object.clone(), bytes.as_bytes());
            let _ = merge_patch(&mut object.clone(), bytes.as_bytes());
            let mut object = object;
            let _ = json_patch(&mut object, bytes.as_bytes());
        }

        /// A list that replaces an object keeps its nulls, and loses them when it replaces itself.
        #[test]
        fn merge_patch_settles(object in arbitrary_json(), patch in arbitrary_json()) {
            let bytes = patch.to_string();
            let mut once = object;
            if merge_patch(&mut once, bytes.as_bytes()).is_ok() {
                merge_patch(&mut once, bytes.as_bytes()).unwrap();
                let mut again = once.clone();
                merge_patch(&mut again, bytes.as_bytes()).unwrap();
                prop_assert_eq!(once, again);
            }
        }
    }
}

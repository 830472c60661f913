//! Managed fields of the `scale` subresource: of all that is owned of an object, only its number of replicas is seen there.

use serde_json::Value;

use super::entries::{Entry, Managed, Manager};
use super::set::{Set, field_key};

/// The version of scales.
const SCALE: &str = "autoscaling/v1";

fn path(fields: &[&str]) -> Vec<String> {
    fields.iter().map(|name| field_key(name)).collect()
}

fn set_of(keys: &[String]) -> Set {
    let mut set = Set::default();
    set.insert(keys.iter().map(|k| k.as_str().into()));
    set
}

fn has(set: &Set, keys: &[String]) -> bool {
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    set.contains(&keys)
}

/// An object's entries as its scale shows them.
#[must_use]
pub fn to_scale(parent: &Value, replicas: &[&str]) -> Value {
    let Ok(managed) = Managed::decode(parent, true) else {
        return Value::Null;
    };
    let (replicas, seen) = (path(replicas), path(&["spec", "replicas"]));
    let owners = managed.0.into_iter().filter(|e| has(&e.set, &replicas));
    let entries = owners.map(|entry| Entry {
        manager: Manager {
            api_version: SCALE.to_owned(),
            ..entry.manager
        },
        set: set_of(&seen),
        ..entry
    });
    Managed(entries.collect()).encode()
}

/// An object's entries after those of its scale have changed to `scale`; `version` is the object's.
#[must_use]
pub fn from_scale(parent: &Value, scale: &Value, version: &str, replicas: &[&str]) -> Value {
    let (Ok(parents), Ok(mut scales)) =
        (Managed::decode(parent, true), Managed::decode(scale, true))
    else {
        return parent.clone();
    };
    let (replicas, seen) = (path(replicas), path(&["spec", "replicas"]));
    let mut kept = Vec::new();
    for mut entry in parents.0 {
        if has(&entry.set, &replicas) {
            let same = Manager {
                api_version: SCALE.to_owned(),
                ..entry.manager.clone()
            };
            if scales.take(&same).is_none() {
                // Somebody else has them now.
                entry.set = entry.set.difference(&set_of(&replicas));
            }
        }
        if !entry.set.is_empty() {
            kept.push(entry);
        }
    }
    for entry in scales.0.into_iter().filter(|e| has(&e.set, &seen)) {
        let manager = Manager {
            api_version: version.to_owned(),
            ..entry.manager
        };
        // As upstream, which only knows the times of entries that the object had.
        kept.push(Entry {
            manager,
            set: set_of(&replicas),
            time: None,
        });
    }
    Managed(kept).encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn replicas_change_hands() {
        let entry = |manager: &str, subresource: &str, version: &str, fields: Value| {
            let mut entry = json!({"manager": manager, "operation": "Update", "apiVersion": version, "fieldsType": "FieldsV1", "fieldsV1": fields});
            if !subresource.is_empty() {
                entry["subresource"] = subresource.into();
            }
            entry
        };
        let replicas = json!({"f:spec": {"f:replicas": {}}});
        let parent = json!([entry(
            "a",
            "",
            "apps/v1",
            json!({"f:spec": {"f:paused": {}, "f:replicas": {}}})
        )]);
        let seen = to_scale(&parent, &["spec", "replicas"]);
        assert_eq!(
            seen,
            json!([entry("a", "", "autoscaling/v1", replicas.clone())])
        );
        let unchanged = from_scale(&parent, &seen, "apps/v1", &["spec", "replicas"]);
        assert_eq!(unchanged, parent);
        let taken = json!([entry("b", "scale", "autoscaling/v1", replicas.clone())]);
        let after = from_scale(&parent, &taken, "apps/v1", &["spec", "replicas"]);
        assert_eq!(
            after,
            json!([
                entry("a", "", "apps/v1", json!({"f:spec": {"f:paused": {}}})),
                entry("b", "scale", "apps/v1", replicas)
            ])
        );
    }
}

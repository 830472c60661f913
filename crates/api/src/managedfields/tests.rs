use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::resources::{self, Snapshot};

const NOW: &str = "2026-01-01T00:00:00Z";
const LATER: &str = "2026-01-01T00:00:09Z";

/// Calls `with` with the manager of a built-in resource.
fn manager<T>(plural: &str, now: &str, with: impl FnOnce(&FieldManager<'_>) -> T) -> T {
    let resource = resources::builtin()
        .iter()
        .find(|r| r.plural == plural)
        .unwrap();
    let snapshot = Snapshot::default();
    let versions = Served {
        snapshot: &snapshot,
        stored: resource,
    };
    let version = resource.api_version();
    with(&FieldManager {
        versions: &versions,
        stored: &version,
        requested: &version,
        subresource: "",
        reset: reset_fields(resource, ""),
        now,
    })
}

fn apply(live: &Value, config: &Value, name: &str, force: bool) -> Result<Value, Error> {
    let plural = match config["kind"].as_str().unwrap() {
        "ConfigMap" => "configmaps",
        "Deployment" => "deployments",
        _ => "pods",
    };
    let mut object = manager(plural, NOW, |m| {
        m.apply(live, config, config["kind"].as_str().unwrap(), name, force)
    })?;
    // The server's part.
    meta::set(&mut object, "uid", "u");
    Ok(object)
}

fn update(live: &Value, new: Value, name: &str) -> Value {
    let plural = if new["kind"] == "ConfigMap" {
        "configmaps"
    } else {
        "deployments"
    };
    let mut new = new;
    manager(plural, NOW, |m| m.update(live, &mut new, name));
    meta::set(&mut new, "uid", "u");
    new
}

fn owners(object: &Value) -> Vec<(String, Value)> {
    let list = object["metadata"]["managedFields"].as_array();
    list.into_iter()
        .flatten()
        .map(|e| {
            (
                format!(
                    "{} {}",
                    e["manager"].as_str().unwrap(),
                    e["operation"].as_str().unwrap()
                ),
                e["fieldsV1"].clone(),
            )
        })
        .collect()
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
}

fn deployment(containers: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
        "spec": {"template": {"spec": {"containers": containers}}}})
}

#[test]
fn creation_owns_what_it_states_as_upstream_writes_it() {
    let created = update(
        &Value::Null,
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "a", "namespace": "d", "uid": "x", "labels": {"app": "a"}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "a"}}, "strategy": {"type": "Recreate"},
                "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [
                    {"name": "c", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}], "resources": {}}], "securityContext": {}}}}}),
        "kubectl-create",
    );
    assert_eq!(
        created["metadata"]["managedFields"],
        json!([{"manager": "kubectl-create", "operation": "Update", "apiVersion": "apps/v1", "time": NOW, "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {"f:replicas": {}, "f:selector": {}, "f:strategy": {"f:type": {}},
                    "f:template": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
                        ".": {}, "f:image": {}, "f:name": {}, "f:resources": {},
                        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}}},
                        "f:securityContext": {}}}}}}])
    );
}

#[test]
fn conflicts_are_told_and_force_takes_over() {
    let created = apply(
        &Value::Null,
        &config_map(json!({"a": "1", "b": "1"})),
        "one",
        false,
    )
    .unwrap();
    let error = apply(&created, &config_map(json!({"a": "2"})), "two", false).unwrap_err();
    assert_eq!(error.code, 409);
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"one\": .data.a"
    );
    assert_eq!(error.causes[0].reason, "FieldManagerConflict");
    assert_eq!(error.causes[0].message, "conflict with \"one\"");
    let forced = apply(&created, &config_map(json!({"a": "2"})), "two", true).unwrap();
    assert_eq!(forced["data"], json!({"a": "2", "b": "1"}));
    assert_eq!(
        owners(&forced),
        [
            ("one Apply".into(), json!({"f:data": {"f:b": {}}})),
            ("two Apply".into(), json!({"f:data": {"f:a": {}}}))
        ]
    );
    let updated = update(
        &created,
        {
            let mut new = created.clone();
            new["data"]["a"] = "3".into();
            new
        },
        "editor",
    );
    let error = apply(
        &updated,
        &config_map(json!({"a": "1", "b": "1", "c": "1"})),
        "one",
        false,
    )
    .unwrap_err();
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"editor\" using v1: .data.a"
    );
}

#[test]
fn what_an_applier_gives_up_goes_unless_another_owns_it() {
    let one = apply(
        &Value::Null,
        &config_map(json!({"a": "1", "b": "1", "c": "1"})),
        "one",
        false,
    )
    .unwrap();
    let both = apply(&one, &config_map(json!({"b": "1"})), "two", false).unwrap();
    let less = apply(&both, &config_map(json!({"a": "1"})), "one", false).unwrap();
    assert_eq!(less["data"], json!({"a": "1", "b": "1"}));
    assert_eq!(
        owners(&less),
        [
            // Who changed nothing has no time, and so comes first.
            ("two Apply".into(), json!({"f:data": {"f:b": {}}})),
            ("one Apply".into(), json!({"f:data": {"f:a": {}}}))
        ]
    );
}

#[test]
fn items_of_lists_are_merged_and_removed_by_their_keys() {
    let one = apply(
        &Value::Null,
        &deployment(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])),
        "one",
        false,
    )
    .unwrap();
    let two = apply(
        &one,
        &deployment(json!([{"name": "c", "image": "1"}, {"name": "a", "image": "1"}])),
        "two",
        false,
    )
    .unwrap();
    let names = |object: &Value| -> Vec<String> {
        let list = object["spec"]["template"]["spec"]["containers"].as_array();
        list.unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&two), ["c", "a", "b"]);
    let gone = apply(
        &two,
        &deployment(json!([{"name": "b", "image": "1"}])),
        "one",
        false,
    )
    .unwrap();
    assert_eq!(names(&gone), ["c", "a", "b"]);
    let gone = apply(
        &gone,
        &deployment(json!([{"name": "c", "image": "1"}])),
        "two",
        false,
    )
    .unwrap();
    assert_eq!(names(&gone), ["c", "b"]);
}

#[test]
fn kubectl_takes_over_what_it_applied_on_the_client() {
    let applied = config_map(json!({"a": "1", "b": "1"}));
    let mut live = applied.clone();
    live["metadata"]["annotations"] = json!({LAST_APPLIED: applied.to_string()});
    let live = update(&Value::Null, live, "kubectl-client-side-apply");
    let changed = config_map(json!({"a": "2"}));
    assert!(apply(&live, &changed, "other", false).is_err());
    let taken = apply(&live, &changed, "kubectl", false).unwrap();
    assert_eq!(taken["data"]["a"], "2");
    let annotation = taken["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .unwrap();
    assert_eq!(serde_json::from_str::<Value>(annotation).unwrap(), changed);
}

#[test]
fn untracked_objects_get_an_owner_at_the_first_apply() {
    let mut live = config_map(json!({"a": "1"}));
    meta::set(&mut live, "uid", "u");
    let same = update(
        &live,
        {
            let mut new = live.clone();
            new["data"]["a"] = "2".into();
            new
        },
        "x",
    );
    assert!(same["metadata"]["managedFields"].is_null());
    let applied = apply(&live, &config_map(json!({"b": "1"})), "one", false).unwrap();
    assert_eq!(
        owners(&applied),
        [
            ("one Apply".into(), json!({"f:data": {"f:b": {}}})),
            (
                "before-first-apply Update".into(),
                json!({"f:data": {".": {}, "f:a": {}}})
            )
        ]
    );
}

#[test]
fn managed_fields_are_reset_on_request_and_nonsense_is_ignored() {
    let created = update(&Value::Null, config_map(json!({"a": "1"})), "x");
    for (given, left) in [
        (json!([]), 0),
        (json!([{}]), 0),
        (json!([{"manager": "bad"}]), 1),
    ] {
        let mut new = created.clone();
        new["metadata"]["managedFields"] = given;
        let updated = update(&created, new, "y");
        assert_eq!(owners(&updated).len(), left);
    }
}

#[test]
fn updates_move_the_time_only_when_they_change_something() {
    let created = update(&Value::Null, config_map(json!({"a": "1"})), "x");
    let mut same = created.clone();
    manager("configmaps", LATER, |m| m.update(&created, &mut same, "x"));
    assert_eq!(same, created);
    let mut other = created.clone();
    other["data"]["a"] = "2".into();
    manager("configmaps", LATER, |m| m.update(&created, &mut other, "x"));
    assert_eq!(other["metadata"]["managedFields"][0]["time"], LATER);
}

#[test]
fn bad_configurations_are_refused() {
    let mut wrong = config_map(json!({"a": "1"}));
    wrong["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    let refused = |config: &Value| apply(&Value::Null, config, "one", false).unwrap_err();
    assert_eq!(
        refused(&wrong).message,
        "metadata.managedFields must be nil"
    );
    let unknown =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "spec": {}});
    let error = refused(&unknown);
    assert_eq!(error.code, 500);
    assert_eq!(
        error.message,
        "failed to create typed patch object (/a; /v1, Kind=ConfigMap): .spec: field not declared in schema"
    );
    let error = manager("configmaps", NOW, |m| {
        m.apply(
            &Value::Null,
            &deployment(json!([])),
            "ConfigMap",
            "x",
            false,
        )
    });
    assert_eq!(
        error.unwrap_err().message,
        "invalid object type: apps/v1, Kind=Deployment"
    );
}

/// Configurations of a few containers with a few fields, and labels.
fn configuration() -> impl Strategy<Value = Value> {
    let port = (1..4_i32, prop::bool::ANY).prop_map(|(port, udp)| {
        let mut p = json!({"containerPort": port});
        if udp {
            p["protocol"] = "UDP".into();
        }
        p
    });
    let container = (
        "[a-c]",
        prop::option::of("[x-z]"),
        prop::option::of(prop::collection::vec(port, 1..3)),
        prop::option::of(prop::collection::vec("[p-r]", 1..3)),
    )
        .prop_map(|(name, image, ports, args)| {
            let mut c = json!({"name": name});
            if let Some(image) = image {
                c["image"] = image.into();
            }
            if let Some(mut ports) = ports {
                ports.sort_by_key(ToString::to_string);
                ports.dedup();
                c["ports"] = ports.into();
            }
            if let Some(args) = args {
                c["args"] = args.into();
            }
            c
        });
    let labels = prop::collection::btree_map("[k-m]", "[0-1]", 0..3);
    (
        prop::collection::vec(container, 1..4),
        labels,
        prop::option::of(0..3_i32),
    )
        .prop_map(|(mut containers, labels, replicas)| {
            containers.sort_by_key(|c| c["name"].to_string());
            containers.dedup_by_key(|c| c["name"].to_string());
            let mut object = deployment(containers.into());
            if !labels.is_empty() {
                object["metadata"]["labels"] = json!(labels);
            }
            if let Some(replicas) = replicas {
                object["spec"]["replicas"] = replicas.into();
            }
            object
        })
}

#[derive(Clone, Debug)]
struct Step {
    who: &'static str,
    config: Value,
    force: bool,
    update: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (
        prop::sample::select(vec!["one", "two"]),
        configuration(),
        prop::bool::ANY,
        prop::bool::weighted(0.2),
    )
        .prop_map(|(who, config, force, update)| Step {
            who,
            config,
            force,
            update,
        });
    prop::collection::vec(step, 1..6)
}

fn set_of(object: &Value, owner: &str) -> Set {
    owners(object)
        .into_iter()
        .find(|(name, _)| name == owner)
        .map(|(_, fields)| Set::trusted(fields))
        .unwrap_or_default()
}

/// The value of every leaf that the schema knows.
fn leaves(object: &Value) -> Set {
    let schema = Schema::builtin();
    let ty = schema.find("io.k8s.api.apps.v1.Deployment");
    to_set(Shape::root(schema, ty), object).difference(stripped())
}

proptest! {
    #[test]
    fn applies_keep_their_promises(steps in steps()) {
        let mut live = Value::Null;
        for Step { who, config, force, update: plain } in steps {
            if plain {
                let mut new = config.clone();
                meta::set(&mut new, "managedFields", live["metadata"]["managedFields"].clone());
                live = update(&live, new, "editor");
                continue;
            }
            let before = live.clone();
            match apply(&live, &config, who, force) {
                Err(error) => {
                    prop_assert!(!force && error.code == 409, "{}", error.message);
                    prop_assert!(!error.causes.is_empty());
                }
                Ok(after) => {
                    let own = format!("{who} Apply");
                    // The applier owns what it stated, and the object has it.
                    let stated = leaves(&config);
                    prop_assert_eq!(&set_of(&after, &own), &stated);
                    prop_assert!(stated.clone().difference(&leaves(&after)).is_empty());
                    // Nobody else lost anything that is still as it was, and without force nothing at all but what is gone.
                    let other = if who == "one" { "two Apply" } else { "one Apply" };
                    let lost = set_of(&before, other).difference(&set_of(&after, other));
                    if !force {
                        prop_assert!(lost.is_empty(), "{:?}", lost);
                    }
                    let schema = Schema::builtin();
                    let shape = Shape::root(schema, schema.find("io.k8s.api.apps.v1.Deployment"));
                    let nothing = json!({});
                    let found = compare(shape, if before.is_null() { &nothing } else { &before }, &after);
                    let touched = found.removed.clone().union(found.modified.clone()).union(found.added.clone());
                    prop_assert!(lost.difference(&touched).is_empty());
                    // What went away was only this applier's.
                    let given_up = set_of(&before, &own).difference(&stated);
                    let removed = leaves(&before).difference(&leaves(&after));
                    let mut named = merge::with_named_fields(shape, &given_up);
                    named = named.union(given_up.clone());
                    let atomic = removed.clone().difference(&named);
                    // Below an item that went away, what nobody owned went with it; an empty map that was filled is a leaf no more.
                    let after_leaves = leaves(&after);
                    for path in atomic.paths().unwrap() {
                        let keys: Vec<String> = path.iter().map(PathElement::to_key).collect();
                        let gone = (1..keys.len()).any(|n| {
                            let keys: Vec<&str> = keys[..n].iter().map(String::as_str).collect();
                            given_up.contains(&keys)
                        });
                        let mut along = keys.iter();
                        let below = along.try_fold(after_leaves.below(), |below, key| below.child(key));
                        let filled = below.is_some_and(|below| below.has_children());
                        prop_assert!(gone || filled, "{:?}", path);
                    }
                    // Once more changes nothing, not even a time; only an object that nobody tracked gets an owner.
                    if owners(&after).is_empty() {
                        live = after;
                        continue;
                    }
                    let again = manager("deployments", LATER, |m| m.apply(&after, &config, "Deployment", who, false));
                    let mut again = again.unwrap();
                    meta::set(&mut again, "uid", "u");
                    prop_assert_eq!(&again, &after);
                    live = after;
                }
            }
        }
    }
}

//! Bytes that nobody would send, for everything that reads bytes from outside, and every kind's protobuf form. Valid inputs
//! are changed at random, so that the changes reach deep.
//!
//! `FLUYT_FUZZ_SECONDS=60 cargo nextest run -p fluyt-api fuzz` is the nightly form; a failure prints its seed, which
//! `FLUYT_FUZZ_SEED` runs again.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Map, Value, json};

use crate::resources::{self, Resource};
use crate::schema::{Field, Kind, Schema, TypeId};
use crate::selector::{FieldSelector, LabelSelector};
use crate::{cbor, convert, decode, defaults, patch, protobuf};

/// Runs a target for its time, with randomness that the seed repeats.
fn attack(mut target: impl FnMut(&mut StdRng)) {
    let seconds = setting("FLUYT_FUZZ_SECONDS").unwrap_or(1);
    let seed = setting("FLUYT_FUZZ_SEED").unwrap_or_else(rand::random);
    println!("FLUYT_FUZZ_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        target(&mut random);
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn changed(sample: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = sample.to_vec();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.random()),
            2 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            3 if at < bytes.len() => bytes[at] = [0, 0x7f, 0x80, 0xff][random.random_range(0..4)],
            4 => {
                let word = [
                    "null", "[]", "{}", "\"\"", "-1", "1e999", "\u{0}", "$patch", "~1", "\\ud800",
                ][random.random_range(0..10)];
                bytes.splice(at..at, word.bytes());
            }
            _ => {
                let copy = bytes[at..].to_vec();
                bytes.extend(copy.into_iter().take(64));
            }
        }
    }
    bytes
}

/// A word, often an empty one.
fn text(random: &mut StdRng) -> String {
    ["", "a", "b.c/d", "1", "ü", "x-y"][random.random_range(0..6)].to_owned()
}

/// A value of a kind.
fn value(kind: &Kind, depth: usize, random: &mut StdRng) -> Value {
    match kind {
        Kind::String => text(random).into(),
        Kind::Int32 => random.random::<i32>().into(),
        Kind::Int64 => random.random::<i64>().into(),
        Kind::Bool => random.random::<bool>().into(),
        Kind::Double => (f64::from(random.random::<i32>()) / 8.0).into(),
        Kind::Bytes => ["", "YQ==", "/+8="][random.random_range(0..3)].into(),
        Kind::Time => "2026-01-02T03:04:05Z".into(),
        Kind::MicroTime => "2026-01-02T03:04:05.000006Z".into(),
        Kind::Quantity => ["1", "100m", "1Gi"][random.random_range(0..3)].into(),
        Kind::IntOrString if random.random() => random.random::<i32>().into(),
        Kind::IntOrString => "50%".into(),
        Kind::Json => json!({"a": [1, {"b": null}], "c": "d"}),
        Kind::Object(ty) => object(*ty, depth + 1, random),
        Kind::List(item) => (0..random.random_range(0..3))
            .map(|_| value(item, depth, random))
            .collect(),
        Kind::Map(item) => (0..random.random_range(0..3))
            .map(|_| (text(random), value(item, depth, random)))
            .collect::<Map<_, _>>()
            .into(),
    }
}

/// An object of a type.
fn object(ty: TypeId, depth: usize, random: &mut StdRng) -> Value {
    let of = Schema::builtin().get(ty);
    let mut map = Map::new();
    for field in &of.fields {
        let deep =
            depth > 6 && matches!(field.kind, Kind::Object(_) | Kind::List(_) | Kind::Map(_));
        if !field.path.is_empty() && !deep && (depth == 0 || random.random_ratio(1, 3)) {
            map.insert(
                field.name.to_string(),
                field_value(&of.name, field, depth, random),
            );
        }
    }
    // Claims in the template of a set say what they are.
    if depth > 0 && of.name.ends_with(".PersistentVolumeClaim") {
        map.insert("apiVersion".into(), "v1".into());
        map.insert("kind".into(), "PersistentVolumeClaim".into());
    }
    map.into()
}

fn field_value(ty: &str, field: &Field, depth: usize, random: &mut StdRng) -> Value {
    match &*field.name {
        "fieldsV1" => json!({"f:a": {".": {}, "k:{\"b\":1}": {}}}),
        // Only certain JSON means something there.
        "items" | "additionalItems" | "additionalProperties" if field.kind == Kind::Json => {
            json!({"type": "string"})
        }
        "dependencies" if ty.ends_with("JSONSchemaProps") => json!({"a": ["b"]}),
        _ => value(&field.kind, depth, random),
    }
}

/// Resources that are stored, and an object of one of them.
fn sample(random: &mut StdRng) -> (&'static Resource, TypeId, Value) {
    let all: Vec<&Resource> = resources::builtin()
        .iter()
        .filter(|r| !r.is_virtual())
        .collect();
    let resource = all[random.random_range(0..all.len())];
    let ty = resource.ty.unwrap();
    let mut object = object(ty, 0, random);
    object["metadata"] = json!({"name": "a", "namespace": "n", "labels": {"a": "b"}, "generation": 2,
        "creationTimestamp": "2026-01-02T03:04:05Z", "finalizers": ["x/y"],
        "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {"f:a": {}}}}]});
    (resource, ty, object)
}

/// Where two values differ, and how.
fn difference(a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
            let (left, right) = (a.get(key), b.get(key));
            match (left, right) {
                (Some(left), Some(right)) => difference(left, right),
                _ => Some(format!(": {left:?} or {right:?}")),
            }
            .map(|rest| format!(".{key}{rest}"))
        }),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            let mut found =
                pairs.filter_map(|(i, (a, b))| Some(format!("[{i}]{}", difference(a, b)?)));
            found.next()
        }
        _ => (a != b).then(|| format!(": {a} or {b}")),
    }
}

#[test]
fn fuzz_every_kind_survives_its_protobuf_form() {
    attack(|random| {
        let (resource, ty, mut object) = sample(random);
        defaults::as_stored(Schema::builtin(), ty, &mut object);
        if let Some(map) = object.as_object_mut() {
            map.remove("apiVersion");
            map.remove("kind");
        }
        let message = protobuf::encode(ty, &object);
        let mut read = protobuf::decode(ty, &message).unwrap();
        defaults::as_stored(Schema::builtin(), ty, &mut read);
        assert_eq!(difference(&object, &read), None, "{}", resource.kind);
        assert_eq!(protobuf::encode(ty, &read), message, "{}", resource.kind);
    });
}

#[test]
fn fuzz_protobuf() {
    attack(|random| {
        let (_, ty, object) = sample(random);
        let body = protobuf::body(&object).unwrap_or_default();
        if let Ok(envelope) = protobuf::open(&changed(&body, random)) {
            let _ = protobuf::decode(ty, envelope.raw);
        }
        let message = protobuf::encode(ty, &object);
        if let Ok(read) = protobuf::decode(ty, &changed(&message, random)) {
            let _ = protobuf::encode(ty, &read);
        }
    });
}

/// Every version of a resource that is stored in another one says the same there and back, in fields that are known.
#[test]
fn versions_convert_there_and_back() {
    let schema = Schema::builtin();
    let conform = |resource: &Resource, object: &Value| {
        let mut object = object.clone();
        let unknown = decode::conform(schema, resource.ty.unwrap(), &mut object).unwrap();
        assert!(
            unknown.unknown.is_empty(),
            "{:?} of {}",
            unknown.unknown,
            resource.api_version()
        );
    };
    let others: Vec<&Resource> = resources::builtin()
        .iter()
        .filter(|r| !std::ptr::eq(r.hub(), *r) && r.group == r.hub().group)
        // What its first version has no field for travels in annotations.
        .filter(|r| r.group != "autoscaling")
        .collect();
    assert!(others.len() > 15);
    attack(|random| {
        let resource = others[random.random_range(0..others.len())];
        let hub = resource.hub();
        // In the version itself: a device of the first versions always has its basic part.
        let mut object = object(resource.ty.unwrap(), 0, random);
        object["apiVersion"] = resource.api_version().into();
        object["kind"] = resource.kind.into();
        defaults::as_stored(schema, resource.ty.unwrap(), &mut object);
        if resource.version == "v1beta1" {
            for device in crate::strategy::items_mut(&mut object, &["spec", "devices"]) {
                crate::meta::child(device, "basic");
            }
        }
        let mut stored = convert::to_storage(resource, hub, object.clone());
        conform(hub, &stored);
        let back = convert::from_storage(resource, stored.clone());
        conform(resource, &back);
        assert_eq!(
            difference(&object, &back),
            None,
            "{}",
            resource.api_version()
        );
        // And of what is stored, which says nothing now that the version could not say.
        defaults::as_stored(schema, hub.ty.unwrap(), &mut stored);
        let served = convert::from_storage(resource, stored.clone());
        let mut again = convert::to_storage(resource, hub, served);
        defaults::as_stored(schema, hub.ty.unwrap(), &mut again);
        assert_eq!(difference(&stored, &again), None, "{}", hub.api_version());
    });
}

#[test]
fn fuzz_json() {
    attack(|random| {
        let (resource, ty, object) = sample(random);
        let bytes = changed(object.to_string().as_bytes(), random);
        if let Ok((mut parsed, _)) = decode::parse_json(&bytes)
            && decode::conform(Schema::builtin(), ty, &mut parsed).is_ok()
        {
            defaults::normalise(Schema::builtin(), ty, &mut parsed);
            let mut errors = crate::validation::Errors::default();
            resource.strategy().default(&mut parsed);
            resource.strategy().validate(&parsed, &mut errors);
            let _ = protobuf::encode(ty, &parsed);
        }
    });
}

#[test]
fn fuzz_cbor() {
    attack(|random| {
        let (_, _, object) = sample(random);
        let encoded = cbor::encode(&object);
        assert_eq!(cbor::decode(&encoded).unwrap(), object);
        let _ = cbor::decode(&changed(&encoded, random));
    });
}

#[test]
fn fuzz_patches() {
    let json_patch = json!([
        {"op": "add", "path": "/metadata/labels/a~1b", "value": 1}, {"op": "remove", "path": "/spec"},
        {"op": "test", "path": "/kind", "value": "x"}, {"op": "move", "from": "/a", "path": "/b/-"},
        {"op": "copy", "from": "/metadata", "path": "/c"},
    ]);
    let strategic = json!({
        "metadata": {"labels": {"a": null}, "$deleteFromPrimitiveList/finalizers": ["x/y"]},
        "spec": {"containers": [{"name": "c", "$patch": "delete"}, {"$setElementOrder/ports": []}],
            "volumes": [{"$retainKeys": ["name"], "name": "v"}], "$setElementOrder/containers": [{"name": "c"}]},
        "$patch": "merge",
    });
    attack(|random| {
        let (_, ty, object) = sample(random);
        let bytes = changed(json_patch.to_string().as_bytes(), random);
        let _ = patch::json_patch(&mut object.clone(), &bytes);
        let bytes = changed(strategic.to_string().as_bytes(), random);
        let _ = patch::merge_patch(&mut object.clone(), &bytes);
        let _ = patch::strategic_merge_patch(Schema::builtin(), ty, &mut object.clone(), &bytes);
        // A patch of the kind itself reaches more of its fields.
        let own = self::object(ty, 0, random).to_string();
        let bytes = changed(own.as_bytes(), random);
        let mut patched = object;
        let _ = patch::strategic_merge_patch(Schema::builtin(), ty, &mut patched, &bytes);
    });
}

#[test]
fn fuzz_selectors() {
    let samples = [
        "a=b,c!=d,e in (f, g),h notin (i),!j,k>1,l<2",
        "metadata.name=a,spec.nodeName!=\\,b",
        "a==b",
    ];
    attack(|random| {
        let sample = samples[random.random_range(0..samples.len())];
        let bytes = changed(sample.as_bytes(), random);
        let text = String::from_utf8_lossy(&bytes);
        if let Ok(selector) = LabelSelector::parse(&text) {
            let _ = selector.matches(json!({"a": "b"}).as_object());
            // What it prints means the same.
            let printed = selector.to_string();
            let again = LabelSelector::parse(&printed).unwrap();
            assert_eq!(again.to_string(), printed);
        }
        let _ = FieldSelector::parse(&text);
        let _ = text.parse::<crate::quantity::Quantity>();
    });
}

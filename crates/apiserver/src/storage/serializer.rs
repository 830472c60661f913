//! The stored form of objects, as upstream's: protobuf in its envelope for built-in kinds, JSON for custom ones. Whatever
//! was stored in the other form, or in another version, is read all the same.

use std::borrow::Cow;

use fluyt_api::custom::v1beta1;
use fluyt_api::resources::{self, Resource};
use fluyt_api::schema::{Schema, TypeId};
use fluyt_api::{convert, defaults, protobuf};
use serde_json::Value;

/// What built-in kinds are written in (`--storage-media-type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MediaType {
    #[default]
    Protobuf,
    Json,
}

impl std::str::FromStr for MediaType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "application/vnd.kubernetes.protobuf" => Ok(Self::Protobuf),
            "application/json" => Ok(Self::Json),
            other => Err(format!(
                "--storage-media-type {other:?} invalid, allowed values: application/json,application/vnd.kubernetes.protobuf"
            )),
        }
    }
}

/// How built-in kinds are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) media_type: MediaType,
    /// The oldest minor version of servers that are to read it.
    pub(super) compatible: u32,
}

/// An object that was stored.
#[derive(Debug)]
pub struct Stored {
    pub object: Value,
    /// It would be written in another form now.
    pub stale: bool,
}

/// Gives an object the form that it will have when it is read again.
pub fn prepare(resource: &Resource, object: &mut Value) {
    if let Some(ty) = builtin_type(resource) {
        defaults::as_stored(Schema::builtin(), ty, object);
    }
}

/// Encodes an object of a resource in the version that the server works in, which has no resourceVersion: that is the
/// store's to say.
#[must_use]
pub(super) fn encode(form: Form, resource: &Resource, object: &Value) -> Vec<u8> {
    if is_definition(resource) {
        let stored = v1beta1::to_v1beta1(object.clone());
        return serde_json::to_vec(&stored).unwrap_or_default();
    }
    let written = resource.written_as(form.compatible);
    let object = if std::ptr::eq(written, resource) {
        Cow::Borrowed(object)
    } else {
        Cow::Owned(convert::from_storage(written, object.clone()))
    };
    match (media_type(form, resource), builtin_type(written)) {
        (MediaType::Protobuf, Some(ty)) => encode_protobuf(written, ty, &object),
        _ => serde_json::to_vec(&object).unwrap_or_default(),
    }
}

/// Upstream's servers for definitions and for services of groups know no other form than JSON.
fn media_type(form: Form, resource: &Resource) -> MediaType {
    match resource.group {
        "apiextensions.k8s.io" | "apiregistration.k8s.io" => MediaType::Json,
        _ => form.media_type,
    }
}

fn is_definition(resource: &Resource) -> bool {
    resource.definition.is_none() && resource.group == "apiextensions.k8s.io"
}

fn encode_protobuf(resource: &Resource, ty: TypeId, object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    protobuf::seal_into(&resource.api_version(), resource.kind, &mut out, |out| {
        protobuf::encode_into(ty, object, out);
    });
    out
}

/// The type of a kind that has a protobuf form.
fn builtin_type(resource: &Resource) -> Option<TypeId> {
    resource.ty.filter(|_| resource.definition.is_none())
}

/// Decodes a stored value into an object of the resource, which is in the version that the server works in.
///
/// # Errors
/// When it is damaged, or of another kind.
pub(super) fn decode(form: Form, resource: &Resource, stored: &[u8]) -> Result<Stored, String> {
    let (object, is_protobuf) = if stored.starts_with(protobuf::MAGIC) {
        (decode_protobuf(resource, stored)?, true)
    } else {
        (
            serde_json::from_slice(stored).map_err(|e| e.to_string())?,
            false,
        )
    };
    let Some(ty) = builtin_type(resource) else {
        return Ok(Stored {
            object,
            stale: is_protobuf,
        });
    };
    let other_form = is_protobuf != (media_type(form, resource) == MediaType::Protobuf);
    let (object, other_version) = in_version(form, resource, ty, object);
    Ok(Stored {
        object,
        stale: other_form || other_version,
    })
}

fn decode_protobuf(resource: &Resource, stored: &[u8]) -> Result<Value, String> {
    let envelope = protobuf::open(stored)?;
    let (group, version) = envelope
        .api_version
        .rsplit_once('/')
        .unwrap_or(("", envelope.api_version));
    let own =
        envelope.kind == resource.kind && group == resource.group && version == resource.version;
    let ty = if own {
        resource.ty
    } else {
        // An older version's message has the fields of the present one, whose numbers never change.
        resources::type_of(group, version, envelope.kind)
            .or_else(|| resource.ty.filter(|_| envelope.kind == resource.kind))
    };
    let Some(ty) = ty else {
        return Err(format!(
            "no kind \"{}\" is registered for version \"{}\"",
            envelope.kind, envelope.api_version
        ));
    };
    let mut object = protobuf::decode(ty, envelope.raw)?;
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), envelope.api_version.into());
        map.insert("kind".into(), envelope.kind.into());
    }
    defaults::as_stored(Schema::builtin(), ty, &mut object);
    Ok(object)
}

/// The object in the resource's version, and whether it was in another one than it would be written in now.
fn in_version(form: Form, resource: &Resource, ty: TypeId, mut object: Value) -> (Value, bool) {
    let wanted = resource.api_version();
    let found = object["apiVersion"].as_str().unwrap_or_default();
    if is_definition(resource) {
        let stale = found != v1beta1::API_VERSION;
        if !stale {
            object = v1beta1::from_v1beta1(object);
        }
        defaults::as_stored(Schema::builtin(), ty, &mut object);
        return (object, stale);
    }
    let written = resource.written_as(form.compatible);
    let stale = found != written.api_version();
    if found == wanted {
        return (object, stale);
    }
    let (group, version) = found.rsplit_once('/').unwrap_or(("", found));
    if let Some(from) = resources::find(group, version, resource.plural) {
        object = convert::to_storage(from, resource, object);
    } else if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), wanted.into());
        map.insert("kind".into(), resource.kind.into());
    }
    defaults::as_stored(Schema::builtin(), ty, &mut object);
    (object, stale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluyt_api::resources::find;
    use serde_json::json;

    fn form(media_type: MediaType) -> Form {
        Form {
            media_type,
            compatible: 35,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let pods = find("", "v1", "pods").unwrap();
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z"},
            "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "100m"}}, "livenessProbe": {"httpGet": {"port": "x"}}}]},
            "status": {"phase": "Running"},
        });
        defaults::as_stored(Schema::builtin(), pods.ty.unwrap(), &mut pod);
        for (written, read, stale) in [
            (MediaType::Protobuf, MediaType::Protobuf, false),
            (MediaType::Json, MediaType::Json, false),
            (MediaType::Json, MediaType::Protobuf, true),
            (MediaType::Protobuf, MediaType::Json, true),
        ] {
            let bytes = encode(form(written), pods, &pod);
            let stored = decode(form(read), pods, &bytes).unwrap();
            assert_eq!((&stored.object, stored.stale), (&pod, stale));
        }
    }

    #[test]
    fn another_version_is_converted() {
        let (v1, v2) = (
            find("autoscaling", "v1", "horizontalpodautoscalers").unwrap(),
            find("autoscaling", "v2", "horizontalpodautoscalers").unwrap(),
        );
        let old = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "targetCPUUtilizationPercentage": 50}});
        let bytes = encode_protobuf(v1, v1.ty.unwrap(), &old);
        let stored = decode(form(MediaType::Protobuf), v2, &bytes);
        let stored = stored.unwrap();
        assert!(stored.stale);
        assert_eq!(stored.object["apiVersion"], "autoscaling/v2");
        let target = &stored.object["spec"]["metrics"][0]["resource"]["target"];
        assert_eq!(target["averageUtilization"], 50);
    }

    /// What the minor before does not know is written in a version that it knows.
    #[test]
    fn an_older_server_reads_it_too() {
        let claims = find("resource.k8s.io", "v1", "resourceclaims").unwrap();
        let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "a"},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}, "status": {}});
        let mut claim = claim;
        prepare(claims, &mut claim);
        let old = Form {
            compatible: 32,
            ..form(MediaType::Json)
        };
        let bytes = encode(old, claims, &claim);
        let written: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(written["apiVersion"], "resource.k8s.io/v1beta1");
        assert_eq!(
            written["spec"]["devices"]["requests"][0]["deviceClassName"],
            "c"
        );
        for media_type in [MediaType::Json, MediaType::Protobuf] {
            let old = Form { media_type, ..old };
            let bytes = encode(old, claims, &claim);
            let read = decode(old, claims, &bytes).unwrap();
            assert_eq!((&read.object, read.stale), (&claim, false));
            // It would be written as v1 once nobody needs the old version.
            let read = decode(form(media_type), claims, &bytes).unwrap();
            assert_eq!((&read.object, read.stale), (&claim, true));
        }
    }

    /// What upstream wrote is read as upstream reads it, and what is written of that is the same again.
    #[test]
    fn upstreams_bytes_are_upstreams_objects() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/storage/golden");
        let mut seen = 0;
        for file in std::fs::read_dir(directory).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|e| e != "stored") {
                continue;
            }
            let stored = std::fs::read(&path).unwrap();
            let text = std::fs::read_to_string(path.with_extension("json")).unwrap();
            let mut golden: Value = serde_json::from_str(&text).unwrap();
            let api_version = golden["apiVersion"].as_str().unwrap().to_owned();
            let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
            let resource = find(group, version, golden["plural"].as_str().unwrap()).unwrap();
            let mut expected = golden["object"].take();
            expected["apiVersion"] = api_version.as_str().into();
            expected["kind"] = resource.kind.into();
            let read = decode(form(MediaType::Protobuf), resource, &stored).unwrap();
            assert_eq!(read.object, expected, "{}", path.display());
            assert!(!read.stale, "{}", path.display());
            let written = encode(form(MediaType::Protobuf), resource, &read.object);
            let again = decode(form(MediaType::Protobuf), resource, &written).unwrap();
            assert_eq!(again.object, expected, "{}", path.display());
            seen += 1;
        }
        assert!(seen > 15);
    }

    #[test]
    fn damage_is_an_error() {
        let pods = find("", "v1", "pods").unwrap();
        assert!(decode(form(MediaType::Protobuf), pods, b"k8s\0\xff\xff").is_err());
        assert!(decode(form(MediaType::Protobuf), pods, b"{").is_err());
    }
}

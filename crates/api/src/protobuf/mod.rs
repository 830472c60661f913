//! `application/vnd.kubernetes.protobuf`: messages into objects and back, over the same schema as everything else.
//!
//! A body is the magic `k8s\0` and a `runtime.Unknown` message that names the kind and carries the object's message.

mod decode;
mod encode;
mod unions;
pub mod wire;

use crate::schema::{Field, Type};

use wire::{Fields, Wire};

pub use decode::decode;
pub use encode::{
    body, encode, encode_into, item_head, list_metadata, partial_metadata, seal, seal_head,
    seal_into, seal_tail, watch_frame,
};

/// What starts every body.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// An object's message and what it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: &'a str,
    pub kind: &'a str,
    pub raw: &'a [u8],
}

/// Opens a body.
///
/// # Errors
/// When it does not start with the magic, or is cut off.
pub fn open(body: &[u8]) -> Result<Envelope<'_>, String> {
    let Some(unknown) = body.strip_prefix(MAGIC) else {
        return Err("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into());
    };
    let mut envelope = Envelope {
        api_version: "",
        kind: "",
        raw: &[],
    };
    for entry in Fields(unknown) {
        match entry? {
            (1, Wire::Bytes(type_meta)) => {
                for entry in Fields(type_meta) {
                    match entry? {
                        (1, Wire::Bytes(text)) => envelope.api_version = utf8(text)?,
                        (2, Wire::Bytes(text)) => envelope.kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(raw)) => envelope.raw = raw,
            (3, Wire::Bytes(encoding)) if !encoding.is_empty() => {
                return Err(format!(
                    "content encoding {} is not supported",
                    String::from_utf8_lossy(encoding)
                ));
            }
            _ => {}
        }
    }
    Ok(envelope)
}

/// Whether a list is wrapped in a message without being a map's value: Go gives this one a type of its own.
fn is_wrapped_list(of: &Type, field: &Field) -> bool {
    &*field.name == "verbs" && of.name.ends_with(".APIResource")
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "proto: invalid UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Kind, Schema};
    use k8s_pb::api::core::v1 as core;
    use k8s_pb::apimachinery::pkg::api::resource::Quantity;
    use k8s_pb::apimachinery::pkg::apis::meta::v1 as meta;
    use k8s_pb::apimachinery::pkg::util::intstr::IntOrString;
    use proptest::prelude::*;
    use prost::Message as _;
    use serde_json::{Map, Value, json};

    fn pod() -> core::Pod {
        core::Pod {
            metadata: Some(meta::ObjectMeta {
                name: Some("a".into()),
                namespace: Some(String::new()),
                labels: [("k".to_owned(), "v".to_owned())].into(),
                creation_timestamp: Some(meta::Time {
                    seconds: Some(1_700_000_000),
                    nanos: Some(0),
                }),
                ..Default::default()
            }),
            spec: Some(core::PodSpec {
                volumes: vec![core::Volume {
                    name: Some("v".into()),
                    volume_source: Some(core::VolumeSource {
                        empty_dir: Some(core::EmptyDirVolumeSource::default()),
                        ..Default::default()
                    }),
                }],
                containers: vec![core::Container {
                    name: Some("c".into()),
                    args: vec!["x".into(), "y".into()],
                    resources: Some(core::ResourceRequirements {
                        limits: [(
                            "cpu".to_owned(),
                            Quantity {
                                string: Some("100m".into()),
                            },
                        )]
                        .into(),
                        ..Default::default()
                    }),
                    liveness_probe: Some(core::Probe {
                        handler: Some(core::ProbeHandler {
                            http_get: Some(core::HttpGetAction {
                                path: Some("/".into()),
                                port: Some(IntOrString {
                                    r#type: Some(1),
                                    int_val: Some(0),
                                    str_val: Some("http".into()),
                                }),
                                ..Default::default()
                            }),
                            ..Default::default()
                        }),
                        period_seconds: Some(5),
                        ..Default::default()
                    }),
                    ..Default::default()
                }],
                host_network: Some(true),
                termination_grace_period_seconds: Some(30),
                ..Default::default()
            }),
            status: None,
        }
    }

    fn decode_pod(bytes: &[u8]) -> Result<Value, String> {
        let schema = Schema::builtin();
        decode(schema.find("io.k8s.api.core.v1.Pod").unwrap(), bytes)
    }

    #[test]
    fn messages_of_upstreams_definitions_become_objects() {
        let decoded = decode_pod(&pod().encode_to_vec()).unwrap();
        assert_eq!(
            decoded,
            json!({
                "metadata": {"name": "a", "labels": {"k": "v"}, "creationTimestamp": "2023-11-14T22:13:20Z"},
                "spec": {
                    "volumes": [{"name": "v", "emptyDir": {}}],
                    "containers": [{"name": "c", "args": ["x", "y"], "resources": {"limits": {"cpu": "100m"}},
                        "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5}}],
                    "hostNetwork": true, "terminationGracePeriodSeconds": 30,
                },
            })
        );
    }

    #[test]
    fn envelopes() {
        use k8s_pb::apimachinery::pkg::runtime::{TypeMeta, Unknown};
        let unknown = Unknown {
            type_meta: Some(TypeMeta {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
            }),
            raw: Some(vec![1, 2]),
            content_encoding: Some(String::new()),
            content_type: Some(String::new()),
        };
        let body = [MAGIC.as_slice(), &unknown.encode_to_vec()].concat();
        assert_eq!(
            open(&body),
            Ok(Envelope {
                api_version: "v1",
                kind: "Pod",
                raw: &[1, 2]
            })
        );
        assert!(open(b"{}").is_err());
        assert!(open(&body[..body.len() - 1]).is_err());
    }

    /// Everything of a pod but `status` survives the way to upstream's definitions and back.
    #[test]
    fn objects_become_messages_of_upstreams_definitions() {
        let object = decode_pod(&pod().encode_to_vec()).unwrap();
        let schema = Schema::builtin();
        let ty = schema.find("io.k8s.api.core.v1.Pod").unwrap();
        let bytes = encode(ty, &object);
        let read = core::Pod::decode(bytes.as_slice()).unwrap();
        assert_eq!(decode_pod(&read.encode_to_vec()).unwrap(), object);
        assert_eq!(read.spec, pod().spec);
        let body = seal("v1", "Pod", &bytes);
        assert_eq!(open(&body).unwrap().raw, bytes);
        use k8s_pb::apimachinery::pkg::apis::meta::v1::WatchEvent;
        let frame = watch_frame("ADDED", &body);
        let length = u32::from_be_bytes(frame[..4].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), frame.len() - 4);
        let event = WatchEvent::decode(&frame[4..]).unwrap();
        assert_eq!(event.r#type.as_deref(), Some("ADDED"));
        assert_eq!(event.object.unwrap().raw.unwrap(), body);
    }

    #[test]
    fn schemas_of_custom_resources_round_trip() {
        let schema = Schema::builtin();
        let ty = schema
            .find("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
            .unwrap();
        let object = json!({"type": "object", "default": {"a": [1, null]}, "enum": ["x", 1], "$ref": "r",
            "items": {"type": "string"}, "additionalProperties": false, "additionalItems": {"type": "number"},
            "dependencies": {"a": ["b"], "c": {"type": "string"}}, "maximum": 1.5,
            "properties": {"p": {"items": [{"type": "integer"}], "additionalProperties": true}}});
        assert_eq!(decode(ty, &encode(ty, &object)).unwrap(), object);
    }

    /// A value of a kind, complete down to some depth.
    fn sample(kind: &Kind, seed: u32, depth: usize) -> Value {
        let schema = Schema::builtin();
        match kind {
            Kind::String => format!("s{seed}").into(),
            Kind::Int32 | Kind::Int64 => (i64::from(seed) - 3).into(),
            Kind::Bool => true.into(),
            Kind::Double => (f64::from(seed) / 4.0 + 0.5).into(),
            Kind::Bytes => "AAEC".into(),
            Kind::Time => "2026-01-02T03:04:05Z".into(),
            Kind::MicroTime => "2026-01-02T03:04:05.000006Z".into(),
            Kind::Quantity => "100m".into(),
            Kind::IntOrString if seed.is_multiple_of(2) => 80.into(),
            Kind::IntOrString => "http".into(),
            Kind::Json => json!({"f:x": {}}),
            Kind::List(item) => json!([sample(item, seed, depth), sample(item, seed + 1, depth)]),
            Kind::Map(item) => {
                json!({"a": sample(item, seed, depth), "b": sample(item, seed + 1, depth)})
            }
            Kind::Object(_) if depth == 0 => json!({}),
            Kind::Object(ty) => {
                let ty = schema.get(*ty);
                let numbered = ty.fields.iter().filter(|f| !f.path.is_empty());
                let field = |f: &Field| {
                    let value = if unions::is_union(ty, &f.name) {
                        json!({})
                    } else {
                        sample(&f.kind, seed + f.path[0], depth - 1)
                    };
                    (f.name.to_string(), value)
                };
                let mut object: Map<String, Value> = numbered
                    .filter(|f| &*f.name != "dependencies")
                    .map(field)
                    .collect();
                // Claims in the template of a set say what they are.
                if ty.name.ends_with(".PersistentVolumeClaim") && depth < 6 {
                    object.insert("apiVersion".into(), "v1".into());
                    object.insert("kind".into(), "PersistentVolumeClaim".into());
                }
                object.into()
            }
        }
    }

    #[test]
    fn every_kind_round_trips() {
        for resource in crate::resources::builtin() {
            let Some(ty) = resource.ty else { continue };
            let object = sample(&Kind::Object(ty), 1, 6);
            let bytes = encode(ty, &object);
            let decoded = decode(ty, &bytes).unwrap();
            assert_eq!(decoded, object, "{}", resource.kind);
        }
    }

    /// Removes the fields that the definitions at hand are too old for.
    fn forget(object: &mut Value) {
        const YOUNG: [&str; 2] = ["schedulingGroup", "shardInfo"];
        match object {
            Value::Object(map) => {
                map.retain(|name, _| !YOUNG.contains(&name.as_str()));
                map.values_mut().for_each(forget);
            }
            Value::Array(items) => items.iter_mut().for_each(forget),
            _ => {}
        }
    }

    /// What is encoded is what prost makes of upstream's definitions: nothing is lost or misplaced on the way through them.
    #[test]
    fn upstreams_definitions_read_every_field() {
        fn check<M: prost::Message + Default>(name: &str) {
            let schema = Schema::builtin();
            let ty = schema.find(name).unwrap();
            let mut object = sample(&Kind::Object(ty), 1, 7);
            forget(&mut object);
            let read = M::decode(encode(ty, &object).as_slice()).unwrap();
            let again = decode(ty, &read.encode_to_vec()).unwrap();
            assert_eq!(again, object, "{name}");
        }
        use k8s_pb::api as a;
        check::<core::Node>("io.k8s.api.core.v1.Node");
        check::<core::Service>("io.k8s.api.core.v1.Service");
        check::<core::Secret>("io.k8s.api.core.v1.Secret");
        check::<core::PersistentVolume>("io.k8s.api.core.v1.PersistentVolume");
        check::<core::Event>("io.k8s.api.core.v1.Event");
        check::<core::Endpoints>("io.k8s.api.core.v1.Endpoints");
        check::<a::apps::v1::Deployment>("io.k8s.api.apps.v1.Deployment");
        check::<a::apps::v1::ControllerRevision>("io.k8s.api.apps.v1.ControllerRevision");
        check::<a::batch::v1::Job>("io.k8s.api.batch.v1.Job");
        check::<a::autoscaling::v2::HorizontalPodAutoscaler>(
            "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
        );
        check::<a::networking::v1::Ingress>("io.k8s.api.networking.v1.Ingress");
        check::<a::rbac::v1::ClusterRole>("io.k8s.api.rbac.v1.ClusterRole");
        check::<a::certificates::v1::CertificateSigningRequest>(
            "io.k8s.api.certificates.v1.CertificateSigningRequest",
        );
        check::<a::discovery::v1::EndpointSlice>("io.k8s.api.discovery.v1.EndpointSlice");
        check::<a::coordination::v1::Lease>("io.k8s.api.coordination.v1.Lease");
        check::<a::storage::v1::CSINode>("io.k8s.api.storage.v1.CSINode");
        check::<meta::APIResource>("io.k8s.apimachinery.pkg.apis.meta.v1.APIResource");
        check::<meta::Status>("io.k8s.apimachinery.pkg.apis.meta.v1.Status");
    }

    proptest! {
        #[test]
        fn damaged_messages_never_panic(cut in 0_usize..200, flip in 0_usize..200, byte in any::<u8>()) {
            let mut bytes = pod().encode_to_vec();
            if let Some(b) = bytes.get_mut(flip) {
                *b = byte;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _ = decode_pod(&bytes);
            let _ = open(&bytes);
        }
    }
}

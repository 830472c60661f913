//! Types as schemas of OpenAPI v3.

use std::collections::BTreeMap;

use fluyt_api::resources::{self, Resource};
use fluyt_api::schema::{self, Field, Kind, ListType, Schema, Type, TypeId};
use serde_json::{Map, Value, json};

pub const REFERENCE: &str = "#/components/schemas/";
pub const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const JSON_SCHEMA: &str =
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// The schemas of a document, each added once.
pub struct Schemas {
    builtin: &'static Schema,
    /// CBOR is served, behind its gate.
    pub cbor: bool,
    pub all: BTreeMap<String, Value>,
}

/// Defaults that upstream's types declare, besides the zero of what is required. What its code sets is not part of OpenAPI.
const DECLARED: &[(&str, &str, &str)] = &[
    (
        "core.v1.AzureDiskVolumeSource",
        "cachingMode",
        "\"ReadWrite\"",
    ),
    ("core.v1.AzureDiskVolumeSource", "fsType", "\"ext4\""),
    ("core.v1.AzureDiskVolumeSource", "kind", "\"Shared\""),
    ("core.v1.AzureDiskVolumeSource", "readOnly", "false"),
    ("core.v1.ConfigMapEnvSource", "name", "\"\""),
    ("core.v1.ConfigMapKeySelector", "name", "\"\""),
    ("core.v1.ConfigMapProjection", "name", "\"\""),
    ("core.v1.ConfigMapVolumeSource", "name", "\"\""),
    ("core.v1.ContainerPort", "protocol", "\"TCP\""),
    ("core.v1.Event", "reportingComponent", "\"\""),
    ("core.v1.Event", "reportingInstance", "\"\""),
    ("core.v1.FileKeySelector", "optional", "false"),
    ("core.v1.GRPCAction", "service", "\"\""),
    (
        "core.v1.ISCSIPersistentVolumeSource",
        "iscsiInterface",
        "\"default\"",
    ),
    ("core.v1.ISCSIVolumeSource", "iscsiInterface", "\"default\""),
    ("core.v1.LocalObjectReference", "name", "\"\""),
    ("core.v1.NodeRuntimeHandler", "name", "\"\""),
    (
        "core.v1.RBDPersistentVolumeSource",
        "keyring",
        "\"/etc/ceph/keyring\"",
    ),
    ("core.v1.RBDPersistentVolumeSource", "pool", "\"rbd\""),
    ("core.v1.RBDPersistentVolumeSource", "user", "\"admin\""),
    (
        "core.v1.RBDVolumeSource",
        "keyring",
        "\"/etc/ceph/keyring\"",
    ),
    ("core.v1.RBDVolumeSource", "pool", "\"rbd\""),
    ("core.v1.RBDVolumeSource", "user", "\"admin\""),
    ("core.v1.ReplicationControllerSpec", "minReadySeconds", "0"),
    ("core.v1.ReplicationControllerSpec", "replicas", "1"),
    ("core.v1.ScaleIOPersistentVolumeSource", "fsType", "\"xfs\""),
    (
        "core.v1.ScaleIOPersistentVolumeSource",
        "storageMode",
        "\"ThinProvisioned\"",
    ),
    ("core.v1.ScaleIOVolumeSource", "fsType", "\"xfs\""),
    (
        "core.v1.ScaleIOVolumeSource",
        "storageMode",
        "\"ThinProvisioned\"",
    ),
    ("core.v1.SecretEnvSource", "name", "\"\""),
    ("core.v1.SecretKeySelector", "name", "\"\""),
    ("core.v1.SecretProjection", "name", "\"\""),
    ("core.v1.ServicePort", "protocol", "\"TCP\""),
    ("authentication.v1.TokenRequestStatus", "token", "\"\""),
    ("autoscaling.v1.ScaleSpec", "replicas", "0"),
    ("apps.v1.StatefulSetOrdinals", "start", "0"),
    ("apps.v1.StatefulSetSpec", "serviceName", "\"\""),
    ("apps.v1.StatefulSetStatus", "availableReplicas", "0"),
    (
        "batch.v1.PodFailurePolicyOnPodConditionsPattern",
        "status",
        "\"\"",
    ),
    ("flowcontrol.v1.FlowSchemaSpec", "matchingPrecedence", "0"),
    ("flowcontrol.v1.QueuingConfiguration", "handSize", "0"),
    (
        "flowcontrol.v1.QueuingConfiguration",
        "queueLengthLimit",
        "0",
    ),
    ("flowcontrol.v1.QueuingConfiguration", "queues", "0"),
    ("policy.v1.PodDisruptionBudgetStatus", "currentHealthy", "0"),
    ("policy.v1.PodDisruptionBudgetStatus", "desiredHealthy", "0"),
    (
        "policy.v1.PodDisruptionBudgetStatus",
        "disruptionsAllowed",
        "0",
    ),
    ("policy.v1.PodDisruptionBudgetStatus", "expectedPods", "0"),
    ("rbac.v1.RoleRef", "apiGroup", "\"\""),
    (
        "certificates.v1beta1.PodCertificateRequestSpec",
        "maxExpirationSeconds",
        "86400",
    ),
    ("resource.v1.DeviceToleration", "operator", "\"Equal\""),
    (
        "resource.v1alpha3.ResourcePoolStatusRequestSpec",
        "limit",
        "100",
    ),
    ("resource.v1beta1.DeviceRequest", "deviceClassName", "\"\""),
    ("resource.v1beta1.DeviceToleration", "operator", "\"Equal\""),
    ("resource.v1beta2.DeviceToleration", "operator", "\"Equal\""),
    (
        "scheduling.v1alpha2.PodGroupSpec",
        "disruptionMode",
        "\"Pod\"",
    ),
    ("scheduling.v1.PriorityClass", "value", "0"),
];

/// Required fields that have no zero to start from.
const UNDEFAULTED: &[(&str, &str)] = &[
    ("admissionregistration.v1.MutatingWebhook", "sideEffects"),
    (
        "admissionregistration.v1.ValidatingAdmissionPolicyBindingSpec",
        "policyName",
    ),
    ("admissionregistration.v1.ValidatingWebhook", "sideEffects"),
    ("authentication.v1.TokenReviewSpec", "token"),
    ("core.v1.ContainerRestartRule", "action"),
    ("core.v1.ContainerRestartRuleOnExitCodes", "operator"),
    ("core.v1.ImageVolumeStatus", "imageRef"),
    ("core.v1.PodCertificateProjection", "keyType"),
    ("core.v1.PodCertificateProjection", "signerName"),
    ("coordination.v1alpha2.LeaseCandidateSpec", "strategy"),
    ("coordination.v1beta1.LeaseCandidateSpec", "strategy"),
    ("networking.v1beta1.ParentReference", "name"),
    ("networking.v1beta1.ParentReference", "resource"),
    ("resource.v1alpha3.PoolStatus", "driver"),
    ("resource.v1alpha3.PoolStatus", "poolName"),
    (
        "resource.v1alpha3.ResourcePoolStatusRequestStatus",
        "poolCount",
    ),
    ("networking.v1.HTTPIngressPath", "pathType"),
    ("networking.v1.ParentReference", "name"),
    ("networking.v1.ParentReference", "resource"),
];

/// What upstream says of single fields, and the schema has no use for.
const MARKS: &[(&str, &str, &str, &str)] = &[
    (
        "io.k8s.api.core.v1.PersistentVolumeClaimStatus",
        "allocatedResourceStatuses",
        "x-kubernetes-map-type",
        "granular",
    ),
    (
        "io.k8s.api.policy.v1.PodDisruptionBudgetSpec",
        "selector",
        "x-kubernetes-patch-strategy",
        "replace",
    ),
    (
        "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceSpec",
        "caBundle",
        "x-kubernetes-list-type",
        "atomic",
    ),
];

/// A union, which upstream marks: the type, its discriminator if it has one, and its other fields with their names in Go,
/// which are those of the discriminator's values.
struct Union(
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

const UNIONS: &[Union] = &[
    Union(
        "core.v1.PodSchedulingGroup",
        "",
        &[("podGroupName", "PodGroupName")],
    ),
    Union(
        "core.v1.AppArmorProfile",
        "type",
        &[("localhostProfile", "LocalhostProfile")],
    ),
    Union(
        "core.v1.SeccompProfile",
        "type",
        &[("localhostProfile", "LocalhostProfile")],
    ),
    Union(
        "scheduling.v1alpha2.PodGroupSchedulingPolicy",
        "",
        &[("basic", "Basic"), ("gang", "Gang")],
    ),
    Union(
        "scheduling.v1alpha2.PodGroupTemplateReference",
        "",
        &[("workload", "Workload")],
    ),
    Union(
        "flowcontrol.v1.LimitResponse",
        "type",
        &[("queuing", "Queuing")],
    ),
    Union(
        "flowcontrol.v1.PriorityLevelConfigurationSpec",
        "type",
        &[("exempt", "Exempt"), ("limited", "Limited")],
    ),
    Union(
        "flowcontrol.v1.Subject",
        "kind",
        &[
            ("group", "Group"),
            ("serviceAccount", "ServiceAccount"),
            ("user", "User"),
        ],
    ),
];

impl Schemas {
    #[must_use]
    pub fn new(cbor: bool) -> Self {
        Self {
            builtin: Schema::builtin(),
            cbor,
            all: BTreeMap::new(),
        }
    }

    /// Adds a built-in type and everything it refers to.
    pub fn add(&mut self, id: TypeId) {
        let ty = self.builtin.get(id);
        if self.all.contains_key(&*ty.name) {
            return;
        }
        // The place is taken first: a type may refer to itself.
        self.all.insert(ty.name.to_string(), Value::Null);
        let mut properties = Map::new();
        let mut required: Vec<Value> = Vec::new();
        for field in &ty.fields {
            if is_required(ty, field) {
                required.push((&*field.name).into());
            }
            properties.insert(field.name.to_string(), self.field(ty, field));
        }
        let mut schema = json!({"type": "object"});
        if !properties.is_empty() {
            schema["properties"] = properties.into();
        }
        describe(&mut schema, &ty.name, "");
        if !required.is_empty() {
            schema["required"] = required.into();
        }
        if ty.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        let union = UNIONS.iter().find(|u| is_named(&ty.name, u.0));
        if let Some(Union(_, discriminator, fields)) = union {
            let fields: Map<String, Value> = fields
                .iter()
                .map(|(field, value)| ((*field).to_owned(), (*value).into()))
                .collect();
            let mut union = json!({"fields-to-discriminateBy": fields});
            if !discriminator.is_empty() {
                union["discriminator"] = (*discriminator).into();
            }
            schema["x-kubernetes-unions"] = json!([union]);
        }
        self.all.insert(ty.name.to_string(), schema);
        if let Some(kind) = ty.name.strip_prefix(&format!("{META}.")) {
            if matches!(
                kind,
                "APIGroup" | "APIGroupList" | "APIResourceList" | "APIVersions" | "Status"
            ) {
                self.mark(&ty.name, "", "v1", kind);
            }
        } else if let Some(of) = resources::builtin().iter().find(|r| r.ty == Some(id)) {
            self.mark(&ty.name, of.group, of.version, of.kind);
        }
    }

    /// A reference to a built-in type, which is added.
    pub fn reference(&mut self, name: &str) -> Value {
        match self.builtin.find(name) {
            Some(id) => self.add(id),
            None => self.add_special(name),
        }
        refer(name)
    }

    /// Adds the type of a resource's list.
    pub fn list(&mut self, resource: &Resource, item: &str) -> Value {
        let name = format!("{item}List");
        let metadata = self.reference(&format!("{META}.ListMeta"));
        let kind = format!("{}List", resource.kind);
        let type_meta = |field| schema::description(&format!("{META}.APIResourceList"), field);
        let mut schema = json!({
            "description": format!("{kind} is a list of {}", resource.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string", "description": type_meta("apiVersion")},
                "kind": {"type": "string", "description": type_meta("kind")},
                "metadata": {"allOf": [metadata], "description": "Standard list metadata."},
                "items": {
                    "description": format!("List of {}.", resource.plural),
                    "type": "array", "items": refer(item),
                },
            },
        });
        if resource.definition.is_none() {
            schema["properties"]["metadata"]["default"] = json!({});
        }
        self.all.insert(name.clone(), schema);
        self.mark(&name, resource.group, resource.version, &kind);
        refer(&name)
    }

    /// Says of which kind a type is.
    pub fn mark(&mut self, name: &str, group: &str, version: &str, kind: &str) {
        let Some(schema) = self.all.get_mut(name) else {
            return;
        };
        let mark = json!({"group": group, "version": version, "kind": kind});
        match schema["x-kubernetes-group-version-kind"].as_array_mut() {
            Some(marks) if marks.contains(&mark) => {}
            Some(marks) => marks.push(mark),
            None => schema["x-kubernetes-group-version-kind"] = json!([mark]),
        }
    }

    fn field(&mut self, ty: &Type, field: &Field) -> Value {
        let of = self.kind(&field.kind, ty, &field.name);
        let refers = of.get("$ref").is_some();
        let mut schema = if refers { json!({}) } else { of.clone() };
        describe(&mut schema, &ty.name, &field.name);
        if let Some(values) = enumeration(&ty.name, &field.name) {
            let of = match &field.kind {
                Kind::List(_) => &mut schema["items"],
                Kind::Map(_) => &mut schema["additionalProperties"],
                _ => &mut schema,
            };
            of["enum"] = values;
        }
        if let Some(default) = default(ty, field) {
            schema["default"] = default;
        }
        let is_list = matches!(field.kind, Kind::List(_));
        match &field.list {
            ListType::Atomic if is_list && !is_unmarked(ty, field) => {
                schema["x-kubernetes-list-type"] = "atomic".into();
            }
            ListType::Atomic => {}
            ListType::Set => schema["x-kubernetes-list-type"] = "set".into(),
            ListType::Map(keys) => {
                schema["x-kubernetes-list-type"] = "map".into();
                schema["x-kubernetes-list-map-keys"] =
                    keys.iter().map(|k| Value::from(&**k)).collect();
            }
        }
        if field.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        } else if field.granular {
            schema["x-kubernetes-map-type"] = "granular".into();
        }
        let strategy = match (field.patch.merge, field.patch.retain_keys) {
            (true, true) => "merge,retainKeys",
            (true, false) => "merge",
            (false, true) => "retainKeys",
            (false, false) => "",
        };
        if !strategy.is_empty() {
            schema["x-kubernetes-patch-strategy"] = strategy.into();
        }
        if let Some(key) = &field.patch.merge_key {
            schema["x-kubernetes-patch-merge-key"] = (**key).into();
        }
        for (_, _, mark, value) in MARKS
            .iter()
            .filter(|(of, name, ..)| *of == &*ty.name && *name == &*field.name)
        {
            schema[*mark] = (*value).into();
        }
        match schema.as_object_mut() {
            // A reference stands alone; what is said besides it goes around it.
            Some(said) if refers && said.is_empty() => of,
            Some(said) if refers => {
                said.insert("allOf".into(), json!([of]));
                schema
            }
            _ => schema,
        }
    }

    fn kind(&mut self, kind: &Kind, ty: &Type, field: &str) -> Value {
        match kind {
            Kind::String => json!({"type": "string"}),
            Kind::Int32 => json!({"type": "integer", "format": "int32"}),
            Kind::Int64 => json!({"type": "integer", "format": "int64"}),
            Kind::Bool => json!({"type": "boolean"}),
            Kind::Double => json!({"type": "number", "format": "double"}),
            Kind::Bytes => json!({"type": "string", "format": "byte"}),
            Kind::Time => self.reference(&format!("{META}.Time")),
            Kind::MicroTime => self.reference(&format!("{META}.MicroTime")),
            Kind::Quantity => self.reference("io.k8s.apimachinery.pkg.api.resource.Quantity"),
            Kind::IntOrString => self.reference("io.k8s.apimachinery.pkg.util.intstr.IntOrString"),
            Kind::Json => self.reference(&free_form(&ty.name, field)),
            Kind::Object(id) => {
                self.add(*id);
                refer(&self.builtin.get(*id).name)
            }
            Kind::List(item) => {
                json!({"type": "array", "items": self.kind(item, ty, field)})
            }
            Kind::Map(item) => {
                json!({"type": "object", "additionalProperties": self.kind(item, ty, field)})
            }
        }
    }

    /// Adds a type that is more than an object of fields.
    fn add_special(&mut self, name: &str) {
        if self.all.contains_key(name) {
            return;
        }
        let (_, short) = name.rsplit_once('.').unwrap_or(("", name));
        let mut schema = match short {
            "Time" | "MicroTime" => json!({"type": "string", "format": "date-time"}),
            "Quantity" => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            "IntOrString" => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            "RawExtension" | "FieldsV1" | "Patch" | "CustomResourceSubresourceStatus" => {
                json!({"type": "object"})
            }
            "WatchEvent" => {
                let object = self.reference("io.k8s.apimachinery.pkg.runtime.RawExtension");
                json!({
                    "type": "object", "required": ["type", "object"],
                    "properties": {
                        "type": {"type": "string", "default": ""},
                        "object": {
                            "allOf": [object],
                            "description": "The object as it is now, or as it was before it was deleted; a Status if the type is Error; nothing but a kind and a resourceVersion if it is Bookmark.",
                        },
                    },
                })
            }
            // Any JSON: nothing can be said of it.
            _ => json!({}),
        };
        let text = match short {
            "Time" => "A time in RFC 3339, in seconds.",
            "MicroTime" => "A time in RFC 3339, in microseconds.",
            "Quantity" => {
                "A number with a decimal exponent, a decimal suffix (m, k, M, G, T, P, E) or a binary one (Ki, Mi, Gi, Ti, Pi, Ei)."
            }
            "IntOrString" => "A number or a string.",
            "RawExtension" => "An object of any kind.",
            "CustomResourceSubresourceStatus" => "That there is a status subresource.",
            "FieldsV1" => {
                "A set of fields, as a tree whose keys are f:<name>, k:<keys>, v:<value>, i:<index> and \".\"."
            }
            "Patch" => "A patch, in the format of its content type.",
            "WatchEvent" => "One event of a watch.",
            "JSONSchemaPropsOrArray" => "A schema or a list of schemas.",
            "JSONSchemaPropsOrBool" => "A schema or a boolean.",
            "JSONSchemaPropsOrStringArray" => "A schema or a list of strings.",
            _ => "Any JSON value.",
        };
        schema["description"] = text.into();
        self.all.insert(name.to_owned(), schema);
    }
}

/// A reference to a schema of the document.
#[must_use]
pub fn refer(name: &str) -> Value {
    json!({"$ref": format!("{REFERENCE}{name}")})
}

fn describe(schema: &mut Value, ty: &str, field: &str) {
    if let Some(text) = schema::description(ty, field) {
        schema["description"] = text.into();
    }
}

/// Whether a type has the name, of which the package's beginning is left out.
fn is_named(full: &str, name: &str) -> bool {
    full.strip_prefix("io.k8s.api.") == Some(name)
}

/// The values that a field is limited to.
fn enumeration(ty: &str, field: &str) -> Option<Value> {
    let mut lines = include_str!("enums.txt").lines();
    let values = lines.find_map(|line| {
        let rest = line.strip_prefix(ty)?.strip_prefix(' ')?;
        rest.strip_prefix(field)?.strip_prefix(' ')
    })?;
    let value = |v: &str| Value::from(if v == "\"\"" { "" } else { v });
    Some(values.split(',').map(value).collect())
}

/// The one list of a built-in type of which nothing is said.
fn is_unmarked(ty: &Type, field: &Field) -> bool {
    &*field.name == "verbs" && ty.name.ends_with(".APIResource")
}

/// Metadata need not be given, and neither need names for which an empty one will do.
fn is_required(ty: &Type, field: &Field) -> bool {
    let declared =
        |(of, name, _): &(&str, &str, &str)| *name == &*field.name && is_named(&ty.name, of);
    let needs_metadata = [
        "core.v1.Event",
        "resource.v1alpha3.ResourcePoolStatusRequest",
    ];
    let optional = &*field.name == "metadata"
        && !needs_metadata.iter().any(|of| is_named(&ty.name, of))
        || &*field.name == "name"
            && DECLARED.iter().any(declared)
            && !ty.name.ends_with("NodeRuntimeHandler");
    let of_event = &*field.name == "eventTime" && is_named(&ty.name, "events.v1.Event");
    field.required && !optional || of_event
}

fn default(ty: &Type, field: &Field) -> Option<Value> {
    let declared = DECLARED
        .iter()
        .find(|(name, of, _)| *of == &*field.name && is_named(&ty.name, name));
    if let Some((.., text)) = declared {
        return serde_json::from_str(text).ok();
    }
    let is = |(name, of): &(&str, &str)| *of == &*field.name && is_named(&ty.name, name);
    if UNDEFAULTED.iter().any(is) {
        return None;
    }
    match &field.kind {
        Kind::String if field.required => Some("".into()),
        Kind::Int32 | Kind::Int64 | Kind::Double if field.required => Some(0.into()),
        Kind::Bool if field.required => Some(false.into()),
        Kind::Object(_) if field.by_value => Some(json!({})),
        _ => None,
    }
}

/// The name of the type of a field that holds any JSON.
fn free_form(ty: &str, field: &str) -> String {
    let is_schema = ty == JSON_SCHEMA;
    match field {
        "fieldsV1" => format!("{META}.FieldsV1"),
        "items" if is_schema => format!("{JSON_SCHEMA}OrArray"),
        "additionalItems" | "additionalProperties" if is_schema => format!("{JSON_SCHEMA}OrBool"),
        "dependencies" if is_schema => format!("{JSON_SCHEMA}OrStringArray"),
        _ if is_schema => JSON_SCHEMA.replace("JSONSchemaProps", "JSON"),
        "status" if ty.ends_with("CustomResourceSubresources") => {
            JSON_SCHEMA.replace("JSONSchemaProps", "CustomResourceSubresourceStatus")
        }
        _ => "io.k8s.apimachinery.pkg.runtime.RawExtension".to_owned(),
    }
}

//! `Table` output: the columns that `kubectl get` prints, per kind.

mod administration;
mod cluster;
mod descriptions;
mod devices;
mod pods;
mod storage;
mod workloads;

use serde_json::{Value, json};

use crate::custom::PrinterColumn;
use crate::meta;
use crate::resources::Resource;

/// One column: its definition and how a cell is computed.
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date`, …
    pub ty: &'static str,
    /// Columns above 0 are shown with `-o wide` only.
    pub priority: u8,
    pub cell: fn(&Value) -> Value,
}

const fn column(name: &'static str, ty: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column {
        name,
        ty,
        priority: 0,
        cell,
    }
}

const fn wide(name: &'static str, ty: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column {
        name,
        ty,
        priority: 1,
        cell,
    }
}

const NAME: Column = column("Name", "string", |o| meta::name(o).into());
const AGE: Column = column("Age", "string", |o| {
    age(&o["metadata"]["creationTimestamp"]).into()
});

static PLAIN: &[Column] = &[
    NAME,
    column("Created At", "date", |o| {
        o["metadata"]["creationTimestamp"].clone()
    }),
];

static NAME_AND_AGE: &[Column] = &[NAME, AGE];

/// In which order a table shows objects of a kind, if not in that of their names.
#[must_use]
pub fn precedence(group: &str, kind: &str) -> Option<fn(&Value) -> i64> {
    let is_schema = (group, kind) == ("flowcontrol.apiserver.k8s.io", "FlowSchema");
    is_schema.then_some(administration::precedence)
}

/// The columns of a kind.
#[must_use]
pub fn columns(group: &str, kind: &str) -> &'static [Column] {
    match (group, kind) {
        ("", "Pod") => pods::POD,
        ("", "PodTemplate") => workloads::POD_TEMPLATE,
        ("", "ReplicationController") => workloads::REPLICATION_CONTROLLER,
        ("apps", "ReplicaSet") => workloads::REPLICA_SET,
        ("apps", "Deployment") => workloads::DEPLOYMENT,
        ("apps", "DaemonSet") => workloads::DAEMON_SET,
        ("apps", "StatefulSet") => workloads::STATEFUL_SET,
        ("apps", "ControllerRevision") => workloads::CONTROLLER_REVISION,
        ("batch", "Job") => workloads::JOB,
        ("batch", "CronJob") => workloads::CRON_JOB,
        ("autoscaling", "HorizontalPodAutoscaler") => workloads::HORIZONTAL_POD_AUTOSCALER,
        ("policy", "PodDisruptionBudget") => workloads::POD_DISRUPTION_BUDGET,
        ("", "Node") => cluster::NODE,
        ("", "Namespace") => cluster::NAMESPACE,
        ("", "ComponentStatus") => cluster::COMPONENT_STATUS,
        ("", "Service") => cluster::SERVICE,
        ("", "Endpoints") => cluster::ENDPOINTS,
        ("discovery.k8s.io", "EndpointSlice") => cluster::ENDPOINT_SLICE,
        ("" | "events.k8s.io", "Event") => cluster::EVENT,
        ("", "ConfigMap") => cluster::CONFIG_MAP,
        ("", "Secret") => cluster::SECRET,
        ("", "PersistentVolume") => cluster::PERSISTENT_VOLUME,
        ("", "PersistentVolumeClaim") => cluster::PERSISTENT_VOLUME_CLAIM,
        ("storage.k8s.io", "StorageClass") => cluster::STORAGE_CLASS,
        ("networking.k8s.io", "Ingress") => cluster::INGRESS,
        ("networking.k8s.io", "IngressClass") => cluster::INGRESS_CLASS,
        ("networking.k8s.io", "NetworkPolicy") => cluster::NETWORK_POLICY,
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            cluster::ROLE_BINDING
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            cluster::CERTIFICATE_SIGNING_REQUEST
        }
        ("coordination.k8s.io", "Lease") => cluster::LEASE,
        ("scheduling.k8s.io", "PriorityClass") => cluster::PRIORITY_CLASS,
        ("apiregistration.k8s.io", "APIService") => cluster::API_SERVICE,
        ("", "ResourceQuota") => cluster::RESOURCE_QUOTA,
        ("resource.k8s.io", "ResourceClaim") => devices::RESOURCE_CLAIM,
        ("", "ServiceAccount")
        | ("resource.k8s.io", "ResourceClaimTemplate" | "DeviceClass")
        | ("scheduling.k8s.io", "Workload") => NAME_AND_AGE,
        ("resource.k8s.io", "ResourceSlice") => devices::RESOURCE_SLICE,
        ("resource.k8s.io", "DeviceTaintRule") => devices::DEVICE_TAINT_RULE,
        ("resource.k8s.io", "ResourcePoolStatusRequest") => devices::RESOURCE_POOL_STATUS_REQUEST,
        ("certificates.k8s.io", "ClusterTrustBundle") => administration::CLUSTER_TRUST_BUNDLE,
        ("certificates.k8s.io", "PodCertificateRequest") => administration::POD_CERTIFICATE_REQUEST,
        ("coordination.k8s.io", "LeaseCandidate") => administration::LEASE_CANDIDATE,
        ("internal.apiserver.k8s.io", "StorageVersion") => administration::STORAGE_VERSION,
        ("storagemigration.k8s.io", "StorageVersionMigration") => {
            administration::STORAGE_VERSION_MIGRATION
        }
        ("scheduling.k8s.io", "PodGroup") => administration::POD_GROUP,
        ("networking.k8s.io", "IPAddress") => administration::IP_ADDRESS,
        ("networking.k8s.io", "ServiceCIDR") => administration::SERVICE_CIDR,
        ("storage.k8s.io", "VolumeAttributesClass") => administration::VOLUME_ATTRIBUTES_CLASS,
        ("admissionregistration.k8s.io", kind) => match kind {
            "MutatingAdmissionPolicy" => administration::MUTATING_ADMISSION_POLICY,
            "ValidatingAdmissionPolicy" => administration::VALIDATING_ADMISSION_POLICY,
            "MutatingAdmissionPolicyBinding" | "ValidatingAdmissionPolicyBinding" => {
                administration::ADMISSION_POLICY_BINDING
            }
            _ => administration::WEBHOOK_CONFIGURATION,
        },
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => administration::FLOW_SCHEMA,
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => {
            administration::PRIORITY_LEVEL_CONFIGURATION
        }
        ("node.k8s.io", "RuntimeClass") => administration::RUNTIME_CLASS,
        ("storage.k8s.io", "CSIDriver") => storage::CSI_DRIVER,
        ("storage.k8s.io", "CSINode") => storage::CSI_NODE,
        ("storage.k8s.io", "VolumeAttachment") => storage::VOLUME_ATTACHMENT,
        _ => PLAIN,
    }
}

/// The `columnDefinitions` of a resource's table.
#[must_use]
pub fn definitions_of(resource: &Resource) -> Value {
    match &resource.definition {
        Some(definition) => PrinterColumn::definitions(&definition.columns),
        None => definitions(resource.group, resource.kind),
    }
}

/// The cells of one object of a resource.
#[must_use]
pub fn cells_of(resource: &Resource, object: &Value) -> Value {
    match &resource.definition {
        Some(definition) => PrinterColumn::cells(&definition.columns, object),
        None => cells(columns(resource.group, resource.kind), object),
    }
}

/// The `columnDefinitions` of a built-in kind.
fn definitions(group: &str, kind: &str) -> Value {
    let columns = columns(group, kind).iter();
    let definitions = columns.map(|c| {
        let format = match c.name {
            "Name" | "Attacher" => "name",
            _ => "",
        };
        let description = descriptions::of(group, kind, c.name);
        json!({"name": c.name, "type": c.ty, "format": format, "description": description, "priority": c.priority})
    });
    definitions.collect()
}

/// The cells of one object.
#[must_use]
pub fn cells(columns: &[Column], object: &Value) -> Value {
    columns.iter().map(|c| (c.cell)(object)).collect()
}

/// Time since an RFC 3339 timestamp, as kubectl writes it.
pub(crate) fn age(timestamp: &Value) -> String {
    match timestamp.as_str().map(str::parse::<jiff::Timestamp>) {
        Some(Ok(then)) => human_duration(jiff::Timestamp::now().as_second() - then.as_second()),
        Some(Err(_)) => "<invalid>".into(),
        None => "<unknown>".into(),
    }
}

/// Two significant units at most: `90s`, `5m30s`, `3h`, `4d2h`, `2y10d`.
pub(crate) fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    match seconds {
        i64::MIN..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 if seconds % 60 == 0 => format!("{minutes}m"),
        120..600 => format!("{minutes}m{}s", seconds % 60),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 if minutes % 60 == 0 => format!("{hours}h"),
        10_800..28_800 => format!("{hours}h{}m", minutes % 60),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 if hours % 24 == 0 => format!("{days}d"),
        172_800..691_200 => format!("{days}d{}h", hours % 24),
        _ if days < 730 => format!("{days}d"),
        _ if years < 8 && days % 365 == 0 => format!("{years}y"),
        _ if years < 8 => format!("{years}y{}d", days % 365),
        _ => format!("{years}y"),
    }
}

pub(crate) fn string(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

pub(crate) fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// `text`, or a placeholder when it is empty.
pub(crate) fn or(text: String, placeholder: &str) -> Value {
    if text.is_empty() {
        placeholder.into()
    } else {
        text.into()
    }
}

/// The items of a list at `pointer`.
pub(crate) fn items<'a>(
    object: &'a Value,
    pointer: &str,
) -> impl Iterator<Item = &'a Value> + use<'a> {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// A label selector at `pointer`, in kubectl's words.
pub(crate) fn selector(object: &Value, pointer: &str) -> Value {
    let Some(selector) = object.pointer(pointer) else {
        return "<none>".into();
    };
    let parsed =
        if selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some() {
            crate::selector::LabelSelector::from_json(selector).unwrap_or_default()
        } else {
            crate::selector::LabelSelector::from_match_labels(selector.as_object())
        };
    or(parsed.to_string(), "<none>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (10_800, "3h"),
            (11_000, "3h3m"),
            (100_000, "27h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (800_000, "9d"),
            (365 * 86_400 * 3, "3y"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
    }

    #[test]
    fn every_table_starts_with_a_name_or_time() {
        for resource in crate::resources::builtin() {
            let columns = columns(resource.group, resource.kind);
            assert!(
                columns[0].name == "Name" || resource.kind == "Event",
                "{}",
                resource.kind
            );
            let cells = cells(columns, &json!({"metadata": {"name": "x"}}));
            assert_eq!(cells.as_array().unwrap().len(), columns.len());
        }
    }
}

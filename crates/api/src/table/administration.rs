//! What administrators, signers and control planes deal with.

use serde_json::Value;

use super::{AGE, Column, NAME, column, items, number, or, selector, string};

pub(super) static CLUSTER_TRUST_BUNDLE: &[Column] = &[
    NAME,
    column("SignerName", "string", |o| {
        or(string(o, "/spec/signerName"), "<none>")
    }),
];

pub(super) static POD_CERTIFICATE_REQUEST: &[Column] = &[
    NAME,
    column("PodName", "string", |o| string(o, "/spec/podName").into()),
    column("ServiceAccountName", "string", |o| {
        string(o, "/spec/serviceAccountName").into()
    }),
    column("NodeName", "string", |o| string(o, "/spec/nodeName").into()),
    column("SignerName", "string", |o| {
        string(o, "/spec/signerName").into()
    }),
    column("State", "string", |o| {
        let last = items(o, "/status/conditions")
            .filter_map(|c| c["type"].as_str())
            .filter(|ty| matches!(*ty, "Issued" | "Denied" | "Failed"))
            .last();
        last.unwrap_or("Pending").into()
    }),
    column("UnverifiedUserAnnotations", "string", |o| {
        let annotations = o["spec"]["unverifiedUserAnnotations"].as_object();
        let pairs: Vec<String> = annotations
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
            .collect();
        or(pairs.join(","), "<none>")
    }),
];

pub(super) static LEASE_CANDIDATE: &[Column] = &[
    NAME,
    column("LeaseName", "string", |o| {
        string(o, "/spec/leaseName").into()
    }),
    column("BinaryVersion", "string", |o| {
        string(o, "/spec/binaryVersion").into()
    }),
    column("EmulationVersion", "string", |o| {
        string(o, "/spec/emulationVersion").into()
    }),
    AGE,
];

pub(super) static STORAGE_VERSION: &[Column] = &[
    NAME,
    column("CommonEncodingVersion", "string", |o| {
        or(string(o, "/status/commonEncodingVersion"), "<unset>")
    }),
    column("StorageVersions", "string", |o| {
        let all: Vec<String> = items(o, "/status/storageVersions")
            .map(|s| {
                format!(
                    "{}={}",
                    string(s, "/apiServerID"),
                    string(s, "/encodingVersion")
                )
            })
            .collect();
        if all.is_empty() {
            return "<unset>".into();
        }
        super::cluster::shortened(&all)
    }),
    AGE,
];

pub(super) static STORAGE_VERSION_MIGRATION: &[Column] = &[
    NAME,
    column("Resource", "string", |o| {
        let (group, resource) = (
            string(o, "/spec/resource/group"),
            string(o, "/spec/resource/resource"),
        );
        if group.is_empty() {
            resource.into()
        } else {
            format!("{resource}.{group}").into()
        }
    }),
    column("Status", "string", |o| {
        let last = items(o, "/status/conditions")
            .filter(|c| c["status"] == "True")
            .filter_map(|c| c["type"].as_str())
            .filter(|ty| matches!(*ty, "Running" | "Failed" | "Succeeded"))
            .last();
        last.unwrap_or("Unknown").into()
    }),
];

pub(super) static POD_GROUP: &[Column] = &[
    NAME,
    column("Policy", "string", |o| {
        let is_gang = !o["spec"]["schedulingPolicy"]["gang"].is_null();
        if is_gang { "Gang" } else { "Basic" }.into()
    }),
    column("Workload", "string", |o| {
        if o["spec"]["podGroupTemplateRef"].is_null() {
            "<none>".into()
        } else {
            string(o, "/spec/podGroupTemplateRef/workload/workloadName").into()
        }
    }),
    column("Status", "string", |o| {
        let last = |ty: &str| {
            items(o, "/status/conditions")
                .filter(|c| c["type"] == ty)
                .last()
        };
        match (last("DisruptionTarget"), last("PodGroupScheduled")) {
            (Some(target), _) => string(target, "/reason").into(),
            (None, Some(scheduled)) if scheduled["status"] == "True" => "Scheduled".into(),
            (None, Some(_)) => "Unschedulable".into(),
            (None, None) => "Pending".into(),
        }
    }),
    AGE,
];

pub(super) static IP_ADDRESS: &[Column] = &[
    NAME,
    column("ParentRef", "string", |o| {
        let parent = &o["spec"]["parentRef"];
        if parent.is_null() {
            return "<none>".into();
        }
        let text = |field: &str| parent[field].as_str().unwrap_or_default();
        let mut path = text("resource").to_owned();
        if !text("group").is_empty() {
            path = format!("{path}.{}", text("group"));
        }
        let mut path = path.to_lowercase();
        if !text("namespace").is_empty() {
            path = format!("{path}/{}", text("namespace"));
        }
        format!("{path}/{}", text("name")).into()
    }),
];

pub(super) static SERVICE_CIDR: &[Column] = &[
    NAME,
    column("CIDRs", "string", |o| {
        let ranges: Vec<&str> = items(o, "/spec/cidrs").filter_map(Value::as_str).collect();
        ranges.join(",").into()
    }),
    AGE,
];

pub(super) static VOLUME_ATTRIBUTES_CLASS: &[Column] = &[
    NAME,
    column("DriverName", "string", |o| string(o, "/driverName").into()),
    AGE,
];

const PARAM_KIND: Column = column("ParamKind", "string", |o| {
    let kind = &o["spec"]["paramKind"];
    if kind.is_null() {
        return "<unset>".into();
    }
    format!("{}/{}", string(kind, "/apiVersion"), string(kind, "/kind")).into()
});

pub(super) static MUTATING_ADMISSION_POLICY: &[Column] = &[
    NAME,
    column("Mutations", "integer", |o| {
        items(o, "/spec/mutations").count().into()
    }),
    PARAM_KIND,
    AGE,
];

pub(super) static VALIDATING_ADMISSION_POLICY: &[Column] = &[
    NAME,
    column("Validations", "integer", |o| {
        items(o, "/spec/validations").count().into()
    }),
    PARAM_KIND,
    AGE,
];

/// Of both kinds of policies.
pub(super) static ADMISSION_POLICY_BINDING: &[Column] = &[
    NAME,
    column("PolicyName", "string", |o| {
        string(o, "/spec/policyName").into()
    }),
    column("ParamRef", "string", |o| {
        let reference = &o["spec"]["paramRef"];
        let (namespace, name) = (string(reference, "/namespace"), string(reference, "/name"));
        match (name.is_empty(), namespace.is_empty()) {
            (false, false) => format!("{namespace}/{name}").into(),
            (false, true) => format!("*/{name}").into(),
            _ if reference["selector"].is_null() => "<unset>".into(),
            _ => selector(reference, "/selector"),
        }
    }),
    AGE,
];

pub(super) static WEBHOOK_CONFIGURATION: &[Column] = &[
    NAME,
    column("Webhooks", "integer", |o| {
        items(o, "/webhooks").count().into()
    }),
    AGE,
];

pub(super) static FLOW_SCHEMA: &[Column] = &[
    NAME,
    column("PriorityLevel", "string", |o| {
        string(o, "/spec/priorityLevelConfiguration/name").into()
    }),
    column("MatchingPrecedence", "string", |o| precedence(o).into()),
    column("DistinguisherMethod", "string", |o| {
        or(string(o, "/spec/distinguisherMethod/type"), "<none>")
    }),
    AGE,
    column("MissingPL", "string", |o| {
        let dangling = items(o, "/status/conditions").find(|c| c["type"] == "Dangling");
        dangling.map_or("?".into(), |c| c["status"].clone())
    }),
];

/// The flow schemas that are asked first come first.
pub(super) fn precedence(schema: &Value) -> i64 {
    number(schema, "/spec/matchingPrecedence")
}

pub(super) static PRIORITY_LEVEL_CONFIGURATION: &[Column] = &[
    NAME,
    column("Type", "string", |o| string(o, "/spec/type").into()),
    column("NominalConcurrencyShares", "string", |o| {
        limited(o, "nominalConcurrencyShares")
    }),
    column("Queues", "string", |o| {
        limited(o, "limitResponse/queuing/queues")
    }),
    column("HandSize", "string", |o| {
        limited(o, "limitResponse/queuing/handSize")
    }),
    column("QueueLengthLimit", "string", |o| {
        limited(o, "limitResponse/queuing/queueLengthLimit")
    }),
    AGE,
];

fn limited(level: &Value, path: &str) -> Value {
    let found = level.pointer(&format!("/spec/limited/{path}"));
    found.cloned().unwrap_or_else(|| "<none>".into())
}

pub(super) static RUNTIME_CLASS: &[Column] = &[
    NAME,
    column("Handler", "string", |o| string(o, "/handler").into()),
    AGE,
];

#[cfg(test)]
mod tests {
    use super::super::cells;
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_upstreams() {
        let address = json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"resource": "services", "namespace": "n", "name": "s"}}});
        assert_eq!(cells(IP_ADDRESS, &address)[1], "services/n/s");
        let migration = json!({"metadata": {"name": "a"}, "spec": {"resource": {"group": "apps", "resource": "deployments"}},
            "status": {"conditions": [{"type": "Running", "status": "False"}, {"type": "Succeeded", "status": "True"}]}});
        assert_eq!(
            cells(STORAGE_VERSION_MIGRATION, &migration),
            json!(["a", "deployments.apps", "Succeeded"])
        );
        let group = json!({"spec": {"schedulingPolicy": {"gang": {}}}, "status": {"conditions": [{"type": "PodGroupScheduled", "status": "False"}]}});
        let row = cells(POD_GROUP, &group);
        assert_eq!(
            (&row[1], &row[2], &row[3]),
            (&json!("Gang"), &json!("<none>"), &json!("Unschedulable"))
        );
        let request = json!({"status": {"conditions": [{"type": "Issued", "status": "True"}]}});
        assert_eq!(cells(POD_CERTIFICATE_REQUEST, &request)[5], "Issued");
    }
}

//! Nodes, namespaces, services, configuration, storage and the rest.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{AGE, Column, NAME, age, column, items, number, or, selector, string, wide};
use crate::meta;

pub(super) static NODE: &[Column] = &[
    NAME,
    column("Status", "string", |o| {
        let ready = items(o, "/status/conditions").find(|c| c["type"] == "Ready");
        let mut words = vec![match ready.and_then(|c| c["status"].as_str()) {
            Some("True") => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        }];
        if o["spec"]["unschedulable"] == true {
            words.push("SchedulingDisabled");
        }
        words.join(",").into()
    }),
    column("Roles", "string", |o| {
        let labels = meta::labels(o).into_iter().flat_map(Map::iter);
        let mut roles: Vec<&str> = labels
            .filter_map(|(key, value)| {
                key.strip_prefix("node-role.kubernetes.io/")
                    .or((key == "kubernetes.io/role").then(|| value.as_str().unwrap_or_default()))
            })
            .filter(|r| !r.is_empty())
            .collect();
        roles.sort_unstable();
        or(roles.join(","), "<none>")
    }),
    AGE,
    column("Version", "string", |o| {
        string(o, "/status/nodeInfo/kubeletVersion").into()
    }),
    wide("Internal-IP", "string", |o| address(o, "InternalIP")),
    wide("External-IP", "string", |o| address(o, "ExternalIP")),
    wide("OS-Image", "string", |o| {
        or(string(o, "/status/nodeInfo/osImage"), "<unknown>")
    }),
    wide("Kernel-Version", "string", |o| {
        or(string(o, "/status/nodeInfo/kernelVersion"), "<unknown>")
    }),
    wide("Container-Runtime", "string", |o| {
        or(
            string(o, "/status/nodeInfo/containerRuntimeVersion"),
            "<unknown>",
        )
    }),
];

fn address(node: &Value, ty: &str) -> Value {
    let found = items(node, "/status/addresses").find(|a| a["type"] == ty);
    or(
        found.map(|a| string(a, "/address")).unwrap_or_default(),
        "<none>",
    )
}

/// The condition that says whether a component is well.
fn healthy(component: &Value) -> Option<&Value> {
    items(component, "/conditions").find(|c| c["type"] == "Healthy")
}

fn of_health(component: &Value, field: &str) -> Value {
    healthy(component)
        .and_then(|condition| condition[field].as_str())
        .unwrap_or_default()
        .into()
}

pub(super) static COMPONENT_STATUS: &[Column] = &[
    NAME,
    column("Status", "string", |o| {
        match healthy(o).map(|condition| &condition["status"]) {
            Some(status) if status == "True" => "Healthy".into(),
            Some(_) => "Unhealthy".into(),
            None => "Unknown".into(),
        }
    }),
    column("Message", "string", |o| of_health(o, "message")),
    column("Error", "string", |o| of_health(o, "error")),
];

pub(super) static NAMESPACE: &[Column] = &[
    NAME,
    column("Status", "string", |o| string(o, "/status/phase").into()),
    AGE,
];

pub(super) static SERVICE: &[Column] = &[
    NAME,
    column("Type", "string", |o| string(o, "/spec/type").into()),
    column("Cluster-IP", "string", |o| {
        or(string(o, "/spec/clusterIP"), "<none>")
    }),
    column("External-IP", "string", external_ip),
    column("Port(s)", "string", |o| {
        let ports: Vec<String> = items(o, "/spec/ports")
            .map(|p| match number(p, "/nodePort") {
                0 => format!("{}/{}", number(p, "/port"), string(p, "/protocol")),
                node => format!("{}:{node}/{}", number(p, "/port"), string(p, "/protocol")),
            })
            .collect();
        or(ports.join(","), "<none>")
    }),
    AGE,
    wide("Selector", "string", |o| selector(o, "/spec/selector")),
];

fn external_ip(service: &Value) -> Value {
    let external: Vec<String> = items(service, "/spec/externalIPs")
        .filter_map(|v| v.as_str().map(Into::into))
        .collect();
    match service["spec"]["type"].as_str().unwrap_or_default() {
        "ExternalName" => string(service, "/spec/externalName").into(),
        "LoadBalancer" => {
            let ingress =
                items(service, "/status/loadBalancer/ingress").map(|i| match string(i, "/ip") {
                    ip if ip.is_empty() => string(i, "/hostname"),
                    ip => ip,
                });
            or(
                ingress.chain(external).collect::<Vec<_>>().join(","),
                "<pending>",
            )
        }
        _ => or(external.join(","), "<none>"),
    }
}

/// At most three, then how many more.
pub(super) fn shortened(list: &[String]) -> Value {
    match list.len() {
        0 => "<none>".into(),
        1..=3 => list.join(",").into(),
        more => format!("{} + {} more...", list[..3].join(","), more - 3).into(),
    }
}

pub(super) static ENDPOINTS: &[Column] = &[
    NAME,
    column("Endpoints", "string", |o| {
        let mut list = Vec::new();
        for subset in items(o, "/subsets") {
            for address in items(subset, "/addresses") {
                let ip = string(address, "/ip");
                let ports: Vec<i64> = items(subset, "/ports")
                    .map(|p| number(p, "/port"))
                    .collect();
                if ports.is_empty() {
                    list.push(ip.clone());
                }
                list.extend(ports.into_iter().map(|port| format!("{ip}:{port}")));
            }
        }
        shortened(&list)
    }),
    AGE,
];

pub(super) static ENDPOINT_SLICE: &[Column] = &[
    NAME,
    column("AddressType", "string", |o| {
        string(o, "/addressType").into()
    }),
    column("Ports", "string", |o| {
        let port = |port: &Value| match string(port, "/port") {
            number if !number.is_empty() => number,
            _ => match port["name"].as_str() {
                Some(name) => name.to_owned(),
                None => "*".to_owned(),
            },
        };
        let ports: Vec<String> = items(o, "/ports").map(port).collect();
        if ports.is_empty() {
            "<unset>".into()
        } else {
            shortened(&ports)
        }
    }),
    column("Endpoints", "string", |o| {
        let addresses: Vec<String> = items(o, "/endpoints")
            .flat_map(|e| items(e, "/addresses"))
            .filter_map(|a| a.as_str().map(Into::into))
            .collect();
        if addresses.is_empty() {
            "<unset>".into()
        } else {
            shortened(&addresses)
        }
    }),
    AGE,
];

pub(super) static EVENT: &[Column] = &[
    column("Last Seen", "string", |o| {
        let last = match &o["series"] {
            Value::Null => &o["lastTimestamp"],
            series => return age(&series["lastObservedTime"]).into(),
        };
        age(if last.is_string() {
            last
        } else {
            first_seen(o)
        })
        .into()
    }),
    column("Type", "string", |o| string(o, "/type").into()),
    column("Reason", "string", |o| string(o, "/reason").into()),
    column("Object", "string", |o| {
        let kind = string(o, "/involvedObject/kind").to_lowercase();
        match string(o, "/involvedObject/name") {
            name if name.is_empty() => kind.into(),
            name => format!("{kind}/{name}").into(),
        }
    }),
    wide("Subobject", "string", |o| {
        string(o, "/involvedObject/fieldPath").into()
    }),
    wide("Source", "string", |o| {
        let either = |old: &str, new: &str| match string(o, old) {
            text if text.is_empty() => string(o, new),
            text => text,
        };
        let component = either("/source/component", "/reportingComponent");
        match either("/source/host", "/reportingInstance") {
            host if host.is_empty() => component.into(),
            host => format!("{component}, {host}").into(),
        }
    }),
    column("Message", "string", |o| string(o, "/message").trim().into()),
    wide("First Seen", "string", |o| age(first_seen(o)).into()),
    wide("Count", "string", |o| match &o["series"] {
        Value::Null => number(o, "/count").max(1).into(),
        series => number(series, "/count").into(),
    }),
    wide("Name", "string", |o| meta::name(o).into()),
];

fn first_seen(event: &Value) -> &Value {
    match &event["firstTimestamp"] {
        Value::Null => &event["eventTime"],
        first => first,
    }
}

fn size(object: &Value, part: &str) -> usize {
    object[part].as_object().map_or(0, Map::len)
}

pub(super) static CONFIG_MAP: &[Column] = &[
    NAME,
    column("Data", "string", |o| {
        (size(o, "data") + size(o, "binaryData")).into()
    }),
    AGE,
];

pub(super) static SECRET: &[Column] = &[
    NAME,
    column("Type", "string", |o| string(o, "/type").into()),
    column("Data", "string", |o| size(o, "data").into()),
    AGE,
];

fn access_modes(object: &Value, pointer: &str) -> Value {
    let short = |mode: &Value| match mode.as_str() {
        Some("ReadWriteOnce") => "RWO",
        Some("ReadOnlyMany") => "ROX",
        Some("ReadWriteMany") => "RWX",
        Some("ReadWriteOncePod") => "RWOP",
        _ => "",
    };
    items(object, pointer)
        .map(short)
        .collect::<Vec<_>>()
        .join(",")
        .into()
}

/// A terminating volume or claim says so instead of its phase.
fn phase(object: &Value) -> Value {
    if meta::is_terminating(object) {
        "Terminating".into()
    } else {
        string(object, "/status/phase").into()
    }
}

pub(super) static PERSISTENT_VOLUME: &[Column] = &[
    NAME,
    column("Capacity", "string", |o| {
        string(o, "/spec/capacity/storage").into()
    }),
    column("Access Modes", "string", |o| {
        access_modes(o, "/spec/accessModes")
    }),
    column("Reclaim Policy", "string", |o| {
        string(o, "/spec/persistentVolumeReclaimPolicy").into()
    }),
    column("Status", "string", phase),
    column("Claim", "string", |o| {
        let claim = &o["spec"]["claimRef"];
        if claim.is_null() {
            "".into()
        } else {
            format!("{}/{}", string(claim, "/namespace"), string(claim, "/name")).into()
        }
    }),
    column("StorageClass", "string", |o| {
        string(o, "/spec/storageClassName").into()
    }),
    column("VolumeAttributesClass", "string", |o| {
        or(string(o, "/spec/volumeAttributesClassName"), "<unset>")
    }),
    column("Reason", "string", |o| string(o, "/status/reason").into()),
    AGE,
    wide("VolumeMode", "string", |o| {
        or(string(o, "/spec/volumeMode"), "<unset>")
    }),
];

pub(super) static PERSISTENT_VOLUME_CLAIM: &[Column] = &[
    NAME,
    column("Status", "string", phase),
    column("Volume", "string", |o| string(o, "/spec/volumeName").into()),
    column("Capacity", "string", |o| {
        string(o, "/status/capacity/storage").into()
    }),
    column("Access Modes", "string", |o| {
        access_modes(o, "/status/accessModes")
    }),
    column("StorageClass", "string", |o| {
        string(o, "/spec/storageClassName").into()
    }),
    column("VolumeAttributesClass", "string", |o| {
        or(string(o, "/spec/volumeAttributesClassName"), "<unset>")
    }),
    AGE,
    wide("VolumeMode", "string", |o| {
        or(string(o, "/spec/volumeMode"), "<unset>")
    }),
];

pub(super) static STORAGE_CLASS: &[Column] = &[
    column("Name", "string", |o| {
        let default =
            meta::annotation(o, "storageclass.kubernetes.io/is-default-class") == Some("true");
        let suffix = if default { " (default)" } else { "" };
        format!("{}{suffix}", meta::name(o)).into()
    }),
    column("Provisioner", "string", |o| {
        string(o, "/provisioner").into()
    }),
    column("ReclaimPolicy", "string", |o| {
        string(o, "/reclaimPolicy").into()
    }),
    column("VolumeBindingMode", "string", |o| {
        string(o, "/volumeBindingMode").into()
    }),
    column("AllowVolumeExpansion", "string", |o| {
        (o["allowVolumeExpansion"] == true).into()
    }),
    AGE,
];

pub(super) static INGRESS: &[Column] = &[
    NAME,
    column("Class", "string", |o| {
        or(string(o, "/spec/ingressClassName"), "<none>")
    }),
    column("Hosts", "string", |o| {
        let hosts: Vec<String> = items(o, "/spec/rules")
            .map(|r| string(r, "/host"))
            .filter(|h| !h.is_empty())
            .collect();
        if hosts.is_empty() {
            "*".into()
        } else {
            shortened(&hosts)
        }
    }),
    column("Address", "string", |o| {
        let address = |ingress: &Value| match string(ingress, "/ip") {
            ip if ip.is_empty() => string(ingress, "/hostname"),
            ip => ip,
        };
        let all = items(o, "/status/loadBalancer/ingress").map(address);
        let all: BTreeSet<String> = all.filter(|address| !address.is_empty()).collect();
        all.into_iter().collect::<Vec<_>>().join(",").into()
    }),
    column("Ports", "string", |o| {
        if items(o, "/spec/tls").next().is_some() {
            "80, 443".into()
        } else {
            "80".into()
        }
    }),
    AGE,
];

pub(super) static INGRESS_CLASS: &[Column] = &[
    NAME,
    column("Controller", "string", |o| {
        string(o, "/spec/controller").into()
    }),
    column("Parameters", "string", |o| {
        let parameters = &o["spec"]["parameters"];
        if parameters.is_null() {
            return "<none>".into();
        }
        let group = match parameters["apiGroup"].as_str() {
            Some(group) => format!(".{group}"),
            None => String::new(),
        };
        let (kind, name) = (string(parameters, "/kind"), string(parameters, "/name"));
        format!("{kind}{group}/{name}").into()
    }),
    AGE,
];

pub(super) static NETWORK_POLICY: &[Column] = &[
    NAME,
    column("Pod-Selector", "string", |o| {
        selector(o, "/spec/podSelector")
    }),
    AGE,
];

fn subjects(binding: &Value, kind: &str) -> Value {
    items(binding, "/subjects")
        .filter(|s| s["kind"] == kind)
        .map(|s| match string(s, "/namespace") {
            ns if kind == "ServiceAccount" && !ns.is_empty() => {
                format!("{ns}/{}", string(s, "/name"))
            }
            _ => string(s, "/name"),
        })
        .collect::<Vec<_>>()
        .join(", ")
        .into()
}

pub(super) static ROLE_BINDING: &[Column] = &[
    NAME,
    column("Role", "string", |o| {
        format!(
            "{}/{}",
            string(o, "/roleRef/kind"),
            string(o, "/roleRef/name")
        )
        .into()
    }),
    AGE,
    wide("Users", "string", |o| subjects(o, "User")),
    wide("Groups", "string", |o| subjects(o, "Group")),
    wide("ServiceAccounts", "string", |o| {
        subjects(o, "ServiceAccount")
    }),
];

pub(super) static CERTIFICATE_SIGNING_REQUEST: &[Column] = &[
    NAME,
    AGE,
    column("SignerName", "string", |o| {
        string(o, "/spec/signerName").into()
    }),
    column("Requestor", "string", |o| {
        string(o, "/spec/username").into()
    }),
    column("RequestedDuration", "string", |o| {
        let seconds = o["spec"]["expirationSeconds"].as_i64();
        seconds.map_or("<none>".into(), |s| super::human_duration(s).into())
    }),
    column("Condition", "string", |o| {
        let mut words: Vec<&str> = items(o, "/status/conditions")
            .filter_map(|c| c["type"].as_str())
            .collect();
        if words.is_empty() {
            words.push("Pending");
        }
        if o["status"]["certificate"].is_string() {
            words.push("Issued");
        }
        words.join(",").into()
    }),
];

pub(super) static LEASE: &[Column] = &[
    NAME,
    column("Holder", "string", |o| {
        string(o, "/spec/holderIdentity").into()
    }),
    AGE,
];

pub(super) static PRIORITY_CLASS: &[Column] = &[
    NAME,
    column("Value", "integer", |o| number(o, "/value").into()),
    column("Global-Default", "boolean", |o| {
        (o["globalDefault"] == true).into()
    }),
    AGE,
    column("PreemptionPolicy", "string", |o| {
        string(o, "/preemptionPolicy").into()
    }),
];

pub(super) static API_SERVICE: &[Column] = &[
    NAME,
    column("Service", "string", |o| {
        let service = &o["spec"]["service"];
        if service.is_null() {
            "Local".into()
        } else {
            format!(
                "{}/{}",
                string(service, "/namespace"),
                string(service, "/name")
            )
            .into()
        }
    }),
    column("Available", "string", |o| {
        let condition = items(o, "/status/conditions").find(|c| c["type"] == "Available");
        match condition {
            Some(c) if c["status"] == "True" => "True".into(),
            Some(c) => format!("{} ({})", string(c, "/status"), string(c, "/reason")).into(),
            None => "Unknown".into(),
        }
    }),
    AGE,
];

pub(super) static RESOURCE_QUOTA: &[Column] = &[
    NAME,
    column("Request", "string", |o| quota(o, false)),
    column("Limit", "string", |o| quota(o, true)),
    AGE,
];

fn quota(object: &Value, limits: bool) -> Value {
    let hard = object["status"]["hard"].as_object().into_iter().flatten();
    hard.filter(|(name, _)| name.starts_with("limits.") == limits)
        .map(|(name, hard)| {
            let used = object["status"]["used"][name].as_str().unwrap_or("0");
            format!("{name}: {used}/{}", hard.as_str().unwrap_or("0"))
        })
        .collect::<Vec<_>>()
        .join(", ")
        .into()
}

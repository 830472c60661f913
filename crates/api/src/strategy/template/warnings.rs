//! What the author of a pod or template should know though it is valid.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::CONTAINER_LISTS;
use super::annotations::{APPARMOR_CONTAINER, SECCOMP_CONTAINER, SECCOMP_POD, apparmor_field};
use super::options::list;
use crate::strategy::storage::claim;
use crate::validation::{At, ip, label_value, quantity_of, quote};

/// Labels of nodes that are no longer set or have a new name.
const DEPRECATED_NODE_LABELS: [(&str, &str); 8] = [
    (
        "beta.kubernetes.io/arch",
        "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
    ),
    (
        "beta.kubernetes.io/os",
        "deprecated since v1.14; use \"kubernetes.io/os\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
    (
        "node-role.kubernetes.io/master",
        "use \"node-role.kubernetes.io/control-plane\" instead",
    ),
];
const DEPRECATED_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];
/// Types of volumes that are gone, and what is said of each; the place is not always the field.
const DEPRECATED_VOLUMES: [(&str, &str, &str); 7] = [
    (
        "photonPersistentDisk",
        "photonPersistentDisk",
        "deprecated in v1.11, non-functional in v1.16+",
    ),
    (
        "gitRepo",
        "gitRepo",
        "deprecated in v1.11, and disabled by default in v1.33+",
    ),
    (
        "scaleIO",
        "scaleIO",
        "deprecated in v1.16, non-functional in v1.22+",
    ),
    (
        "flocker",
        "flocker",
        "deprecated in v1.22, non-functional in v1.25+",
    ),
    (
        "storageos",
        "storageOS",
        "deprecated in v1.22, non-functional in v1.25+",
    ),
    (
        "quobyte",
        "quobyte",
        "deprecated in v1.22, non-functional in v1.25+",
    ),
    (
        "glusterfs",
        "glusterfs",
        "deprecated in v1.25, non-functional in v1.26+",
    ),
];
const LATER_DEPRECATED_VOLUMES: [&str; 2] = ["cephfs", "rbd"];
const NULL_SELECTOR: &str = "a null labelSelector results in matching no pod";

/// Why a label of nodes should not be used.
pub(in crate::strategy) fn deprecated_node_label(key: &str) -> Option<&'static str> {
    DEPRECATED_NODE_LABELS
        .iter()
        .find(|(k, _)| *k == key)
        .map(|(_, why)| *why)
}

/// Warnings of a pod, or of a template at `holder` (then `is_template`).
pub(in crate::strategy) fn of(holder: &At<'_, '_>, is_template: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let spec = holder.field("spec");
    let metadata = holder.field("metadata");
    let annotations = metadata.field("annotations");
    let selector = spec.field("nodeSelector");
    for (key, at) in selector.entries() {
        if let Some(why) = deprecated_node_label(key) {
            warnings.push(format!("{at}: {why}"));
        }
    }
    node_affinity(&spec, &mut warnings);
    for constraint in spec.field("topologySpreadConstraints").items() {
        let key = constraint.field("topologyKey");
        if let Some(why) = deprecated_node_label(key.str()) {
            warnings.push(format!("{key}: {} is {why}", key.str()));
        }
        let selector = constraint.field("labelSelector");
        if !selector.is_set() {
            warnings.push(format!("{selector}: {NULL_SELECTOR}"));
        }
    }
    for (key, why) in DEPRECATED_ANNOTATIONS {
        let at = annotations.key(key);
        if at.is_set() {
            warnings.push(format!("{at}: {why}"));
        }
    }
    volumes(&spec.field("volumes"), &mut warnings);
    duplicates(
        &spec.field("hostAliases"),
        "ip",
        "duplicate ip",
        &mut warnings,
    );
    pull_secrets(&spec.field("imagePullSecrets"), &mut warnings);
    fractions(&spec.field("overhead"), &mut warnings);
    let context = spec.field("securityContext");
    let seccomp = annotations.key(SECCOMP_POD);
    if !context.field("seccompProfile").is_set() && seccomp.is_set() {
        warnings.push(format!("{seccomp}: {}", SECCOMP_FIELD));
    }
    for list in CONTAINER_LISTS {
        for container in spec.field(list).items() {
            of_container(
                &container,
                &annotations,
                &context,
                is_template,
                &mut warnings,
            );
        }
    }
    ports(&spec, &mut warnings);
    let grace = spec.field("terminationGracePeriodSeconds");
    if grace.int().is_some_and(|n| n < 0) {
        warnings.push(format!(
            "{grace}: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    pod_affinity(&spec, &mut warnings);
    let dns = spec.field("dnsConfig");
    for nameserver in dns.field("nameservers").items() {
        ip::ip_warning(&mut warnings, &nameserver);
    }
    for alias in spec.field("hostAliases").items() {
        ip::ip_warning(&mut warnings, &alias.field("ip"));
    }
    warnings
}

const SECCOMP_FIELD: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
pub(in crate::strategy) const APPARMOR_FIELD: &str =
    "deprecated since v1.30; use the \"appArmorProfile\" field instead";

fn node_affinity(spec: &At<'_, '_>, warnings: &mut Vec<String>) {
    let affinity = spec.field("affinity");
    let node = affinity.field("nodeAffinity");
    let required = node.field("requiredDuringSchedulingIgnoredDuringExecution");
    for term in required.field("nodeSelectorTerms").items() {
        node_selector_term(&term, false, warnings);
    }
    for term in node
        .field("preferredDuringSchedulingIgnoredDuringExecution")
        .items()
    {
        node_selector_term(&term.field("preference"), true, warnings);
    }
}

/// A term of a `NodeSelector`.
pub(in crate::strategy) fn node_selector_term(
    term: &At<'_, '_>,
    check_values: bool,
    warnings: &mut Vec<String>,
) {
    for expression in term.field("matchExpressions").items() {
        let key = expression.field("key");
        if let Some(why) = deprecated_node_label(key.str()) {
            warnings.push(format!("{key}: {} is {why}", key.str()));
        }
        if check_values {
            for value in expression.field("values").items() {
                for problem in label_value(value.str()) {
                    warnings.push(format!("{value}: {} is invalid, {problem}", value.str()));
                }
            }
        }
    }
}

fn pod_affinity(spec: &At<'_, '_>, warnings: &mut Vec<String>) {
    let affinity = spec.field("affinity");
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.field(kind);
        for term in pods
            .field("requiredDuringSchedulingIgnoredDuringExecution")
            .items()
        {
            let selector = term.field("labelSelector");
            if !selector.is_set() {
                warnings.push(format!("{selector}: {NULL_SELECTOR}"));
            }
        }
        for weighted in pods
            .field("preferredDuringSchedulingIgnoredDuringExecution")
            .items()
        {
            let term = weighted.field("podAffinityTerm");
            let selector = term.field("labelSelector");
            if !selector.is_set() {
                warnings.push(format!("{selector}: {NULL_SELECTOR}"));
            }
        }
    }
}

fn duplicates(items: &At<'_, '_>, field: &str, what: &str, warnings: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for item in items.items() {
        let at = item.field(field);
        if !seen.insert(at.str()) {
            warnings.push(format!("{at}: {what} {}", quote(at.str())));
        }
    }
}

fn pull_secrets(secrets: &At<'_, '_>, warnings: &mut Vec<String>) {
    duplicates(secrets, "name", "duplicate name", warnings);
    for secret in secrets.items() {
        let name = secret.field("name");
        if name.is_empty() {
            warnings.push(format!("{name}: invalid empty name \"\""));
        }
    }
}

/// Bytes come in whole numbers.
fn fractions(amounts: &At<'_, '_>, warnings: &mut Vec<String>) {
    for name in ["memory", "ephemeral-storage"] {
        let at = amounts.key(name);
        if quantity_of(at.value()).is_some_and(|q| q.millis() % 1000 != 0) {
            let value = quote(at.str());
            warnings.push(format!(
                "{at}: fractional byte value {value} is invalid, must be an integer"
            ));
        }
    }
}

fn of_container(
    container: &At<'_, '_>,
    annotations: &At<'_, '_>,
    pod_context: &At<'_, '_>,
    is_template: bool,
    warnings: &mut Vec<String>,
) {
    let context = container.field("securityContext");
    if !annotations.is_empty() {
        let name = container.text("name");
        let seccomp = format!("{SECCOMP_CONTAINER}{name}");
        let at = annotations.key(&seccomp);
        if !context.field("seccompProfile").is_set() && at.is_set() {
            warnings.push(format!("{at}: {SECCOMP_FIELD}"));
        }
        let apparmor = format!("{APPARMOR_CONTAINER}{name}");
        let at = annotations.key(&apparmor);
        if is_template && !context.field("appArmorProfile").is_set() && at.is_set() {
            let inherited = pod_context.get("appArmorProfile");
            if inherited.is_null() || apparmor_field(at.str()).as_ref() != Some(inherited) {
                warnings.push(format!("{at}: {APPARMOR_FIELD}"));
            }
        }
    }
    let resources = container.field("resources");
    if !resources.is_empty() {
        for name in ["memory", "ephemeral-storage"] {
            for kind in ["limits", "requests"] {
                let amounts = resources.field(kind);
                let at = amounts.key(name);
                if quantity_of(at.value()).is_some_and(|q| q.millis() % 1000 != 0) {
                    let value = quote(at.str());
                    warnings.push(format!(
                        "{at}: fractional byte value {value} is invalid, must be an integer"
                    ));
                }
            }
        }
    }
    let mut names = HashSet::new();
    for var in container.field("env").items() {
        let (name, value) = (var.text("name"), var.text("value"));
        if names.insert(name) {
            continue;
        }
        let reference = format!("$({name})");
        let extends = value.contains(&reference) && value != reference;
        if var.field("valueFrom").is_set() || !extends {
            warnings.push(format!(
                "{var}: hides previous definition of {}, which may be dropped when using apply",
                quote(name)
            ));
        }
    }
}

/// A port of a container and where it is.
struct Port<'v> {
    place: String,
    host_ip: &'v str,
    host_port: i64,
}

fn ports(spec: &At<'_, '_>, warnings: &mut Vec<String>) {
    let mut by_number: HashMap<(i64, &str), Vec<Port<'_>>> = HashMap::new();
    let mut by_name: HashMap<&str, String> = HashMap::new();
    let mut of_names = Vec::new();
    for list in CONTAINER_LISTS {
        for container in spec.field(list).items() {
            for port in container.field("ports").items() {
                let number = |field: &str| port.get(field).as_i64().unwrap_or_default();
                let own = Port {
                    place: port.to_string(),
                    host_ip: port.text("hostIP"),
                    host_port: number("hostPort"),
                };
                if !own.host_ip.is_empty() && own.host_port == 0 {
                    warnings.push(format!(
                        "{port}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{}}}",
                        port.text("name"),
                        number("containerPort"),
                        port.text("protocol"),
                        own.host_ip
                    ));
                }
                let key = (number("containerPort"), port.text("protocol"));
                let others = by_number.entry(key).or_default();
                for other in others.iter() {
                    let same_port = own.host_port == other.host_port;
                    let how = if own.host_ip == other.host_ip && same_port {
                        "duplicate"
                    } else if own.host_port == 0 || other.host_port == 0 {
                        "overlapping"
                    } else if same_port && (own.host_ip.is_empty() != other.host_ip.is_empty()) {
                        "dangerously ambiguous"
                    } else {
                        continue;
                    };
                    warnings.push(format!(
                        "{port}: {how} port definition with {}",
                        other.place
                    ));
                }
                let name = port.text("name");
                if !name.is_empty() {
                    if let Some(other) = by_name.get(name) {
                        of_names.push(format!(
                            "{port}: duplicate port name {} with {other}, services and probes that select ports by name will use {other}",
                            quote(name)
                        ));
                    } else {
                        by_name.insert(name, own.place.clone());
                    }
                }
                others.push(own);
            }
        }
    }
    warnings.extend(of_names);
}

fn volumes(volumes: &At<'_, '_>, warnings: &mut Vec<String>) {
    for volume in volumes.items() {
        for (field, called, why) in DEPRECATED_VOLUMES {
            let at = volume.field_as(field, called);
            if at.is_set() {
                warnings.push(format!("{at}: {why}"));
            }
        }
        let ephemeral = volume.field("ephemeral");
        let template = ephemeral.field("volumeClaimTemplate");
        if template.is_set() {
            claim::warnings(&template.field("spec"), warnings);
        }
        for field in LATER_DEPRECATED_VOLUMES {
            let at = volume.field(field);
            if at.is_set() {
                warnings.push(format!(
                    "{at}: deprecated in v1.28, non-functional in v1.31+"
                ));
            }
        }
    }
    for volume in volumes.items() {
        overlaps(&volume, warnings);
    }
}

/// A path that a volume puts something at, and what.
#[derive(Clone, PartialEq, Eq)]
struct Source {
    path: String,
    what: String,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&quote(&self.path))?;
        if self.what.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", self.what)
    }
}

fn sources<'v>(items: &'v Value, what: &'v str) -> impl Iterator<Item = Source> + 'v {
    list(items).map(move |item| source(item["path"].as_str().unwrap_or_default(), what))
}

fn source(path: &str, what: &str) -> Source {
    Source {
        path: path.trim_end_matches('/').to_owned(),
        what: what.to_owned(),
    }
}

fn overlaps(volume: &At<'_, '_>, warnings: &mut Vec<String>) {
    let name = quote(volume.text("name"));
    let text = |value: &Value| quote(value.as_str().unwrap_or_default());
    let mut report = |what: &str, all: Vec<Source>| {
        for (i, own) in all.iter().enumerate() {
            for other in &all[..i] {
                if collide(own, other) {
                    warnings.push(format!(
                        "volume {name} ({what}): overlapping paths: {own} with {other}"
                    ));
                }
            }
        }
    };
    let (config, secret) = (volume.get("configMap"), volume.get("secret"));
    report(
        &format!("ConfigMap {}", text(&config["name"])),
        sources(&config["items"], "").collect(),
    );
    report(
        &format!("Secret {}", text(&secret["secretName"])),
        sources(&secret["items"], "").collect(),
    );
    report(
        "DownwardAPI",
        sources(&volume.get("downwardAPI")["items"], "").collect(),
    );
    let mut projected = Vec::new();
    let mut empty = 0;
    for item in list(&volume.get("projected")["sources"]) {
        if item.as_object().is_none_or(serde_json::Map::is_empty) {
            empty += 1;
            continue;
        }
        projected.extend(projected_sources(item));
    }
    report("Projected", projected);
    for _ in 0..empty {
        warnings.push(format!("volume {name} (Projected) has no sources provided"));
    }
}

fn projected_sources(item: &Value) -> Vec<Source> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for (kind, called) in [("configMap", "ConfigMap"), ("secret", "Secret")] {
        if item[kind]["items"].is_array() {
            let what = format!("{called} {}", quote(&text(&item[kind]["name"])));
            return sources(&item[kind]["items"], &what).collect();
        }
    }
    if item["downwardAPI"]["items"].is_array() {
        return sources(&item["downwardAPI"]["items"], "DownwardAPI").collect();
    }
    if item["serviceAccountToken"].is_object() {
        let path = text(&item["serviceAccountToken"]["path"]);
        return vec![source(&path, "ServiceAccountToken")];
    }
    let bundle = &item["clusterTrustBundle"];
    if bundle.is_object() {
        let by = if bundle["name"].is_string() {
            "name"
        } else {
            "signerName"
        };
        let what = format!("ClusterTrustBundle {}", quote(&text(&bundle[by])));
        return vec![source(&text(&bundle["path"]), &what)];
    }
    let certificate = &item["podCertificate"];
    [
        ("certificateChainPath", "PodCertificate chain"),
        ("keyPath", "PodCertificate key"),
        ("credentialBundlePath", "PodCertificate credential bundle"),
    ]
    .into_iter()
    .filter_map(|(field, what)| Some(source(certificate[field].as_str()?, what)))
    .collect()
}

fn collide(a: &Source, b: &Source) -> bool {
    if a.path.is_empty() || b.path.is_empty() {
        return false;
    }
    let (x, y) = (format!("{}/", a.path), format!("{}/", b.path));
    x.starts_with(&y) || y.starts_with(&x)
}

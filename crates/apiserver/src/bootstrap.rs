//! What an API server keeps in place: the system namespaces, the default roles and priority classes, the `kubernetes`
//! service and its endpoints, and the configuration that extension servers read.

use std::net::Ipv4Addr;
use std::sync::Arc;

use fluyt_api::{Error, meta, resources};
use serde_json::{Map, Value, json};

use crate::features::Features;
use crate::loopback::SERVER;
use crate::registry::{Change, Location};
use crate::service_repair::Repair;
use crate::startup::Step;
use crate::{Server, authn};
use crate::{default_service_cidr, endpoint_reconciler};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

const ROLES: &str = include_str!("rbac_bootstrap.txt");

/// Creates what is missing and repairs what was changed.
///
/// # Errors
/// When the store refuses.
pub async fn run(server: &Arc<Server>) -> Result<(), Error> {
    for name in NAMESPACES {
        let namespace = json!({"metadata": {"name": name}});
        let created = SERVER.create(server, "", "namespaces", "", namespace);
        created.await?;
    }
    server.startup.finish(Step::SystemNamespaces);
    for object in rbac_objects(server.config.features) {
        reconcile(server, object).await?;
    }
    server.startup.finish(Step::Roles);
    for (name, value) in [
        ("system-cluster-critical", 2_000_000_000),
        ("system-node-critical", 2_000_001_000),
    ] {
        let description = if name.contains("node") {
            "Used for system critical pods that must not be moved from their current node."
        } else {
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."
        };
        let class = json!({"metadata": {"name": name}, "value": value, "description": description});
        let (group, plural) = ("scheduling.k8s.io", "priorityclasses");
        SERVER.create(server, group, plural, "", class).await?;
    }
    server.startup.finish(Step::PriorityClasses);
    default_service_cidr::sync(server).await?;
    let mut repair = Repair::default();
    let next = repair.once(server).await?;
    server.startup.finish(Step::ServiceRepair);
    kubernetes_service(server).await?;
    server.startup.finish(Step::KubernetesService);
    extension_configuration(server).await?;
    server.startup.finish(Step::AuthenticationInfo);
    authn::begin_tracking(server).await?;
    server.startup.finish(Step::TokenTracking);
    tokio::spawn(repair.run(server.clone(), next));
    Ok(())
}

/// Creates a default role or binding, or adds back what it must have.
async fn reconcile(server: &Arc<Server>, object: Value) -> Result<(), Error> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let plural = format!("{}s", kind.to_lowercase());
    let resource =
        resources::find("rbac.authorization.k8s.io", "v1", &plural).ok_or_else(Error::no_route)?;
    let (namespace, name) = (
        meta::namespace(&object).to_owned(),
        meta::name(&object).to_owned(),
    );
    let at = Location {
        resource,
        namespace: &namespace,
        name: &name,
        subresource: "",
    };
    let (group, plural) = (resource.group, resource.plural);
    let creating = SERVER.create(server, group, plural, &namespace, object.clone());
    if creating.await? {
        return Ok(());
    }
    let add_back: Change<'_> = Box::new(|current: &Value| {
        let mut merged = current.clone();
        if meta::annotation(current, AUTO_UPDATE) == Some("false") {
            return Ok(merged);
        }
        for list in ["rules", "subjects"] {
            for wanted in object[list].as_array().into_iter().flatten() {
                match merged[list].as_array_mut() {
                    Some(present) if present.contains(wanted) => {}
                    Some(present) => present.push(wanted.clone()),
                    None => merged[list] = json!([wanted]),
                }
            }
        }
        Ok(merged)
    });
    SERVER.amend(server, at, add_back).await
}

const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// The objects of the default policy.
fn rbac_objects(features: Features) -> Vec<Value> {
    // What needs a feature, and whether it is on.
    let gated = |line: &'static str| match line.strip_prefix("if=").and_then(|l| l.split_once(' '))
    {
        Some((gate, line)) => (features.enables(gate), line),
        None => (true, line),
    };
    let mut objects: Vec<Value> = Vec::new();
    let mut in_role = false;
    for line in ROLES
        .lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty())
    {
        if let Some(rule) = line.strip_prefix("  ") {
            let (on, rule) = gated(rule);
            if let Some(rules) = objects.last_mut().and_then(|o| o["rules"].as_array_mut())
                && in_role
                && on
            {
                rules.push(parse_rule(rule));
            }
            continue;
        }
        let (on, line) = gated(line);
        in_role = on;
        if !on {
            continue;
        }
        if let Some(role) = line.strip_prefix("role ") {
            objects.push(parse_role(role));
        } else if let Some(binding) = line.strip_prefix("binding ") {
            objects.push(parse_binding(binding));
        }
    }
    objects
}

fn rbac_object(kind: &str, name: &str) -> Value {
    let (namespace, name) = name
        .split_once('/')
        .map_or((None, name), |(ns, name)| (Some(ns), name));
    let kind = if namespace.is_some() {
        kind.to_owned()
    } else {
        format!("Cluster{kind}")
    };
    let mut metadata = json!({
        "name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}, "annotations": {AUTO_UPDATE: "true"},
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata})
}

fn parse_role(line: &str) -> Value {
    let mut words = line.split(' ');
    let mut role = rbac_object("Role", words.next().unwrap_or_default());
    role["rules"] = json!([]);
    for word in words {
        let qualified = |label: &str| format!("rbac.authorization.k8s.io/{label}");
        match word.split_once('=') {
            Some(("label", label)) => role["metadata"]["labels"][qualified(label)] = "true".into(),
            Some(("aggregate", labels)) => {
                let selectors: Vec<Value> = labels
                    .split(',')
                    .map(|l| json!({"matchLabels": {qualified(l): "true"}}))
                    .collect();
                role["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
            }
            _ => {}
        }
    }
    role
}

fn parse_rule(line: &str) -> Value {
    let words: Vec<&str> = line.split(' ').collect();
    let list = |word: &str| -> Vec<String> {
        word.split(',')
            .map(|w| {
                if w == "core" {
                    String::new()
                } else {
                    w.to_owned()
                }
            })
            .collect()
    };
    match words.as_slice() {
        [verbs, urls] => {
            json!({"verbs": list(verbs), "nonResourceURLs": list(urls.trim_start_matches("url="))})
        }
        [verbs, groups, resources, rest @ ..] => {
            let mut rule = json!({"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources)});
            if let Some(names) = rest.first().and_then(|w| w.strip_prefix("names=")) {
                rule["resourceNames"] = json!(list(names));
            }
            rule
        }
        _ => Value::Null,
    }
}

fn parse_binding(line: &str) -> Value {
    let mut words = line.split(' ').filter(|w| !w.is_empty());
    let mut binding = rbac_object("RoleBinding", words.next().unwrap_or_default());
    if binding["kind"] == "ClusterRoleBinding" || binding["kind"] == "RoleBinding" {
        let role = words.next().unwrap_or_default();
        let (kind, name) = role
            .split_once('/')
            .map_or(("ClusterRole", role), |(_, name)| ("Role", name));
        binding["roleRef"] =
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    }
    let subjects: Vec<Value> = words
        .map(|word| match word.split_once(':') {
            Some(("S", account)) => {
                let (namespace, name) = account.split_once('/').unwrap_or(("", account));
                json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
            }
            Some(("U", user)) => json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}),
            _ => json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": word.trim_start_matches("G:")}),
        })
        .collect();
    binding["subjects"] = subjects.into();
    binding
}

/// The service under which pods find this server, and its endpoints.
async fn kubernetes_service(server: &Arc<Server>) -> Result<(), Error> {
    let config = &server.config;
    let Some(address) = config.service_network.first_address() else {
        return Ok(());
    };
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let mut service = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": address.to_string(), "ipFamilyPolicy": "SingleStack", "ports": [
            {"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.advertise.port()}]},
    });
    let node_port = config.endpoints.kubernetes_service_node_port;
    if node_port > 0 {
        service["spec"]["type"] = "NodePort".into();
        service["spec"]["ports"][0]["nodePort"] = node_port.into();
    }
    SERVER
        .create(server, "", "services", "default", service)
        .await?;
    endpoint_reconciler::reconcile(server).await
}

/// Says under which addresses the servers of this cluster are reached.
pub(crate) async fn publish_endpoints(
    server: &Arc<Server>,
    addresses: &[Ipv4Addr],
) -> Result<(), Error> {
    let ports = json!([
        {"name": "https", "port": server.config.advertise.port(), "protocol": "TCP"},
    ]);
    let ips: Vec<Value> = addresses
        .iter()
        .map(|ip| json!({"ip": ip.to_string()}))
        .collect();
    let subsets = if ips.is_empty() {
        json!([])
    } else {
        json!([{"addresses": ips, "ports": ports}])
    };
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets,
    });
    let ready: Vec<Value> = addresses
        .iter()
        .map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}}))
        .collect();
    let slice = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4", "ports": ports, "endpoints": ready,
    });
    SERVER
        .replace(server, "", "endpoints", endpoints, &["subsets"])
        .await?;
    let (group, plural) = ("discovery.k8s.io", "endpointslices");
    SERVER
        .replace(server, group, plural, slice, &["ports", "endpoints"])
        .await
}

async fn extension_configuration(server: &Arc<Server>) -> Result<(), Error> {
    let mut data = Map::new();
    let clients = &server.config.client_ca_pem;
    if !clients.is_empty() {
        data.insert("client-ca-file".into(), clients.clone().into());
    }
    if let Some(pem) = &server.config.requestheader_ca_pem {
        data.insert("requestheader-client-ca-file".into(), pem.clone().into());
        let proxy = &server.config.authentication.front_proxy;
        for (key, list) in [
            ("requestheader-allowed-names", &proxy.allowed_names),
            ("requestheader-username-headers", &proxy.username_headers),
            ("requestheader-uid-headers", &proxy.uid_headers),
            ("requestheader-group-headers", &proxy.group_headers),
            (
                "requestheader-extra-headers-prefix",
                &proxy.extra_header_prefixes,
            ),
        ] {
            if key != "requestheader-uid-headers" || !list.is_empty() {
                data.insert(key.into(), json!(list).to_string().into());
            }
        }
    }
    let map = json!({"metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"}, "data": data});
    SERVER
        .replace(server, "", "configmaps", map, &["data"])
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Feature;

    #[test]
    fn the_default_policy_parses() {
        let objects = rbac_objects(Features::default());
        let find = |kind: &str, name: &str| {
            objects
                .iter()
                .find(|o| o["kind"] == kind && meta::name(o) == name)
                .unwrap()
        };
        assert_eq!(
            find("ClusterRole", "cluster-admin")["rules"][1]["nonResourceURLs"],
            json!(["*"])
        );
        assert_eq!(
            find("ClusterRoleBinding", "cluster-admin")["subjects"][0]["name"],
            "system:masters"
        );
        assert!(find("ClusterRole", "view")["aggregationRule"]["clusterRoleSelectors"].is_array());
        let lock = find("RoleBinding", "system::leader-locking-kube-scheduler");
        assert_eq!(lock["metadata"]["namespace"], "kube-system");
        assert_eq!(lock["roleRef"]["kind"], "Role");
        assert!(
            objects
                .iter()
                .all(|o| o["rules"].is_array() || o["subjects"].is_array())
        );
    }

    #[test]
    fn some_of_the_policy_needs_a_feature() {
        let rules = |features: Features, name: &str| {
            let objects = rbac_objects(features);
            let role = objects.iter().find(|o| meta::name(o) == name);
            role.map(|role| role["rules"].as_array().unwrap().len())
        };
        let (off, on) = (
            Features::default(),
            Features::default()
                .with(Feature::ClusterTrustBundle)
                .with(Feature::PodCertificateRequest),
        );
        let discovery = "system:cluster-trust-bundle-discovery";
        assert_eq!(
            (rules(off, discovery), rules(on, discovery)),
            (None, Some(1))
        );
        assert_eq!(
            rules(on, "system:node").unwrap(),
            rules(off, "system:node").unwrap() + 2
        );
        // A role without the feature leaves no rules with the one before.
        let before = "system:kube-scheduler";
        assert_eq!(rules(on, before), rules(off, before));
    }
}

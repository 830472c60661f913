//! The Node authorizer: a kubelet reads what the pods bound to it refer to, and nothing of other nodes.

use std::sync::{Arc, LazyLock};

use fluyt_api::{meta, resources};
use serde_json::Value;

use super::{Decision, Question, Rule, Verdict};
use crate::cache::{Caches, Entry};
use crate::user::User;

pub(super) struct NodeAuthorizer {
    caches: Arc<Caches>,
}

/// What every node may do with resources that are not divided up between nodes.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    const READ: &[&str] = &["get", "list", "watch"];
    const CREATE: &[&str] = &["create"];
    let rule = |verbs: &[&str], groups: &[&str], resources: &[&str]| {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Rule {
            verbs: own(verbs),
            groups: own(groups),
            resources: own(resources),
            ..Rule::default()
        }
    };
    vec![
        rule(CREATE, &["authentication.k8s.io"], &["tokenreviews"]),
        rule(
            CREATE,
            &["authorization.k8s.io"],
            &["subjectaccessreviews", "localsubjectaccessreviews"],
        ),
        rule(READ, &[""], &["services"]),
        rule(
            &["create", "update", "patch"],
            &["", "events.k8s.io"],
            &["events"],
        ),
        rule(&["get"], &[""], &["endpoints"]),
        rule(
            &["create", "get", "list", "watch"],
            &["certificates.k8s.io"],
            &["certificatesigningrequests"],
        ),
        rule(READ, &["storage.k8s.io"], &["csidrivers"]),
        rule(READ, &["node.k8s.io"], &["runtimeclasses"]),
        rule(READ, &["certificates.k8s.io"], &["clustertrustbundles"]),
    ]
});

fn allow() -> Decision {
    Decision::of(Verdict::Allow, "")
}

fn refuse(why: impl Into<String>) -> Decision {
    Decision::of(Verdict::NoOpinion, why)
}

impl NodeAuthorizer {
    pub(super) fn new(caches: Arc<Caches>) -> Self {
        Self { caches }
    }

    pub(super) fn decide(&self, user: &User, question: &Question) -> Decision {
        let Some(node) = user.node_name() else {
            return Decision::default();
        };
        if node.is_empty() {
            return refuse(format!("unknown node for user {:?}", user.name));
        }
        match (question.group.as_str(), question.resource.as_str()) {
            ("", "secrets" | "configmaps") => self.read_one(node, question),
            ("", "persistentvolumeclaims") if question.subresource == "status" => {
                self.update_status(node, question)
            }
            ("", "persistentvolumeclaims" | "persistentvolumes")
            | ("resource.k8s.io", "resourceclaims")
            | ("storage.k8s.io", "volumeattachments") => self.get_one(node, question),
            ("", "serviceaccounts") => self.service_account(node, question),
            ("coordination.k8s.io", "leases") => lease(node, question),
            ("storage.k8s.io", "csinodes") => csi_node(node, question),
            ("resource.k8s.io", "resourceslices") => self.resource_slice(node, question),
            ("", "nodes") => nodes(node, question),
            ("", "pods") => self.pods(node, question),
            ("certificates.k8s.io", "podcertificaterequests") => {
                self.pod_certificate_request(node, question)
            }
            _ if RULES.iter().any(|rule| rule.allows(question)) => allow(),
            _ => Decision::default(),
        }
    }

    /// An object that something on the node has to refer to.
    fn related(&self, node: &str, question: &Question) -> Decision {
        if question.name.is_empty() {
            return refuse("No Object name found");
        }
        if self.is_related(
            node,
            &question.group,
            &question.resource,
            &question.namespace,
            &question.name,
        ) {
            return allow();
        }
        refuse(format!(
            "no relationship found between node '{node}' and this object"
        ))
    }

    fn read_one(&self, node: &str, question: &Question) -> Decision {
        if !question.is_read_only() {
            return refuse("can only read resources of this type");
        }
        if !question.subresource.is_empty() {
            return refuse("cannot read subresource");
        }
        if question.namespace.is_empty() {
            return refuse("can only read namespaced object of this type");
        }
        self.related(node, question)
    }

    fn get_one(&self, node: &str, question: &Question) -> Decision {
        if question.verb != "get" {
            return refuse("can only get individual resources of this type");
        }
        if !question.subresource.is_empty() {
            return refuse("cannot get subresource");
        }
        self.related(node, question)
    }

    fn update_status(&self, node: &str, question: &Question) -> Decision {
        match question.verb.as_str() {
            "update" | "patch" => self.related(node, question),
            _ => refuse("can only get/update/patch this type"),
        }
    }

    fn service_account(&self, node: &str, question: &Question) -> Decision {
        if question.verb == "get" && question.subresource.is_empty() {
            return self.read_one(node, question);
        }
        if question.verb != "create" || question.name.is_empty() {
            return refuse("can only create tokens for individual service accounts");
        }
        if question.subresource != "token" {
            return refuse("can only create token subresource of serviceaccount");
        }
        self.related(node, question)
    }

    fn resource_slice(&self, node: &str, question: &Question) -> Decision {
        if !question.subresource.is_empty() {
            return refuse("cannot authorize ResourceSlice subresources");
        }
        match question.verb.as_str() {
            "create" => allow(),
            "get" | "update" | "patch" | "delete" => self.related(node, question),
            "watch" | "list" | "deletecollection" => match pins(question, "spec.nodeName", node) {
                true => allow(),
                false => refuse(
                    "can only list/watch/deletecollection resourceslices with nodeName field selector",
                ),
            },
            _ => refuse(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn pod_certificate_request(&self, node: &str, question: &Question) -> Decision {
        if !question.subresource.is_empty() {
            return refuse("nodes may not access the status subresource of PodCertificateRequests");
        }
        match question.verb.as_str() {
            "create" => allow(),
            "get" => self.related(node, question),
            "list" | "watch" if pins(question, "spec.nodeName", node) => allow(),
            "list" | "watch" => {
                refuse("can only list/watch podcertificaterequests with nodeName field selector")
            }
            verb => refuse(format!("nodes may not {verb} podcertificaterequests")),
        }
    }

    fn pods(&self, node: &str, question: &Question) -> Decision {
        match (question.subresource.as_str(), question.verb.as_str()) {
            ("", "get") => self.get_one(node, question),
            ("", "list" | "watch") => {
                if pins(question, "spec.nodeName", node) {
                    return allow();
                }
                if question.name.is_empty() {
                    return refuse("can only list/watch pods with spec.nodeName field selector");
                }
                self.related(node, question)
            }
            // That these are mirror pods, or pods of this node, is NodeRestriction's to see.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                allow()
            }
            _ => Decision::default(),
        }
    }

    /// The pods bound to a node.
    fn pods_on(&self, node: &str) -> Vec<Arc<Entry>> {
        self.with_field("pods", node)
    }

    /// The core objects of a kind that have a value in their indexed field.
    fn with_field(&self, plural: &str, value: &str) -> Vec<Arc<Entry>> {
        let Some(resource) = resources::find("", "v1", plural) else {
            return Vec::new();
        };
        let snapshot = self.caches.of(resource).snapshot();
        snapshot.with_field(value, "").cloned().collect()
    }

    fn is_related(
        &self,
        node: &str,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> bool {
        match (group, resource) {
            ("", "pods") => self
                .object("", resource, &format!("{namespace}/{name}"))
                .is_some_and(|pod| pod["spec"]["nodeName"] == node),
            ("", "persistentvolumes") => self
                .object("", resource, name)
                .is_some_and(|volume| self.claims(node, &volume)),
            ("storage.k8s.io", "volumeattachments") => self
                .object(group, resource, name)
                .is_some_and(|attachment| attachment["spec"]["nodeName"] == node),
            ("resource.k8s.io", "resourceslices") => self
                .object(group, resource, name)
                .is_some_and(|slice| slice["spec"]["nodeName"] == node),
            ("certificates.k8s.io", _) => self
                .object(group, resource, &format!("{namespace}/{name}"))
                .is_some_and(|request| request["spec"]["nodeName"] == node),
            ("", "secrets") => {
                self.referenced(node, resource, namespace, name)
                    || self.is_volume_secret(node, namespace, name)
            }
            _ => self.referenced(node, resource, namespace, name),
        }
    }

    fn object(&self, group: &str, plural: &str, key: &str) -> Option<Value> {
        let resource = resources::builtin()
            .iter()
            .find(|r| r.group == group && r.plural == plural)?;
        Some(self.caches.of(resource).get(key)?.object())
    }

    fn referenced(&self, node: &str, resource: &str, namespace: &str, name: &str) -> bool {
        self.pods_on(node)
            .iter()
            .filter(|e| e.namespace() == namespace && may_refer_to(e, resource, name))
            .any(|e| refers_to(&e.object(), resource, name))
    }

    /// Whether a pod of the node uses the claim that a volume is bound to.
    fn claims(&self, node: &str, volume: &Value) -> bool {
        let claim = &volume["spec"]["claimRef"];
        let text = |field: &str| claim[field].as_str().unwrap_or_default();
        self.referenced(
            node,
            "persistentvolumeclaims",
            text("namespace"),
            text("name"),
        )
    }

    /// Whether a volume that the node uses has its credentials in a secret.
    fn is_volume_secret(&self, node: &str, namespace: &str, name: &str) -> bool {
        let of_pod = |pod: &Arc<Entry>| {
            let object = pod.object();
            let claims = claims_of(&object).into_iter();
            let keys = claims.map(|claim| format!("{}/{claim}", pod.namespace()));
            keys.flat_map(|key| self.with_field("persistentvolumes", &key))
                .any(|volume| {
                    volume_secrets(&volume.object()).any(|(ns, s)| ns == namespace && s == name)
                })
        };
        let pods = self.pods_on(node);
        pods.iter().filter(|pod| may_use_claims(pod)).any(of_pod)
    }
}

/// Whether a pod's JSON has what would make it refer to an object: to look costs far less than to parse it. Names need no
/// escapes.
fn may_refer_to(pod: &Entry, resource: &str, name: &str) -> bool {
    if resource == "persistentvolumeclaims" {
        return may_use_claims(pod);
    }
    pod.mentions(&format!("\"{name}\""))
}

fn may_use_claims(pod: &Entry) -> bool {
    pod.mentions("\"persistentVolumeClaim\"") || pod.mentions("\"ephemeral\"")
}

/// The claims that a pod's volumes are.
fn claims_of(pod: &Value) -> Vec<String> {
    if is_mirror(pod) {
        return Vec::new();
    }
    let of_volume = |volume: &Value| {
        if volume["ephemeral"].is_object() {
            let volume = volume["name"].as_str().unwrap_or_default();
            return Some(format!("{}-{volume}", meta::name(pod)));
        }
        let claim = &volume["persistentVolumeClaim"]["claimName"];
        claim.as_str().map(ToOwned::to_owned)
    };
    list(&pod["spec"]["volumes"])
        .filter_map(of_volume)
        .collect()
}

/// A node makes mirror pods itself: they must not open anything to it.
fn is_mirror(pod: &Value) -> bool {
    meta::annotation(pod, "kubernetes.io/config.mirror").is_some()
}

fn pins(question: &Question, field: &str, value: &str) -> bool {
    question
        .selectors
        .as_ref()
        .is_some_and(|selectors| selectors.pins(field, value))
}

fn lease(node: &str, question: &Question) -> Decision {
    if !["get", "create", "update", "patch", "delete"].contains(&question.verb.as_str()) {
        return refuse("can only get, create, update, patch, or delete a node lease");
    }
    if question.namespace != "kube-node-lease" {
        return refuse("can only access leases in the \"kube-node-lease\" system namespace");
    }
    if question.verb != "create" && question.name != node {
        return refuse("can only access node lease with the same name as the requesting node");
    }
    allow()
}

fn csi_node(node: &str, question: &Question) -> Decision {
    if !["get", "create", "update", "patch", "delete"].contains(&question.verb.as_str()) {
        return refuse("can only get, create, update, patch, or delete a CSINode");
    }
    if !question.subresource.is_empty() {
        return refuse("cannot authorize CSINode subresources");
    }
    if question.verb != "create" && question.name != node {
        return refuse("can only access CSINode with the same name as the requesting node");
    }
    allow()
}

fn nodes(node: &str, question: &Question) -> Decision {
    match (question.subresource.as_str(), question.verb.as_str()) {
        // That it is the node's own object is NodeRestriction's to see.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => allow(),
        ("", "get" | "list" | "watch") if question.name == node => allow(),
        ("", "get" | "list" | "watch") if question.name.is_empty() => refuse(format!(
            "node '{node}' cannot read all nodes, only its own Node object"
        )),
        ("", "get" | "list" | "watch") => refuse(format!(
            "node '{node}' cannot read '{}', only its own Node object",
            question.name
        )),
        _ => Decision::default(),
    }
}

fn refers_to(pod: &Value, resource: &str, name: &str) -> bool {
    if is_mirror(pod) {
        return false;
    }
    let spec = &pod["spec"];
    let volumes = || list(&spec["volumes"]);
    match resource {
        "serviceaccounts" => spec["serviceAccountName"] == name,
        "persistentvolumeclaims" => claims_of(pod).iter().any(|claim| claim == name),
        "resourceclaims" => {
            let status = &pod["status"];
            list(&spec["resourceClaims"]).any(|c| c["resourceClaimName"] == name)
                || list(&status["resourceClaimStatuses"]).any(|c| c["resourceClaimName"] == name)
                || status["extendedResourceClaimStatus"]["resourceClaimName"] == name
        }
        "secrets" => {
            list(&spec["imagePullSecrets"]).any(|s| s["name"] == name)
                || volumes().any(|v| {
                    v["secret"]["secretName"] == name
                        || list(&v["projected"]["sources"]).any(|s| s["secret"]["name"] == name)
                        || volume_secret_fields(v).any(|secret| secret["name"] == name)
                        || v["azureFile"]["secretName"] == name
                })
                || in_containers(spec, "secretKeyRef", "secretRef", name)
        }
        "configmaps" => {
            volumes().any(|v| {
                v["configMap"]["name"] == name
                    || list(&v["projected"]["sources"]).any(|s| s["configMap"]["name"] == name)
            }) || in_containers(spec, "configMapKeyRef", "configMapRef", name)
        }
        _ => false,
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn in_containers(spec: &Value, key: &str, whole: &str, name: &str) -> bool {
    ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .flat_map(|kind| list(&spec[*kind]))
        .any(|container| {
            list(&container["env"]).any(|e| e["valueFrom"][key]["name"] == name)
                || list(&container["envFrom"]).any(|e| e[whole]["name"] == name)
        })
}

/// The references to secrets that a pod's volume source of a driver has.
fn volume_secret_fields(volume: &Value) -> impl Iterator<Item = &Value> {
    [
        "cephfs",
        "rbd",
        "scaleIO",
        "iscsi",
        "storageos",
        "flexVolume",
    ]
    .iter()
    .map(|source| &volume[*source]["secretRef"])
    .chain([&volume["csi"]["nodePublishSecretRef"]])
}

/// Namespace and name of the secrets of a persistent volume that a kubelet reads.
fn volume_secrets(volume: &Value) -> impl Iterator<Item = (&str, &str)> {
    let spec = &volume["spec"];
    let claim = spec["claimRef"]["namespace"].as_str().unwrap_or_default();
    let sources = [
        "cephfs",
        "flexVolume",
        "rbd",
        "scaleIO",
        "iscsi",
        "storageos",
    ]
    .iter()
    .map(|source| &spec[*source]["secretRef"])
    .chain(
        [
            "nodePublishSecretRef",
            "nodeStageSecretRef",
            "nodeExpandSecretRef",
        ]
        .iter()
        .map(|field| &spec["csi"][*field]),
    );
    let azure = &spec["azureFile"];
    let azure = azure["secretName"].as_str().map(|name| {
        let namespace = azure["secretNamespace"].as_str().filter(|n| !n.is_empty());
        (namespace.unwrap_or(claim), name)
    });
    sources
        .filter_map(move |reference| {
            let name = reference["name"].as_str().filter(|n| !n.is_empty())?;
            let namespace = reference["namespace"].as_str().filter(|n| !n.is_empty());
            Some((namespace.unwrap_or(claim), name))
        })
        .chain(azure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::Selectors;
    use serde_json::json;

    #[test]
    fn references_are_found_wherever_a_pod_may_have_them() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "sa", "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "v", "secret": {"secretName": "vol"}}, {"projected": {"sources": [{"configMap": {"name": "ca"}}]}},
                {"name": "csi", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "publish"}}}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "all"}}]}],
        }});
        let references = [
            ("secrets", "pull"),
            ("secrets", "vol"),
            ("secrets", "env"),
            ("secrets", "publish"),
            ("configmaps", "ca"),
            ("configmaps", "all"),
            ("serviceaccounts", "sa"),
        ];
        for (resource, name) in references {
            assert!(refers_to(&pod, resource, name), "{resource} {name}");
        }
        assert!(!refers_to(&pod, "secrets", "ca") && !refers_to(&pod, "configmaps", "vol"));
        pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        for (resource, name) in references {
            assert!(!refers_to(&pod, resource, name), "{resource} {name}");
        }
    }

    #[test]
    fn volumes_name_their_secrets() {
        let volume = json!({"spec": {"claimRef": {"namespace": "c"},
            "csi": {"nodeStageSecretRef": {"name": "s", "namespace": "k"}, "controllerPublishSecretRef": {"name": "hidden", "namespace": "k"}},
            "rbd": {"secretRef": {"name": "r"}}}});
        let mut found: Vec<_> = volume_secrets(&volume).collect();
        found.sort_unstable();
        assert_eq!(found, [("c", "r"), ("k", "s")]);
    }

    #[test]
    fn collections_are_read_through_a_selector_that_pins_the_node() {
        let mut question = Question {
            verb: "list".into(),
            resource: "nodes".into(),
            ..Question::default()
        };
        assert!(
            nodes("a", &question)
                .reason
                .contains("cannot read all nodes")
        );
        question.name = "b".into();
        assert!(nodes("a", &question).reason.contains("cannot read 'b'"));
        question.name = "a".into();
        assert!(nodes("a", &question).allows());
        let attributes = json!({"fieldSelector": {"rawSelector": "spec.nodeName=a"}});
        question.selectors = Selectors::of_review(&attributes).map(Arc::new);
        assert!(pins(&question, "spec.nodeName", "a") && !pins(&question, "spec.nodeName", "b"));
    }
}

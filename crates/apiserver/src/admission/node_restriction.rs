//! A kubelet may change its own node and the pods on it, nothing else.

use std::collections::BTreeSet;

use async_trait::async_trait;
use fluyt_api::{Error, meta, resources};
use serde_json::{Map, Value};

use super::{Attributes, Operation, Plugin, Shared};
use crate::authz::Question;
use crate::cache::Caches;

/// Labels in these domains are for administrators, except the ones below.
const RESTRICTED: [&str; 2] = ["kubernetes.io", "k8s.io"];
const KUBELET_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
const KUBELET_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

const MIRROR: &str = "kubernetes.io/config.mirror";

/// Signers whose certificates make somebody a node.
const NODE_SIGNERS: [&str; 2] = [
    "kubernetes.io/kubelet-serving",
    "kubernetes.io/kube-apiserver-client-kubelet",
];

pub(super) struct NodeRestriction(pub Shared);

#[async_trait]
impl Plugin for NodeRestriction {
    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        let Some(node) = attributes.cx.user.node_name() else {
            return Ok(());
        };
        if node.is_empty() {
            return Err(attributes.forbidden(format!(
                "could not determine node from user {:?}",
                attributes.cx.user.name
            )));
        }
        let request = Request {
            caches,
            attributes,
            node,
            object,
        };
        let at = attributes.at;
        match (at.resource.group, at.resource.plural, at.subresource) {
            ("", "nodes", _) => request.check_node(),
            ("", "pods", "") => request.check_pod(),
            ("", "pods", "status") => request.check_pod_status(),
            ("", "pods", "eviction") => request.check_eviction(),
            ("", "pods", other) => request.refuse(format!(
                "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
            )),
            ("", "persistentvolumeclaims", "status") => request.check_claim_status(),
            ("", "persistentvolumeclaims", _) => request.refuse("may only update PVC status"),
            ("", "serviceaccounts", "token") if attributes.operation == Operation::Create => {
                request.check_token(&self.0).await
            }
            ("coordination.k8s.io", "leases", _) => request.check_lease(),
            ("storage.k8s.io", "csinodes", _) => request.check_csi_node(),
            ("resource.k8s.io", "resourceslices", _) => request.check_resource_slice(),
            ("certificates.k8s.io", "certificatesigningrequests", "") => request.check_csr(),
            ("certificates.k8s.io", "podcertificaterequests", _) => {
                request.check_pod_certificate_request()
            }
            _ => Ok(()),
        }
    }
}

/// A write of a node.
struct Request<'a> {
    caches: &'a Caches,
    attributes: &'a Attributes<'a>,
    node: &'a str,
    object: &'a Value,
}

impl Request<'_> {
    fn refuse<T>(&self, why: impl std::fmt::Display) -> Result<T, Error> {
        Err(self.attributes.forbidden(why))
    }

    fn get(&self, plural: &str, key: &str) -> Option<Value> {
        let resource = resources::find("", "v1", plural)?;
        Some(self.caches.of(resource).get(key)?.object())
    }

    fn old(&self) -> &Value {
        self.attributes.old.unwrap_or(&Value::Null)
    }

    /// A certificate is for a pod that runs on the node, with the identity that it has.
    fn check_pod_certificate_request(&self) -> Result<(), Error> {
        let at = self.attributes.at;
        if self.attributes.operation != Operation::Create {
            let operation = match self.attributes.operation {
                Operation::Update => "UPDATE",
                Operation::Delete => "DELETE",
                _ => "CONNECT",
            };
            return self.refuse(format!("unexpected operation {operation}"));
        }
        if !at.subresource.is_empty() {
            return self.refuse(format!("unexpected subresource {}", at.subresource));
        }
        let spec = &self.object["spec"];
        let text = |field: &str| spec[field].as_str().unwrap_or_default();
        let (node, pod_name, account_name) = (
            text("nodeName"),
            text("podName"),
            text("serviceAccountName"),
        );
        if node != self.node {
            return self.refuse(format!(
                "PodCertificateRequest.Spec.NodeName={node:?}, which is not the requesting node {:?}",
                self.node
            ));
        }
        // What may have been seen too early is no refusal: it may be asked again.
        let retry = |why: String| Err(Error::internal(why));
        let missing = |what: &str, name: &str, plural: &str, named: &str| {
            retry(format!(
                "while retrieving {what} {name:?} named in the PodCertificateRequest: {plural} {named:?} not found"
            ))
        };
        let pod_key = format!("{}/{pod_name}", at.namespace);
        let account_key = format!("{}/{account_name}", at.namespace);
        let Some(running) = self.get("nodes", node) else {
            return missing("node", node, "node", node);
        };
        if meta::uid(&running) != text("nodeUID") {
            return retry(format!(
                "PodCertificateRequest for pod {pod_key:?} names node UID {:?}, inconsistent with the running node ({:?})",
                text("nodeUID"),
                meta::uid(&running)
            ));
        }
        let Some(pod) = self.get("pods", &pod_key) else {
            return missing("pod", &pod_key, "pod", pod_name);
        };
        if meta::uid(&pod) != text("podUID") {
            return retry(format!(
                "PodCertificateRequest for pod {pod_key:?} contains pod UID ({:?}) which differs from running pod {:?}",
                text("podUID"),
                meta::uid(&pod)
            ));
        }
        if pod["spec"]["nodeName"] != node {
            return self.refuse(format!(
                "pod {pod_key:?} is not running on node {node:?} named in the PodCertificateRequest"
            ));
        }
        if meta::annotation(&pod, MIRROR).is_some() {
            return self.refuse(format!("pod {pod_key:?} is a mirror pod"));
        }
        let own_account = pod["spec"]["serviceAccountName"]
            .as_str()
            .unwrap_or_default();
        if own_account != account_name {
            return self.refuse(format!(
                "PodCertificateRequest for pod {pod_key:?} contains serviceAccountName ({account_name:?}) that differs from running pod ({own_account:?})"
            ));
        }
        let Some(account) = self.get("serviceaccounts", &account_key) else {
            return missing(
                "service account",
                &account_key,
                "serviceaccount",
                account_name,
            );
        };
        if meta::uid(&account) != text("serviceAccountUID") {
            return retry(format!(
                "PodCertificateRequest for pod {pod_key:?} names service account UID {:?}, which differs from the running service account ({:?})",
                text("serviceAccountUID"),
                meta::uid(&account)
            ));
        }
        Ok(())
    }

    fn check_node(&self) -> Result<(), Error> {
        let (node, name) = (self.node, self.attributes.at.name);
        if name != node {
            return self.refuse(format!(
                "node {node:?} is not allowed to modify node {name:?}"
            ));
        }
        let (object, old) = (self.object, self.old());
        let source = &object["spec"]["configSource"];
        match self.attributes.operation {
            Operation::Create => {
                if source.is_object() {
                    return self.refuse(format!(
                        "node {node:?} is not allowed to create pods with a non-nil configSource"
                    ));
                }
                let refused = refused_labels(object, &Value::Null);
                if refused.is_empty() {
                    return Ok(());
                }
                self.refuse(format!(
                    "node {node:?} is not allowed to set the following labels: {}",
                    refused.join(", ")
                ))
            }
            Operation::Update => {
                if source.is_object() && *source != old["spec"]["configSource"] {
                    return self.refuse(format!(
                        "node {node:?} is not allowed to update configSource to a new non-nil configSource"
                    ));
                }
                if !same_list(&object["spec"]["taints"], &old["spec"]["taints"]) {
                    return self.refuse(format!("node {node:?} is not allowed to modify taints"));
                }
                let owners = |object: &Value| object["metadata"]["ownerReferences"].clone();
                if !same_list(&owners(object), &owners(old)) {
                    return self.refuse(format!(
                        "node {node:?} is not allowed to modify ownerReferences"
                    ));
                }
                let refused = refused_labels(object, old);
                if refused.is_empty() {
                    return Ok(());
                }
                self.refuse(format!(
                    "is not allowed to modify labels: {}",
                    refused.join(", ")
                ))
            }
            Operation::Delete | Operation::Connect => Ok(()),
        }
    }

    fn check_pod(&self) -> Result<(), Error> {
        let node = self.node;
        match self.attributes.operation {
            Operation::Create => self.check_mirror_pod(),
            Operation::Delete => {
                let key = self.attributes.at.key();
                match self.get("pods", &key) {
                    None => Err(self.attributes.at.not_found()),
                    Some(pod) if pod["spec"]["nodeName"] == node => Ok(()),
                    Some(_) => self.refuse(format!(
                        "node {node:?} can only delete pods with spec.nodeName set to itself"
                    )),
                }
            }
            operation => self.refuse(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                operation.word()
            )),
        }
    }

    /// A mirror pod is the node's own, and opens nothing to it.
    fn check_mirror_pod(&self) -> Result<(), Error> {
        let (node, pod) = (self.node, self.object);
        if meta::annotation(pod, MIRROR).is_none() {
            return self.refuse(format!(
                "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
            ));
        }
        if pod["spec"]["nodeName"] != node {
            return self.refuse(format!(
                "node {node:?} can only create pods with spec.nodeName set to itself"
            ));
        }
        let owners = pod["metadata"]["ownerReferences"].as_array();
        let owner = match owners.map(Vec::as_slice).unwrap_or_default() {
            [owner] => owner,
            [] => {
                return self.refuse(format!(
                    "node {node:?} can only create pods with an owner reference set to itself"
                ));
            }
            _ => {
                return self.refuse(format!(
                    "node {node:?} can only create pods with a single owner reference set to itself"
                ));
            }
        };
        if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
            return self.refuse(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        if owner["controller"] != true {
            return self.refuse(format!(
                "node {node:?} can only create pods with a controller owner reference set to itself"
            ));
        }
        if owner["blockOwnerDeletion"] == true {
            return self.refuse(format!(
                "node {node:?} must not set blockOwnerDeletion on an owner reference"
            ));
        }
        let Some(own) = self.get("nodes", node) else {
            return Err(Error::not_found("", "nodes", node));
        };
        let uid = owner["uid"].as_str().unwrap_or_default();
        if uid != meta::uid(&own) {
            return self.refuse(format!(
                "node {node} UID mismatch: expected {uid} got {}",
                meta::uid(&own)
            ));
        }
        match referenced(pod) {
            Some(kind) => self.refuse(format!(
                "node {node:?} can not create pods that reference {kind}"
            )),
            None => Ok(()),
        }
    }

    fn check_pod_status(&self) -> Result<(), Error> {
        let (node, pod, old) = (self.node, self.object, self.old());
        if self.attributes.operation != Operation::Update {
            let word = self.attributes.operation.word();
            return self.refuse(format!("unexpected operation {word:?}"));
        }
        if old["spec"]["nodeName"] != node {
            return self.refuse(format!(
                "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
            ));
        }
        let none = Map::new();
        if meta::labels(pod).unwrap_or(&none) != meta::labels(old).unwrap_or(&none) {
            return self.refuse(format!(
                "node {node:?} cannot update labels through pod status"
            ));
        }
        let status = |pod: &Value, field: &str| pod["status"][field].clone();
        let claims = "resourceClaimStatuses";
        if !same_list(&status(pod, claims), &status(old, claims)) {
            return self.refuse(format!(
                "node {node:?} cannot update resource claim statues"
            ));
        }
        let extended = "extendedResourceClaimStatus";
        if status(pod, extended) != status(old, extended) {
            return self.refuse(format!(
                "node {node:?} cannot update extended resource claim status"
            ));
        }
        Ok(())
    }

    fn check_eviction(&self) -> Result<(), Error> {
        let (node, at) = (self.node, self.attributes.at);
        match self.get("pods", &at.key()) {
            None => Err(at.not_found()),
            Some(pod) if pod["spec"]["nodeName"] == node => Ok(()),
            Some(_) => self.refuse(format!(
                "node {node} can only evict pods with spec.nodeName set to itself"
            )),
        }
    }

    fn check_claim_status(&self) -> Result<(), Error> {
        let fixed = |claim: &Value| {
            let mut claim = claim.clone();
            if let Some(metadata) = claim["metadata"].as_object_mut() {
                for field in ["resourceVersion", "managedFields"] {
                    metadata.remove(field);
                }
            }
            if let Some(status) = claim["status"].as_object_mut() {
                for field in [
                    "capacity",
                    "conditions",
                    "allocatedResourceStatuses",
                    "allocatedResources",
                ] {
                    status.remove(field);
                }
            }
            claim
        };
        if fixed(self.object) == fixed(self.old()) {
            return Ok(());
        }
        self.refuse(format!(
            "node {:?} is not allowed to update fields other than status.quantity and status.conditions",
            self.node
        ))
    }

    /// Tokens only for pods on this node, bound to them, and for audiences that they ask for.
    async fn check_token(&self, shared: &Shared) -> Result<(), Error> {
        let bound = &self.object["spec"]["boundObjectRef"];
        let text = |field: &str| bound[field].as_str().unwrap_or_default();
        if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
            return self.refuse("node requested token not bound to a pod");
        }
        if text("uid").is_empty() {
            return self.refuse("node requested token with a pod binding without a uid");
        }
        let at = self.attributes.at;
        let Some(pod) = self.get("pods", &format!("{}/{}", at.namespace, text("name"))) else {
            return Err(Error::not_found("", "pods", text("name")));
        };
        if meta::uid(&pod) != text("uid") {
            return self.refuse(format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                text("uid")
            ));
        }
        if pod["spec"]["nodeName"] != self.node {
            return self
                .refuse("node requested token bound to a pod scheduled on a different node");
        }
        let audiences = self.object["spec"]["audiences"].as_array();
        let audience = match audiences.map(Vec::as_slice).unwrap_or_default() {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return self.refuse("node may only request 0 or 1 audiences"),
        };
        if self.pod_asks_for(&pod, audience) {
            return Ok(());
        }
        let user = &self.attributes.cx.user;
        let question = Question {
            verb: "request-serviceaccounts-token-audience".into(),
            version: "v1".into(),
            resource: audience.to_owned(),
            namespace: at.namespace.to_owned(),
            name: at.name.to_owned(),
            ..Question::default()
        };
        if shared.authorizer.decide(user, &question).await.allows() {
            return Ok(());
        }
        self.refuse(format!(
            "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            user.name
        ))
    }

    /// Whether a volume of the pod has tokens for an audience in it, itself or through its driver.
    fn pod_asks_for(&self, pod: &Value, audience: &str) -> bool {
        let namespace = meta::namespace(pod);
        let is_for = |token: &Value| token["audience"].as_str().unwrap_or_default() == audience;
        list(&pod["spec"]["volumes"]).any(|volume| {
            let projected = list(&volume["projected"]["sources"])
                .any(|s| s["serviceAccountToken"].is_object() && is_for(&s["serviceAccountToken"]));
            if projected {
                return true;
            }
            let claim = match (&volume["ephemeral"], &volume["persistentVolumeClaim"]) {
                (Value::Object(_), _) => Some(format!(
                    "{}-{}",
                    meta::name(pod),
                    volume["name"].as_str().unwrap_or_default()
                )),
                (_, claim) => claim["claimName"].as_str().map(str::to_owned),
            };
            let driver = match claim {
                Some(claim) => self
                    .get("persistentvolumeclaims", &format!("{namespace}/{claim}"))
                    .and_then(|claim| {
                        let volume = claim["spec"]["volumeName"].as_str()?.to_owned();
                        self.get("persistentvolumes", &volume)
                    })
                    .and_then(|volume| text_of(&volume["spec"]["csi"]["driver"])),
                None => text_of(&volume["csi"]["driver"]),
            };
            driver.is_some_and(|driver| self.driver_asks_for(&driver, is_for))
        })
    }

    fn driver_asks_for(&self, driver: &str, is_for: impl Fn(&Value) -> bool) -> bool {
        resources::find("storage.k8s.io", "v1", "csidrivers")
            .and_then(|resource| self.caches.of(resource).get(driver))
            .is_some_and(|entry| list(&entry.object()["spec"]["tokenRequests"]).any(is_for))
    }

    fn name(&self) -> &str {
        match meta::name(self.object) {
            "" => self.attributes.at.name,
            name => name,
        }
    }

    fn check_lease(&self) -> Result<(), Error> {
        if self.attributes.at.namespace != "kube-node-lease" {
            return self
                .refuse("can only access leases in the \"kube-node-lease\" system namespace");
        }
        if self.name() != self.node {
            return self
                .refuse("can only access node lease with the same name as the requesting node");
        }
        Ok(())
    }

    fn check_csi_node(&self) -> Result<(), Error> {
        if self.name() != self.node {
            return self
                .refuse("can only access CSINode with the same name as the requesting node");
        }
        Ok(())
    }

    fn check_resource_slice(&self) -> Result<(), Error> {
        let (slice, word) = match self.attributes.operation {
            Operation::Create => (self.object, "create"),
            Operation::Delete => (self.old(), "delete"),
            Operation::Update | Operation::Connect => return Ok(()),
        };
        if slice["spec"]["nodeName"] == self.node {
            return Ok(());
        }
        self.refuse(format!(
            "can only {word} ResourceSlice with the same NodeName as the requesting node"
        ))
    }

    fn check_csr(&self) -> Result<(), Error> {
        use base64::Engine as _;
        let spec = &self.object["spec"];
        let signer = spec["signerName"].as_str().unwrap_or_default();
        if self.attributes.operation != Operation::Create || !NODE_SIGNERS.contains(&signer) {
            return Ok(());
        }
        let request = spec["request"].as_str().unwrap_or_default();
        let pem = base64::engine::general_purpose::STANDARD.decode(request);
        let name = pem.ok().and_then(|pem| common_name(&pem));
        let Some(name) = name else {
            return self.refuse("unable to parse csr");
        };
        let node = self.node;
        if name == format!("system:node:{node}") {
            return Ok(());
        }
        self.refuse(format!(
            "can only create a node CSR with CN=system:node:{node}"
        ))
    }
}

/// The common name that a certificate request, PEM, asks for.
fn common_name(pem: &[u8]) -> Option<String> {
    use x509_parser::prelude::FromDer as _;
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let parsed =
        x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents);
    let (_, request) = parsed.ok()?;
    let subject = &request.certification_request_info.subject;
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

fn text_of(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Whether two lists are equal; none is an empty one.
fn same_list(a: &Value, b: &Value) -> bool {
    list(a).eq(list(b))
}

/// The labels that a change touches and a kubelet may not.
fn refused_labels(object: &Value, old: &Value) -> Vec<String> {
    let none = Map::new();
    let (new, old) = (
        meta::labels(object).unwrap_or(&none),
        meta::labels(old).unwrap_or(&none),
    );
    let changed: BTreeSet<&String> = new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(value))
        .chain(
            old.iter()
                .filter(|(key, value)| new.get(*key) != Some(value)),
        )
        .map(|(key, _)| key)
        .collect();
    changed
        .into_iter()
        .filter(|key| !kubelet_may_set(key))
        .cloned()
        .collect()
}

fn kubelet_may_set(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let is_in = |of: &str| domain == of || domain.ends_with(&format!(".{of}"));
    if is_in("node-restriction.kubernetes.io") {
        return false;
    }
    let restricted = RESTRICTED.iter().any(|r| is_in(r));
    !restricted || KUBELET_LABELS.contains(&label) || KUBELET_DOMAINS.iter().any(|d| is_in(d))
}

/// What a pod refers to besides itself, in the words of a refusal.
fn referenced(pod: &Value) -> Option<&'static str> {
    let spec = &pod["spec"];
    if spec["serviceAccountName"]
        .as_str()
        .is_some_and(|n| !n.is_empty())
    {
        return Some("serviceaccounts");
    }
    let containers = || {
        ["initContainers", "containers", "ephemeralContainers"]
            .iter()
            .flat_map(|kind| list(&spec[*kind]))
    };
    let env = |key: &str, whole: &str| {
        containers().any(|c| {
            list(&c["env"]).any(|e| e["valueFrom"][key].is_object())
                || list(&c["envFrom"]).any(|e| e[whole].is_object())
        })
    };
    let volumes = || list(&spec["volumes"]);
    let source = |field: &str| {
        volumes().any(|v| {
            v[field].is_object() || list(&v["projected"]["sources"]).any(|s| s[field].is_object())
        })
    };
    if list(&spec["imagePullSecrets"]).next().is_some()
        || env("secretKeyRef", "secretRef")
        || source("secret")
    {
        return Some("secrets");
    }
    if env("configMapKeyRef", "configMapRef") || source("configMap") {
        return Some("configmaps");
    }
    if list(&spec["resourceClaims"]).next().is_some() {
        return Some("resourceclaims");
    }
    let is_other = |volume: &Value| {
        let plain = [
            "name",
            "emptyDir",
            "hostPath",
            "gitRepo",
            "downwardAPI",
            "projected",
            "image",
        ];
        let fields = volume.as_object().into_iter().flatten();
        fields
            .into_iter()
            .any(|(field, _)| !plain.contains(&field.as_str()))
    };
    if source("serviceAccountToken") {
        return Some("serviceaccounts");
    }
    if source("clusterTrustBundle") {
        return Some("clustertrustbundles");
    }
    if volumes().any(|v| v["persistentVolumeClaim"].is_object() || v["ephemeral"].is_object()) {
        return Some("persistentvolumeclaims");
    }
    volumes().any(is_other).then_some("volumes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels() {
        assert!(
            kubelet_may_set("team")
                && kubelet_may_set("kubernetes.io/hostname")
                && kubelet_may_set("agentpool")
                && kubelet_may_set("x.node.kubernetes.io/y")
        );
        assert!(
            !kubelet_may_set("node-role.kubernetes.io/master")
                && !kubelet_may_set("node-restriction.kubernetes.io/x")
        );
        let labels = |labels: Value| json!({"metadata": {"labels": labels}});
        let old = labels(json!({"a.k8s.io/x": "1", "kubernetes.io/os": "linux", "team": "a"}));
        let new = labels(json!({"kubernetes.io/os": "other", "b.k8s.io/y": "2"}));
        // Taking one away is a change as well.
        assert_eq!(refused_labels(&new, &old), ["a.k8s.io/x", "b.k8s.io/y"]);
    }

    #[test]
    fn mirror_pods_refer_to_nothing() {
        let pod = |spec: Value| json!({"spec": spec});
        let plain = pod(
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}], "containers": [{"name": "c"}]}),
        );
        assert_eq!(referenced(&plain), None);
        for (spec, kind) in [
            (json!({"serviceAccountName": "a"}), "serviceaccounts"),
            (
                json!({"volumes": [{"projected": {"sources": [{"secret": {}}]}}]}),
                "secrets",
            ),
            (
                json!({"containers": [{"envFrom": [{"configMapRef": {}}]}]}),
                "configmaps",
            ),
            (
                json!({"volumes": [{"persistentVolumeClaim": {}}]}),
                "persistentvolumeclaims",
            ),
            (json!({"volumes": [{"csi": {}}]}), "volumes"),
        ] {
            assert_eq!(referenced(&pod(spec)), Some(kind));
        }
    }
}

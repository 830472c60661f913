//! The Node authorizer: a kubelet reads what the pods bound to it refer to, and nothing of other nodes.

use std::sync::Arc;

use fluyt_api::resources;
use serde_json::Value;

use super::Question;
use crate::cache::{Caches, Entry};

pub(super) struct NodeAuthorizer {
    caches: Arc<Caches>,
}

const READ: [&str; 3] = ["get", "list", "watch"];

impl NodeAuthorizer {
    pub(super) fn new(caches: Arc<Caches>) -> Self {
        Self { caches }
    }

    pub(super) fn allows(&self, node: &str, question: &Question) -> bool {
        let verb = question.verb.as_str();
        let read = READ.contains(&verb);
        match (
            question.group.as_str(),
            question.resource.as_str(),
            question.subresource.as_str(),
        ) {
            ("", "secrets" | "configmaps", "") => read && self.referenced(node, question),
            ("", "persistentvolumeclaims", "" | "status") => {
                verb == "get" && self.referenced(node, question)
            }
            ("", "persistentvolumes", "") => {
                verb == "get" && self.volume_in_use(node, &question.name)
            }
            ("", "serviceaccounts", "token") => verb == "create" && self.referenced(node, question),
            ("", "serviceaccounts", "") => verb == "get" && self.referenced(node, question),
            ("", "nodes", "") => match verb {
                "create" | "list" | "watch" => true,
                _ => question.name == node && ["get", "update", "patch"].contains(&verb),
            },
            ("", "nodes", "status") => {
                question.name == node && ["get", "update", "patch"].contains(&verb)
            }
            ("", "pods", "") => read || ["create", "delete"].contains(&verb),
            ("", "pods", "status") => ["update", "patch"].contains(&verb),
            ("", "pods", "eviction") => verb == "create",
            ("", "services", "") => read,
            ("", "events", "") | ("events.k8s.io", "events", "") => {
                ["create", "update", "patch"].contains(&verb)
            }
            ("coordination.k8s.io", "leases", "") => {
                question.namespace == "kube-node-lease"
                    && (verb == "create" || question.name == node)
                    && ["get", "create", "update", "patch", "delete"].contains(&verb)
            }
            ("certificates.k8s.io", "certificatesigningrequests", "") => {
                ["create", "get", "list", "watch"].contains(&verb)
            }
            ("certificates.k8s.io", "certificatesigningrequests", "selfnodeclient") => {
                verb == "create"
            }
            ("authentication.k8s.io", "tokenreviews", "") => verb == "create",
            ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") => {
                verb == "create"
            }
            ("storage.k8s.io", "csinodes", "") => question.name == node || verb == "create",
            ("storage.k8s.io", "csidrivers" | "volumeattachments", "") => read,
            ("node.k8s.io", "runtimeclasses", "") => read,
            _ => false,
        }
    }

    fn pods_on(&self, node: &str) -> impl Iterator<Item = Arc<Entry>> + use<> {
        let pods = resources::find("", "v1", "pods");
        let entries = pods
            .map(|p| self.caches.of(p).snapshot().entries)
            .unwrap_or_default();
        let node = node.to_owned();
        entries
            .into_iter()
            .map(|(_, entry)| entry)
            .filter(move |e| e.field("spec.nodeName") == node)
    }

    fn referenced(&self, node: &str, question: &Question) -> bool {
        !question.name.is_empty()
            && self
                .pods_on(node)
                .filter(|e| e.namespace() == question.namespace)
                .any(|e| refers_to(&e.object(), &question.resource, &question.name))
    }

    fn volume_in_use(&self, node: &str, volume: &str) -> bool {
        let Some(volumes) = resources::find("", "v1", "persistentvolumes") else {
            return false;
        };
        let Some(volume) = self.caches.of(volumes).get(volume) else {
            return false;
        };
        let claim = &volume.object()["spec"]["claimRef"];
        let question = Question {
            resource: "persistentvolumeclaims".into(),
            namespace: claim["namespace"].as_str().unwrap_or_default().to_owned(),
            name: claim["name"].as_str().unwrap_or_default().to_owned(),
            ..Question::default()
        };
        self.referenced(node, &question)
    }
}

fn refers_to(pod: &Value, resource: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    let volumes = || spec["volumes"].as_array().into_iter().flatten();
    let containers = || {
        ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .flat_map(|list| spec[*list].as_array().into_iter().flatten())
    };
    let list = |v: &'_ Value| v.as_array().cloned().unwrap_or_default();
    match resource {
        "serviceaccounts" => spec["serviceAccountName"] == name,
        "persistentvolumeclaims" => volumes().any(|v| {
            v["persistentVolumeClaim"]["claimName"] == name
                || (v["ephemeral"].is_object()
                    && format!(
                        "{}-{}",
                        fluyt_api::meta::name(pod),
                        v["name"].as_str().unwrap_or_default()
                    ) == name)
        }),
        "secrets" | "configmaps" => {
            let (volume, field, key_ref, env_ref, projected) = if resource == "secrets" {
                (
                    "secret",
                    "secretName",
                    "secretKeyRef",
                    "secretRef",
                    "secret",
                )
            } else {
                (
                    "configMap",
                    "name",
                    "configMapKeyRef",
                    "configMapRef",
                    "configMap",
                )
            };
            let pull = resource == "secrets"
                && list(&spec["imagePullSecrets"])
                    .iter()
                    .any(|s| s["name"] == name);
            pull || volumes().any(|v| {
                v[volume][field] == name
                    || list(&v["projected"]["sources"])
                        .iter()
                        .any(|s| s[projected]["name"] == name)
            }) || containers().any(|c| {
                list(&c["env"])
                    .iter()
                    .any(|e| e["valueFrom"][key_ref]["name"] == name)
                    || list(&c["envFrom"])
                        .iter()
                        .any(|e| e[env_ref]["name"] == name)
            })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_wherever_a_pod_may_have_them() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "sa", "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "v", "secret": {"secretName": "vol"}}, {"projected": {"sources": [{"configMap": {"name": "ca"}}]}}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "all"}}]}],
        }});
        for (resource, name) in [
            ("secrets", "pull"),
            ("secrets", "vol"),
            ("secrets", "env"),
            ("configmaps", "ca"),
            ("configmaps", "all"),
            ("serviceaccounts", "sa"),
        ] {
            assert!(refers_to(&pod, resource, name), "{resource} {name}");
        }
        assert!(!refers_to(&pod, "secrets", "ca") && !refers_to(&pod, "configmaps", "vol"));
    }
}

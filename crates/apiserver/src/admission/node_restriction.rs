//! A kubelet may change its own node and the pods on it, nothing else.

use async_trait::async_trait;
use fluyt_api::{Error, meta, resources};
use serde_json::Value;

use super::{Attributes, Operation, Plugin};
use crate::cache::Caches;

/// Labels in these domains are for administrators, except the ones below.
const RESTRICTED: [&str; 2] = ["kubernetes.io", "k8s.io"];
const KUBELET_LABELS: [&str; 9] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];
const KUBELET_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io/", "node.kubernetes.io/"];

pub(super) struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn validate(
        &self,
        caches: &Caches,
        attributes: &Attributes<'_>,
        object: &Value,
    ) -> Result<(), Error> {
        let Some(node) = attributes.cx.user.node_name() else {
            return Ok(());
        };
        let at = attributes.at;
        match (at.resource.group, at.resource.plural) {
            ("", "nodes") => check_node(attributes, node, object),
            ("", "pods") => check_pod(caches, attributes, node, object),
            ("", "serviceaccounts") if at.subresource == "token" => {
                check_token(caches, attributes, node, object)
            }
            ("coordination.k8s.io", "leases") => {
                let own = at.namespace == "kube-node-lease" && at.name == node;
                if own {
                    Ok(())
                } else {
                    Err(attributes.forbidden(format!("can only access node lease with the same name as the requesting node ({node})")))
                }
            }
            ("storage.k8s.io", "csinodes") if at.name != node => {
                Err(attributes.forbidden(format!(
                    "can only access CSINode with the same name as the requesting node ({node})"
                )))
            }
            _ => Ok(()),
        }
    }
}

fn check_node(attributes: &Attributes<'_>, node: &str, object: &Value) -> Result<(), Error> {
    if attributes.at.name != node {
        return Err(attributes.forbidden(format!(
            "node \"{node}\" is not allowed to modify node \"{}\"",
            attributes.at.name
        )));
    }
    if attributes.operation == Operation::Delete {
        return Err(
            attributes.forbidden(format!("node \"{node}\" is not allowed to delete itself"))
        );
    }
    let empty = Value::Null;
    let old = attributes.old.unwrap_or(&empty);
    if attributes.operation == Operation::Update
        && object["spec"]["taints"] != old["spec"]["taints"]
    {
        return Err(
            attributes.forbidden(format!("node \"{node}\" is not allowed to modify taints"))
        );
    }
    let before = meta::labels(old);
    let changed = meta::labels(object)
        .into_iter()
        .flatten()
        .filter(|(key, value)| before.and_then(|b| b.get(*key)) != Some(value))
        .map(|(key, _)| key.as_str());
    let mut refused: Vec<&str> = changed.filter(|key| !kubelet_may_set(key)).collect();
    if refused.is_empty() {
        return Ok(());
    }
    refused.sort_unstable();
    Err(attributes.forbidden(format!(
        "is not allowed to modify labels: {}",
        refused.join(", ")
    )))
}

fn kubelet_may_set(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    if domain == "node-restriction.kubernetes.io"
        || domain.ends_with(".node-restriction.kubernetes.io")
    {
        return false;
    }
    let restricted = RESTRICTED
        .iter()
        .any(|r| domain == *r || domain.ends_with(&format!(".{r}")));
    !restricted
        || KUBELET_LABELS.contains(&label)
        || KUBELET_PREFIXES.iter().any(|p| label.starts_with(p))
}

fn check_pod(
    caches: &Caches,
    attributes: &Attributes<'_>,
    node: &str,
    object: &Value,
) -> Result<(), Error> {
    if attributes.operation == Operation::Create && attributes.at.subresource.is_empty() {
        if meta::annotation(object, "kubernetes.io/config.mirror").is_none() {
            return Err(attributes.forbidden("pod does not have \"kubernetes.io/config.mirror\" annotation, node can only create mirror pods"));
        }
        if object["spec"]["nodeName"] != node {
            return Err(attributes.forbidden(format!(
                "node \"{node}\" can only create pods with spec.nodeName set to itself"
            )));
        }
        return Ok(());
    }
    let pod =
        resources::find("", "v1", "pods").and_then(|r| caches.of(r).get(&attributes.at.key()));
    match pod {
        Some(pod) if pod.field("spec.nodeName") != node => Err(attributes.forbidden(format!(
            "node \"{node}\" can only change pods with spec.nodeName set to itself"
        ))),
        _ => Ok(()),
    }
}

/// Tokens only for pods on this node, bound to them.
fn check_token(
    caches: &Caches,
    attributes: &Attributes<'_>,
    node: &str,
    object: &Value,
) -> Result<(), Error> {
    let bound = &object["spec"]["boundObjectRef"];
    if bound["kind"] != "Pod" {
        return Err(attributes.forbidden("node requested token not bound to a pod"));
    }
    let key = format!(
        "{}/{}",
        attributes.at.namespace,
        bound["name"].as_str().unwrap_or_default()
    );
    let pod = resources::find("", "v1", "pods").and_then(|r| caches.of(r).get(&key));
    match pod {
        Some(pod)
            if pod.field("spec.nodeName") == node
                && pod.field("spec.serviceAccountName") == attributes.at.name =>
        {
            Ok(())
        }
        _ => Err(attributes
            .forbidden("node requested token bound to a pod scheduled on a different node")),
    }
}

#[cfg(test)]
mod tests {
    use super::kubelet_may_set;

    #[test]
    fn labels() {
        assert!(
            kubelet_may_set("team")
                && kubelet_may_set("kubernetes.io/hostname")
                && kubelet_may_set("agentpool")
        );
        assert!(
            !kubelet_may_set("node-role.kubernetes.io/master")
                && !kubelet_may_set("node-restriction.kubernetes.io/x")
        );
    }
}

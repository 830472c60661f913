//! certificatesigningrequest-approving-controller: approves what nodes need to join and to stay.
//!
//! A bootstrapping machine or a node may have a kubelet client certificate; a node may renew its own, and may
//! have a serving certificate for the names and addresses that its Node object has. (Upstream leaves the latter to
//! the operator; we are the operator.)

use fluyt_client::{Action, Informer, ObjectKey, WorkQueue, controller, is_not_found};
use k8s_openapi::api::{certificates::v1::CertificateSigningRequest, core::v1::Node};
use kube::{Api, Client, api::PostParams};
use tracing::{debug, info};

use super::{
    KUBE_APISERVER_CLIENT_KUBELET, KUBELET_SERVING, add_condition, has_condition,
    request::{self, Requested},
};
use crate::{
    Context,
    common::{enqueue, enqueue_mapped, name},
};

/// Run the controller until shutdown.
pub async fn run(context: Context) {
    let requests = context.informers.get::<CertificateSigningRequest>();
    let nodes = context.informers.get::<Node>();
    requests.synced().await;
    nodes.synced().await;
    let queue = WorkQueue::new();
    enqueue(&requests, &queue);
    // A kubelet may ask for its serving certificate before its addresses are known.
    let pending = requests.clone();
    enqueue_mapped(&nodes, &queue, move |node| {
        let user = format!("system:node:{}", name(&node.metadata));
        let all = pending.list();
        let of_node = all.iter().filter(|request| {
            request.spec.username.as_deref() == Some(&user) && !is_decided(request)
        });
        of_node.map(|request| ObjectKey::of(&**request)).collect()
    });
    let reconcile = |key| reconcile(key, &requests, &nodes, &context.client);
    let shutdown = context.shutdown.clone();
    controller::run(
        "certificatesigningrequest-approving-controller",
        queue,
        1,
        reconcile,
        shutdown,
    )
    .await;
}

fn is_decided(request: &CertificateSigningRequest) -> bool {
    has_condition(request, "Approved") || has_condition(request, "Denied")
}

async fn reconcile(
    key: ObjectKey,
    requests: &Informer<CertificateSigningRequest>,
    nodes: &Informer<Node>,
    client: &Client,
) -> anyhow::Result<Action> {
    let Some(request) = requests
        .get_key(&key)
        .filter(|request| !is_decided(request))
    else {
        return Ok(Action::Await);
    };
    let requested = match request::parse(&request.spec.request.0) {
        Ok(requested) => requested,
        Err(error) => {
            debug!(request = key.name, error, "not approved");
            return Ok(Action::Await);
        }
    };
    let Some(message) = judge(&request, &requested, |node| nodes.get(None, node)) else {
        return Ok(Action::Await);
    };
    info!(request = key.name, user = request.spec.username, "approved");
    let mut approved = (*request).clone();
    add_condition(&mut approved, "Approved", "AutoApproved", message);
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    match api
        .replace_subresource("approval", &key.name, &PostParams::default(), &approved)
        .await
    {
        Err(error) if is_not_found(&error) => {}
        result => drop(result?),
    }
    Ok(Action::Await)
}

/// The reason to approve, if there is one.
fn judge(
    request: &CertificateSigningRequest,
    requested: &Requested,
    node: impl Fn(&str) -> Option<std::sync::Arc<Node>>,
) -> Option<&'static str> {
    let spec = &request.spec;
    let usages = spec.usages.as_deref().unwrap_or_default();
    let in_group = |group: &str| spec.groups.iter().flatten().any(|listed| listed == group);
    let is_node_itself = in_group("system:nodes")
        && spec.username.as_deref() == Some(requested.common_name.as_str());
    match spec.signer_name.as_str() {
        KUBE_APISERVER_CLIENT_KUBELET => {
            request::check_kubelet_client(requested, usages).ok()?;
            if is_node_itself {
                Some("Auto approving self kubelet client certificate.")
            } else {
                in_group("system:bootstrappers")
                    .then_some("Auto approving kubelet client certificate.")
            }
        }
        KUBELET_SERVING if is_node_itself => {
            request::check_kubelet_serving(requested, usages).ok()?;
            let node = node(requested.common_name.strip_prefix("system:node:")?)?;
            names_are_of(&node, requested).then_some("Auto approving kubelet serving certificate.")
        }
        _ => None,
    }
}

fn names_are_of(node: &Node, requested: &Requested) -> bool {
    let addresses = node
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref());
    let addresses = addresses.unwrap_or_default();
    let is_name = |wanted: &String| {
        wanted == name(&node.metadata) || addresses.iter().any(|known| known.address == *wanted)
    };
    let is_address = |wanted: &std::net::IpAddr| {
        addresses
            .iter()
            .any(|known| known.address.parse::<std::net::IpAddr>().ok() == Some(*wanted))
    };
    requested.dns_names.iter().all(is_name) && requested.ip_addresses.iter().all(is_address)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::{
        certificates::v1::CertificateSigningRequestSpec,
        core::v1::{NodeAddress, NodeStatus},
    };

    use super::*;
    use crate::common::test_support::named;

    fn request(signer: &str, user: &str, group: &str, usage: &str) -> CertificateSigningRequest {
        CertificateSigningRequest {
            spec: CertificateSigningRequestSpec {
                signer_name: signer.to_owned(),
                username: Some(user.to_owned()),
                groups: Some(vec![group.to_owned()]),
                usages: Some(vec!["digital signature".to_owned(), usage.to_owned()]),
                ..CertificateSigningRequestSpec::default()
            },
            ..CertificateSigningRequest::default()
        }
    }

    #[test]
    fn who_may_have_which_certificate() {
        let client = |user: &str, group: &str| {
            request(KUBE_APISERVER_CLIENT_KUBELET, user, group, "client auth")
        };
        let serving = |user: &str| request(KUBELET_SERVING, user, "system:nodes", "server auth");
        let wanted = |names: &[&str], addresses: &[&str]| Requested {
            common_name: "system:node:node-0".to_owned(),
            organizations: vec!["system:nodes".to_owned()],
            dns_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ip_addresses: addresses
                .iter()
                .map(|address| address.parse().unwrap())
                .collect(),
            other_names: 0,
        };
        let node = |wanted: &str| {
            let address = NodeAddress {
                type_: "InternalIP".to_owned(),
                address: "10.224.0.4".to_owned(),
            };
            (wanted == "node-0").then(|| {
                Arc::new(Node {
                    metadata: named("", "node-0"),
                    status: Some(NodeStatus {
                        addresses: Some(vec![address]),
                        ..NodeStatus::default()
                    }),
                    ..Node::default()
                })
            })
        };
        let bare = wanted(&[], &[]);
        let cases = [
            (
                "bootstrap",
                client("system:bootstrap:abc", "system:bootstrappers"),
                bare.clone(),
                true,
            ),
            (
                "renewal",
                client("system:node:node-0", "system:nodes"),
                bare.clone(),
                true,
            ),
            (
                "another node's",
                client("system:node:node-1", "system:nodes"),
                bare.clone(),
                false,
            ),
            (
                "a user",
                client("alice", "system:authenticated"),
                bare.clone(),
                false,
            ),
            (
                "own names",
                serving("system:node:node-0"),
                wanted(&["node-0"], &["10.224.0.4"]),
                true,
            ),
            (
                "foreign name",
                serving("system:node:node-0"),
                wanted(&["kubernetes"], &[]),
                false,
            ),
            (
                "foreign address",
                serving("system:node:node-0"),
                wanted(&["node-0"], &["10.0.0.1"]),
                false,
            ),
            (
                "another node's names",
                serving("system:node:node-1"),
                wanted(&["node-0"], &[]),
                false,
            ),
            (
                "other signer",
                request(
                    "example.com/x",
                    "system:node:node-0",
                    "system:nodes",
                    "client auth",
                ),
                bare,
                false,
            ),
        ];
        for (what, request, requested, expected) in cases {
            assert_eq!(
                judge(&request, &requested, node).is_some(),
                expected,
                "{what}"
            );
        }
    }
}

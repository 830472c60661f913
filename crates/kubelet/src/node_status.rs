//! The Node object: registered at start, its status kept current. It is computed every ten seconds and whenever the
//! runtime's state changes, and sent when something differs, or after five minutes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use fluyt_client::{Backoff, EventType, is_already_exists};
use jiff::Timestamp;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tracing::{info, warn};

use crate::config::args::Settings;
use crate::eviction::Pressure;
use crate::kubelet::Kubelet;

/// Upstream's `nodeStatusMaxImages`.
const MAX_IMAGES: usize = 50;

pub async fn run(kubelet: Arc<Kubelet>) {
    if kubelet.settings.register_node {
        register(&kubelet).await;
    }
    let mut state = kubelet.runtime_state.subscribe();
    let mut sent: Option<(NodeStatus, Instant)> = None;
    let mut ready = None;
    loop {
        let status = make(&kubelet, sent.as_ref().map(|(status, _)| status)).await;
        let now_ready = is_ready(&status);
        let due = match &sent {
            Some((old, at)) => {
                differs(old, &status)
                    || at.elapsed() >= kubelet.settings.node_status_report_frequency
            }
            None => true,
        };
        if due {
            match send(&kubelet, &status).await {
                Ok(()) => {
                    if ready != Some(now_ready) {
                        let (reason, name) = match now_ready {
                            true => ("NodeReady", &kubelet.settings.node_name),
                            false => ("NodeNotReady", &kubelet.settings.node_name),
                        };
                        let message = format!("Node {name} status is now: {reason}");
                        kubelet.node_event(EventType::Normal, reason, &message);
                        ready = Some(now_ready);
                    }
                    sent = Some((status, Instant::now()));
                }
                Err(error)
                    if fluyt_client::is_not_found(&error) && kubelet.settings.register_node =>
                {
                    register(&kubelet).await;
                    continue;
                }
                Err(error) => {
                    warn!(%error, "updating the node status failed");
                    sent = None;
                }
            }
        }
        let pause = match sent {
            Some(_) => kubelet.settings.node_status_update_frequency,
            None => std::time::Duration::from_secs(1),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = state.changed() => {}
            () = kubelet.shutdown.cancelled() => return,
        }
    }
}

async fn register(kubelet: &Kubelet) {
    let api: Api<Node> = Api::all(kubelet.client.clone());
    let mut backoff = Backoff::for_requests();
    let status = make(kubelet, None).await;
    let node = initial(&kubelet.settings, status);
    loop {
        match api.create(&PostParams::default(), &node).await {
            Ok(_) => {
                info!(node = kubelet.settings.node_name, "registered");
                return;
            }
            Err(error) if is_already_exists(&error) => match adopt(kubelet, &api, &node).await {
                Ok(()) => return,
                Err(error) => warn!(%error, "updating the node failed"),
            },
            Err(error) => warn!(%error, "registering the node failed"),
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next_delay()) => {}
            () = kubelet.shutdown.cancelled() => return,
        }
    }
}

/// The node is there from before: its labels become what this kubelet says.
async fn adopt(kubelet: &Kubelet, api: &Api<Node>, node: &Node) -> Result<(), kube::Error> {
    let patch = json!({"metadata": {
        "labels": node.metadata.labels, "annotations": node.metadata.annotations}});
    let name = &kubelet.settings.node_name;
    api.patch(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .map(drop)
}

fn initial(settings: &Settings, status: NodeStatus) -> Node {
    let name = &settings.node_name;
    let mut labels: BTreeMap<String, String> = [
        ("kubernetes.io/hostname", name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ]
    .map(|(key, value)| (key.to_string(), value.to_string()))
    .into();
    labels.extend(settings.node_labels.clone());
    let managed = "volumes.kubernetes.io/controller-managed-attach-detach";
    let mut annotations: BTreeMap<String, String> =
        BTreeMap::from([(managed.into(), "true".into())]);
    if settings.external_cloud {
        let given = settings
            .node_ips
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",");
        if !given.is_empty() {
            annotations.insert("alpha.kubernetes.io/provided-node-ip".into(), given);
        }
    }
    Node {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            provider_id: settings.provider_id.clone(),
            taints: (!settings.taints.is_empty()).then(|| settings.taints.clone()),
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn send(kubelet: &Kubelet, status: &NodeStatus) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(kubelet.client.clone());
    let mut value = serde_json::to_value(status).unwrap_or_default();
    // Merged by type; an address that is no more has to be named to go.
    if let Some(node) = kubelet.node.get(None, &kubelet.settings.node_name)
        && let Some(list) = value["addresses"].as_array_mut()
    {
        let old = node
            .status
            .as_ref()
            .and_then(|status| status.addresses.clone())
            .unwrap_or_default();
        let same = |address: &NodeAddress| {
            list.iter()
                .any(|item| item["type"] == address.type_.as_str())
        };
        let gone: Vec<_> = old.iter().filter(|address| !same(address)).collect();
        let gone: Vec<_> = gone
            .iter()
            .map(|a| json!({"$patch": "delete", "type": a.type_}))
            .collect();
        list.extend(gone);
    }
    let patch = Patch::Strategic(json!({"status": value}));
    let name = &kubelet.settings.node_name;
    api.patch_status(name, &PatchParams::default(), &patch)
        .await
        .map(drop)
}

/// Whether anything but the heartbeats differs.
fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let plain = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    plain(old) != plain(new)
}

fn is_ready(status: &NodeStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn make(kubelet: &Kubelet, old: Option<&NodeStatus>) -> NodeStatus {
    let settings = &kubelet.settings;
    let state = kubelet.runtime_state.borrow().clone();
    let pressure = Pressure::read(kubelet);
    let declared = kubelet.declared_features.names().into_iter();
    let images = kubelet
        .cri
        .list_images(cri::ListImagesRequest::default())
        .await;
    let images = images.map(|answer| answer.images).unwrap_or_default();
    NodeStatus {
        addresses: addresses_of(kubelet),
        capacity: Some(kubelet.machine.capacity()),
        allocatable: Some(kubelet.machine.allocatable(settings)),
        conditions: Some(conditions(
            &pressure,
            state.runtime.or(state.network),
            old.and_then(|old| old.conditions.as_deref())
                .unwrap_or_default(),
            Timestamp::now(),
        )),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(settings.port),
            }),
        }),
        node_info: Some(system_info(kubelet)),
        images: Some(node_images(images)),
        declared_features: Some(declared.map(str::to_string).collect()),
        ..NodeStatus::default()
    }
}

fn conditions(
    pressure: &Pressure,
    problem: Option<String>,
    old: &[NodeCondition],
    now: Timestamp,
) -> Vec<NodeCondition> {
    let make = |kind: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        let since = old
            .iter()
            .find(|old| old.type_ == kind && old.status == status)
            .and_then(|old| old.last_transition_time.clone());
        NodeCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: since.or(Some(Time(now))),
        }
    };
    let pressed = |kind: &str, pressed: bool, has: &str, hasnt: &str, what: &str| {
        if pressed {
            make(kind, true, has, &format!("kubelet has {what}"))
        } else {
            make(
                kind,
                false,
                hasnt,
                &format!(
                    "kubelet has {}",
                    what.replace("insufficient", "sufficient")
                        .replace("disk pressure", "no disk pressure")
                ),
            )
        }
    };
    let ready = match problem {
        None => make(
            "Ready",
            true,
            "KubeletReady",
            "kubelet is posting ready status",
        ),
        Some(why) => make("Ready", false, "KubeletNotReady", &why),
    };
    vec![
        pressed(
            "MemoryPressure",
            pressure.memory,
            "KubeletHasInsufficientMemory",
            "KubeletHasSufficientMemory",
            "insufficient memory available",
        ),
        pressed(
            "DiskPressure",
            pressure.disk,
            "KubeletHasDiskPressure",
            "KubeletHasNoDiskPressure",
            "disk pressure",
        ),
        pressed(
            "PIDPressure",
            pressure.pids,
            "KubeletHasInsufficientPID",
            "KubeletHasSufficientPID",
            "insufficient PID available",
        ),
        ready,
    ]
}

/// With an external cloud provider the cloud controller manager fills the addresses in, from the node's hint; until then
/// they are what we know, so that the API server can reach us.
fn addresses_of(kubelet: &Kubelet) -> Option<Vec<NodeAddress>> {
    let mut list: Vec<NodeAddress> = kubelet
        .host_ips()
        .into_iter()
        .map(|ip| NodeAddress {
            type_: "InternalIP".into(),
            address: ip,
        })
        .collect();
    list.push(NodeAddress {
        type_: "Hostname".into(),
        address: kubelet.settings.node_name.clone(),
    });
    Some(list)
}

fn node_images(mut images: Vec<cri::Image>) -> Vec<ContainerImage> {
    images.sort_by_key(|image| std::cmp::Reverse(image.size));
    images
        .into_iter()
        .filter(|image| !image.repo_tags.is_empty() || !image.repo_digests.is_empty())
        .take(MAX_IMAGES)
        .map(|image| {
            let mut names = image.repo_digests;
            names.extend(image.repo_tags);
            names.truncate(5);
            ContainerImage {
                names: Some(names),
                size_bytes: i64::try_from(image.size).ok(),
            }
        })
        .collect()
}

fn system_info(kubelet: &Kubelet) -> NodeSystemInfo {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_string()
    };
    let machine_id = read("/etc/machine-id");
    let system_uuid = read("/sys/class/dmi/id/product_uuid");
    let os_image = read("/etc/os-release")
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_string());
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!(
            "{}://{}",
            kubelet.runtime_name, kubelet.runtime_version
        ),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: kubelet.settings.kubelet_version.clone(),
        system_uuid: if system_uuid.is_empty() {
            machine_id.clone()
        } else {
            system_uuid
        },
        machine_id,
        operating_system: "linux".into(),
        os_image: os_image.unwrap_or_else(|| "Linux".into()),
        swap: None,
    }
}

/// `--node-ip`, or the address that the default route would send from, or the first one that isn't loopback.
pub fn addresses(settings: &Settings) -> Vec<IpAddr> {
    if !settings.node_ips.is_empty() {
        return settings.node_ips.clone();
    }
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let first = interfaces
        .filter_map(|interface| {
            interface
                .address?
                .as_sockaddr_in()
                .map(|address| address.ip())
        })
        .find(|ip| !ip.is_loopback());
    vec![first.map_or(IpAddr::from([127, 0, 0, 1]), IpAddr::V4)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn condition_texts_and_transitions() {
        let early = Timestamp::from_second(1000).unwrap();
        let late = Timestamp::from_second(2000).unwrap();
        let calm = Pressure::default();
        let first = conditions(&calm, Some("no network".into()), &[], early);
        let second = conditions(&calm, None, &first, late);
        let find = |list: &[NodeCondition], kind: &str| {
            list.iter().find(|c| c.type_ == kind).cloned().unwrap()
        };
        let memory = find(&second, "MemoryPressure");
        assert_eq!(
            memory.message.as_deref(),
            Some("kubelet has sufficient memory available")
        );
        assert_eq!(memory.last_transition_time, Some(Time(early)));
        assert_eq!(memory.last_heartbeat_time, Some(Time(late)));
        assert_eq!(
            find(&second, "DiskPressure").message.as_deref(),
            Some("kubelet has no disk pressure")
        );
        let ready = find(&second, "Ready");
        assert_eq!(
            (ready.status.as_str(), ready.last_transition_time),
            ("True", Some(Time(late)))
        );
        assert_eq!(find(&first, "Ready").message.as_deref(), Some("no network"));
    }
}

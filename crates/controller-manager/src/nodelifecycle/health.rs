//! Signs of life of a node: its status and its lease.

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, NodeCondition},
};
use tokio::time::Instant;

use crate::common::now;

/// What changes whenever the kubelet reports.
pub type Sign = (Option<String>, Option<String>);

/// A sign of life and when we saw it first.
pub struct Observed {
    sign: Sign,
    pub at: Instant,
}

impl Observed {
    pub fn new(sign: Sign) -> Self {
        Self {
            sign,
            at: Instant::now(),
        }
    }

    pub fn update(&mut self, sign: Sign) {
        if self.sign != sign {
            *self = Self::new(sign);
        }
    }
}

/// The node's condition of this type.
pub fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// The times of the last heartbeat in the status and of the last renewal of the lease.
pub fn sign_of_life(node: &Node, lease: Option<&Lease>) -> Sign {
    let heartbeat = condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.as_ref());
    let renewal = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref());
    (
        heartbeat.map(|time| time.0.to_string()),
        renewal.map(|time| time.0.to_string()),
    )
}

/// Whether the kubelet has ever posted a status.
pub fn has_ever_reported(node: &Node) -> bool {
    condition(node, "Ready").is_some()
}

/// Whether the conditions still claim to be the kubelet's.
pub fn is_reporting(node: &Node) -> bool {
    condition(node, "Ready").is_none_or(|ready| ready.status != "Unknown")
}

/// Set what only the kubelet can know to Unknown.
pub fn set_unknown(node: &mut Node) {
    let conditions = node
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    for type_ in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let known = conditions
            .iter_mut()
            .find(|condition| condition.type_ == type_);
        match known {
            Some(known) if known.status == "Unknown" => {}
            Some(known) => {
                known.status = "Unknown".to_owned();
                known.reason = Some("NodeStatusUnknown".to_owned());
                known.message = Some("Kubelet stopped posting node status.".to_owned());
                known.last_transition_time = Some(now());
            }
            None => conditions.push(NodeCondition {
                type_: type_.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(now()),
            }),
        }
    }
}

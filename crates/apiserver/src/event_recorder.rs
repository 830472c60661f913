//! Events that the server itself has to report.

use std::sync::Arc;

use fluyt_api::meta;
use serde_json::{Value, json};

use crate::Server;
use crate::loopback::SERVER;

/// What an event about an object says; all of them are warnings.
pub struct Warning {
    /// Which part of the server reports.
    pub controller: &'static str,
    pub reason: &'static str,
    pub action: &'static str,
    pub note: String,
}

/// Writes an event about an object. That it could not be written is only logged.
pub async fn warn(server: &Arc<Server>, object: &Value, warning: Warning) {
    let now = jiff::Timestamp::now();
    let namespace = match meta::namespace(object) {
        "" => "default",
        namespace => namespace,
    };
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let controller = warning.controller;
    let metadata = &object["metadata"];
    tracing::warn!(
        controller,
        object = format!("{}/{}", meta::namespace(object), meta::name(object)),
        "{}",
        warning.note
    );
    let event = json!({
        "metadata": {"namespace": namespace, "name": format!("{}.{:x}", meta::name(object), now.as_nanosecond())},
        "involvedObject": {
            "apiVersion": object["apiVersion"], "kind": object["kind"], "namespace": meta::namespace(object),
            "name": metadata["name"], "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
        },
        "type": "Warning", "reason": warning.reason, "action": warning.action, "message": warning.note,
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(), "source": {},
        "reportingComponent": controller, "reportingInstance": format!("{controller}-{}", host.trim()),
    });
    if let Err(error) = SERVER.create(server, "", "events", namespace, event).await {
        tracing::debug!(%error, controller, "an event cannot be written");
    }
}

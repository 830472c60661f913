//! The ServiceCIDR `kubernetes`: the ranges of `--service-cluster-ip-range` as an object. Like the `kubernetes` service it is
//! made again when it is gone, but not changed when the flag has been, but for a second family.

use std::sync::Arc;

use fluyt_api::{Error, Reason, meta};
use serde_json::{Value, json};

use crate::Server;
use crate::event_recorder::{self, Warning};
use crate::loopback::{Loopback, SERVER};
use crate::registry::service::service_cidrs;
use crate::registry::{Change, Location};

/// Its name.
pub const NAME: &str = "kubernetes";

const CONTROLLER: &str = "kubernetes-service-cidr-controller";

/// Creates it, or says that it is ready if nobody has said anything of it.
///
/// # Errors
/// When the store refuses.
pub async fn sync(server: &Arc<Server>) -> Result<(), Error> {
    let ranges = &server.config.service_network.cluster_ips;
    let ranges: Vec<String> = ranges.iter().map(|r| r.trunc().to_string()).collect();
    let resource = service_cidrs()?;
    let object = json!({"metadata": {"name": NAME}, "spec": {"cidrs": ranges}});
    SERVER
        .create(server, resource.group, resource.plural, "", object)
        .await?;
    let at = Location {
        resource,
        namespace: "",
        name: NAME,
        subresource: "",
    };
    let found = server.registry.get(at).await?.object();
    let has: Vec<&str> = cidrs(&found);
    if has.len() == 1 && ranges.len() == 2 && has[0] == ranges[0] {
        return add_family(server, at, &found, &ranges).await;
    }
    if meta::is_terminating(&found) {
        return Ok(());
    }
    if has != ranges {
        let note = format!(
            "The default ServiceCIDR [{}] does not match the controller flag configurations [{}]",
            has.join(" "),
            ranges.join(" ")
        );
        let reason = "KubernetesDefaultServiceCIDRInconsistent";
        warn(server, &found, reason, note).await;
        return Ok(());
    }
    match ready(&found) {
        None => set_ready(server, at).await,
        Some(condition) if condition["status"] == "False" => {
            let message = condition["message"].as_str().unwrap_or_default();
            let note = format!("Configuration matches, but {message}");
            warn(server, &found, "KubernetesDefaultServiceCIDRError", note).await;
            Ok(())
        }
        Some(_) => Ok(()),
    }
}

fn cidrs(object: &Value) -> Vec<&str> {
    let all = object["spec"]["cidrs"].as_array().into_iter().flatten();
    all.filter_map(Value::as_str).collect()
}

fn ready(object: &Value) -> Option<&Value> {
    let mut all = object["status"]["conditions"].as_array()?.iter();
    all.find(|c| c["type"] == "Ready" && c["status"] != "Unknown")
}

async fn warn(server: &Arc<Server>, object: &Value, reason: &'static str, note: String) {
    let warning = Warning {
        controller: CONTROLLER,
        reason,
        action: "SyncServiceCIDR",
        note,
    };
    event_recorder::warn(server, object, warning).await;
}

/// A cluster of one family has become one of two.
async fn add_family(
    server: &Arc<Server>,
    at: Location<'_>,
    found: &Value,
    ranges: &[String],
) -> Result<(), Error> {
    let change: Change<'_> = Box::new(|current: &Value| {
        let mut updated = current.clone();
        updated["spec"]["cidrs"] = json!(ranges);
        Ok(updated)
    });
    match SERVER.update(server, at, change).await {
        Err(error) if error.reason == Reason::Invalid => {
            let note = format!(
                "The default ServiceCIDR can not be upgraded from {} to dual stack [{}] : {error}",
                ranges[0],
                ranges.join(" ")
            );
            warn(server, found, "KubernetesDefaultServiceCIDRError", note).await;
            Ok(())
        }
        done => done.map(drop),
    }
}

async fn set_ready(server: &Arc<Server>, at: Location<'_>) -> Result<(), Error> {
    let status = json!({"conditions": [{
        "type": "Ready", "status": "True", "lastTransitionTime": meta::now(),
        "message": "Kubernetes default Service CIDR is ready"}]});
    let controller = Loopback(CONTROLLER);
    controller.apply_status(server, at, status).await
}

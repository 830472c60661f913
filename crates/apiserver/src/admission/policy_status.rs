//! Keeps `status.typeChecking` of validating policies: what their expressions get wrong about the types they match.

use std::sync::Arc;

use fluyt_api::{meta, resources};
use serde_json::{Value, json};

use crate::Server;
use crate::cache::Filter;
use crate::loopback::Loopback;
use crate::registry::Location;

/// As upstream's controller manager, which does this there, names its part.
const CONTROLLER: Loopback = Loopback("validatingadmissionpolicy-status");

/// Follows policies until shutdown.
pub async fn run(server: Arc<Server>) {
    let Some(resource) = resources::find(
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicies",
    ) else {
        return;
    };
    let cache = server.caches.of(resource);
    loop {
        let (present, _, mut watch) = cache.subscribe_with_state(Filter::default());
        for entry in present {
            check(&server, resource, &entry.object()).await;
        }
        loop {
            let event = tokio::select! {
                event = watch.events.recv() => event,
                () = server.shutdown.cancelled() => return,
            };
            let Some((_, event)) = event else { break };
            if !event.is_deletion() {
                check(&server, resource, &event.entry.object()).await;
            }
        }
    }
}

async fn check(server: &Arc<Server>, resource: &'static resources::Resource, policy: &Value) {
    if policy["status"]["observedGeneration"] == policy["metadata"]["generation"] {
        return;
    }
    let warnings = super::type_check(&server.caches, policy);
    let checking = if warnings.is_empty() {
        json!({})
    } else {
        json!({"expressionWarnings": warnings})
    };
    let status =
        json!({"observedGeneration": policy["metadata"]["generation"], "typeChecking": checking});
    let at = Location {
        resource,
        namespace: "",
        name: meta::name(policy),
        subresource: "",
    };
    if let Err(error) = CONTROLLER.apply_status(server, at, status).await {
        tracing::debug!(%error, "the status of a policy was not updated");
    }
}

//! The groups that this server serves itself, registered beside those of others: `kubectl get apiservices` shows all.

use std::sync::Arc;

use serde_json::json;

use crate::Server;
use crate::bootstrap;

/// Says that the object is ours: `onstart` is made at the start, `true` kept as it is.
pub(super) const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Priorities of groups and, inside one, of versions: the order in which clients find them. Upstream's figures.
const PRIORITIES: &[(&str, &str, i64, i64)] = &[
    ("", "v1", 18_000, 1),
    ("apps", "v1", 17_800, 15),
    ("events.k8s.io", "v1", 17_750, 15),
    ("authentication.k8s.io", "v1", 17_700, 15),
    ("authorization.k8s.io", "v1", 17_600, 15),
    ("autoscaling", "v1", 17_500, 15),
    ("autoscaling", "v2", 17_500, 30),
    ("batch", "v1", 17_400, 15),
    ("certificates.k8s.io", "v1", 17_300, 15),
    ("networking.k8s.io", "v1", 17_200, 15),
    ("policy", "v1", 17_100, 15),
    ("rbac.authorization.k8s.io", "v1", 17_000, 15),
    ("storage.k8s.io", "v1", 16_800, 15),
    ("apiextensions.k8s.io", "v1", 16_700, 15),
    ("admissionregistration.k8s.io", "v1", 16_700, 15),
    ("scheduling.k8s.io", "v1", 16_600, 15),
    ("coordination.k8s.io", "v1", 16_500, 15),
    ("node.k8s.io", "v1", 16_300, 15),
    ("discovery.k8s.io", "v1", 16_200, 15),
    ("resource.k8s.io", "v1", 16_200, 21),
    ("flowcontrol.apiserver.k8s.io", "v1", 16_100, 21),
];

/// Registers every built-in group and version that is not registered yet.
pub async fn register(server: Arc<Server>) {
    let snapshot = server.caches.served();
    let mut served: Vec<(&str, &str)> = snapshot
        .all()
        .filter(|r| r.definition.is_none())
        .map(|r| (r.group, r.version))
        .filter(|(group, _)| *group != "apiregistration.k8s.io")
        .collect();
    served.sort_unstable();
    served.dedup();
    let registering = served.into_iter().map(|(group, version)| {
        let known = PRIORITIES
            .iter()
            .find(|(g, v, ..)| (*g, *v) == (group, version));
        let (minimum, priority) = known.map_or((15_000, 9), |known| (known.2, known.3));
        let service = json!({
            "metadata": {"name": format!("{version}.{group}"), "labels": {AUTOMANAGED: "onstart"}},
            "spec": {"group": group, "version": version, "groupPriorityMinimum": minimum, "versionPriority": priority},
        });
        let server = server.clone();
        async move {
            let made = bootstrap::create(
                &server,
                "apiregistration.k8s.io",
                "apiservices",
                "",
                service,
            );
            if let Err(error) = made.await {
                tracing::warn!(group, version, %error, "cannot register a group");
            }
        }
    });
    futures::future::join_all(registering).await;
}

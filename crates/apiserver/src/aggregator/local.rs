//! The groups that this server serves itself, registered beside those of others: `kubectl get apiservices` shows all.

use std::sync::Arc;

use fluyt_api::{meta, resources};
use serde_json::json;

use crate::Server;
use crate::loopback::SERVER;
use crate::registry::{DeleteOptions, Location};

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
    ("certificates.k8s.io", "v1beta1", 17_300, 9),
    ("certificates.k8s.io", "v1alpha1", 17_300, 1),
    ("networking.k8s.io", "v1", 17_200, 15),
    ("networking.k8s.io", "v1beta1", 17_200, 9),
    ("policy", "v1", 17_100, 15),
    ("rbac.authorization.k8s.io", "v1", 17_000, 15),
    ("storage.k8s.io", "v1", 16_800, 15),
    ("storage.k8s.io", "v1beta1", 16_800, 9),
    ("apiextensions.k8s.io", "v1", 16_700, 15),
    ("admissionregistration.k8s.io", "v1", 16_700, 15),
    ("admissionregistration.k8s.io", "v1beta1", 16_700, 12),
    ("admissionregistration.k8s.io", "v1alpha1", 16_700, 9),
    ("scheduling.k8s.io", "v1", 16_600, 15),
    ("scheduling.k8s.io", "v1alpha2", 16_600, 2),
    ("coordination.k8s.io", "v1", 16_500, 15),
    ("coordination.k8s.io", "v1beta1", 16_500, 13),
    ("coordination.k8s.io", "v1alpha2", 16_500, 12),
    ("node.k8s.io", "v1", 16_300, 15),
    ("discovery.k8s.io", "v1", 16_200, 15),
    ("resource.k8s.io", "v1", 16_200, 21),
    ("resource.k8s.io", "v1beta2", 16_200, 15),
    ("resource.k8s.io", "v1beta1", 16_200, 9),
    ("resource.k8s.io", "v1alpha3", 16_200, 1),
    ("flowcontrol.apiserver.k8s.io", "v1", 16_100, 21),
    ("internal.apiserver.k8s.io", "v1alpha1", 16_000, 9),
    ("storagemigration.k8s.io", "v1beta1", 15_800, 9),
];

/// The priorities of a built-in group and of its version.
#[must_use]
pub fn priorities(group: &str, version: &str) -> (i64, i64) {
    let known = PRIORITIES
        .iter()
        .find(|(g, v, ..)| (*g, *v) == (group, version));
    known.map_or((15_000, 9), |known| (known.2, known.3))
}

/// Registers every built-in group and version that is not registered yet, and takes back what was registered by a server
/// that served more.
pub async fn register(server: Arc<Server>) {
    take_back(&server).await;
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
        let (minimum, priority) = priorities(group, version);
        let service = json!({
            "metadata": {"name": format!("{version}.{group}"), "labels": {AUTOMANAGED: "onstart"}},
            "spec": {"group": group, "version": version, "groupPriorityMinimum": minimum, "versionPriority": priority},
        });
        let server = server.clone();
        async move {
            let (registration, plural) = ("apiregistration.k8s.io", "apiservices");
            let made = SERVER.create(&server, registration, plural, "", service);
            if let Err(error) = made.await {
                tracing::warn!(group, version, %error, "cannot register a group");
            }
        }
    });
    futures::future::join_all(registering).await;
}

/// Removes the registrations of groups and versions that are not served any more.
async fn take_back(server: &Arc<Server>) {
    let Some(resource) = resources::find("apiregistration.k8s.io", "v1", "apiservices") else {
        return;
    };
    let served = server.caches.served();
    let snapshot = server.caches.of(resource).snapshot();
    for entry in snapshot.entries.values() {
        let object = entry.object();
        let text = |field: &str| object["spec"][field].as_str().unwrap_or_default();
        let (group, version) = (text("group"), text("version"));
        let is_ours =
            meta::labels(&object).is_some_and(|l| l.get(AUTOMANAGED) == Some(&"onstart".into()));
        let is_served = served
            .all()
            .any(|r| (r.group, r.version) == (group, version));
        if !is_ours || is_served {
            continue;
        }
        let at = Location {
            resource,
            namespace: "",
            name: entry.name(),
            subresource: "",
        };
        let options = DeleteOptions::default();
        if let Err(error) = SERVER.delete(server, at, &options).await {
            tracing::warn!(group, version, %error, "cannot take back the registration of a group");
        }
    }
}

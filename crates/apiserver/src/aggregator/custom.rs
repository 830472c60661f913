//! The groups of custom resources, registered as long as a definition has them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fluyt_api::resources::{self, Resource};
use fluyt_api::{Error, Reason};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::local::AUTOMANAGED;
use crate::Server;
use crate::cache::Filter;
use crate::loopback::SERVER;
use crate::registry::{DeleteOptions, Location};

/// Priorities that definitions' groups and versions have: after all built-in ones. Upstream's figures.
const GROUP_PRIORITY: i64 = 1000;
const VERSION_PRIORITY: i64 = 100;

/// The pause after a failed attempt.
const RETRY: Duration = Duration::from_secs(1);

/// Follows definitions and registrations until shutdown.
pub async fn follow_definitions(server: Arc<Server>) {
    let (Some(definitions), Some(services)) = (
        resources::find("apiextensions.k8s.io", "v1", "customresourcedefinitions"),
        resources::find("apiregistration.k8s.io", "v1", "apiservices"),
    ) else {
        return;
    };
    loop {
        let caches = &server.caches;
        let (_, _, mut defined) = caches
            .of(definitions)
            .subscribe_with_state(Filter::default());
        let (_, _, mut registered) = caches.of(services).subscribe_with_state(Filter::default());
        loop {
            let failed = match settle(&server, services).await {
                Ok(()) => false,
                Err(error) => {
                    tracing::warn!(%error, "cannot register the groups of custom resources");
                    true
                }
            };
            let event = tokio::select! {
                event = defined.events.recv() => event,
                event = registered.events.recv() => event,
                () = sleep(RETRY), if failed => continue,
                () = server.shutdown.cancelled() => return,
            };
            if event.is_none() {
                break;
            }
        }
    }
}

/// Registers what is served and not registered, and removes registrations of what is served no more.
async fn settle(server: &Arc<Server>, services: &'static Resource) -> Result<(), Error> {
    let served: BTreeSet<String> = server
        .caches
        .served()
        .custom()
        .iter()
        .map(|r| format!("{}.{}", r.version, r.group))
        .collect();
    let registered = server.caches.of(services).snapshot().objects.entries;
    for name in &served {
        let wanted = registration(name);
        match registered.values().find(|e| e.name() == name) {
            None => {
                SERVER
                    .create(server, services.group, services.plural, "", wanted)
                    .await?;
            }
            // Who registered it by hand means it.
            Some(entry) => {
                let present = entry.object();
                if is_ours(&present) && present["spec"] != wanted["spec"] {
                    let (group, plural) = (services.group, services.plural);
                    SERVER
                        .replace(server, group, plural, wanted, &["spec"])
                        .await?;
                }
            }
        }
    }
    for entry in registered.values() {
        if !served.contains(entry.name()) && is_ours(&entry.object()) {
            remove(server, services, entry.name()).await?;
        }
    }
    Ok(())
}

/// The registration of `v1.example.com`.
fn registration(name: &str) -> Value {
    let (version, group) = name.split_once('.').unwrap_or_default();
    json!({
        "metadata": {"name": name, "labels": {AUTOMANAGED: "true"}},
        "spec": {
            "group": group, "version": version,
            "groupPriorityMinimum": GROUP_PRIORITY, "versionPriority": VERSION_PRIORITY,
        },
    })
}

fn is_ours(service: &Value) -> bool {
    service["metadata"]["labels"][AUTOMANAGED] == "true"
}

async fn remove(server: &Server, services: &'static Resource, name: &str) -> Result<(), Error> {
    let at = Location {
        resource: services,
        namespace: "",
        name,
        subresource: "",
    };
    let options = DeleteOptions::default();
    match SERVER.delete(server, at, &options).await {
        Err(error) if error.reason != Reason::NotFound => Err(error),
        _ => Ok(()),
    }
}

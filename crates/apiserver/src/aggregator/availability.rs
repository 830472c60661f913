//! Keeps every `APIService`'s `Available` condition true to what answers, and what is discovered with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fluyt_api::{meta, resources};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::{all, discover, endpoint::Unavailable};
use crate::Server;
use crate::cache::{Filter, Subscription};
use crate::loopback::SERVER;
use crate::registry::{Change, Location};

/// A server that answers is asked again after this long: what it serves may change without a sign.
const RESYNC: Duration = Duration::from_secs(30);

/// The pause before a server that does not answer is asked again; it doubles up to [`RESYNC`].
const RETRY: Duration = Duration::from_millis(500);

/// What is known of one group's server between two looks.
struct Known {
    /// The revision of the `APIService` that was looked at.
    revision: String,
    next: Instant,
    pause: Duration,
}

/// Runs until shutdown. Changes of `APIService`s, services and endpoints are followed; servers themselves say nothing,
/// so they are asked from time to time.
pub async fn run(server: Arc<Server>) {
    let mut known: HashMap<String, Known> = HashMap::new();
    'subscribe: loop {
        let Some(mut changes) = Changes::subscribe(&server) else {
            return;
        };
        for entry in known.values_mut() {
            entry.next = Instant::now();
        }
        loop {
            let next = look(&server, &mut known).await;
            tokio::select! {
                () = sleep_until(next) => {}
                changed = changes.next() => match changed {
                    // Which service a slice belongs to does not matter: there are few servers, and asking is cheap.
                    Some(()) => known.values_mut().for_each(|k| k.next = Instant::now()),
                    None => continue 'subscribe,
                },
                () = server.shutdown.cancelled() => return,
            }
        }
    }
}

/// Asks every server whose time has come; when the next one's does.
async fn look(server: &Arc<Server>, known: &mut HashMap<String, Known>) -> Instant {
    let services = all(&server.caches);
    known.retain(|name, _| services.iter().any(|s| meta::name(s) == name));
    forget_removed(server, &services);
    for service in &services {
        let revision = meta::resource_version(service).to_owned();
        let name = meta::name(service).to_owned();
        let entry = known.entry(name).or_insert_with(|| Known {
            revision: String::new(),
            next: Instant::now(),
            pause: RETRY,
        });
        if entry.next > Instant::now() && entry.revision == revision {
            continue;
        }
        let answer = discover::ask(server, service).await;
        entry.pause = if answer.is_ok() {
            RESYNC
        } else if entry.pause >= RESYNC {
            RETRY
        } else {
            (entry.pause * 2).min(RESYNC)
        };
        entry.next = Instant::now() + entry.pause;
        entry.revision = revision;
        let condition = condition(answer.as_ref().err());
        if let Ok(entries) = answer {
            let key = discover::key(service);
            server.aggregated.write().insert(key, entries);
        }
        set_condition(server, service, &condition).await;
    }
    let soonest = known.values().map(|k| k.next).min();
    soonest.unwrap_or_else(|| Instant::now() + RESYNC)
}

/// What is not aggregated any more is not discovered either.
fn forget_removed(server: &Server, services: &[Value]) {
    let mut aggregated = server.aggregated.write();
    aggregated.retain(|key, _| services.iter().any(|s| discover::key(s) == *key));
}

fn condition(failure: Option<&Unavailable>) -> Value {
    match failure {
        None => {
            json!({"type": "Available", "status": "True", "reason": "Passed", "message": "all checks passed"})
        }
        Some(why) => {
            json!({"type": "Available", "status": "False", "reason": why.reason(), "message": why.to_string()})
        }
    }
}

async fn set_condition(server: &Arc<Server>, service: &Value, condition: &Value) {
    let Some(resource) = resources::find("apiregistration.k8s.io", "v1", "apiservices") else {
        return;
    };
    let set: Change<'_> = Box::new(|current: &Value| {
        let mut object = current.clone();
        let conditions = object["status"]["conditions"].as_array();
        let mut conditions = conditions.cloned().unwrap_or_default();
        let mut condition = condition.clone();
        let present = conditions
            .iter_mut()
            .find(|c| c["type"] == condition["type"]);
        match present {
            Some(present) => {
                condition["lastTransitionTime"] = if present["status"] == condition["status"] {
                    present["lastTransitionTime"].clone()
                } else {
                    meta::now().into()
                };
                *present = condition;
            }
            None => {
                condition["lastTransitionTime"] = meta::now().into();
                conditions.push(condition);
            }
        }
        object["status"]["conditions"] = conditions.into();
        Ok(object)
    });
    let at = Location {
        resource,
        namespace: "",
        name: meta::name(service),
        subresource: "status",
    };
    if let Err(error) = SERVER.update(server, at, set).await {
        tracing::debug!(%error, "cannot update the condition of an APIService");
    }
}

/// Changes of what availability depends on.
struct Changes {
    services: Subscription,
    slices: Subscription,
    api_services: Subscription,
}

impl Changes {
    fn subscribe(server: &Server) -> Option<Self> {
        let follow = |group, plural| {
            let resource = resources::find(group, "v1", plural)?;
            let cache = server.caches.of(resource);
            Some(cache.subscribe_with_state(Filter::default()).2)
        };
        Some(Self {
            services: follow("", "services")?,
            slices: follow("discovery.k8s.io", "endpointslices")?,
            api_services: follow("apiregistration.k8s.io", "apiservices")?,
        })
    }

    /// Waits for a change of specs; `None` when a subscription fell behind and must be made anew.
    async fn next(&mut self) -> Option<()> {
        loop {
            let (_, event) = tokio::select! {
                event = self.services.events.recv() => event?,
                event = self.slices.events.recv() => event?,
                event = self.api_services.events.recv() => event?,
            };
            // Our own change of a status is no news.
            let previous = event.previous.as_ref().map(|p| p.object());
            let is_news =
                previous.is_none_or(|p| event.is_deletion() || differs(&p, &event.entry.object()));
            if is_news {
                return Some(());
            }
        }
    }
}

/// Whether two versions of an object differ in more than metadata and status.
fn differs(a: &Value, b: &Value) -> bool {
    ["spec", "endpoints", "ports"]
        .iter()
        .any(|part| a[*part] != b[*part])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_status_is_no_news() {
        let of = |port: i64, status: &str| json!({"spec": {"port": port}, "status": {"conditions": status}});
        assert!(!differs(&of(1, "a"), &of(1, "b")));
        assert!(differs(&of(1, "a"), &of(2, "a")));
    }

    #[test]
    fn conditions_name_what_is_missing() {
        let why = Unavailable::NoSlices {
            namespace: "n".into(),
            name: "s".into(),
        };
        let condition = condition(Some(&why));
        assert_eq!(condition["reason"], "EndpointsNotFound");
        assert_eq!(
            condition["message"],
            "cannot find endpointslices for service/s in \"n\""
        );
    }
}

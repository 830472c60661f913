//! Which other servers there are, by their identity leases, and what each of them serves. A server is asked when its lease
//! appears or has another holder; what it serves then, it serves until it is started anew.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ::http::header::ACCEPT;
use ::http::{HeaderValue, Request, StatusCode};
use fluyt_api::resources;
use fluyt_api::selector::LabelSelector;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::{Gvr, Serves, lease, proxy};
use crate::Server;
use crate::cache::{Entry, Filter, Subscription, WatchEvent};
use crate::http::{self, collect_up_to};
use crate::identity;
use crate::user::User;

/// The pause before the servers are asked again of which one did not answer: it may only just be starting, or gone. It
/// doubles, and at last nobody asks any more until the leases change.
const RETRY: Duration = Duration::from_millis(5);
const RETRIES: u32 = 20;

/// How long a server may take to say what it serves.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Larger documents are nobody's.
const MAX_DOCUMENT: usize = 64 << 20;

/// Without what others serve; servers that do not know of that are asked as they are used to.
const ACCEPTED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList;profile=nopeer,application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// Follows the leases until shutdown.
pub(super) async fn run(server: Arc<Server>) {
    let Some(leases) = resources::find("coordination.k8s.io", "v1", "leases") else {
        return;
    };
    let labels = format!("{}={}", identity::LABEL, identity::COMPONENT);
    loop {
        let filter = Filter {
            namespace: identity::NAMESPACE.to_owned(),
            labels: LabelSelector::parse(&labels).unwrap_or_default(),
            ..Filter::default()
        };
        let (present, _, changes) = server.caches.of(leases).subscribe_with_state(filter);
        let id = &server.peers.id;
        let holders = present.iter().filter_map(|lease| holder(lease, id));
        let follower = Follower {
            holders: holders.collect(),
            changes,
            attempts: 0,
            due: Some(Instant::now()),
        };
        if follower.run(&server).await.is_some() {
            return;
        }
    }
}

struct Follower {
    /// Who holds the lease of each of the others.
    holders: BTreeMap<String, String>,
    changes: Subscription,
    /// How often they were asked in vain.
    attempts: u32,
    /// When they are asked.
    due: Option<Instant>,
}

impl Follower {
    /// Runs until shutdown, or to `None` when the subscription fell behind and must be made anew.
    async fn run(mut self, server: &Arc<Server>) -> Option<()> {
        loop {
            let due = self.due;
            tokio::select! {
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.ask(server).await,
                event = self.changes.events.recv() => {
                    if self.note(&event?.1, &server.peers.id) {
                        self.attempts = 0;
                        self.due = Some(Instant::now());
                    }
                }
                () = server.shutdown.cancelled() => return Some(()),
            }
        }
    }

    /// Takes note of a lease; whether that says something new.
    fn note(&mut self, event: &WatchEvent, own: &str) -> bool {
        match holder(&event.entry, own) {
            Some((name, _)) if event.is_deletion() => self.holders.remove(&name).is_some(),
            Some((name, holder)) => self.holders.insert(name, holder.clone()) != Some(holder),
            None => false,
        }
    }

    async fn ask(&mut self, server: &Arc<Server>) {
        let asking = self.holders.keys().map(|id| async move {
            let (serves, complete) = serves(server, id).await;
            (id.clone(), serves, complete)
        });
        let answers = futures::future::join_all(asking).await;
        let complete = answers.iter().all(|(.., complete)| *complete);
        let servers = answers.into_iter();
        let servers = servers.filter(|(_, serves, _)| *serves != Serves::default());
        let servers = servers.map(|(id, serves, _)| (id, serves)).collect();
        server.peers.learn(servers);
        self.due = (!complete && self.attempts < RETRIES)
            .then(|| Instant::now() + RETRY * 2_u32.pow(self.attempts));
        self.attempts += 1;
    }
}

/// The server that a lease is of, unless it is this one, and who holds it.
fn holder(lease: &Entry, own: &str) -> Option<(String, String)> {
    let holder = lease.object()["spec"]["holderIdentity"]
        .as_str()?
        .to_owned();
    (lease.name() != own).then(|| (lease.name().to_owned(), holder))
}

/// What a server serves, and whether it said everything.
async fn serves(server: &Arc<Server>, id: &str) -> (Serves, bool) {
    let counters = &server.peers.counters;
    let mut serves = Serves::default();
    let endpoint = match lease::endpoint(server, id).await {
        Ok(endpoint) => endpoint,
        Err(error) => {
            counters.sync_error("hostport_resolution");
            tracing::debug!(%error, id, "cannot find a peer");
            return (serves, false);
        }
    };
    let mut complete = true;
    for path in ["/api", "/apis"] {
        let asked = tokio::time::timeout(TIMEOUT, document(server, &endpoint, path)).await;
        match asked.unwrap_or_else(|_| Err("it took too long".to_owned())) {
            Ok(document) => serves.add(&document),
            Err(why) => {
                counters.sync_error("fetch_discovery");
                tracing::debug!(why, id, path, "a peer does not say what it serves");
                complete = false;
            }
        }
    }
    (serves, complete)
}

impl Serves {
    fn add(&mut self, document: &Value) {
        let items = document["items"].as_array().into_iter().flatten();
        for group in items {
            let name = super::merge::group_name(group);
            self.resources.extend(resources_of(group, name));
            let is_known = |known: &Value| super::merge::group_name(known) == name;
            // The core group is not among the groups, though its requests are passed on.
            if !name.is_empty() && !self.groups.iter().any(is_known) {
                self.groups.push(group.clone());
            }
        }
    }
}

fn resources_of(group: &Value, name: &str) -> HashSet<Gvr> {
    let list = |value: &Value, list: &str| value[list].as_array().cloned().unwrap_or_default();
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let mut found = HashSet::new();
    for version in list(group, "versions") {
        for resource in list(&version, "resources") {
            found.insert(Gvr {
                group: name.to_owned(),
                version: text(&version, "version"),
                resource: text(&resource, "resource"),
            });
        }
    }
    found
}

async fn document(server: &Arc<Server>, endpoint: &str, path: &str) -> Result<Value, String> {
    const SELF: &str = "system:apiserver";
    let request = Request::get(path)
        .header(ACCEPT, HeaderValue::from_static(ACCEPTED))
        .body(http::full(""))
        .map_err(|e| e.to_string())?;
    let user = User {
        uid: SELF.to_owned(),
        ..User::new(SELF, &[])
    };
    let response = proxy::send(server, endpoint, &user, request, Gvr::default()).await?;
    let status = response.status();
    if status != StatusCode::OK {
        return Err(format!("discovery request failed with status: {status}"));
    }
    let body = collect_up_to(response.into_body(), MAX_DOCUMENT).await;
    let body = body.map_err(|e| e.message)?;
    let document: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
    if document["apiVersion"] != "apidiscovery.k8s.io/v2" {
        return Err("the answer is no document of aggregated discovery".to_owned());
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_core_group_is_served_but_not_among_the_groups() {
        let versions = |resource: &str| json!([{"version": "v1", "resources": [{"resource": resource, "subresources": [{"subresource": "status"}]}]}]);
        let mut serves = Serves::default();
        serves.add(&json!({"items": [{"metadata": {}, "versions": versions("pods")}]}));
        let apps = json!({"metadata": {"name": "apps"}, "versions": versions("deployments")});
        serves.add(&json!({"items": [apps, apps]}));
        let gvr = |group: &str, resource: &str| Gvr {
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
        };
        let expected = [gvr("", "pods"), gvr("apps", "deployments")];
        assert_eq!(serves.resources, expected.into());
        assert_eq!(serves.groups, [apps]);
    }
}

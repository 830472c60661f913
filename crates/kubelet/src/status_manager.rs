//! Keeps the latest status of every pod here and brings it to the API server at once: a patch of what differs, one
//! request per pod at a time, the newest status always winning. Deletes the API object when a pod's end is complete.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fluyt_client::{Backoff, is_not_found, status_code};
use k8s_openapi::api::core::v1::{Pod, PodIP, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tracing::{debug, warn};

use crate::pod::PodExt;

pub struct StatusManager {
    client: Client,
    entries: Mutex<HashMap<String, Entry>>,
}

struct Entry {
    pod: Arc<Pod>,
    /// The pod as the API knows it: for a static pod its mirror.
    target: Target,
    status: PodStatus,
    version: u64,
    /// What the API server was last told, with its version.
    sent: Option<(u64, PodStatus)>,
    syncing: bool,
    /// The pod is completely gone from this node.
    finished: bool,
}

#[derive(Clone)]
struct Target {
    namespace: String,
    name: String,
    uid: String,
    known: PodStatus,
}

impl StatusManager {
    pub fn new(client: Client) -> Arc<Self> {
        Arc::new(StatusManager {
            client,
            entries: Mutex::default(),
        })
    }

    /// The status last made for the pod, else the API server's.
    pub fn current(&self, pod: &Pod) -> PodStatus {
        let known = self
            .entries
            .lock()
            .get(pod.uid())
            .map(|entry| entry.status.clone());
        known.unwrap_or_else(|| pod.status().clone())
    }

    pub fn pod_ip(&self, uid: &str) -> Option<String> {
        self.entries.lock().get(uid)?.status.pod_ip.clone()
    }

    /// Takes a new status in. `mirror` is the API object that stands for a static pod.
    pub fn set(self: &Arc<Self>, pod: &Arc<Pod>, mirror: Option<&Pod>, mut status: PodStatus) {
        let api = if pod.is_static() {
            mirror
        } else {
            Some(pod.as_ref())
        };
        let mut entries = self.entries.lock();
        let target = |api: &Pod| Target {
            namespace: api.namespace().into(),
            name: api.name().into(),
            uid: api.uid().into(),
            known: api.status().clone(),
        };
        match entries.get_mut(pod.uid()) {
            Some(entry) => {
                // Conditions of others (readiness gates) are as the API has them, not as they once were here.
                if let Some(api) = api {
                    let fresh = target(api);
                    if fresh.uid != entry.target.uid {
                        entry.sent = None;
                    }
                    entry.target = fresh;
                }
                entry.pod = pod.clone();
                if entry.status == status && entry.sent.is_some() {
                    return;
                }
                status.start_time = entry.status.start_time.clone().or(status.start_time);
                entry.status = status;
                entry.version += 1;
            }
            None => {
                entries.insert(
                    pod.uid().to_string(),
                    Entry {
                        pod: pod.clone(),
                        target: target(api.unwrap_or(pod)),
                        status,
                        version: 1,
                        sent: None,
                        syncing: false,
                        finished: false,
                    },
                );
            }
        }
        if api.is_some() {
            self.kick(pod.uid(), &mut entries);
        }
    }

    /// The sandbox is up: its address may be told before any container runs.
    pub fn sandbox_ready(self: &Arc<Self>, pod: &Pod, ips: &[String]) {
        if let Some(entry) = self.entries.lock().get_mut(pod.uid()) {
            entry.status.pod_ip = ips.first().cloned();
            entry.status.pod_ips = Some(ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect());
        }
    }

    /// The pod is gone from this node: tell its last status, then delete the API object if it is to be deleted.
    pub fn finish(self: &Arc<Self>, uid: &str) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(uid) {
            entry.finished = true;
            entry.version += 1;
            self.kick(uid, &mut entries);
        }
    }

    /// The API object of a pod that has ended here changed: it may be deleted now.
    pub fn update_pod(self: &Arc<Self>, pod: &Arc<Pod>) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(pod.uid()) {
            entry.pod = pod.clone();
        }
    }

    /// The API object is gone.
    pub fn forget(&self, uid: &str) {
        self.entries.lock().remove(uid);
    }

    fn kick(self: &Arc<Self>, uid: &str, entries: &mut HashMap<String, Entry>) {
        let Some(entry) = entries.get_mut(uid) else {
            return;
        };
        if entry.syncing {
            return;
        }
        entry.syncing = true;
        let (manager, uid) = (self.clone(), uid.to_string());
        tokio::spawn(async move { manager.sync(uid).await });
    }

    async fn sync(self: Arc<Self>, uid: String) {
        let mut backoff = Backoff::for_requests();
        loop {
            let (target, pod, status, version, finished) = {
                let mut entries = self.entries.lock();
                let Some(entry) = entries.get_mut(&uid) else {
                    return;
                };
                if entry
                    .sent
                    .as_ref()
                    .is_some_and(|(sent, _)| *sent == entry.version)
                {
                    entry.syncing = false;
                    return;
                }
                let mut target = entry.target.clone();
                if let Some((_, sent)) = &entry.sent {
                    target.known = merge_known(&target.known, sent);
                }
                (
                    target,
                    entry.pod.clone(),
                    entry.status.clone(),
                    entry.version,
                    entry.finished,
                )
            };
            let outcome = self.tell(&target, &status).await;
            match outcome {
                Ok(()) => {
                    if finished && pod.is_being_deleted() && !pod.is_static() {
                        if let Err(error) = self.delete(&target).await {
                            warn!(pod = target.name, %error, "deleting the pod failed, trying again");
                            tokio::time::sleep(backoff.next_delay()).await;
                            continue;
                        }
                        self.entries.lock().remove(&uid);
                        return;
                    }
                    if let Some(entry) = self.entries.lock().get_mut(&uid) {
                        entry.sent = Some((version, status));
                    }
                    backoff.reset();
                }
                // Gone, or replaced by another pod of the same name.
                Err(error) if is_not_found(&error) || status_code(&error) == Some(409) => {
                    debug!(pod = target.name, %error, "status has nobody to go to");
                    if let Some(entry) = self.entries.lock().get_mut(&uid) {
                        entry.sent = Some((version, status));
                    }
                }
                Err(error) => {
                    warn!(pod = target.name, %error, "updating the status failed, trying again");
                    tokio::time::sleep(backoff.next_delay().min(Duration::from_secs(10))).await;
                }
            }
        }
    }

    async fn tell(&self, target: &Target, status: &PodStatus) -> Result<(), kube::Error> {
        let Some(patch) = patch(target, status) else {
            return Ok(());
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &target.namespace);
        api.patch_status(
            &target.name,
            &PatchParams::default(),
            &Patch::Strategic(patch),
        )
        .await
        .map(drop)
    }

    async fn delete(&self, target: &Target) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &target.namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(target.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(&target.name, &params).await {
            Err(error) if !is_not_found(&error) && status_code(&error) != Some(409) => Err(error),
            _ => Ok(()),
        }
    }
}

/// What the API server has: what it was last told, with others' conditions as last seen.
fn merge_known(seen: &PodStatus, sent: &PodStatus) -> PodStatus {
    PodStatus {
        nominated_node_name: seen.nominated_node_name.clone(),
        ..sent.clone()
    }
}

/// A strategic merge patch that turns the known status into the wanted one; `None` when nothing differs.
fn patch(target: &Target, status: &PodStatus) -> Option<Value> {
    let as_map = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, new) = (as_map(&target.known), as_map(status));
    let mut diff = Map::new();
    for (key, value) in &new {
        if old.get(key) == Some(value) {
            continue;
        }
        let value = match key.as_str() {
            "conditions" => {
                let owned = crate::status::owned_conditions();
                let mine = |c: &Value| c["type"].as_str().is_some_and(|t| owned.contains(&t));
                let [old, new] = [old.get(key), Some(value)].map(|list| items(list, mine));
                merged(&old, new, "type")
            }
            "podIPs" | "hostIPs" => {
                let [old, new] = [old.get(key), Some(value)].map(|list| items(list, |_| true));
                merged(&old, new, "ip")
            }
            "resources" | "allocatedResources" => replaced(old.get(key), value),
            _ => value.clone(),
        };
        diff.insert(key.clone(), value);
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        diff.insert(key.clone(), Value::Null);
    }
    (!diff.is_empty()).then(|| json!({"metadata": {"uid": target.uid}, "status": diff}))
}

/// A map that is merged: what the old one has besides has to be named to go.
fn replaced(old: Option<&Value>, new: &Value) -> Value {
    let (Some(Value::Object(old)), Value::Object(new)) = (old, new) else {
        return new.clone();
    };
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    let gone = gone.map(|key| (key.clone(), Value::Null));
    let there = new
        .iter()
        .map(|(key, value)| (key.clone(), replaced(old.get(key), value)));
    Value::Object(there.chain(gone).collect())
}

fn items(list: Option<&Value>, chosen: impl Fn(&Value) -> bool) -> Vec<Value> {
    let items = list.and_then(Value::as_array).into_iter().flatten();
    items.filter(|item| chosen(item)).cloned().collect()
}

/// A list that is merged by `key`: the old items that are to go have to be named, and so have their fields.
fn merged(old: &[Value], mut new: Vec<Value>, key: &str) -> Value {
    for was in old {
        let Some(item) = new.iter_mut().find(|item| item[key] == was[key]) else {
            new.push(json!({"$patch": "delete", key: was[key]}));
            continue;
        };
        for field in was.as_object().into_iter().flat_map(Map::keys) {
            if item[field.as_str()].is_null() {
                item[field.as_str()] = Value::Null;
            }
        }
    }
    json!(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(json: Value) -> PodStatus {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_what_differs() {
        let target = Target {
            namespace: "n".into(),
            name: "p".into(),
            uid: "u".into(),
            known: status(
                json!({"phase": "Pending", "reason": "x", "podIPs": [{"ip": "1.1.1.1"}],
                "conditions": [{"type": "Mine", "status": "True"}]}),
            ),
        };
        let wanted = status(json!({"phase": "Running", "podIPs": [{"ip": "2.2.2.2"}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Mine", "status": "True"}]}));
        let patch = patch(&target, &wanted).unwrap();
        assert_eq!(
            patch,
            json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running", "reason": null,
                "podIPs": [{"ip": "2.2.2.2"}, {"$patch": "delete", "ip": "1.1.1.1"}],
                "conditions": [{"type": "Ready", "status": "True"}]}})
        );
        assert!(super::patch(&target, &target.known.clone()).is_none());
        let with = |resources: Value| Target {
            known: status(json!({"resources": resources})),
            ..target.clone()
        };
        let limits = json!({"limits": {"cpu": "1", "memory": "2"}, "requests": {"cpu": "1"}});
        let wanted = json!({"limits": {"memory": "3"}});
        let patch = super::patch(&with(limits), &status(json!({"resources": wanted})));
        assert_eq!(
            patch.unwrap()["status"]["resources"],
            json!({"limits": {"cpu": null, "memory": "3"}, "requests": null})
        );
        let of = |conditions: Value| status(json!({"conditions": conditions}));
        let before = Target {
            known: of(json!([{"type": "Ready", "status": "False", "reason": "R"},
                {"type": "PodResizePending", "status": "True"}, {"type": "Mine", "status": "True"}])),
            ..target
        };
        let patch = super::patch(&before, &of(json!([{"type": "Ready", "status": "True"}])));
        assert_eq!(
            patch.unwrap()["status"]["conditions"],
            json!([{"type": "Ready", "status": "True", "reason": null},
                {"type": "PodResizePending", "$patch": "delete"}])
        );
    }
}

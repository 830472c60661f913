//! What is known of a request so far, shared by everything that works on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fluyt_api::meta;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Auditor;
use super::event::{Event, Stage, micro_time};
use super::latency::{Latencies, Layer};
use super::policy::{Level, Scope};
use crate::authn::Impersonated;
use crate::user::user_info;

/// The record of one request; empty for those that are not audited.
#[derive(Clone, Default)]
pub struct Record(Option<Arc<Inner>>);

struct Inner {
    auditor: Arc<Auditor>,
    scope: Scope,
    event: Mutex<Event>,
    latencies: Mutex<Latencies>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() {
            "audited"
        } else {
            "unaudited"
        })
    }
}

impl Record {
    pub(super) fn new(
        auditor: Arc<Auditor>,
        scope: Scope,
        event: Event,
        received: Instant,
    ) -> Self {
        Self(Some(Arc::new(Inner {
            auditor,
            scope,
            event: Mutex::new(event),
            latencies: Mutex::new(Latencies::since(received)),
        })))
    }

    /// Notes how long a part of the request has taken.
    pub fn took(&self, layer: Layer, time: Duration) {
        if let Some(inner) = &self.0 {
            inner.latencies.lock().add(layer, time);
        }
    }

    /// Does a part of the request, and notes how long it takes.
    pub async fn timed<F: Future>(&self, layer: Layer, part: F) -> F::Output {
        if !self.is_audited() {
            return part.await;
        }
        let begin = Instant::now();
        let done = part.await;
        self.took(layer, begin.elapsed());
        done
    }

    /// The same of a part that does not wait for anything.
    pub fn measured<T>(&self, layer: Layer, part: impl FnOnce() -> T) -> T {
        if !self.is_audited() {
            return part();
        }
        let begin = Instant::now();
        let done = part();
        self.took(layer, begin.elapsed());
        done
    }

    #[must_use]
    pub fn is_audited(&self) -> bool {
        self.0.is_some()
    }

    /// Whether bodies of requests are recorded.
    #[must_use]
    pub fn wants_request(&self) -> bool {
        self.level() >= Level::Request
    }

    pub(super) fn wants_response(&self) -> bool {
        self.level() >= Level::RequestResponse
    }

    fn level(&self) -> Level {
        self.0.as_ref().map_or(Level::None, |r| r.scope.level)
    }

    fn change(&self, change: impl FnOnce(&Scope, &mut Event)) {
        if let Some(inner) = &self.0 {
            change(&inner.scope, &mut inner.event.lock());
        }
    }

    /// Adds an annotation; the first word about something stays.
    pub fn annotate(&self, key: &str, value: impl AsRef<str>) {
        self.change(|_, event| {
            event
                .annotations
                .entry(key.to_owned())
                .or_insert_with(|| value.as_ref().to_owned());
        });
    }

    pub(crate) fn impersonated(&self, as_whom: &Impersonated) {
        self.change(|_, event| {
            event.impersonated_user = Some(user_info(&as_whom.user));
            if !as_whom.constraint.is_empty() {
                event.authentication_metadata =
                    Some(json!({"impersonationConstraint": as_whom.constraint}));
            }
        });
    }

    /// The object that a request carries, and what is recorded of it if anything is.
    pub fn request_object(&self, object: &Value, recorded: impl FnOnce() -> Value) {
        self.change(|scope, event| {
            let reference = event.object_ref.get_or_insert_default();
            for (field, value) in [
                (&mut reference.namespace, meta::namespace(object)),
                (&mut reference.name, meta::name(object)),
                (&mut reference.uid, meta::uid(object)),
                (
                    &mut reference.resource_version,
                    meta::resource_version(object),
                ),
            ] {
                if field.is_empty() {
                    value.clone_into(field);
                }
            }
            if scope.level >= Level::Request {
                event.request_object = Some(without_managed_fields(scope, recorded()));
            }
        });
    }

    /// A patch, as it came.
    pub fn request_patch(&self, body: &[u8]) {
        self.change(|scope, event| {
            if scope.level >= Level::Request {
                event.request_object = serde_json::from_slice(body)
                    .ok()
                    .or_else(|| Some(String::from_utf8_lossy(body).into_owned().into()));
            }
        });
    }

    pub(super) fn response_status(&self, status: Value) {
        self.change(|_, event| event.response_status = Some(status));
    }

    pub(super) fn response_object(&self, object: Value) {
        self.change(|scope, event| {
            event.response_object = Some(without_managed_fields(scope, object));
        });
    }

    /// Hands the record as it is now to the back ends; whether they have taken it.
    pub(super) async fn emit(&self, stage: Stage) -> bool {
        let Some(inner) = &self.0 else { return true };
        let event = {
            let mut event = inner.event.lock();
            event.stage = stage;
            if stage != Stage::RequestReceived {
                event.stage_timestamp = micro_time();
            }
            if stage == Stage::ResponseComplete {
                let told = inner.latencies.lock().annotations();
                event.annotations.extend(told);
            }
            event.clone()
        };
        inner.auditor.emit(&inner.scope, &event).await
    }
}

/// An object, or the objects of a list, without what says who set which field.
fn without_managed_fields(scope: &Scope, mut object: Value) -> Value {
    if !scope.omit_managed_fields {
        return object;
    }
    let remove = |object: &mut Value| {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
    };
    let is_list = object["items"].is_array();
    let lists = ["items", "rows"];
    for list in lists {
        for item in object[list].as_array_mut().into_iter().flatten() {
            if list == "rows" {
                if item["object"].is_object() {
                    remove(&mut item["object"]);
                }
            } else {
                remove(item);
            }
        }
    }
    if !is_list && object["metadata"].is_object() {
        remove(&mut object);
    }
    // Looking for lists in what has none leaves nulls behind.
    if let Some(map) = object.as_object_mut() {
        for list in lists {
            if map.get(list).is_some_and(Value::is_null) {
                map.remove(list);
            }
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::policy::Policy;

    #[test]
    fn managed_fields_are_left_out_on_request() {
        let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitManagedFields: true\nrules: [{level: Request}]";
        let scope = Policy::parse(text)
            .unwrap()
            .scope(None, &crate::authz::Question::default());
        let managed = || json!({"metadata": {"name": "a", "managedFields": [1]}});
        let plain = json!({"metadata": {"name": "a"}});
        assert_eq!(without_managed_fields(&scope, managed()), plain);
        let list = json!({"metadata": {}, "items": [managed()]});
        assert_eq!(without_managed_fields(&scope, list)["items"][0], plain);
    }
}

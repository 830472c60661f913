//! Events: what a component did to an object, for `kubectl describe`.
//!
//! As client-go's: an event that was seen before only raises the `count` of the first one, more than ten events
//! that differ in their message alone become one "(combined from similar events)", and an object that produces
//! events without pause is cut off by a token bucket. Recording never blocks and never fails the caller.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::{Backoff, is_namespace_terminating, is_not_found, status_code};

/// Events that wait to be written; further ones are dropped.
const QUEUE: usize = 1000;
/// Events remembered for counting.
const REMEMBERED: usize = 4096;
/// From this many events that differ only in their message, they are combined.
const SIMILAR: usize = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);
/// The token bucket of one object: 25 events at once, then one in five minutes.
const BURST: f64 = 25.0;
const TOKENS_PER_SECOND: f64 = 1.0 / 300.0;
const ATTEMPTS: u32 = 12;

/// `type` of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Records events of one component; cheap to clone, all clones count together.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Occurrence>,
}

struct Occurrence {
    object: ObjectReference,
    event_type: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

impl Recorder {
    /// `component` and `instance` are `source.component` and `source.host` of the events. Must be called within
    /// a tokio runtime: a task writes the events until all recorders are dropped.
    pub fn new(client: Client, component: &str, instance: &str) -> Self {
        let (queue, occurrences) = mpsc::channel(QUEUE);
        let correlator = Correlator {
            component: component.to_owned(),
            instance: instance.to_owned(),
            ..Correlator::default()
        };
        tokio::spawn(write_events(client, correlator, occurrences));
        Self { queue }
    }

    /// Record that `reason` (CamelCase, for machines) happened to `object`, with a `message` for people.
    pub fn event(
        &self,
        object: &ObjectReference,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let occurrence = Occurrence {
            object: object.clone(),
            event_type,
            reason: reason.to_owned(),
            message: message.into(),
            at: Timestamp::now(),
        };
        if self.queue.try_send(occurrence).is_err() {
            debug!(reason, "event dropped: too many wait to be written");
        }
    }
}

async fn write_events(
    client: Client,
    mut correlator: Correlator,
    mut occurrences: mpsc::Receiver<Occurrence>,
) {
    while let Some(occurrence) = occurrences.recv().await {
        if let Some(write) = correlator.correlate(occurrence, Instant::now()) {
            let mut backoff = Backoff::for_requests();
            for _ in 0..ATTEMPTS {
                match apply(&client, &write).await {
                    Ok(()) => break,
                    // The server has judged: the same request won't fare better.
                    Err(error)
                        if status_code(&error).is_some_and(|code| code < 500 && code != 429) =>
                    {
                        if is_namespace_terminating(&error) || is_not_found(&error) {
                            debug!(%error, "event not written");
                        } else {
                            warn!(%error, "event rejected");
                        }
                        break;
                    }
                    Err(_) => tokio::time::sleep(backoff.next_delay()).await,
                }
            }
        }
    }
}

async fn apply(client: &Client, write: &Write) -> kube::Result<()> {
    let event = &write.event;
    let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
    let name = event.metadata.name.as_deref().unwrap_or_default();
    let api = Api::<Event>::namespaced(client.clone(), namespace);
    if write.again {
        let patch = serde_json::json!({
            "count": event.count,
            "message": event.message,
            "lastTimestamp": event.last_timestamp,
        });
        match api
            .patch(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            // Events expire; the next occurrence is a new one.
            Err(error) if is_not_found(&error) => {}
            result => return result.map(drop),
        }
    }
    match api.create(&PostParams::default(), event).await {
        Err(error) if status_code(&error) == Some(409) => Ok(()),
        result => result.map(drop),
    }
}

/// An event to create, or (`again`) to count up.
#[derive(Debug)]
struct Write {
    event: Event,
    again: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ObjectId {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    field_path: String,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct SimilarKey(ObjectId, EventType, String);

#[derive(Clone, PartialEq, Eq, Hash)]
struct SameKey(SimilarKey, String);

struct Similar {
    messages: Vec<String>,
    last: Instant,
}

struct Bucket {
    tokens: f64,
    last: Instant,
}

/// Decides what becomes of an occurrence: a new event, a higher count, or nothing.
#[derive(Default)]
struct Correlator {
    component: String,
    instance: String,
    similar: HashMap<SimilarKey, Similar>,
    seen: HashMap<SameKey, Event>,
    buckets: HashMap<ObjectId, Bucket>,
    /// Makes names of events of one nanosecond differ.
    last_name: i128,
}

impl Correlator {
    fn correlate(&mut self, occurrence: Occurrence, now: Instant) -> Option<Write> {
        self.forget_old();
        let object = &occurrence.object;
        let id = ObjectId {
            kind: object.kind.clone().unwrap_or_default(),
            namespace: object.namespace.clone().unwrap_or_default(),
            name: object.name.clone().unwrap_or_default(),
            uid: object.uid.clone().unwrap_or_default(),
            field_path: object.field_path.clone().unwrap_or_default(),
        };
        let similar_key = SimilarKey(id.clone(), occurrence.event_type, occurrence.reason.clone());
        let combined = self.is_one_of_many(&similar_key, &occurrence.message, now);
        let (same_key, message) = if combined {
            let message = format!("(combined from similar events): {}", occurrence.message);
            (SameKey(similar_key, String::new()), message)
        } else {
            let message = occurrence.message.clone();
            (SameKey(similar_key, message.clone()), message)
        };
        if !self.take_token(id, now) {
            return None;
        }
        let again = self.seen.get(&same_key).cloned();
        let write = match again {
            Some(mut event) => {
                event.count = Some(event.count.unwrap_or(1) + 1);
                event.last_timestamp = Some(Time(occurrence.at));
                event.message = Some(message);
                Write { event, again: true }
            }
            None => Write {
                event: self.new_event(occurrence, message),
                again: false,
            },
        };
        self.seen.insert(same_key, write.event.clone());
        Some(write)
    }

    fn is_one_of_many(&mut self, key: &SimilarKey, message: &str, now: Instant) -> bool {
        let similar = self.similar.entry(key.clone()).or_insert(Similar {
            messages: Vec::new(),
            last: now,
        });
        if now.duration_since(similar.last) > SIMILAR_WINDOW {
            similar.messages.clear();
        }
        similar.last = now;
        if similar.messages.len() < SIMILAR
            && !similar.messages.iter().any(|known| known == message)
        {
            similar.messages.push(message.to_owned());
        }
        similar.messages.len() >= SIMILAR
    }

    fn take_token(&mut self, object: ObjectId, now: Instant) -> bool {
        let bucket = self.buckets.entry(object).or_insert(Bucket {
            tokens: BURST,
            last: now,
        });
        let refill = now.duration_since(bucket.last).as_secs_f64() * TOKENS_PER_SECOND;
        bucket.tokens = (bucket.tokens + refill).min(BURST);
        bucket.last = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    fn new_event(&mut self, occurrence: Occurrence, message: String) -> Event {
        let nanos = occurrence.at.as_nanosecond().max(self.last_name + 1);
        self.last_name = nanos;
        let object = occurrence.object;
        let namespace = object
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned());
        let name = object.name.clone().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{nanos:x}")),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: object,
            reason: Some(occurrence.reason),
            message: Some(message),
            type_: Some(occurrence.event_type.as_str().to_owned()),
            count: Some(1),
            first_timestamp: Some(Time(occurrence.at)),
            last_timestamp: Some(Time(occurrence.at)),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: (!self.instance.is_empty()).then(|| self.instance.clone()),
            }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        }
    }

    /// Losing the counts now and then is cheaper than tracking what was used least.
    fn forget_old(&mut self) {
        if self.seen.len() > REMEMBERED {
            self.seen.clear();
        }
        if self.similar.len() > REMEMBERED {
            self.similar.clear();
        }
        if self.buckets.len() > REMEMBERED {
            self.buckets.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn correlator() -> Correlator {
        Correlator {
            component: "kubelet".to_owned(),
            instance: "node-0".to_owned(),
            ..Correlator::default()
        }
    }

    fn occurrence(name: &str, message: &str) -> Occurrence {
        let object = ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some("ns".to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        Occurrence {
            object,
            event_type: EventType::Normal,
            reason: "Pulled".to_owned(),
            message: message.to_owned(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_repeated_event_is_counted() {
        let mut correlator = correlator();
        let now = Instant::now();
        let first = correlator.correlate(occurrence("pod", "m"), now).unwrap();
        let second = correlator.correlate(occurrence("pod", "m"), now).unwrap();
        let other = correlator.correlate(occurrence("pod", "n"), now).unwrap();
        assert!(!first.again && second.again && !other.again);
        assert_eq!(second.event.count, Some(2));
        assert_eq!(first.event.metadata.name, second.event.metadata.name);
        assert_ne!(first.event.metadata.name, other.event.metadata.name);
        assert_eq!(first.event.metadata.namespace.as_deref(), Some("ns"));
        let source = first.event.source.unwrap();
        assert_eq!(source.component.as_deref(), Some("kubelet"));
        assert_eq!(source.host.as_deref(), Some("node-0"));
    }

    #[test]
    fn events_that_differ_in_their_message_are_combined() {
        let mut correlator = correlator();
        let now = Instant::now();
        let mut names = std::collections::HashSet::new();
        let mut last = String::new();
        for i in 0..20 {
            let write = correlator
                .correlate(occurrence("pod", &format!("{i}")), now)
                .unwrap();
            names.insert(write.event.metadata.name);
            last = write.event.message.unwrap();
        }
        assert_eq!(names.len(), SIMILAR);
        assert_eq!(last, "(combined from similar events): 19");
    }

    #[test]
    fn a_noisy_object_is_cut_off_and_others_are_not() {
        let mut correlator = correlator();
        let now = Instant::now();
        let written = (0..100)
            .filter(|_| {
                correlator
                    .correlate(occurrence("noisy", "m"), now)
                    .is_some()
            })
            .count();
        assert_eq!(written, 25);
        assert!(
            correlator
                .correlate(occurrence("quiet", "m"), now)
                .is_some()
        );
        let later = now + Duration::from_secs(301);
        assert!(
            correlator
                .correlate(occurrence("noisy", "m"), later)
                .is_some()
        );
    }
}

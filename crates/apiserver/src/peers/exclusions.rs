//! Groups and versions that are the same everywhere, since objects say so: those of custom resources and of other servers'
//! groups. No peer is asked for them. One whose object is gone is left to nobody for a while, until all have seen that.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use fluyt_api::resources;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use crate::Server;
use crate::cache::{Filter, Subscription, WatchEvent};

/// How long peers may take to see that an object is gone.
const GRACE: Duration = Duration::from_secs(300);

/// Group and version.
type Gv = (String, String);

/// What no peer is asked for.
#[derive(Default)]
pub(super) struct Exclusions {
    active: HashSet<Gv>,
    /// When those are gone that are not active any more.
    gone: HashMap<Gv, Instant>,
}

impl Exclusions {
    pub fn contains(&self, group: &str, version: &str) -> bool {
        if self.active.is_empty() && self.gone.is_empty() {
            return false;
        }
        let gv = (group.to_owned(), version.to_owned());
        self.active.contains(&gv) || self.gone.contains_key(&gv)
    }

    /// Takes note of what there is now; whether that changes anything.
    fn update(&mut self, active: HashSet<Gv>, now: Instant) -> bool {
        let before = self.gone.len();
        self.gone.retain(|_, since| now < *since + GRACE);
        let mut changed = before != self.gone.len();
        if self.active != active {
            let gone = self.active.difference(&active).cloned();
            self.gone.extend(gone.map(|gv| (gv, now)));
            self.active = active;
            changed = true;
        }
        changed
    }

    /// When the next one is forgotten.
    fn next(&self) -> Option<Instant> {
        self.gone.values().min().map(|since| *since + GRACE)
    }
}

/// Follows definitions and registrations until shutdown.
pub(super) async fn run(server: Arc<Server>) {
    loop {
        let Some(mut objects) = Objects::follow(&server) else {
            return;
        };
        loop {
            let next = {
                let mut known = server.peers.known.write();
                if known.excluded.update(objects.all(), Instant::now()) {
                    known.generation += 1;
                }
                known.excluded.next()
            };
            tokio::select! {
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
                followed = objects.next() => if followed.is_none() { break },
                () = server.shutdown.cancelled() => return,
            }
        }
    }
}

/// The groups and versions of all objects of both kinds.
struct Objects {
    definitions: Subscription,
    services: Subscription,
    /// By kind and key.
    known: HashMap<(bool, Arc<str>), Vec<Gv>>,
}

impl Objects {
    fn follow(server: &Server) -> Option<Self> {
        let mut known = HashMap::new();
        let mut follow = |is_definition: bool, group, plural| {
            let cache = server.caches.of(resources::find(group, "v1", plural)?);
            let (present, _, subscription) = cache.subscribe_with_state(Filter::default());
            for entry in present {
                let named = named(is_definition, &entry.object());
                known.insert((is_definition, entry.key.clone()), named);
            }
            Some(subscription)
        };
        Some(Self {
            definitions: follow(true, "apiextensions.k8s.io", "customresourcedefinitions")?,
            services: follow(false, "apiregistration.k8s.io", "apiservices")?,
            known,
        })
    }

    fn all(&self) -> HashSet<Gv> {
        self.known.values().flatten().cloned().collect()
    }

    /// Waits for a change; `None` when a subscription fell behind and must be made anew.
    async fn next(&mut self) -> Option<()> {
        let (is_definition, (_, event)) = tokio::select! {
            event = self.definitions.events.recv() => (true, event?),
            event = self.services.events.recv() => (false, event?),
        };
        self.note(is_definition, &event);
        Some(())
    }

    fn note(&mut self, is_definition: bool, event: &WatchEvent) {
        let key = (is_definition, event.entry.key.clone());
        if event.is_deletion() {
            self.known.remove(&key);
        } else {
            let named = named(is_definition, &event.entry.object());
            self.known.insert(key, named);
        }
    }
}

/// What an object says that there is.
fn named(is_definition: bool, object: &Value) -> Vec<Gv> {
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let group = text(&spec["group"]);
    if is_definition {
        let versions = spec["versions"].as_array().into_iter().flatten();
        return versions
            .map(|version| (group.clone(), text(&version["name"])))
            .collect();
    }
    if spec["service"].is_object() {
        vec![(group, text(&spec["version"]))]
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_name_groups_and_versions() {
        let gv = |group: &str, version: &str| (group.to_owned(), version.to_owned());
        let definition = json!({"spec": {"group": "a", "versions": [{"name": "v2", "served": true}, {"name": "v1", "served": false}]}});
        assert_eq!(named(true, &definition), [gv("a", "v2"), gv("a", "v1")]);
        let elsewhere = json!({"spec": {"group": "b", "version": "v1", "service": {"name": "s"}}});
        assert_eq!(named(false, &elsewhere), [gv("b", "v1")]);
        let here = json!({"spec": {"group": "apps", "version": "v1"}});
        assert!(named(false, &here).is_empty());
    }

    #[test]
    fn what_is_gone_stays_excluded_for_a_while() {
        let set = |groups: &[&str]| -> HashSet<Gv> {
            let gvs = groups.iter().map(|g| ((*g).to_owned(), "v1".to_owned()));
            gvs.collect()
        };
        let now = Instant::now();
        let mut excluded = Exclusions::default();
        assert!(!excluded.update(set(&[]), now));
        assert!(excluded.update(set(&["a", "b"]), now));
        assert!(!excluded.update(set(&["a", "b"]), now));
        assert!(excluded.contains("a", "v1") && !excluded.contains("a", "v2"));
        assert_eq!(excluded.next(), None);

        assert!(excluded.update(set(&["b"]), now));
        assert!(excluded.contains("a", "v1"));
        let later = excluded.next().unwrap();
        assert_eq!(later, now + GRACE);
        assert!(!excluded.update(set(&["b"]), later - Duration::from_millis(1)));
        assert!(excluded.update(set(&["b"]), later));
        assert!(!excluded.contains("a", "v1") && excluded.contains("b", "v1"));
    }
}

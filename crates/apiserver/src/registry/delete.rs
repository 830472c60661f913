//! Deletion: preconditions, grace periods, finalizers and what they leave to controllers.

use fluyt_api::resources::Resource;
use fluyt_api::{Error, meta};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::{ATTEMPTS, Committed, Location, Registry, Write, WriteContext};
use crate::admission::{Attributes, Operation};
use crate::audit::Layer;

/// A request's `DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// What became of the object.
#[derive(Debug)]
pub enum Deleted {
    /// It is gone; this is its last state.
    Gone(Value),
    /// It is on its way: finalizers or a grace period hold it.
    Pending(Value),
}

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

impl Registry {
    /// Deletes an object, or starts its graceful deletion.
    ///
    /// # Errors
    /// Not found, a failed precondition, or what admission objects to.
    pub fn delete<'a>(
        &'a self,
        cx: &'a WriteContext,
        at: Location<'a>,
        options: &'a DeleteOptions,
    ) -> BoxFuture<'a, Result<Deleted, Error>> {
        Box::pin(async move {
            let mut current = self.get(at).await?;
            let before = current.object();
            let attributes = Attributes {
                cx,
                at,
                operation: Operation::Delete,
                old: Some(&before),
            };
            let mut nothing = Value::Null;
            self.admission.admit(&attributes, &mut nothing).await?;
            self.admission.validate(&attributes, &nothing).await?;
            if options.propagation.is_none()
                && let Some(warning) = at.resource.strategy().warning_of_orphans()
            {
                cx.warnings.add(warning);
            }
            for _ in 0..ATTEMPTS {
                let old = current.object();
                options.check(&old, at)?;
                let object = self.mark(at.resource, &old, options);
                let gone = is_finished(at.resource, &object);
                // What goes at once is shown as it was, unless it is of a kind that may take its time.
                let takes_time = at.resource.strategy().grace_period(&old, None).is_some();
                if cx.dry_run || (object == old && !gone) {
                    return Ok(if gone {
                        Deleted::Gone(if takes_time { object } else { old })
                    } else {
                        Deleted::Pending(object)
                    });
                }
                let (write, released) = if gone {
                    let released = self.services.release(at.resource, &old);
                    (Write::removal(at, object), released)
                } else {
                    (self.write(at, object, 0).await?, None)
                };
                let revision = current.revision;
                let committing = self.commit(at, revision, &write, released.as_ref());
                match cx.record.timed(Layer::Storage, committing).await? {
                    Committed::At(revision) => {
                        let object = write.finish(revision);
                        return Ok(if gone {
                            Deleted::Gone(if takes_time { object } else { old })
                        } else {
                            Deleted::Pending(object)
                        });
                    }
                    Committed::Lost(None) => return Err(at.not_found()),
                    Committed::Lost(Some(newer)) => {
                        current = self.in_version(newer, at.resource).await?;
                    }
                    // What goes with it has changed.
                    Committed::Collided => {
                        self.caches.feed(at.resource).consistent().await?;
                    }
                }
            }
            Err(Error::modified(
                at.resource.group,
                at.resource.plural,
                at.name,
            ))
        })
    }
}

impl DeleteOptions {
    /// Reads the body's options, overridden by query parameters that older clients use.
    ///
    /// # Errors
    /// 422 for an unknown propagation policy or contradicting options.
    pub fn parse(body: &Value, query: &crate::request::Query) -> Result<Self, Error> {
        let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        let policy = text(&body["propagationPolicy"])
            .or_else(|| query.get("propagationPolicy").map(Into::into));
        if let (Some(policy), true) = (&policy, body["orphanDependents"].is_boolean()) {
            let mut errors = fluyt_api::validation::Errors::default();
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.invalid("propagationPolicy", &policy.as_str().into(), detail);
            return Err(Error::invalid("meta.k8s.io", "DeleteOptions", "", errors.0));
        }
        let propagation = match policy.as_deref() {
            None => match body["orphanDependents"].as_bool() {
                Some(true) => Some(Propagation::Orphan),
                Some(false) => Some(Propagation::Background),
                None => None,
            },
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some("Orphan") => Some(Propagation::Orphan),
            Some(other) => {
                let mut errors = fluyt_api::validation::Errors::default();
                let known = ["Foreground", "Background", "Orphan", "nil"];
                errors.not_supported("propagationPolicy", &other.into(), &known);
                return Err(Error::invalid("meta.k8s.io", "DeleteOptions", "", errors.0));
            }
        };
        let dry_run = body["dryRun"].as_array().map_or(&[][..], Vec::as_slice);
        if dry_run.iter().any(|run| run != "All") {
            let mut errors = fluyt_api::validation::Errors::default();
            errors.not_supported("dryRun", &body["dryRun"], &["All"]);
            return Err(Error::invalid("meta.k8s.io", "DeleteOptions", "", errors.0));
        }
        let grace = query.integer("gracePeriodSeconds")?;
        Ok(Self {
            grace_period_seconds: body["gracePeriodSeconds"].as_i64().or(grace),
            propagation,
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
        })
    }

    /// Whether an object is the one that is to be deleted.
    ///
    /// # Errors
    /// 409 when it is not.
    pub(crate) fn check(&self, object: &Value, at: Location<'_>) -> Result<(), Error> {
        let fail = |what: &str, wanted: &str, found: &str, then: &str| {
            let why = format!(
                "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). The object might have been {then}"
            );
            let (group, kind) = (at.resource.group, at.resource.kind);
            Err(Error::conflict(group, kind, at.name, why))
        };
        match (&self.uid, &self.resource_version) {
            (Some(uid), _) if uid != meta::uid(object) => {
                fail("UID", uid, meta::uid(object), "deleted and then recreated")
            }
            (_, Some(version)) if version != meta::resource_version(object) => {
                let found = meta::resource_version(object);
                fail("ResourceVersion", version, found, "modified")
            }
            _ => Ok(()),
        }
    }
}

impl Registry {
    /// The object as deletion leaves it. Where nobody collects garbage, nobody would take finalizers away that are for that.
    fn mark(&self, resource: &Resource, old: &Value, options: &DeleteOptions) -> Value {
        let mut object = mark(resource, old, options);
        if !self.collects_garbage {
            meta::set(
                &mut object,
                "finalizers",
                old["metadata"]["finalizers"].clone(),
            );
        }
        object
    }
}

/// The object as deletion leaves it: with the finalizers that the propagation asks for, and its deadline.
pub(super) fn mark(resource: &Resource, old: &Value, options: &DeleteOptions) -> Value {
    let mut object = old.clone();
    let strategy = resource.strategy();
    let decided = [FOREGROUND, ORPHAN]
        .iter()
        .any(|f| meta::finalizers(old).contains(f));
    let orphans = (!decided && strategy.orphans_by_default()).then_some(Propagation::Orphan);
    set_propagation(&mut object, options.propagation.or(orphans));
    let grace = strategy.grace_period(&object, options.grace_period_seconds);
    if meta::is_terminating(old) {
        // A second deletion can only shorten the time that is left.
        let left = old["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0);
        if let Some(grace) = grace
            && grace < left
        {
            set_deadline(&mut object, grace);
        }
        return object;
    }
    set_deadline(&mut object, grace.unwrap_or(0));
    strategy.prepare_delete(&mut object);
    if resource.group.is_empty() && resource.kind == "Namespace" {
        object["status"] = json!({"phase": "Terminating"});
        // It takes as long as its content takes.
        meta::set(&mut object, "deletionGracePeriodSeconds", Value::Null);
    }
    if let Some(generation) = object["metadata"]["generation"].as_i64() {
        meta::set(&mut object, "generation", generation + 1);
    }
    object
}

fn set_deadline(object: &mut Value, grace: i64) {
    let deadline = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
    meta::set(
        object,
        "deletionTimestamp",
        deadline.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    );
    meta::set(object, "deletionGracePeriodSeconds", grace);
}

fn set_propagation(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else {
        return;
    };
    let mut finalizers: Vec<String> = meta::finalizers(object)
        .into_iter()
        .filter(|f| *f != FOREGROUND && *f != ORPHAN)
        .map(Into::into)
        .collect();
    match propagation {
        Propagation::Background => {}
        Propagation::Foreground => finalizers.push(FOREGROUND.into()),
        Propagation::Orphan => finalizers.push(ORPHAN.into()),
    }
    let value = if finalizers.is_empty() {
        Value::Null
    } else {
        finalizers.into()
    };
    meta::set(object, "finalizers", value);
}

/// Whether nothing holds a terminating object any more.
pub(super) fn is_finished(resource: &Resource, object: &Value) -> bool {
    let namespace_content = resource.group.is_empty()
        && resource.kind == "Namespace"
        && object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|f| !f.is_empty());
    meta::is_terminating(object)
        && meta::finalizers(object).is_empty()
        && object["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0)
            == 0
        && !namespace_content
}

#[cfg(test)]
mod tests {
    use super::*;
    use fluyt_api::resources;

    #[test]
    fn pods_on_a_node_terminate_gracefully() {
        let pods = resources::find("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        let marked = mark(pods, &pod, &DeleteOptions::default());
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        assert!(!is_finished(pods, &marked));
        let now = DeleteOptions {
            grace_period_seconds: Some(0),
            ..DeleteOptions::default()
        };
        assert!(is_finished(pods, &mark(pods, &marked, &now)));
    }

    #[test]
    fn propagation_becomes_a_finalizer() {
        let sets = resources::find("apps", "v1", "replicasets").unwrap();
        let object = json!({"metadata": {"name": "a", "finalizers": ["orphan", "x/y"]}});
        let options = DeleteOptions {
            propagation: Some(Propagation::Foreground),
            ..DeleteOptions::default()
        };
        let marked = mark(sets, &object, &options);
        assert_eq!(
            marked["metadata"]["finalizers"],
            json!(["x/y", "foregroundDeletion"])
        );
        assert!(!is_finished(sets, &marked));
    }

    #[test]
    fn namespaces_wait_for_their_content() {
        let namespaces = resources::find("", "v1", "namespaces").unwrap();
        let namespace = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}});
        let marked = mark(namespaces, &namespace, &DeleteOptions::default());
        assert!(!is_finished(namespaces, &marked));
        assert_eq!(marked["status"]["phase"], "Terminating");
    }
}

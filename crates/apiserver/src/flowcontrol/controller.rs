//! Keeps the configuration: the objects that every cluster has are put in place and kept as they are meant to be, the
//! objects there are take effect, and schemas tell whether their level exists.

use std::sync::Arc;
use std::time::Duration;

use fluyt_api::flowcontrol::{AUTO_UPDATE, Bootstrap, EXEMPT, FLOW_SCHEMAS, PRIORITY_LEVELS};
use fluyt_api::{Error, Reason, meta, resources};
use serde_json::{Value, json};

use crate::Server;
use crate::cache::{Filter, ResourceCache};
use crate::loopback::Loopback;
use crate::registry::{Change, Location};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";

/// Who writes what the objects shall be, and who what has become of them.
const PRODUCER: Loopback = Loopback("api-priority-and-fairness-config-producer-v1");
const CONSUMER: Loopback = Loopback("api-priority-and-fairness-config-consumer-v1");

/// How often seats are divided anew.
const ADJUSTMENT: Duration = Duration::from_secs(10);

/// A failed round is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

fn cache(server: &Server, plural: &str) -> Option<Arc<ResourceCache>> {
    let resource = resources::find(GROUP, "v1", plural)?;
    Some(server.caches.of(resource))
}

fn objects(cache: &ResourceCache) -> Vec<Value> {
    let entries = cache.snapshot().objects.entries;
    entries.values().map(|entry| entry.object()).collect()
}

/// Puts the mandatory and the suggested objects in place.
///
/// # Errors
/// When the store refuses.
pub async fn bootstrap(server: &Arc<Server>) -> Result<(), Error> {
    ensure(server, LEVELS, &PRIORITY_LEVELS).await?;
    ensure(server, SCHEMAS, &FLOW_SCHEMAS).await?;
    digest(server);
    Ok(())
}

/// Follows the objects until shutdown.
pub async fn run(server: Arc<Server>) {
    let (Some(levels), Some(schemas)) = (cache(&server, LEVELS), cache(&server, SCHEMAS)) else {
        return;
    };
    let mut adjust = tokio::time::interval(ADJUSTMENT);
    loop {
        let (_, _, mut level_changes) = levels.subscribe_with_state(Filter::default());
        let (_, _, mut schema_changes) = schemas.subscribe_with_state(Filter::default());
        loop {
            let delay = match round(&server).await {
                Ok(()) => Duration::MAX,
                Err(error) => {
                    tracing::warn!(%error, "flow control was not brought up to date");
                    RETRY
                }
            };
            let again = async {
                if delay == Duration::MAX {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(delay).await;
            };
            tokio::pin!(again);
            let watching = loop {
                tokio::select! {
                    change = level_changes.events.recv() => break change.is_some(),
                    change = schema_changes.events.recv() => break change.is_some(),
                    () = &mut again => break true,
                    _ = adjust.tick() => {
                        server.flow_control.adjust();
                        if server.flow_control.has_leftovers() {
                            break true;
                        }
                    }
                    () = server.shutdown.cancelled() => return,
                }
            };
            if !watching {
                break;
            }
            // One round for all that has changed.
            while level_changes.events.try_recv().is_ok() {}
            while schema_changes.events.try_recv().is_ok() {}
        }
    }
}

/// What is there takes effect first: it is what requests are treated by while the rest is repaired.
async fn round(server: &Arc<Server>) -> Result<(), Error> {
    digest(server);
    ensure(server, LEVELS, &PRIORITY_LEVELS).await?;
    ensure(server, SCHEMAS, &FLOW_SCHEMAS).await?;
    let Some(schemas) = cache(server, SCHEMAS) else {
        return Ok(());
    };
    for schema in objects(&schemas) {
        report(server, &schema).await?;
    }
    Ok(())
}

fn digest(server: &Server) {
    let (Some(levels), Some(schemas)) = (cache(server, LEVELS), cache(server, SCHEMAS)) else {
        return;
    };
    server
        .flow_control
        .install(&objects(&levels), &objects(&schemas));
}

/// Creates what is missing, and brings back what has been changed and must not be.
async fn ensure(server: &Arc<Server>, plural: &str, all: &Bootstrap) -> Result<(), Error> {
    for (object, mandatory) in all
        .mandatory
        .iter()
        .map(|o| (o, true))
        .chain(all.suggested.iter().map(|o| (o, false)))
    {
        let name = meta::name(object);
        let current = cache(server, plural).and_then(|c| c.get(name));
        let Some(current) = current else {
            PRODUCER
                .create(server, GROUP, plural, "", object.clone())
                .await?;
            continue;
        };
        let current = current.object();
        let wanted = maintained(&current, object, mandatory);
        if wanted == current {
            continue;
        }
        let resource = resources::find(GROUP, "v1", plural).ok_or_else(Error::no_route)?;
        let at = Location {
            resource,
            namespace: "",
            name,
            subresource: "",
        };
        let change: Change<'_> =
            Box::new(|current: &Value| Ok(maintained(current, object, mandatory)));
        match PRODUCER.update(server, at, change).await {
            Err(error) if error.reason != Reason::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The object as it is meant to be: by the annotation its spec is the server's to keep, or an administrator's.
fn maintained(current: &Value, wanted: &Value, mandatory: bool) -> Value {
    let automatic = mandatory
        || match meta::annotation(current, AUTO_UPDATE) {
            Some(value) => value == "true",
            // Nobody has said anything: an object that was never changed is not an administrator's.
            None => current["metadata"]["generation"] == 1,
        };
    let mut object = current.clone();
    let word = if automatic { "true" } else { "false" };
    meta::child(&mut object["metadata"], "annotations").insert(AUTO_UPDATE.into(), word.into());
    if automatic {
        let exempt = current["spec"]["exempt"].clone();
        object["spec"] = wanted["spec"].clone();
        // Of the exempt level the seats may be set.
        if meta::name(current) == EXEMPT && exempt.is_object() {
            object["spec"]["exempt"] = exempt;
        }
    }
    object
}

/// Says in a schema's status whether its level exists.
async fn report(server: &Arc<Server>, schema: &Value) -> Result<(), Error> {
    let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str();
    let level = level.unwrap_or_default();
    let exists = server.flow_control.has_level(level);
    let references = "This FlowSchema references the PriorityLevelConfiguration object named";
    let (status, reason, message) = if exists {
        (
            "False",
            "Found",
            format!("{references} {level:?} and it exists"),
        )
    } else {
        (
            "True",
            "NotFound",
            format!("{references} {level:?} but there is no such object"),
        )
    };
    let said = |schema: &Value| {
        let conditions = schema["status"]["conditions"].as_array();
        let dangling = conditions.and_then(|all| all.iter().find(|c| c["type"] == "Dangling"));
        dangling.is_some_and(|c| {
            c["status"] == status && c["reason"] == reason && c["message"] == message.as_str()
        })
    };
    if said(schema) {
        return Ok(());
    }
    let condition = json!({"type": "Dangling", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": meta::now()});
    let at = Location {
        resource: resources::find(GROUP, "v1", SCHEMAS).ok_or_else(Error::no_route)?,
        namespace: "",
        name: meta::name(schema),
        subresource: "",
    };
    let status = json!({"conditions": [condition]});
    match CONSUMER.apply_status(server, at, status).await {
        // It has been deleted in the meantime.
        Err(error) if error.reason != Reason::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_kept_until_an_administrator_takes_over() {
        let wanted = &PRIORITY_LEVELS.suggested[0];
        let mut current = wanted.clone();
        current["metadata"]["generation"] = 2.into();
        current["spec"]["limited"]["nominalConcurrencyShares"] = 1.into();
        assert_eq!(maintained(&current, wanted, false)["spec"], wanted["spec"]);
        current["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
        assert_eq!(maintained(&current, wanted, false), current);
        assert_eq!(maintained(&current, wanted, true)["spec"], wanted["spec"]);
        current["metadata"]["annotations"] = json!({});
        let kept = maintained(&current, wanted, false);
        assert_eq!(kept["spec"], current["spec"]);
        assert_eq!(meta::annotation(&kept, AUTO_UPDATE), Some("false"));
    }

    #[test]
    fn the_exempt_level_may_have_seats() {
        let wanted = &PRIORITY_LEVELS.mandatory[0];
        let mut current = wanted.clone();
        current["spec"]["exempt"]["lendablePercent"] = 40.into();
        assert_eq!(maintained(&current, wanted, true), current);
    }
}

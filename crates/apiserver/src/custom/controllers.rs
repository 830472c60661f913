//! What happens to definitions: their names are accepted, they are established, and when one is deleted its instances go
//! first. One task does it all, driven by the cache's watch.

use std::sync::Arc;

use fluyt_api::resources::{self, Resource};
use fluyt_api::strategy::customresourcedefinition::{
    CLEANUP_FINALIZER, condition, set_condition, violations,
};
use fluyt_api::{Error, Reason, meta};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::Server;
use crate::cache::Filter;
use crate::loopback::SERVER;
use crate::registry::{Change, DeleteOptions, Location};

/// Follows definitions until shutdown.
pub async fn run(server: Arc<Server>) {
    let Some(resource) = resources::find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
    else {
        return;
    };
    let cache = server.caches.of(resource);
    loop {
        let (present, _, mut watch) = cache.subscribe_with_state(Filter::default());
        for entry in present {
            settle(&server, resource, entry.name()).await;
        }
        loop {
            let event = tokio::select! {
                event = watch.events.recv() => event,
                () = server.shutdown.cancelled() => return,
            };
            let Some((_, event)) = event else { break };
            settle(&server, resource, event.entry.name()).await;
            if event.is_deletion()
                || freed_names(
                    &event.entry.object(),
                    event.previous.as_ref().map(|p| p.object()).as_ref(),
                )
            {
                // Names have become free; others of the group may have waited for them.
                for other in cache.snapshot().entries.values() {
                    settle(&server, resource, other.name()).await;
                }
            }
        }
    }
}

fn freed_names(new: &Value, old: Option<&Value>) -> bool {
    old.is_some_and(|old| old["status"]["acceptedNames"] != new["status"]["acceptedNames"])
}

/// Brings one definition as far as it can get now.
async fn settle(server: &Arc<Server>, resource: &'static Resource, name: &str) {
    let cache = server.caches.of(resource);
    for step in [accept_names as Step, establish, report_structure] {
        let Some(crd) = cache.get(name).map(|e| e.object()) else {
            return;
        };
        if let Some(changed) = step(server, &crd)
            && let Err(error) = put_status(server, resource, &changed).await
        {
            tracing::debug!(name, %error, "the status of a definition was not updated");
            return;
        }
    }
    let Some(crd) = cache.get(name).map(|e| e.object()) else {
        return;
    };
    if meta::is_terminating(&crd) && meta::finalizers(&crd).contains(&CLEANUP_FINALIZER) {
        let (server, name) = (server.clone(), name.to_owned());
        // Instances may hold it up for long; other definitions do not wait for that.
        tokio::spawn(async move {
            if let Err(error) = clean_up(&server, resource, crd).await {
                tracing::debug!(name, %error, "a definition's instances are not gone yet");
            }
        });
    }
}

type Step = fn(&Server, &Value) -> Option<Value>;

/// Writes the status that `wanted` has, if the object is still the one it was made of.
async fn put_status(
    server: &Server,
    resource: &'static Resource,
    wanted: &Value,
) -> Result<Value, Error> {
    let at = Location {
        resource,
        namespace: "",
        name: meta::name(wanted),
        subresource: "status",
    };
    let replace: Change<'_> = Box::new(|_: &Value| Ok(wanted.clone()));
    match SERVER.update(server, at, replace).await {
        // Somebody else was faster; the watch calls again.
        Err(error) if error.reason == Reason::Conflict => Ok(wanted.clone()),
        done => done,
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn accept_names(server: &Server, crd: &Value) -> Option<Value> {
    let requested = &crd["spec"]["names"];
    let accepted = &crd["status"]["acceptedNames"];
    if requested == accepted && condition(crd, "NamesAccepted").is_some() {
        return None;
    }
    let (in_use, kinds) = names_in_use(server, crd);
    let mut new = accepted.clone();
    let mut conflict: Option<(&str, String)> = None;
    let used = |name: &str| format!("\"{name}\" is already in use");
    for (field, taken, reason) in [
        ("plural", &in_use, "PluralConflict"),
        ("singular", &in_use, "SingularConflict"),
    ] {
        let name = text(&requested[field]);
        if requested[field] != accepted[field] && taken.iter().any(|t| t == name) {
            conflict = Some((reason, used(name)));
        } else {
            new[field] = requested[field].clone();
        }
    }
    if requested["shortNames"] != accepted["shortNames"] {
        let own = accepted["shortNames"].as_array();
        let taken: Vec<String> = requested["shortNames"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|n| !own.is_some_and(|own| own.contains(n)))
            .filter(|n| in_use.iter().any(|t| t == text(n)))
            .map(|n| used(text(n)))
            .collect();
        match taken.as_slice() {
            [] => new["shortNames"] = requested["shortNames"].clone(),
            [one] => conflict = Some(("ShortNamesConflict", one.clone())),
            many => conflict = Some(("ShortNamesConflict", format!("[{}]", many.join(", ")))),
        }
    }
    for (field, reason) in [("kind", "KindConflict"), ("listKind", "ListKindConflict")] {
        let name = text(&requested[field]);
        if requested[field] != accepted[field] && kinds.iter().any(|t| t == name) {
            conflict = Some((reason, used(name)));
        } else {
            new[field] = requested[field].clone();
        }
    }
    new["categories"] = requested["categories"].clone();
    if let Some(map) = new.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
    let mut changed = crd.clone();
    changed["status"]["acceptedNames"] = new;
    let accepted = conflict.is_none();
    match conflict {
        Some((reason, message)) => {
            set_condition(&mut changed, "NamesAccepted", false, reason, &message);
        }
        None => set_condition(
            &mut changed,
            "NamesAccepted",
            true,
            "NoConflicts",
            "no conflicts found",
        ),
    }
    let established = condition(crd, "Established").is_some_and(|c| c["status"] == "True");
    if accepted && !established {
        set_condition(
            &mut changed,
            "Established",
            false,
            "Installing",
            "the initial names have been accepted",
        );
    } else if condition(crd, "Established").is_none() {
        set_condition(
            &mut changed,
            "Established",
            false,
            "NotAccepted",
            "not all names are accepted",
        );
    }
    (changed["status"] != crd["status"]).then_some(changed)
}

/// The resource names and the kinds that other definitions of the group hold.
fn names_in_use(server: &Server, crd: &Value) -> (Vec<String>, Vec<String>) {
    let (mut names, mut kinds) = (Vec::new(), Vec::new());
    let Some(resource) = resources::find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
    else {
        return (names, kinds);
    };
    for entry in server.caches.of(resource).snapshot().entries.values() {
        let other = entry.object();
        if meta::name(&other) == meta::name(crd) || other["spec"]["group"] != crd["spec"]["group"] {
            continue;
        }
        let accepted = &other["status"]["acceptedNames"];
        let short = accepted["shortNames"].as_array().into_iter().flatten();
        let single = [&accepted["plural"], &accepted["singular"]];
        names.extend(single.into_iter().chain(short).map(|n| text(n).to_owned()));
        kinds.extend([&accepted["kind"], &accepted["listKind"]].map(|n| text(n).to_owned()));
    }
    // The built-in resources of a group were there first.
    for builtin in (server.caches.served().all())
        .filter(|r| r.definition.is_none() && crd["spec"]["group"] == r.group)
    {
        names.extend([builtin.plural, builtin.singular].map(str::to_owned));
        kinds.push(builtin.kind.to_owned());
    }
    (names, kinds)
}

fn establish(_: &Server, crd: &Value) -> Option<Value> {
    let holds = |ty: &str| condition(crd, ty).is_some_and(|c| c["status"] == "True");
    if !holds("NamesAccepted") || holds("Established") {
        return None;
    }
    let mut changed = crd.clone();
    set_condition(
        &mut changed,
        "Established",
        true,
        "InitialNamesAccepted",
        "the initial names have been accepted",
    );
    Some(changed)
}

/// A definition that an older server took may have a schema that is not structural.
fn report_structure(_: &Server, crd: &Value) -> Option<Value> {
    let mut problems = Vec::new();
    for (i, version) in crd["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_object() {
            let at = format!("spec.versions[{i}].schema.openAPIV3Schema");
            let found = violations(schema, &at).0;
            problems.extend(
                found
                    .into_iter()
                    .map(|c| format!("{}: {}", c.field, c.message)),
            );
        }
    }
    let mut changed = crd.clone();
    match problems.as_slice() {
        [] => {
            condition(crd, "NonStructuralSchema")?;
            let conditions = changed["status"]["conditions"].as_array_mut()?;
            conditions.retain(|c| c["type"] != "NonStructuralSchema");
        }
        [one] => set_condition(&mut changed, "NonStructuralSchema", true, "Violations", one),
        many => {
            let all = format!("[{}]", many.join(", "));
            set_condition(
                &mut changed,
                "NonStructuralSchema",
                true,
                "Violations",
                &all,
            );
        }
    }
    (changed["status"] != crd["status"]).then_some(changed)
}

/// Deletes the instances of a terminating definition, and when none is left lets it go.
fn clean_up<'a>(
    server: &'a Arc<Server>,
    resource: &'static Resource,
    crd: Value,
) -> BoxFuture<'a, Result<(), Error>> {
    Box::pin(async move {
        let mut crd = crd;
        let established = condition(&crd, "Established").is_some_and(|c| c["status"] == "True");
        if condition(&crd, "Terminating").is_none_or(|c| c["reason"] == "InstanceDeletionPending") {
            set_condition(
                &mut crd,
                "Terminating",
                true,
                "InstanceDeletionInProgress",
                "CustomResource deletion is in progress",
            );
            crd = put_status(server, resource, &crd).await?;
        }
        if established {
            delete_instances(server, &crd).await?;
            set_condition(
                &mut crd,
                "Terminating",
                false,
                "InstanceDeletionCompleted",
                "removed all instances",
            );
        } else {
            set_condition(
                &mut crd,
                "Terminating",
                false,
                "NeverEstablished",
                "resource was never established",
            );
        }
        let name = meta::name(&crd).to_owned();
        let at = Location {
            resource,
            namespace: "",
            name: &name,
            subresource: "",
        };
        let release: Change<'_> = Box::new(|current: &Value| {
            let mut object = current.clone();
            let left: Vec<&str> = meta::finalizers(current)
                .into_iter()
                .filter(|f| *f != CLEANUP_FINALIZER)
                .collect();
            let left = if left.is_empty() {
                Value::Null
            } else {
                json!(left)
            };
            meta::set(&mut object, "finalizers", left);
            Ok(object)
        });
        match SERVER.update(server, at, release).await {
            Err(error) if error.reason != Reason::NotFound => Err(error),
            _ => Ok(()),
        }
    })
}

/// Deletes every instance and waits until the last finalizer has let go.
async fn delete_instances(server: &Arc<Server>, crd: &Value) -> Result<(), Error> {
    let (group, plural) = (
        text(&crd["spec"]["group"]),
        text(&crd["spec"]["names"]["plural"]),
    );
    let served = server.caches.served();
    let Some(resource) = served
        .custom()
        .iter()
        .find(|r| r.group == group && r.plural == plural)
    else {
        return Ok(());
    };
    let cache = server.caches.of(resource);
    let (present, _, mut watch) = cache.subscribe_with_state(Filter::default());
    for entry in present {
        let at = Location {
            resource,
            namespace: entry.namespace(),
            name: entry.name(),
            subresource: "",
        };
        match SERVER.delete(server, at, &DeleteOptions::default()).await {
            Err(error) if error.reason != Reason::NotFound => return Err(error),
            _ => {}
        }
    }
    while !cache.snapshot().entries.is_empty() {
        tokio::select! {
            event = watch.events.recv() => if event.is_none() {
                return Err(Error::internal("the watch of the instances ended"));
            },
            () = server.shutdown.cancelled() => return Err(Error::internal("shutting down")),
        }
    }
    Ok(())
}

//! Subresources: parts of an object with an endpoint of their own.

use fluyt_api::resources::Resource;
use fluyt_api::selector::LabelSelector;
use fluyt_api::validation::At;
use fluyt_api::{Cause, Error, Reason, custom, meta, resources};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::apply::{self, Apply};
use super::{Call, decode, proxy, read, token, write};
use crate::http::{self as responses, Body};
use crate::loopback::SERVER;
use crate::registry::{Change, DeleteOptions, Location, WriteContext};

pub(super) async fn handle(mut call: Call) -> Result<Response<Body>, Error> {
    let Some(subresource) = call.target.subresource_entry() else {
        return Err(Error::no_route());
    };
    let connects = ["exec", "attach", "portforward", "proxy"].contains(&subresource.name);
    if !connects && !subresource.verbs.contains(&call.info.verb) {
        return Err(Error::no_method());
    }
    match subresource.name {
        "status" | "ephemeralcontainers" | "resize" | "approval" | "finalize" => {
            part(&mut call).await
        }
        "scale" => scale(&mut call).await,
        "binding" => binding(&mut call).await,
        "eviction" => eviction(&mut call).await,
        "token" => token::request(&mut call).await,
        "log" | "exec" | "attach" | "portforward" | "proxy" => proxy::handle(call).await,
        _ => Err(Error::no_route()),
    }
}

/// A subresource that is a part of the object itself: reading gives the object, writing changes the part.
async fn part(call: &mut Call) -> Result<Response<Body>, Error> {
    match call.info.verb {
        "get" => read::get(call).await,
        "patch" => write::patch(call).await,
        _ => write::update(call).await,
    }
}

/// How a scale is written.
enum Scaling {
    Update(Value),
    Patch(write::Format, bytes::Bytes),
    Apply(Apply),
}

async fn scale(call: &mut Call) -> Result<Response<Body>, Error> {
    let present = call.server.registry.get(call.location()).await?.object();
    if call.info.verb == "get" {
        return Ok(responses::json(
            StatusCode::OK,
            &to_scale(&call.resource, &present),
        ));
    }
    let mut cx = call.write_context()?;
    let kind = ("autoscaling", "v1", "Scale");
    let write = match call.info.verb {
        "patch" => match write::Format::of(call)? {
            format if format.is_apply() => Scaling::Apply(Apply::read(call, format).await?),
            format => Scaling::Patch(format, responses::collect(call.take_body()).await?),
        },
        _ => {
            let body = responses::collect(call.take_body()).await?;
            let query = &call.info.query;
            let sent = decode::object(&call.parts, &body, query, kind)?.object;
            write::check_name(call, &sent)?;
            Scaling::Update(sent)
        }
    };
    if let Some(writer) = &mut cx.writer {
        writer.applied = matches!(write, Scaling::Apply(_));
    }
    let (query, resource) = (call.info.query.clone(), call.resource.clone());
    let change: Change<'_> = Box::new(|current: &Value| {
        let mut managed = current["metadata"]["managedFields"].clone();
        let wanted = match &write {
            Scaling::Update(sent) => sent.clone(),
            Scaling::Patch(format, body) => {
                let mut scale = to_scale(&resource, current);
                match format {
                    write::Format::Json => fluyt_api::patch::json_patch(&mut scale, body)?,
                    _ => fluyt_api::patch::merge_patch(&mut scale, body)?,
                }
                decode::typed(scale, decode::Sent::default(), &query, kind)?.object
            }
            Scaling::Apply(apply) => {
                let (scale, left) =
                    apply::scale(call, apply, current, to_scale(&resource, current))?;
                managed = left;
                decode::typed(scale, decode::Sent::default(), &query, kind)?.object
            }
        };
        let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let mut errors = fluyt_api::validation::Errors::default();
            errors.invalid(
                "spec.replicas",
                &replicas.into(),
                "must be greater than or equal to 0",
            );
            return Err(Error::invalid(
                "autoscaling",
                "Scale",
                meta::name(&wanted),
                errors.0,
            ));
        }
        let mut object = current.clone();
        meta::set(
            &mut object,
            "resourceVersion",
            wanted["metadata"]["resourceVersion"].clone(),
        );
        let scale = resource.definition.as_ref().and_then(|d| d.scale.as_ref());
        let path = scale.map_or(".spec.replicas", |scale| &*scale.spec_replicas);
        custom::set_path(&mut object, path, replicas.into());
        meta::set(&mut object, "managedFields", managed);
        Ok(object)
    });
    let updated = call
        .server
        .registry
        .update(&cx, call.location(), change)
        .await?;
    Ok(responses::json(
        StatusCode::OK,
        &to_scale(&call.resource, &updated),
    ))
}

fn to_scale(resource: &Resource, object: &Value) -> Value {
    let number = |path: &str| {
        let value = custom::at_path(object, path).and_then(Value::as_i64);
        value.unwrap_or(0)
    };
    let scale = resource.definition.as_ref().and_then(|d| d.scale.as_ref());
    if let Some(scale) = scale {
        let selector = scale
            .label_selector
            .as_ref()
            .and_then(|path| custom::at_path(object, path)?.as_str());
        let mut status = json!({"replicas": number(&scale.status_replicas)});
        if let Some(selector) = selector {
            status["selector"] = selector.into();
        }
        return scale_object(object, number(&scale.spec_replicas), &status);
    }
    let selector = &object["spec"]["selector"];
    let selector = if selector["matchLabels"].is_object() || selector["matchExpressions"].is_array()
    {
        LabelSelector::from_json(selector).unwrap_or_default()
    } else {
        LabelSelector::from_match_labels(selector.as_object())
    };
    let status = json!({"replicas": number(".status.replicas"), "selector": selector.to_string()});
    scale_object(object, number(".spec.replicas"), &status)
}

fn scale_object(object: &Value, replicas: i64, status: &Value) -> Value {
    let mut metadata = json!({});
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        metadata[field] = object["metadata"][field].clone();
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": if replicas == 0 { json!({}) } else { json!({"replicas": replicas}) }, "status": status,
    })
}

fn success() -> Response<Body> {
    responses::json(
        StatusCode::CREATED,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    )
}

/// A decision that is sent to all bindings, as the first schedulers did.
pub(super) async fn any_binding(mut call: Call) -> Result<Response<Body>, Error> {
    if call.info.verb != "create" || !call.target.name.is_empty() {
        return Err(Error::no_method());
    }
    let pods = resources::find("", "v1", "pods").ok_or_else(Error::no_route)?;
    call.resource = pods.into();
    call.target.subresource = "binding".into();
    binding(&mut call).await
}

/// A scheduler's decision.
async fn binding(call: &mut Call) -> Result<Response<Body>, Error> {
    let cx = WriteContext {
        // The server sets the node; nobody comes to own it.
        writer: None,
        ..call.write_context()?
    };
    let body = responses::collect(call.take_body()).await?;
    let binding =
        decode::object(&call.parts, &body, &call.info.query, ("", "v1", "Binding"))?.object;
    if call.target.name.is_empty() {
        meta::name(&binding).clone_into(&mut call.target.name);
    }
    own_name(call, &binding, "Binding")?;
    validate_binding(&binding)?;
    let node = binding["target"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let uid = meta::uid(&binding).to_owned();
    let name = call.target.name.clone();
    let namespace = call.target.namespace.clone();
    let change: Change<'_> = Box::new(|current: &Value| {
        let conflict = |why: String| Error::conflict("", "pods/binding", &name, why);
        if !uid.is_empty() && uid != meta::uid(current) {
            let found = meta::uid(current);
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: /pods/{namespace}/{name}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {uid}, UID in object meta: {found}"
            );
            return Err(Error::conflict("", "pods", &name, why));
        }
        if meta::is_terminating(current) {
            return Err(conflict(format!(
                "pod {name} is being deleted, cannot be assigned to a host"
            )));
        }
        if let Some(assigned) = current["spec"]["nodeName"]
            .as_str()
            .filter(|n| !n.is_empty())
        {
            return Err(conflict(format!(
                "pod {name} is already assigned to node \"{assigned}\""
            )));
        }
        if current["spec"]["schedulingGates"]
            .as_array()
            .is_some_and(|g| !g.is_empty())
        {
            return Err(conflict(format!(
                "pod {name} has non-empty .spec.schedulingGates"
            )));
        }
        let mut pod = current.clone();
        pod["spec"]["nodeName"] = node.clone().into();
        if let Some(annotations) = binding["metadata"]["annotations"].as_object() {
            let metadata = meta::metadata(&mut pod);
            let slot = metadata.entry("annotations").or_insert_with(|| json!({}));
            if let Some(present) = slot.as_object_mut() {
                present.extend(annotations.clone());
            }
        }
        set_condition(
            &mut pod,
            json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": meta::now()}),
        );
        Ok(pod)
    });
    call.server
        .registry
        .update(&cx, call.location(), change)
        .await?;
    Ok(success())
}

/// Whoever sends an object to a pod's endpoint names the pod in it.
fn own_name(call: &Call, object: &Value, kind: &str) -> Result<(), Error> {
    super::own_namespace(call, object)?;
    if meta::name(object) == call.target.name {
        return Ok(());
    }
    let why = format!("name in URL does not match name in {kind} object");
    Err(Error::bad_request(why))
}

/// What is wrong with a binding is told in a sentence and without a reason, as upstream tells it.
fn validate_binding(binding: &Value) -> Result<(), Error> {
    let mut errors = fluyt_api::validation::Errors::default();
    let root = At::root(binding);
    let target = root.field("target");
    let kind = target.field("kind");
    if !kind.is_empty() {
        errors.one_of(kind, kind.value(), &["Node", "<empty>"]);
    }
    errors.required_text(&target.field("name"));
    match crate::validation::sentence(&errors) {
        Some(why) => Err(Error::new(Reason::Unknown, why)),
        None => Ok(()),
    }
}

/// Replaces the condition of the same type, keeping its transition time when the status stays.
fn set_condition(object: &mut Value, mut condition: Value) {
    let status = meta::child(object, "status");
    let list = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = list.as_array_mut() else {
        return;
    };
    match conditions
        .iter_mut()
        .find(|c| c["type"] == condition["type"])
    {
        Some(present) => {
            if present["status"] == condition["status"] {
                condition["lastTransitionTime"] = present["lastTransitionTime"].clone();
            }
            *present = condition;
        }
        None => conditions.push(condition),
    }
}

/// Deletes a pod if the disruption budgets that cover it allow one more.
async fn eviction(call: &mut Call) -> Result<Response<Body>, Error> {
    let mut cx = call.write_context()?;
    let body = responses::collect(call.take_body()).await?;
    let eviction = decode::object(
        &call.parts,
        &body,
        &call.info.query,
        ("policy", "v1", "Eviction"),
    )?
    .object;
    own_name(call, &eviction, "Eviction")?;
    let own_run = eviction["deleteOptions"]["dryRun"].as_array();
    let own_run: Vec<&str> = own_run
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if cx.dry_run && !own_run.is_empty() && own_run != ["All"] {
        let found = own_run.join(" ");
        let why =
            format!("Non-matching dry-run options in request and content: [All] and [{found}]");
        return Err(Error::new(Reason::Unknown, why));
    }
    cx.dry_run |= !own_run.is_empty();
    let mut options = DeleteOptions::parse(&eviction["deleteOptions"], &call.info.query)?;
    let at = Location {
        subresource: "",
        ..call.location()
    };
    let pod = call.server.registry.get(at).await?.object();
    // Nothing is spent on the eviction of another pod than the one that is meant.
    options.check(&pod, at)?;
    let ended = matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed" | "Pending")
    );
    let budgets = budgets_of(call, &pod);
    if !ended && !meta::is_terminating(&pod) {
        match budgets.as_slice() {
            [] => {}
            [budget] => take_disruption(call, &pod, budget, cx.dry_run).await?,
            _ => {
                return Err(Error::new(
                    Reason::InternalError,
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        }
    }
    if !cx.dry_run {
        mark_disrupted(call, at, &mut options).await?;
    }
    call.server.registry.delete(&cx, at, &options).await?;
    Ok(success())
}

/// Says of a pod why it ends. If only one version of it is to be deleted, that is then the marked one.
async fn mark_disrupted(
    call: &Call,
    at: Location<'_>,
    options: &mut DeleteOptions,
) -> Result<(), Error> {
    let wanted = options.clone();
    let mark: Change<'_> = Box::new(|current: &Value| {
        wanted.check(current, at)?;
        let mut pod = current.clone();
        set_condition(
            &mut pod,
            json!({
                "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": meta::now(),
            }),
        );
        Ok(pod)
    });
    let cx = WriteContext {
        user: call.user.clone(),
        ..WriteContext::default()
    };
    let status = Location {
        subresource: "status",
        ..at
    };
    let marked = call.server.registry.update(&cx, status, mark).await?;
    if let Some(version) = &mut options.resource_version {
        meta::resource_version(&marked).clone_into(version);
    }
    Ok(())
}

/// Names of the budgets whose selectors match a pod.
fn budgets_of(call: &Call, pod: &Value) -> Vec<String> {
    let Some(budgets) = resources::find("policy", "v1", "poddisruptionbudgets") else {
        return Vec::new();
    };
    let snapshot = call.server.caches.of(budgets).snapshot();
    snapshot
        .entries
        .values()
        .filter(|e| e.namespace() == call.target.namespace)
        .filter(|e| {
            LabelSelector::from_json(&e.object()["spec"]["selector"])
                .is_ok_and(|s| s.matches(meta::labels(pod)))
        })
        .map(|e| e.name().to_owned())
        .collect()
}

/// Why a budget allows nothing. Its counts say nothing when they could not be brought up to date.
fn exhausted(status: &Value, healthy: i64, desired: i64) -> String {
    const NOT_NOW: &str = "does not allow evicting pods currently";
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let text = |condition: &Value, field: &str| condition[field].as_str().map(str::to_owned);
    let told = conditions
        .filter(|c| c["type"] == "DisruptionAllowed" && c["status"] == "False")
        .find_map(|c| {
            Some((
                text(c, "reason")?,
                text(c, "message").filter(|m| !m.is_empty())?,
            ))
        });
    match told {
        Some((reason, message)) if reason == "SyncFailed" => {
            format!("{NOT_NOW} because it failed sync: {message}")
        }
        _ if healthy <= desired => {
            format!("needs {desired} healthy pods and has {healthy} currently")
        }
        Some((reason, message)) => format!("{NOT_NOW} ({reason}): {message}"),
        None => NOT_NOW.to_owned(),
    }
}

/// Seconds after which a budget that has changed may be asked again.
const UNOBSERVED: u32 = 10;

async fn take_disruption(
    call: &Call,
    pod: &Value,
    budget: &str,
    dry_run: bool,
) -> Result<(), Error> {
    let Some(resource) = resources::find("policy", "v1", "poddisruptionbudgets") else {
        return Ok(());
    };
    let at = Location {
        resource,
        namespace: &call.target.namespace,
        name: budget,
        subresource: "status",
    };
    let pod_name = meta::name(pod).to_owned();
    let ready = pod["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    let take: Change<'_> = Box::new(|current: &Value| {
        let status = &current["status"];
        let (healthy, desired) = (
            status["currentHealthy"].as_i64().unwrap_or(0),
            status["desiredHealthy"].as_i64().unwrap_or(0),
        );
        // A pod that is not ready anyway may go when the healthy ones suffice.
        if !ready
            && (current["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
                || (healthy >= desired && desired > 0))
        {
            return Ok(current.clone());
        }
        let observed = status["observedGeneration"].as_i64().unwrap_or(0);
        let allowed = status["disruptionsAllowed"].as_i64().unwrap_or(0);
        let refused = |message: String, retry_after: u32| {
            let why = "Cannot evict pod as it would violate the pod's disruption budget.";
            let mut error = Error::too_many_requests(why, retry_after);
            error.causes.push(Cause {
                reason: "DisruptionBudget",
                message,
                field: String::new(),
            });
            error
        };
        if observed < meta::generation(current) {
            let why =
                format!("The disruption budget {budget} is still being processed by the server.");
            return Err(refused(why, UNOBSERVED));
        }
        if allowed <= 0 {
            let why = exhausted(status, healthy, desired);
            return Err(refused(format!("The disruption budget {budget} {why}"), 0));
        }
        let mut object = current.clone();
        object["status"]["disruptionsAllowed"] = (allowed - 1).into();
        object["status"]["disruptedPods"][&pod_name] = meta::now().into();
        if allowed == 1 {
            set_condition(
                &mut object,
                json!({
                    "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
                    "observedGeneration": observed, "lastTransitionTime": meta::now(),
                }),
            );
        }
        Ok(object)
    });
    let cx = WriteContext {
        dry_run,
        ..SERVER.context(resource)
    };
    call.server.registry.update(&cx, at, take).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_name_their_selector() {
        let deployment = json!({"metadata": {"name": "a"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "x"}}}, "status": {"replicas": 2}});
        let deployments = resources::find("apps", "v1", "deployments").unwrap();
        let scale = to_scale(deployments, &deployment);
        assert_eq!(
            (&scale["spec"]["replicas"], &scale["status"]["selector"]),
            (&3.into(), &"app=x".into())
        );
    }

    #[test]
    fn budgets_say_why_they_allow_nothing() {
        let failed = |reason: &str, message: &str| json!({"conditions": [{"type": "DisruptionAllowed", "status": "False", "reason": reason, "message": message}]});
        for (status, (healthy, desired), why) in [
            (
                failed("InsufficientPods", ""),
                (1, 1),
                "needs 1 healthy pods and has 1 currently",
            ),
            (
                failed("SyncFailed", "no scale"),
                (1, 1),
                "does not allow evicting pods currently because it failed sync: no scale",
            ),
            (
                failed("Other", "later"),
                (2, 1),
                "does not allow evicting pods currently (Other): later",
            ),
            (json!({}), (2, 1), "does not allow evicting pods currently"),
        ] {
            assert_eq!(exhausted(&status, healthy, desired), why);
        }
    }

    #[test]
    fn conditions_keep_their_transition_time() {
        let mut pod = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "then"}]}});
        set_condition(
            &mut pod,
            json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": "now"}),
        );
        assert_eq!(pod["status"]["conditions"][0]["lastTransitionTime"], "then");
    }
}

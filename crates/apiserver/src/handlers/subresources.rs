//! Subresources: parts of an object with an endpoint of their own.

use fluyt_api::resources::Resource;
use fluyt_api::selector::LabelSelector;
use fluyt_api::{Cause, Error, Reason, custom, meta, resources};
use fluyt_pki::{Claims, KubernetesClaims, NamedReference};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::apply::{self, Apply};
use super::{Call, decode, proxy, read, write};
use crate::http::{self as responses, Body};
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
        "token" => token(&mut call).await,
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
            Scaling::Update(decode::object(&call.parts, &body, query, kind)?.object)
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
                decode::typed(scale, Vec::new(), &query, kind)?.object
            }
            Scaling::Apply(apply) => {
                let (scale, left) =
                    apply::scale(call, apply, current, to_scale(&resource, current))?;
                managed = left;
                decode::typed(scale, Vec::new(), &query, kind)?.object
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
        "spec": {"replicas": replicas}, "status": status,
    })
}

fn success() -> Response<Body> {
    responses::json(
        StatusCode::CREATED,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    )
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
    let node = binding["target"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    if node.is_empty() {
        let mut errors = fluyt_api::validation::Errors::default();
        errors.required("target.name", "");
        return Err(Error::invalid("", "Binding", &call.target.name, errors.0));
    }
    let uid = meta::uid(&binding).to_owned();
    let name = call.target.name.clone();
    let change: Change<'_> = Box::new(|current: &Value| {
        let conflict = |why: String| Error::conflict("", "pods/binding", &name, why);
        if !uid.is_empty() && uid != meta::uid(current) {
            return Err(conflict(format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                meta::uid(current)
            )));
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
    let options = DeleteOptions::parse(&eviction["deleteOptions"], &call.info.query)?;
    cx.dry_run |= eviction["deleteOptions"]["dryRun"]
        .as_array()
        .is_some_and(|d| !d.is_empty());
    let at = call.location();
    let pod = call.server.registry.get(at).await?.object();
    let ended = matches!(
        pod["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed" | "Pending")
    );
    let budgets = budgets_of(call, &pod);
    if !ended && !meta::is_terminating(&pod) {
        match budgets.as_slice() {
            [] => {}
            [budget] => take_disruption(call, &pod, budget).await?,
            _ => {
                return Err(Error::new(
                    Reason::InternalError,
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        }
    }
    let at = Location {
        subresource: "",
        ..at
    };
    call.server.registry.delete(&cx, at, &options).await?;
    Ok(success())
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

async fn take_disruption(call: &Call, pod: &Value, budget: &str) -> Result<(), Error> {
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
        if observed < meta::generation(current) || allowed <= 0 {
            let mut error = Error::too_many_requests(
                "Cannot evict pod as it would violate the pod's disruption budget.",
                0,
            );
            error.causes.push(Cause {
                reason: "DisruptionBudget",
                message: format!("The disruption budget {budget} needs {desired} healthy pods and has {healthy} currently"),
                field: String::new(),
            });
            return Err(error);
        }
        let mut object = current.clone();
        object["status"]["disruptionsAllowed"] = (allowed - 1).into();
        object["status"]["disruptedPods"][&pod_name] = meta::now().into();
        Ok(object)
    });
    let cx = WriteContext {
        user: call.user.clone(),
        ..WriteContext::default()
    };
    call.server.registry.update(&cx, at, take).await.map(drop)
}

/// Shortest lifetime of a token, in seconds.
const MIN_TOKEN_SECONDS: i64 = 600;

async fn token(call: &mut Call) -> Result<Response<Body>, Error> {
    let body = responses::collect(call.take_body()).await?;
    let query = &call.info.query;
    let mut request = decode::object(
        &call.parts,
        &body,
        query,
        ("authentication.k8s.io", "v1", "TokenRequest"),
    )?
    .object;
    let at = Location {
        subresource: "",
        ..call.location()
    };
    let account = call.server.registry.get(at).await?.object();
    let cx = call.write_context()?;
    call.server
        .registry
        .admit_token(&cx, call.location(), &request)
        .await?;
    let spec = &request["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(3600);
    if seconds < MIN_TOKEN_SECONDS {
        let mut errors = fluyt_api::validation::Errors::default();
        errors.invalid(
            "spec.expirationSeconds",
            &seconds.into(),
            "may not specify a duration less than 10 minutes",
        );
        return Err(Error::invalid(
            "authentication.k8s.io",
            "TokenRequest",
            "",
            errors.0,
        ));
    }
    let mut audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(Into::into))
        .collect();
    if audiences.is_empty() {
        audiences = call.server.authenticator.audiences().to_vec();
    }
    let now = jiff::Timestamp::now().as_second();
    let mut claims = Claims {
        iss: call.server.config.service_account_issuer.clone(),
        sub: format!(
            "system:serviceaccount:{}:{}",
            call.target.namespace, call.target.name
        ),
        aud: audiences.clone(),
        exp: now + seconds,
        iat: now,
        nbf: now,
        jti: Some(uuid::Uuid::new_v4().to_string()),
        kubernetes: KubernetesClaims {
            namespace: call.target.namespace.clone(),
            serviceaccount: NamedReference {
                name: call.target.name.clone(),
                uid: meta::uid(&account).to_owned(),
            },
            pod: None,
            secret: None,
            node: None,
        },
    };
    bind(call, &spec["boundObjectRef"], &mut claims).await?;
    let token = call.server.tokens.sign(&claims).map_err(Error::internal)?;
    if let Some(id) = &claims.jti {
        let key = "authentication.kubernetes.io/issued-credential-id";
        call.record().annotate(key, format!("JTI={id}"));
    }
    let expires = jiff::Timestamp::from_second(claims.exp).map_err(Error::internal)?;
    request["metadata"] = json!({"name": call.target.name, "namespace": call.target.namespace, "creationTimestamp": meta::now()});
    request["spec"]["audiences"] = audiences.into();
    request["spec"]["expirationSeconds"] = seconds.into();
    request["status"] = json!({"token": token, "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
    Ok(responses::json(StatusCode::CREATED, &request))
}

/// Ties a token to the object that it is requested for.
async fn bind(call: &Call, reference: &Value, claims: &mut Claims) -> Result<(), Error> {
    if reference.is_null() {
        return Ok(());
    }
    let (kind, name) = (
        reference["kind"].as_str().unwrap_or_default(),
        reference["name"].as_str().unwrap_or_default(),
    );
    let (plural, namespace) = match kind {
        "Pod" => ("pods", call.target.namespace.as_str()),
        "Secret" => ("secrets", call.target.namespace.as_str()),
        "Node" => ("nodes", ""),
        other => {
            return Err(Error::bad_request(format!(
                "cannot bind token for serviceaccount \"{}\" to type {other}",
                call.target.name
            )));
        }
    };
    let resource = resources::find("", "v1", plural).ok_or_else(Error::no_route)?;
    let at = Location {
        resource,
        namespace,
        name,
        subresource: "",
    };
    let object = call.server.registry.get(at).await?.object();
    let uid = meta::uid(&object).to_owned();
    if let Some(wanted) = reference["uid"]
        .as_str()
        .filter(|u| !u.is_empty() && *u != uid)
    {
        let why = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Error::conflict("", plural, name, why));
    }
    let bound = NamedReference {
        name: name.to_owned(),
        uid,
    };
    match kind {
        "Pod" => {
            if object["spec"]["serviceAccountName"] != call.target.name.as_str() {
                return Err(Error::bad_request(format!(
                    "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
                    call.target.name
                )));
            }
            if let Some(node) = object["spec"]["nodeName"]
                .as_str()
                .filter(|n| !n.is_empty())
            {
                let nodes = resources::find("", "v1", "nodes").ok_or_else(Error::no_route)?;
                let found = call.server.caches.of(nodes).get(node);
                claims.kubernetes.node = Some(NamedReference {
                    name: node.to_owned(),
                    uid: found.map_or_else(String::new, |n| meta::uid(&n.object()).to_owned()),
                });
            }
            claims.kubernetes.pod = Some(bound);
        }
        "Secret" => claims.kubernetes.secret = Some(bound),
        _ => claims.kubernetes.node = Some(bound),
    }
    Ok(())
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
    fn conditions_keep_their_transition_time() {
        let mut pod = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "then"}]}});
        set_condition(
            &mut pod,
            json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": "now"}),
        );
        assert_eq!(pod["status"]["conditions"][0]["lastTransitionTime"], "then");
    }
}

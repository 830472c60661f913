//! Asynchronous operations: the two URLs under which a client follows one.
//!
//! `Prefer: wait=20` (RFC 7240) makes us answer when something has happened, or after as many seconds: our own command
//! line follows operations that way instead of asking again and again.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Call;
use super::error::{ArmError, Result};
use crate::service::Service;
use crate::state::{Operation, Tables};

/// Seconds that clients are asked to wait between two looks.
const RETRY_AFTER: &str = "1";

const LONGEST_WAIT: u64 = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Create,
    Update,
    Delete,
}

// === impl Verb ===

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// Records a new operation; its id.
pub fn begin(
    tables: &mut Tables,
    call: &Call,
    location: &str,
    resource_id: &str,
    verb: Verb,
) -> String {
    let id = uuid::Uuid::new_v4().to_string();
    let operation = Operation {
        id: id.clone(),
        subscription: call.subscription.clone(),
        location: location.to_owned(),
        resource_id: resource_id.to_owned(),
        verb: verb.as_str().to_owned(),
        started: Timestamp::now(),
        ended: None,
        error: None,
    };
    tables.operations.insert(id.clone(), Arc::new(operation));
    id
}

/// Adds the headers with which a client follows the operation.
pub fn follow(call: &Call, location: &str, operation: &str, response: &mut Response) {
    let url = |kind: &str| {
        format!(
            "{}/subscriptions/{}/providers/Microsoft.ContainerService/locations/{location}/{kind}/{operation}?api-version={}",
            call.origin, call.subscription, call.api_version
        )
    };
    let headers = [
        ("azure-asyncoperation", url("operations")),
        ("location", url("operationresults")),
        ("retry-after", RETRY_AFTER.into()),
    ];
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response
                .headers_mut()
                .insert(header::HeaderName::from_static(name), value);
        }
    }
}

/// 202, to be followed.
pub fn accepted(call: &Call, location: &str, operation: &str) -> Result<Response> {
    let mut response = StatusCode::ACCEPTED.into_response();
    follow(call, location, operation, &mut response);
    Ok(response)
}

fn find(call: &Call, id: &str) -> Result<Arc<Operation>> {
    call.service
        .state
        .read()
        .operations
        .get(id)
        .cloned()
        .ok_or_else(|| {
            ArmError::new(
                StatusCode::NOT_FOUND,
                "NotFound",
                format!("The operation '{id}' could not be found."),
            )
        })
}

/// The operation, after waiting for news of it as long as the client prefers.
async fn awaited(call: &Call, id: &str) -> Result<(Arc<Operation>, Option<String>)> {
    let state = &call.service.state;
    let mut changes = state.subscribe();
    let look = || find(call, id).map(|operation| (operation, state.progress(id)));
    let first = look()?;
    let wait = call
        .header("prefer")
        .and_then(|p| p.trim().strip_prefix("wait="))
        .and_then(|s| s.parse().ok());
    let Some(wait) = wait.filter(|_| first.0.ended.is_none()) else {
        return Ok(first);
    };
    // A client that has seen a step waits for the next one.
    let seen = call
        .query
        .iter()
        .find(|(key, _)| key == "seen")
        .map(|(_, step)| step.clone());
    let news = async {
        loop {
            let now = look()?;
            if now.0.ended.is_some() || now.1.as_deref().map(step_id) != seen {
                return Ok(now);
            }
            if changes.changed().await.is_err() {
                return Ok(now);
            }
        }
    };
    match tokio::time::timeout(Duration::from_secs(LONGEST_WAIT.min(wait)), news).await {
        Ok(news) => news,
        Err(_) => look(),
    }
}

/// A step in a form that fits a URL.
fn step_id(step: &str) -> String {
    super::view::pseudo_guid(step, 0)
}

/// `Azure-AsyncOperation`.
pub async fn status(call: &Call, id: &str) -> Result<Response> {
    let (operation, step) = awaited(call, id).await?;
    let mut body = json!({
        "id": format!(
            "/subscriptions/{}/providers/Microsoft.ContainerService/locations/{}/operations/{id}",
            operation.subscription, operation.location
        ),
        "name": id,
        "resourceId": operation.resource_id,
        "status": operation.status(),
        "startTime": operation.started.to_string(),
    });
    if let Some(ended) = operation.ended {
        body["endTime"] = ended.to_string().into();
    }
    if let Some(error) = &operation.error {
        body["error"] = error.clone();
    }
    if let Some(step) = step {
        body["properties"] = json!({"step": step, "stepId": step_id(&step)});
    }
    let mut response = Json(body).into_response();
    if operation.ended.is_none() {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    }
    Ok(response)
}

/// `Location`.
pub async fn result(call: &Call, id: &str) -> Result<Response> {
    let (operation, _) = awaited(call, id).await?;
    if operation.ended.is_none() {
        return accepted(call, &operation.location, id);
    }
    if let Some(error) = &operation.error {
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        return Err(ArmError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            &text("code"),
            text("message"),
        ));
    }
    match resource(call, &operation) {
        Some(value) => Ok(Json(value).into_response()),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// What the operation made, if it is still there.
fn resource(call: &Call, operation: &Operation) -> Option<Value> {
    let tables = call.service.state.read();
    let cluster = tables
        .clusters
        .values()
        .find(|c| operation.resource_id.starts_with(&c.resource_id()))?;
    match operation
        .resource_id
        .strip_prefix(&cluster.resource_id())?
        .strip_prefix("/agentPools/")
    {
        Some(pool) => cluster
            .pool(pool)
            .map(|pool| super::view::pool(cluster, pool)),
        None => Some(super::view::cluster(cluster)),
    }
}

/// Removes a group once its clusters are gone.
pub fn delete_group_when_empty(service: Arc<Service>, key: (String, String), operation: String) {
    let tracker = service.supervisors.clone();
    tracker.spawn(async move {
        let mut changes = service.state.subscribe();
        let is_empty = || {
            !service
                .state
                .read()
                .clusters
                .keys()
                .any(|c| (&c.subscription, &c.group) == (&key.0, &key.1))
        };
        while !is_empty() {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = service.shutdown.cancelled() => return,
            }
        }
        let removed = service.state.update(|tables| {
            tables.groups.remove(&key);
            tables.finish(&operation, None);
            anyhow::Ok(())
        });
        if let Err(error) = removed.await {
            tracing::error!(
                error = format!("{error:#}"),
                "cannot remove a resource group"
            );
        }
    });
}

/// Goes on with deletions of groups that a restart of the service interrupted.
pub fn resume_group_deletions(service: &Arc<Service>) {
    let tables = service.state.read();
    for operation in tables.operations.values().filter(|o| o.ended.is_none()) {
        let mut segments = operation.resource_id.trim_start_matches('/').split('/');
        if let (Some(_), Some(subscription), Some("resourceGroups"), Some(group), None) = (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) {
            let key = (subscription.to_lowercase(), group.to_lowercase());
            delete_group_when_empty(service.clone(), key, operation.id.clone());
        }
    }
}

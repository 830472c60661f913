//! Resource groups, as much of them as clusters need.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::error::{ArmError, Result};
use super::fields::{self, Fields};
use super::operations::{self, Verb};
use super::{Call, managed_clusters, ok, validation, view};
use crate::cluster::record::ProvisioningState;
use crate::state::{Group, Tables};

pub fn key(call: &Call, group: &str) -> (String, String) {
    (call.subscription.to_lowercase(), group.to_lowercase())
}

pub fn not_found(group: &str) -> ArmError {
    ArmError::new(
        StatusCode::NOT_FOUND,
        "ResourceGroupNotFound",
        format!("Resource group '{group}' could not be found."),
    )
}

/// # Errors
/// When there is no such group.
pub fn require(call: &Call, group: &str) -> Result<Arc<Group>> {
    call.service
        .state
        .read()
        .groups
        .get(&key(call, group))
        .cloned()
        .ok_or_else(|| not_found(group))
}

pub fn list(call: &Call) -> Response {
    ok(view::list(
        call.service
            .state
            .read()
            .groups
            .values()
            .map(|g| view::group(g))
            .collect(),
    ))
}

pub fn get(call: &Call, group: &str) -> Result<Response> {
    Ok(ok(view::group(&*require(call, group)?)))
}

pub fn head(call: &Call, group: &str) -> Response {
    let found = require(call, group).is_ok();
    if found {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    }
    .into_response()
}

pub async fn put(call: &Call, name: &str) -> Result<Response> {
    validation::group_name(name)?;
    let body = call.json()?;
    let map = fields::object(
        &body,
        &[
            "id",
            "location",
            "managedBy",
            "name",
            "properties",
            "tags",
            "type",
        ],
        "",
    )?;
    let fields = Fields { map, place: "" };
    let (location, tags) = (fields.text("location")?, fields.map_of_texts("tags")?);
    let change = |tables: &mut Tables| {
        let key = key(call, name);
        let before = tables.groups.get(&key).cloned();
        let location = location
            .map(str::to_owned)
            .or_else(|| before.as_ref().map(|g| g.location.clone()))
            .ok_or_else(|| {
                ArmError::bad_request(
                    "LocationRequired",
                    "The location property is required for this definition.",
                )
                .at("location")
            })?;
        let name = before.as_ref().map_or(name, |g| &g.name).to_owned();
        let group = Arc::new(Group {
            subscription: call.subscription.clone(),
            name,
            location,
            tags,
        });
        tables.groups.insert(key, group.clone());
        Ok::<_, ArmError>((group, before.is_none()))
    };
    let (group, is_new) = call.service.state.update(change).await?;
    let status = if is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(view::group(&group))).into_response())
}

/// Deletes the clusters of the group, then the group.
pub async fn delete(call: &Call, name: &str) -> Result<Response> {
    let group = require(call, name)?;
    let tables = call.service.state.read();
    for cluster in tables
        .clusters
        .values()
        .filter(|c| c.group.eq_ignore_ascii_case(name))
    {
        if cluster.state != ProvisioningState::Deleting {
            managed_clusters::delete(call, name, &cluster.name).await?;
        }
    }
    let resource_id = format!(
        "/subscriptions/{}/resourceGroups/{}",
        group.subscription, group.name
    );
    let operation = call
        .service
        .state
        .update(|tables| {
            Ok::<_, ArmError>(operations::begin(
                tables,
                call,
                &group.location,
                &resource_id,
                Verb::Delete,
            ))
        })
        .await?;
    operations::delete_group_when_empty(call.service.clone(), key(call, name), operation.clone());
    operations::accepted(call, &group.location, &operation)
}

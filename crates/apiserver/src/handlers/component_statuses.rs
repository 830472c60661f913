//! `componentstatuses`: what components say of themselves at this moment.

use std::sync::Arc;

use bytes::Bytes;
use fluyt_api::{Error, meta};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::Call;
use super::options::ListOptions;
use super::route;
use super::selection::Selection;
use super::shape::Shape;
use crate::cache::{Change, Entry};
use crate::component_status;
use crate::http::{self as responses, Body};

pub(super) async fn handle(call: Call) -> Result<Response<Body>, Error> {
    let resource = &call.resource;
    if call.info.verb == "watch" {
        // There is no path to watch it, only the parameter.
        if !call.info.query.flag("watch") {
            return Err(Error::no_route());
        }
        let (group, plural) = (resource.group, resource.plural);
        return Err(Error::method_not_allowed(group, plural, "watch"));
    }
    route::check(&call)?;
    match call.info.verb {
        "get" => get(&call).await,
        _ => list(&call).await,
    }
}

/// Of no version, since it is not stored.
fn entry(call: &Call, object: &Value) -> Entry {
    Entry::new(&call.resource, meta::name(object), 0, Change::Added, object)
}

async fn get(call: &Call) -> Result<Response<Body>, Error> {
    let accepted = Shape::accepted(call)?;
    let name = call.target.name.as_str();
    let found = component_status::one(&call.server, name).await;
    // Upstream's error has the singular.
    let object = found.ok_or_else(|| Error::not_found("", "componentstatus", name))?;
    let shape = Shape::new(&call.resource, accepted, call);
    let body: Bytes = shape.single(&entry(call, &object));
    Ok(responses::bytes(StatusCode::OK, shape.content_type(), body))
}

async fn list(call: &Call) -> Result<Response<Body>, Error> {
    let accepted = Shape::accepted(call)?;
    ListOptions::of_list(&call.info.query)?;
    let selection = Selection::of(call)?;
    let all = component_status::all(&call.server).await;
    let entries = all.iter().map(|object| Arc::new(entry(call, object)));
    let entries = entries.filter(|e| selection.filter.matches(e)).collect();
    let shape = Shape::new(&call.resource, accepted, call);
    let content_type = HeaderValue::from_static(shape.content_type());
    let body = responses::streamed(futures::stream::iter(shape.list(&json!({}), entries)));
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(response)
}

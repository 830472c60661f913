//! CREATE, UPDATE, PATCH, DELETE and DELETECOLLECTION.

use std::sync::Arc;

use fluyt_api::resources::Resource;
use fluyt_api::validation::Errors;
use fluyt_api::{Error, Reason, convert, meta, patch};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::decode::{self, Decoded, Sent};
use super::escalation::check_escalation;
use super::selection::Selection;
use super::shape::Shape;
use super::{Call, apply};
use crate::cache::{Entry, storage_resource, working_resource};
use crate::features::Feature;
use crate::http::{self as responses, Body, View};
use crate::registry::{Change, DeleteOptions, Deleted, Location, WriteContext};

pub(super) fn to_storage(resource: &Resource, object: Value) -> Value {
    let stored = working_resource(resource);
    if std::ptr::eq(stored, resource) {
        object
    } else {
        convert::to_storage(resource, stored, object)
    }
}

pub(super) fn from_storage(resource: &Resource, object: Value) -> Value {
    if std::ptr::eq(working_resource(resource), resource) {
        object
    } else {
        convert::from_storage(resource, object)
    }
}

/// The resource as strategies know it: the stored version.
pub(super) fn stored<'a>(at: Location<'a>) -> Location<'a> {
    Location {
        resource: working_resource(at.resource),
        ..at
    }
}

pub(super) fn respond(call: &Call, status: StatusCode, object: Value) -> Response<Body> {
    let Ok(accepted) = Shape::accepted(call) else {
        return responses::json(status, &from_storage(&call.resource, object));
    };
    let entry = match written(call, &object) {
        Some(entry) => entry,
        // What is whole is brought into its format when the answer is finished.
        None if accepted.view == View::Object => {
            return responses::json(status, &from_storage(&call.resource, object));
        }
        None => {
            let revision = meta::resource_version(&object).parse().unwrap_or_default();
            let resource = working_resource(&call.resource);
            let change = crate::cache::Change::Added;
            let key = of_name(call, &object).key();
            Arc::new(Entry::new(resource, &key, revision, change, &object))
        }
    };
    let shape = Shape::new(&call.resource, accepted, call);
    responses::bytes(status, shape.content_type(), shape.single(&entry))
}

/// Where an object is whose name the server may have made.
fn of_name<'a>(call: &'a Call, object: &'a Value) -> Location<'a> {
    Location {
        name: meta::name(object),
        ..call.location()
    }
}

/// What was written as the cache has it, so that it is encoded only once. A write is answered when the cache shows it; it
/// may show what came after it by now.
fn written(call: &Call, object: &Value) -> Option<Arc<Entry>> {
    let is_whole = matches!(call.target.subresource.as_str(), "" | "status");
    // Nothing is written in a dry run, and only deletions may ask for one anywhere but here.
    let is_stored = call.info.verb != "delete" && call.info.query.get("dryRun").is_none();
    // In another version it would have to be decoded to be converted.
    let as_stored = std::ptr::eq(working_resource(&call.resource), &*call.resource);
    if !is_whole || !is_stored || !as_stored {
        return None;
    }
    let revision: i64 = meta::resource_version(object).parse().ok()?;
    let cache = call.server.caches.of(storage_resource(&call.resource));
    let entry = cache.get(&of_name(call, object).key())?;
    let in_version = entry.version.is_none_or(|v| v == call.resource.version);
    (entry.revision == revision && in_version).then_some(entry)
}

pub(super) async fn create(call: &mut Call) -> Result<Response<Body>, Error> {
    let cx = call.write_context()?;
    let body = responses::collect(call.take_body()).await?;
    let Decoded { object, warnings } =
        decode::object(&call.parts, &body, &call.info.query, &*call.resource)?;
    call.warnings.extend(warnings);
    let mut object = to_storage(&call.resource, object);
    stamp_requester(call, &mut object);
    check_escalation(call, &object, None)?;
    let created = call
        .server
        .registry
        .create(&cx, stored(call.location()), object)
        .await?;
    Ok(respond(call, StatusCode::CREATED, created))
}

pub(super) async fn update(call: &mut Call) -> Result<Response<Body>, Error> {
    let cx = call.write_context()?;
    let body = responses::collect(call.take_body()).await?;
    let Decoded { object, warnings } =
        decode::object(&call.parts, &body, &call.info.query, &*call.resource)?;
    call.warnings.extend(warnings);
    check_name(call, &object)?;
    let at = call.location();
    let object = to_storage(&call.resource, object);
    let replace: Change<'_> = Box::new(|current: &Value| {
        check_escalation(call, &object, Some(current))?;
        Ok(object.clone())
    });
    match call.server.registry.update(&cx, stored(at), replace).await {
        Err(error)
            if error.reason == Reason::NotFound
                && may_create(call)
                && meta::resource_version(&object).is_empty() =>
        {
            apply::may_create(call).await?;
            check_escalation(call, &object, None)?;
            let created = call.server.registry.create(&cx, stored(at), object).await?;
            Ok(respond(call, StatusCode::CREATED, created))
        }
        updated => Ok(respond(call, StatusCode::OK, updated?)),
    }
}

fn may_create(call: &Call) -> bool {
    let resource = working_resource(&call.resource);
    call.target.subresource.is_empty() && resource.strategy().allow_create_on_update()
}

pub(super) async fn patch(call: &mut Call) -> Result<Response<Body>, Error> {
    let format = Format::of(call)?;
    if format.is_apply() {
        return apply::apply(call, format).await;
    }
    let cx = call.write_context()?;
    let body = responses::collect(call.take_body()).await?;
    cx.record.request_patch(&body);
    let apply: Change<'_> = Box::new(|current: &Value| {
        let mut object = from_storage(&call.resource, current.clone());
        format.apply(&call.resource, &mut object, &body)?;
        let decoded = decode::typed(object, Sent::default(), &call.info.query, &*call.resource);
        let decoded = decoded.map_err(|error| {
            let mut again = from_storage(&call.resource, current.clone());
            let patched = format.apply(&call.resource, &mut again, &body);
            wrong_patch(call, error, &patched.map_or(Value::Null, |()| again))
        })?;
        own_metadata(call, &decoded.object, current)?;
        call.warnings.extend(decoded.warnings);
        let object = to_storage(&call.resource, decoded.object);
        check_escalation(call, &object, Some(current))?;
        Ok(object)
    });
    let updated = call
        .server
        .registry
        .update(&cx, stored(call.location()), apply)
        .await?;
    Ok(respond(call, StatusCode::OK, updated))
}

/// An object must have the name that it is sent to.
pub(super) fn check_name(call: &Call, object: &Value) -> Result<(), Error> {
    let (name, own) = (meta::name(object), &*call.target.name);
    if name.is_empty() {
        return Err(apply::nameless(own));
    }
    if name == own {
        return Ok(());
    }
    Err(Error::bad_request(format!(
        "the name of the object ({name}) does not match the name on the URL ({own})"
    )))
}

/// What a patch has made must be of the kind; else the patch is said to be wrong.
fn wrong_patch(call: &Call, error: Error, patched: &Value) -> Error {
    if error.reason != Reason::BadRequest || call.resource.definition.is_some() {
        return error;
    }
    // Upstream tells only what is wrong with the content.
    let why = error.message.split_once(" cannot be handled as a ");
    let why = why.and_then(|(_, rest)| rest.split_once(": "));
    let why = why.map_or(&*error.message, |(_, why)| why);
    let mut errors = Errors::default();
    errors.invalid("patch", &patched.to_string().into(), why);
    Error::invalid("", "", "", errors.0)
}

/// A patch cannot make another object of one.
fn own_metadata(call: &Call, object: &Value, current: &Value) -> Result<(), Error> {
    check_name(call, object)?;
    if !meta::uid(object).is_empty() && meta::uid(object) != meta::uid(current) {
        let mut errors = Errors::default();
        // Upstream looks twice.
        for _ in 0..2 {
            let uid = &object["metadata"]["uid"];
            errors.invalid("metadata.uid", uid, "field is immutable");
        }
        let resource = &call.resource;
        let name = meta::name(object);
        return Err(Error::invalid(
            resource.group,
            resource.kind,
            name,
            errors.0,
        ));
    }
    Ok(())
}

/// A patch format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Merge,
    Strategic,
    ApplyYaml,
    ApplyCbor,
}

impl Format {
    pub(super) fn of(call: &Call) -> Result<Self, Error> {
        let custom = call.resource.definition.is_some();
        match responses::content_type(&call.parts.headers) {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" if !custom => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::ApplyYaml),
            "application/apply-patch+cbor" if call.server.config.features.has(Feature::Cbor) => {
                Ok(Self::ApplyCbor)
            }
            _ if custom => Err(Error::new(
                Reason::UnsupportedMediaType,
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            )),
            _ => Err(Error::generic(
                Reason::UnsupportedMediaType,
                "415: Unsupported Media Type",
            )),
        }
    }

    /// Whether this is a configuration to apply instead of a patch.
    pub(super) fn is_apply(self) -> bool {
        matches!(self, Self::ApplyYaml | Self::ApplyCbor)
    }

    pub(super) fn apply(
        self,
        resource: &Resource,
        object: &mut Value,
        body: &[u8],
    ) -> Result<(), Error> {
        match (self, resource.ty) {
            (Self::Json, _) => patch::json_patch(object, body),
            (Self::Strategic, Some(ty)) => {
                patch::strategic_merge_patch(resource.schema(), ty, object, body)
            }
            _ => patch::merge_patch(object, body),
        }
    }
}

/// A certificate request records who made it, whatever it says itself.
fn stamp_requester(call: &Call, object: &mut Value) {
    if call.resource.kind != "CertificateSigningRequest" {
        return;
    }
    let user = &call.user;
    let spec = meta::child(object, "spec");
    spec.insert("username".into(), user.name.clone().into());
    spec.insert("groups".into(), user.groups.clone().into());
    for (field, value) in [
        ("uid", Value::from(user.uid.clone())),
        ("extra", json!(user.extra)),
    ] {
        let empty = value.as_str().is_some_and(str::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty);
        if empty {
            spec.remove(field);
        } else {
            spec.insert(field.into(), value);
        }
    }
}

async fn delete_options(call: &mut Call) -> Result<(DeleteOptions, WriteContext), Error> {
    let body = responses::collect(call.take_body()).await?;
    let (body, _) = if body.is_empty() {
        (Value::Null, Vec::new())
    } else {
        decode::parse(&call.parts, &body, ("", "v1", "DeleteOptions"))?
    };
    match (body["apiVersion"].as_str(), body["kind"].as_str()) {
        (_, None | Some("DeleteOptions")) => {}
        (version, Some(kind)) => {
            let version = version.unwrap_or("v1");
            return Err(Error::bad_request(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\""
            )));
        }
    }
    let options = DeleteOptions::parse(&body, &call.info.query)?;
    let mut cx = call.write_context()?;
    if cx.record.wants_request() && body.is_object() {
        cx.record.request_object(&body, || body.clone());
    }
    cx.dry_run |= body["dryRun"].as_array().is_some_and(|d| !d.is_empty());
    Ok((options, cx))
}

pub(super) async fn delete(call: &mut Call) -> Result<Response<Body>, Error> {
    let (options, cx) = delete_options(call).await?;
    let at = stored(call.location());
    Ok(
        match call.server.registry.delete(&cx, at, &options).await? {
            Deleted::Pending(object) => respond(call, StatusCode::OK, object),
            Deleted::Gone(object) if call.resource.returns_deleted() => {
                respond(call, StatusCode::OK, object)
            }
            Deleted::Gone(object) => responses::json(
                StatusCode::OK,
                &json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                    "details": details(&call.resource, &object),
                }),
            ),
        },
    )
}

/// What was deleted.
fn details(resource: &Resource, object: &Value) -> Value {
    let mut details =
        json!({"name": meta::name(object), "kind": resource.plural, "uid": meta::uid(object)});
    if !resource.group.is_empty() {
        details["group"] = resource.group.into();
    }
    details
}

/// Deletes an object of a collection, and shows it as it was; `None` if it is gone already.
async fn delete_one(
    call: &Call,
    cx: &WriteContext,
    options: &DeleteOptions,
    entry: &Entry,
) -> Result<Option<Value>, Error> {
    let at = Location {
        resource: working_resource(&call.resource),
        namespace: entry.namespace(),
        name: entry.name(),
        subresource: "",
    };
    match call.server.registry.delete(cx, at, options).await {
        Ok(_) => Ok(Some(from_storage(&call.resource, entry.object()))),
        Err(error) if error.reason == Reason::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) async fn delete_collection(call: &mut Call) -> Result<Response<Body>, Error> {
    let (options, cx) = delete_options(call).await?;
    let selection = Selection::of(call)?;
    let revision = call.server.caches.feed(&call.resource).consistent().await?;
    let stored_resource = working_resource(&call.resource);
    let snapshot = call.server.caches.of(stored_resource).snapshot();
    let objects = selection.judge(call, snapshot.objects).await?;
    let selected: Vec<Arc<Entry>> = objects.select(&selection.filter, "").cloned().collect();
    let call: &Call = call;
    let deleting = selected
        .iter()
        .map(|entry| delete_one(call, &cx, &options, entry).boxed());
    let deleting: Vec<BoxFuture<'_, _>> = deleting.collect();
    let workers = call.server.config.limits.delete_collection_workers.max(1);
    let deleting = futures::stream::iter(deleting).buffered(workers);
    let deleted: Vec<Option<Value>> = deleting.try_collect().await?;
    let items: Vec<Value> = deleted.into_iter().flatten().collect();
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if call.resource.definition.is_some() {
        metadata["continue"] = "".into();
    }
    Ok(responses::json(
        StatusCode::OK,
        &json!({
            "kind": format!("{}List", call.resource.kind), "apiVersion": call.resource.api_version(),
            "metadata": metadata, "items": items,
        }),
    ))
}

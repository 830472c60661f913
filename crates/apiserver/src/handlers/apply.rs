//! Server-side apply: `PATCH` with a configuration instead of a patch.

use fluyt_api::managedfields::{Alone, FieldManager, from_scale, to_scale};
use fluyt_api::resources::type_of;
use fluyt_api::{Error, Reason, meta};
use http::{Response, StatusCode};
use serde_json::Value;

use super::decode::{FieldValidation, Sent};
use super::{Call, decode, write};
use crate::authz::Question;
use crate::cache::working_resource;
use crate::http::{self as responses, Body};
use crate::registry::{Change, Writer, replicas_path};
use crate::yaml;

/// A configuration and how its applier wants it applied.
pub(super) struct Apply {
    config: Value,
    manager: String,
    force: bool,
}

impl Apply {
    /// Reads the body and the options of a request.
    ///
    /// # Errors
    /// 400 for a malformed body, or keys that are there twice under strict validation.
    pub(super) async fn read(call: &mut Call, format: write::Format) -> Result<Self, Error> {
        let body = responses::collect(call.take_body()).await?;
        let (config, duplicates) = match format {
            write::Format::ApplyCbor => (fluyt_api::cbor::decode(&body), Vec::new()),
            _ => match yaml::parse(&body) {
                Ok((config, duplicates)) => (Ok(config), duplicates),
                Err(why) => (
                    Err(format!("error converting YAML to JSON: {why}")),
                    Vec::new(),
                ),
            },
        };
        let config = config.and_then(|config| match config {
            Value::Object(_) | Value::Null => Ok(config),
            other => Err(format!(
                "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                fluyt_api::decode::kind_of(&other)
            )),
        });
        let config =
            config.map_err(|why| Error::bad_request(format!("error decoding YAML: {why}")))?;
        if !duplicates.is_empty() {
            let text = String::from_utf8_lossy(&body);
            let lines = yaml::lines_of(&text, &duplicates);
            let message = format!("error converting YAML to JSON: {}", yaml::repeated(&lines));
            match decode::field_validation(&call.info.query) {
                FieldValidation::Strict => {
                    return Err(Error::bad_request(format!(
                        "error strict decoding YAML: {message}"
                    )));
                }
                FieldValidation::Warn => call.warnings.extend(lines),
                FieldValidation::Ignore => {}
            }
        }
        let query = &call.info.query;
        Ok(Self {
            config,
            manager: query.get("fieldManager").unwrap_or_default().to_owned(),
            force: query.flag("force"),
        })
    }

    /// Merges the configuration into the present object (null: there is none), in the version of the request.
    fn merge(&self, call: &Call, current: &Value) -> Result<Value, Error> {
        let location = call.location();
        let version = call.resource.api_version();
        let merged = call
            .server
            .registry
            .with_field_manager(location, &version, |fields| {
                fields.apply(
                    current,
                    &self.config,
                    call.resource.kind,
                    &self.manager,
                    self.force,
                )
            })?;
        check_identity(call, &merged)?;
        Ok(merged)
    }
}

/// An object without the name that its URL has.
pub(super) fn nameless(name: &str) -> Error {
    Error::bad_request(format!(
        "the name of the object ({name} based on URL) was undeterminable: name must be provided"
    ))
}

/// The object must be the one that the URL names.
fn check_identity(call: &Call, object: &Value) -> Result<(), Error> {
    let at = call.location();
    let name = meta::name(object);
    if name.is_empty() {
        return Err(nameless(at.name));
    }
    let namespace = meta::namespace(object);
    if at.resource.namespaced && !namespace.is_empty() && namespace != at.namespace {
        return Err(Error::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if name != at.name {
        return Err(Error::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            at.name
        )));
    }
    Ok(())
}

/// Applies to an object or its status, creating the object when there is none.
pub(super) async fn apply(call: &mut Call, format: write::Format) -> Result<Response<Body>, Error> {
    let mut cx = call.write_context()?;
    let apply = Apply::read(call, format).await?;
    if cx.record.wants_request() {
        cx.record.request_patch(apply.config.to_string().as_bytes());
    }
    cx.writer = cx.writer.map(|writer| Writer {
        applied: true,
        ..writer
    });
    let at = write::stored(call.location());
    // A race with somebody who creates or deletes the object is tried again.
    for _ in 0..3 {
        let change: Change<'_> = Box::new(|current: &Value| {
            let current = write::from_storage(&call.resource, current.clone());
            finish(call, apply.merge(call, &current)?)
        });
        match call.server.registry.update(&cx, at, change).await {
            Err(error) if error.reason == Reason::NotFound && at.subresource.is_empty() => {}
            updated => {
                return Ok(write::respond(call, StatusCode::OK, updated?));
            }
        }
        let object = apply.merge(call, &Value::Null)?;
        if !meta::uid(&object).is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {}, and no existing object was found",
                meta::uid(&object)
            );
            let resource = &call.resource;
            return Err(Error::conflict(
                resource.group,
                resource.plural,
                at.name,
                why,
            ));
        }
        may_create(call).await?;
        let object = finish(call, object)?;
        match call.server.registry.create(&cx, at, object).await {
            Err(error) if error.reason == Reason::AlreadyExists => {}
            created => {
                return Ok(write::respond(call, StatusCode::CREATED, created?));
            }
        }
    }
    Err(Error::modified(
        call.resource.group,
        call.resource.plural,
        at.name,
    ))
}

/// The merged object as the write path takes it.
fn finish(call: &Call, object: Value) -> Result<Value, Error> {
    let decoded = decode::typed(object, Sent::default(), &call.info.query, &*call.resource)?;
    let object = write::to_storage(&call.resource, decoded.object);
    super::escalation::check_escalation(call, &object, None)?;
    Ok(object)
}

/// Applying what is not there takes the right to create it.
pub(super) async fn may_create(call: &Call) -> Result<(), Error> {
    let question = Question {
        verb: "create".into(),
        group: call.target.group.clone(),
        version: call.target.version.clone(),
        resource: call.target.plural.clone(),
        namespace: call.target.namespace.clone(),
        name: call.target.name.clone(),
        ..Question::default()
    };
    let authorizer = &call.server.authorizer;
    authorizer.require(&call.user, &question).await.map(drop)
}

/// The scale of an object after a configuration is applied to it, with the object's managed fields as they become.
pub(super) fn scale(
    call: &Call,
    apply: &Apply,
    current: &Value,
    mut scale: Value,
) -> Result<(Value, Value), Error> {
    const VERSION: &str = "autoscaling/v1";
    let replicas = replicas_path(&call.resource);
    let parent = &current["metadata"]["managedFields"];
    meta::set(&mut scale, "managedFields", to_scale(parent, &replicas));
    let fields = FieldManager {
        versions: &Alone(type_of("autoscaling", "v1", "Scale")),
        stored: VERSION,
        requested: VERSION,
        subresource: "scale",
        reset: &[],
        now: &meta::now(),
    };
    let mut merged = fields.apply(&scale, &apply.config, "Scale", &apply.manager, apply.force)?;
    check_identity(call, &merged)?;
    let seen = merged["metadata"]["managedFields"].take();
    let version = working_resource(&call.resource).api_version();
    Ok((merged, from_scale(parent, &seen, &version, &replicas)))
}

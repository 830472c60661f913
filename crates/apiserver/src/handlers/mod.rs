//! The generic handler: every resource goes through it, whatever its kind.

mod apply;
mod component_statuses;
mod decode;
mod escalation;
mod kubelet;
mod options;
mod proxy;
mod read;
mod reviews;
mod route;
mod selection;
mod shape;
mod streaming;
mod subresources;
mod throttle;
mod token;
mod transport;
mod watch;
mod websocket;
mod write;

use std::sync::Arc;

use fluyt_api::Error;
use fluyt_api::resources::Handle;
use futures::future::BoxFuture;
use http::request::Parts;
use http::{Request, Response};
use parking_lot::Mutex;

use crate::Server;
use crate::audit::Record;
use crate::http::Body;
use crate::registry::{Location, WriteContext, Writer};
use crate::request::{RequestInfo, Target};
use crate::served::MINOR;
use crate::user::User;
use crate::warnings::Warnings;

pub(crate) use decode::not_an_object;
pub(crate) use proxy::forward;
pub(crate) use route::page_not_found;
pub use token::TokenLifetimes;

/// A request to a known resource, authenticated and authorized.
pub struct Call {
    pub server: Arc<Server>,
    pub info: RequestInfo,
    pub target: Target,
    pub resource: Handle,
    pub user: User,
    pub warnings: Warnings,
    pub parts: Parts,
    /// Taken once, by whoever reads or forwards it. Behind a lock only because bodies cannot be shared between threads.
    pub body: Mutex<Body>,
}

/// An object that is sent to a namespace is of that namespace, if it says of which it is.
fn own_namespace(call: &Call, object: &serde_json::Value) -> Result<(), Error> {
    let given = fluyt_api::meta::namespace(object);
    if given.is_empty() || given == call.target.namespace {
        return Ok(());
    }
    Err(Error::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    ))
}

impl Call {
    fn location(&self) -> Location<'_> {
        let namespaced = self.resource.namespaced;
        Location {
            resource: &self.resource,
            namespace: if namespaced {
                &self.target.namespace
            } else {
                ""
            },
            name: &self.target.name,
            subresource: &self.target.subresource,
        }
    }

    /// On whose behalf this writes, and under which name for managed fields.
    ///
    /// # Errors
    /// 422 for options that make no sense.
    fn write_context(&self) -> Result<WriteContext, Error> {
        let query = &self.info.query;
        let mut errors = fluyt_api::validation::Errors::default();
        let manager = query.get("fieldManager").unwrap_or_default();
        let patch = self.info.verb == "patch";
        if patch {
            let media = crate::http::content_type(&self.parts.headers);
            if media.starts_with("application/apply-patch+") {
                if manager.is_empty() {
                    errors.required("fieldManager", "is required for apply patch");
                }
            } else if query.get("force").is_some() {
                errors.forbidden("force", "may not be specified for non-apply patch");
            }
        }
        validate_manager(manager, &mut errors);
        let dry_run: Vec<&str> = query.all("dryRun").filter(|v| !v.is_empty()).collect();
        if dry_run.iter().any(|v| *v != "All") {
            errors.not_supported("dryRun", &dry_run.clone().into(), &["All"]);
        }
        let validation = query.get("fieldValidation").unwrap_or_default();
        let known = ["", "Ignore", "Strict", "Warn"];
        if !known.contains(&validation) {
            errors.not_supported("fieldValidation", &validation.into(), &known);
        }
        if !errors.is_empty() {
            let kind = match self.info.verb {
                "patch" => "PatchOptions",
                "update" => "UpdateOptions",
                "delete" | "deletecollection" => "DeleteOptions",
                _ => "CreateOptions",
            };
            return Err(Error::invalid("meta.k8s.io", kind, "", errors.0));
        }
        let manager = if manager.is_empty() {
            manager_of_agent(&self.parts.headers)
        } else {
            manager.to_owned()
        };
        Ok(WriteContext {
            user: self.user.clone(),
            dry_run: !dry_run.is_empty(),
            writer: Some(Writer {
                manager,
                api_version: self.resource.api_version(),
                applied: false,
            }),
            warnings: self.warnings.clone(),
            record: self.record(),
            group: Some(self.resource.group),
            patches: self.parts.method == http::Method::PATCH,
        })
    }

    /// What the audit log learns of the request.
    fn record(&self) -> Record {
        if !self.server.is_audited() {
            return Record::default();
        }
        let record = self.parts.extensions.get::<Record>();
        record.cloned().unwrap_or_default()
    }

    fn take_body(&mut self) -> Body {
        std::mem::replace(self.body.get_mut(), crate::http::full(""))
    }

    fn into_request(mut self) -> Request<Body> {
        let body = self.take_body();
        Request::from_parts(self.parts, body)
    }
}

/// Longest name of a field manager.
const MAX_MANAGER: usize = 128;

fn validate_manager(manager: &str, errors: &mut fluyt_api::validation::Errors) {
    if manager.len() > MAX_MANAGER {
        errors.too_long("fieldManager", MAX_MANAGER);
    }
    for (at, c) in manager.char_indices().filter(|(_, c)| c.is_control()) {
        let detail = format!(
            "invalid character U+{:04X} (at position {at})",
            u32::from(c)
        );
        errors.invalid("fieldManager", &manager.into(), &detail);
    }
}

/// Who does not say its name is known by what comes before the slash of its user agent.
fn manager_of_agent(headers: &http::HeaderMap) -> String {
    let agent = headers
        .get(http::header::USER_AGENT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let name = agent.split('/').next().unwrap_or_default();
    let mut manager = String::new();
    for c in name.chars().filter(|c| !c.is_control()) {
        if manager.len() + c.len_utf8() > MAX_MANAGER {
            break;
        }
        manager.push(c);
    }
    manager
}

/// Answers a resource request.
///
/// # Errors
/// What becomes the response's `Status`.
pub async fn handle(mut call: Call) -> Result<Response<Body>, Error> {
    let is_watch = call.info.verb == "watch";
    if !is_watch && call.target.subresource != "log" {
        return answer(call).await;
    }
    match websocket::take(&mut call.parts, is_watch)? {
        Some(upgrade) => Ok(upgrade.answer(answer(call).await?)),
        None => answer(call).await,
    }
}

async fn answer(mut call: Call) -> Result<Response<Body>, Error> {
    if call.resource.definition.is_some() && !route::is_path(&call) {
        return Ok(page_not_found());
    }
    if let Some(definition) = &call.resource.definition
        && let Some(deprecation) = &definition.deprecation
    {
        call.warnings.add(&**deprecation);
        call.record().annotate("k8s.io/deprecated", "true");
    }
    if let Some(deprecation) = call.resource.deprecation(MINOR) {
        call.warnings.add(deprecation);
        call.record().annotate("k8s.io/deprecated", "true");
        if let Some(removed) = call.resource.life.removed {
            let release = format!("1.{removed}");
            call.record().annotate("k8s.io/removed-release", &release);
        }
    }
    if !call.target.subresource.is_empty() {
        return Box::pin(subresources::handle(call)).await;
    }
    if call.resource.group.is_empty() && call.resource.plural == "bindings" {
        return Box::pin(subresources::any_binding(call)).await;
    }
    if call.resource.group.is_empty() && call.resource.plural == "componentstatuses" {
        return Box::pin(component_statuses::handle(call)).await;
    }
    if call.resource.is_virtual() {
        return Box::pin(reviews::handle(call)).await;
    }
    route::check(&call)?;
    let answer: BoxFuture<'_, Result<Response<Body>, Error>> = match call.info.verb {
        "get" => Box::pin(read::get(&call)),
        "list" => Box::pin(read::list(&call)),
        "watch" => Box::pin(watch::serve(&call)),
        "create" => Box::pin(write::create(&mut call)),
        "update" => Box::pin(write::update(&mut call)),
        "patch" => Box::pin(write::patch(&mut call)),
        "delete" => Box::pin(write::delete(&mut call)),
        "deletecollection" => Box::pin(write::delete_collection(&mut call)),
        _ => return Err(Error::no_method()),
    };
    answer.await
}

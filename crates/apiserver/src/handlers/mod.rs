//! The generic handler: every resource goes through it, whatever its kind.

mod decode;
mod proxy;
mod read;
mod reviews;
mod subresources;
mod write;

use std::sync::Arc;

use fluyt_api::Error;
use fluyt_api::resources::Handle;
use futures::future::BoxFuture;
use http::request::Parts;
use http::{Request, Response};
use parking_lot::Mutex;

use crate::Server;
use crate::http::Body;
use crate::registry::{Location, Warnings, WriteContext};
use crate::request::{RequestInfo, Target};
use crate::user::User;

pub(crate) use decode::warn;
pub(crate) use proxy::forward;

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

    /// # Errors
    /// 422 for a `dryRun` other than `All`.
    fn write_context(&self) -> Result<WriteContext, Error> {
        let mut dry_run = false;
        for value in self.info.query.all("dryRun") {
            if value != "All" {
                let mut errors = fluyt_api::validation::Errors::default();
                errors.not_supported("dryRun", &value.into(), &["All"]);
                return Err(Error::invalid("meta.k8s.io", "CreateOptions", "", errors.0));
            }
            dry_run = true;
        }
        Ok(WriteContext {
            user: self.user.clone(),
            dry_run,
            warnings: self.warnings.clone(),
        })
    }

    fn take_body(&mut self) -> Body {
        std::mem::replace(self.body.get_mut(), crate::http::full(""))
    }

    fn into_request(mut self) -> Request<Body> {
        let body = self.take_body();
        Request::from_parts(self.parts, body)
    }
}

/// Answers a resource request.
///
/// # Errors
/// What becomes the response's `Status`.
pub async fn handle(mut call: Call) -> Result<Response<Body>, Error> {
    if let Some(definition) = &call.resource.definition
        && let Some(deprecation) = &definition.deprecation
    {
        call.warnings.add(&**deprecation);
    }
    if !call.target.subresource.is_empty() {
        return Box::pin(subresources::handle(call)).await;
    }
    if call.resource.is_virtual() {
        return Box::pin(reviews::handle(call)).await;
    }
    if !call.resource.supports(call.info.verb) {
        return Err(Error::method_not_allowed(
            call.resource.group,
            call.resource.plural,
            call.info.verb,
        ));
    }
    if call.resource.namespaced
        && call.target.namespace.is_empty()
        && matches!(call.info.verb, "create" | "deletecollection")
    {
        return Err(Error::method_not_allowed(
            call.resource.group,
            call.resource.plural,
            call.info.verb,
        ));
    }
    let answer: BoxFuture<'_, Result<Response<Body>, Error>> = match call.info.verb {
        "get" => Box::pin(read::get(&call)),
        "list" => Box::pin(read::list(&call)),
        "watch" => Box::pin(read::watch(&call)),
        "create" => Box::pin(write::create(&mut call)),
        "update" => Box::pin(write::update(&mut call)),
        "patch" => Box::pin(write::patch(&mut call)),
        "delete" => Box::pin(write::delete(&mut call)),
        "deletecollection" => Box::pin(write::delete_collection(&mut call)),
        verb => {
            return Err(Error::method_not_allowed(
                call.resource.group,
                call.resource.plural,
                verb,
            ));
        }
    };
    answer.await
}

//! Which methods the paths of a resource have.

use fluyt_api::Error;
use http::{Response, StatusCode};

use super::Call;
use crate::http::{self as responses, Body};

/// What a path without anything behind it answers.
pub(crate) fn page_not_found() -> Response<Body> {
    responses::text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// Refuses a request for a resource whose path does not have the method, or for a path that is none.
pub(super) fn check(call: &Call) -> Result<(), Error> {
    let (resource, target, verb) = (&call.resource, &call.target, call.info.verb);
    let unsupported = || {
        if resource.definition.is_some() {
            Error::method_not_allowed(resource.group, resource.plural, verb)
        } else {
            Error::no_method()
        }
    };
    if !is_path(call) {
        return Err(Error::no_route());
    }
    let named = !target.name.is_empty();
    let fits = match verb {
        "create" => !named,
        "update" | "patch" => named,
        _ => true,
    };
    // Everybody's objects can be listed and watched, not created or deleted.
    let scoped = !resource.namespaced
        || !target.namespace.is_empty()
        || !matches!(verb, "create" | "deletecollection");
    if fits && scoped && resource.supports(verb) {
        Ok(())
    } else {
        Err(unsupported())
    }
}

/// Whether the resource is where it is looked for: with a namespace or without one.
pub(super) fn is_path(call: &Call) -> bool {
    let (resource, target) = (&call.resource, &call.target);
    let is_found = !resource.namespaced || !target.namespace.is_empty() || target.name.is_empty();
    is_found && !target.misplaced
}

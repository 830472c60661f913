//! The REST API: ARM's shape for `Microsoft.ContainerService`, as the Azure SDKs speak it.

mod agent_pools;
mod error;
mod fields;
mod groups;
mod managed_clusters;
mod operations;
pub mod server;
mod target;
mod validation;
mod versions;
mod view;

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::Value;

pub use self::error::ArmError;
use self::error::Result;
pub use self::operations::resume_group_deletions;
use self::target::Target;
use crate::service::Service;

/// The subscription that local clusters are in.
pub const SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000000";

/// A request, taken apart.
pub struct Call {
    pub service: Arc<Service>,
    pub subscription: String,
    pub api_version: String,
    /// Scheme and authority that the client used, for the URLs in our headers.
    pub origin: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub query: Vec<(String, String)>,
}

// === impl Call ===

impl Call {
    /// The body as JSON.
    fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).map_err(|error| {
            ArmError::bad_request(
                "InvalidRequestContent",
                format!(
                    "The request content was invalid and could not be deserialized: '{error}'."
                ),
            )
        })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

/// Answers a request of an authenticated client.
pub async fn handle(
    service: Arc<Service>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match answer(service, &method, &uri, headers, body).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(
    service: Arc<Service>,
    method: &Method,
    uri: &Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response> {
    let query = parse_query(uri.query().unwrap_or_default());
    let api_version = query
        .iter()
        .find(|(k, _)| k.eq_ignore_ascii_case("api-version"))
        .map(|(_, v)| v.clone());
    let api_version = api_version.filter(|v| !v.is_empty()).ok_or_else(|| {
        ArmError::bad_request(
            "MissingApiVersionParameter",
            "The api-version query parameter (?api-version=) is required for all requests.",
        )
    })?;
    check_api_version(&api_version)?;
    let Some((subscription, target)) = target::parse(uri.path()) else {
        return Err(ArmError::new(
            StatusCode::NOT_FOUND,
            "InvalidResourceType",
            format!(
                "The path '{}' names no resource of this service.",
                uri.path()
            ),
        ));
    };
    if let Some(subscription) = &subscription
        && !subscription.eq_ignore_ascii_case(SUBSCRIPTION)
    {
        return Err(ArmError::new(
            StatusCode::NOT_FOUND,
            "SubscriptionNotFound",
            format!("The subscription '{subscription}' could not be found."),
        ));
    }
    let host = headers
        .get(http::header::HOST)
        .and_then(|v| v.to_str().ok())
        .map(str::to_owned);
    let host = host
        .or_else(|| uri.authority().map(ToString::to_string))
        .unwrap_or_default();
    let call = Call {
        service,
        subscription: SUBSCRIPTION.to_owned(),
        api_version,
        origin: format!("https://{host}"),
        headers,
        body,
        query,
    };
    dispatch(&call, method, target).await
}

async fn dispatch(call: &Call, method: &Method, target: Target) -> Result<Response> {
    let method = method.as_str();
    match (method, target) {
        ("GET", Target::Subscriptions) => Ok(ok(view::list(vec![view::subscription()]))),
        ("GET", Target::Subscription) => Ok(ok(view::subscription())),
        ("GET", Target::Groups) => Ok(groups::list(call)),
        ("GET", Target::Group { group }) => groups::get(call, &group),
        ("HEAD", Target::Group { group }) => Ok(groups::head(call, &group)),
        ("PUT" | "PATCH", Target::Group { group }) => groups::put(call, &group).await,
        ("DELETE", Target::Group { group }) => groups::delete(call, &group).await,
        ("GET", Target::Clusters { group }) => managed_clusters::list(call, group.as_deref()),
        ("GET", Target::Cluster { group, name }) => managed_clusters::get(call, &group, &name),
        ("PUT", Target::Cluster { group, name }) => {
            managed_clusters::put(call, &group, &name).await
        }
        ("PATCH", Target::Cluster { group, name }) => {
            managed_clusters::patch_tags(call, &group, &name).await
        }
        ("DELETE", Target::Cluster { group, name }) => {
            managed_clusters::delete(call, &group, &name).await
        }
        (
            "POST",
            Target::Action {
                group,
                name,
                action,
            },
        ) => managed_clusters::action(call, &group, &name, &action).await,
        ("GET", Target::Pools { group, cluster }) => agent_pools::list(call, &group, &cluster),
        (
            "GET",
            Target::Pool {
                group,
                cluster,
                name,
            },
        ) => agent_pools::get(call, &group, &cluster, &name),
        (
            "PUT",
            Target::Pool {
                group,
                cluster,
                name,
            },
        ) => agent_pools::put(call, &group, &cluster, &name).await,
        (
            "DELETE",
            Target::Pool {
                group,
                cluster,
                name,
            },
        ) => agent_pools::delete(call, &group, &cluster, &name).await,
        ("GET", Target::AvailableVersions { group, cluster }) => {
            versions::for_pools(call, &group, &cluster)
        }
        ("GET", Target::UpgradeProfile { group, cluster }) => {
            versions::upgrade_profile(call, &group, &cluster)
        }
        ("GET", Target::Versions { .. }) => Ok(versions::list()),
        ("GET", Target::Operation { id }) => operations::status(call, &id).await,
        ("GET", Target::OperationResult { id }) => operations::result(call, &id).await,
        (method, _) => Err(ArmError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            format!("The HTTP method '{method}' is not supported by this resource."),
        )),
    }
}

fn ok(value: Value) -> Response {
    Json(value).into_response()
}

/// Dates, possibly of a preview. The shapes served are those of the newest; older ones are subsets of it.
fn check_api_version(version: &str) -> Result<()> {
    let date = version.strip_suffix("-preview").unwrap_or(version);
    let mut parts = date.split('-');
    let mut number = |digits: usize| {
        parts
            .next()
            .filter(|p| p.len() == digits)
            .and_then(|p| p.parse::<i16>().ok())
    };
    let date = (number(4), number(2), number(2));
    match date {
        (Some(year), Some(month), Some(day))
            if parts.next().is_none()
                && i8::try_from(month)
                    .ok()
                    .zip(i8::try_from(day).ok())
                    .is_some_and(|(m, d)| jiff::civil::Date::new(year, m, d).is_ok()) =>
        {
            if year >= 2016 {
                return Ok(());
            }
            Err(ArmError::bad_request(
                "NoRegisteredProviderFound",
                format!("No registered resource provider found for API version '{version}'."),
            ))
        }
        _ => Err(ArmError::bad_request(
            "InvalidApiVersionParameter",
            format!(
                "The api-version '{version}' is invalid. It has the form YYYY-MM-DD, possibly with '-preview' after it."
            ),
        )),
    }
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|p| !p.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions_are_dates() {
        for good in ["2026-08-01", "2025-05-02-preview", "2017-08-31"] {
            assert!(check_api_version(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "1",
            "2026-13-01",
            "2026-02-30",
            "2026-08-01-beta",
            "2026-8-1",
            "2026-08-01-01",
        ] {
            assert_eq!(
                check_api_version(bad).unwrap_err().code,
                "InvalidApiVersionParameter",
                "{bad}"
            );
        }
        assert_eq!(
            check_api_version("2010-01-01").unwrap_err().code,
            "NoRegisteredProviderFound"
        );
    }
}

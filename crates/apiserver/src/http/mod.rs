//! Bodies, content negotiation and responses.

mod accept;
mod finish;

use std::convert::Infallible;

use bytes::Bytes;
use fluyt_api::{Error, Reason};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::Value;

pub use accept::{
    Accepted, Discovery, Format, Offer, Structured, View, aggregated_discovery, negotiate,
    negotiate_structured,
};
pub use finish::{Wanted, in_format};

/// Any request or response body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Upstream's limit for a request body.
const MAX_BODY: usize = 3 * 1024 * 1024;

#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|e: Infallible| match e {})
        .boxed_unsync()
}

/// A body that is produced while it is sent.
pub fn streamed<S>(stream: S) -> Body
where
    S: futures::Stream<Item = Bytes> + Send + 'static,
{
    use futures::StreamExt as _;
    StreamBody::new(stream.map(|bytes| Ok(http_body::Frame::data(bytes)))).boxed_unsync()
}

/// The whole request body.
///
/// # Errors
/// 413 when it is too large, 400 when it breaks off.
pub async fn collect(body: Body) -> Result<Bytes, Error> {
    collect_up_to(body, MAX_BODY).await
}

/// A whole body of no more than `limit` bytes.
///
/// # Errors
/// 413 when it is too large, 400 when it breaks off.
pub async fn collect_up_to(mut body: Body, limit: usize) -> Result<Bytes, Error> {
    let mut collected = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|e| Error::bad_request(format!("unable to read the request body: {e}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if collected.len() + data.len() > limit {
            let message = format!("Request entity too large: limit is {limit}");
            return Err(Error::new(Reason::RequestEntityTooLarge, message));
        }
        collected.extend_from_slice(&data);
    }
    Ok(collected.into())
}

/// A JSON response.
#[must_use]
pub fn json(status: StatusCode, value: &Value) -> Response<Body> {
    bytes(
        status,
        "application/json",
        serde_json::to_vec(value).unwrap_or_default(),
    )
}

#[must_use]
pub fn bytes(
    status: StatusCode,
    content_type: &'static str,
    content: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(full(content));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[must_use]
pub fn text(status: StatusCode, content: impl Into<Bytes>) -> Response<Body> {
    let mut response = bytes(status, "text/plain; charset=utf-8", content);
    response.headers_mut().insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// The `Status` response of an error.
#[must_use]
pub fn error(error: &Error) -> Response<Body> {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, &error.to_status());
    response.extensions_mut().insert(error.clone());
    if error.retry_after_seconds > 0 {
        response
            .headers_mut()
            .insert(RETRY_AFTER, error.retry_after_seconds.into());
    }
    response
}

/// The `Status` response of who may not.
#[must_use]
pub fn refusal(refused: &Error) -> Response<Body> {
    let mut response = error(refused);
    let nosniff = HeaderValue::from_static("nosniff");
    response
        .headers_mut()
        .insert("x-content-type-options", nosniff);
    response
}

/// A JSON response that everybody may keep for some seconds.
#[must_use]
pub fn public(content_type: &'static str, seconds: u64, value: &Value) -> Response<Body> {
    let content = serde_json::to_vec(value).unwrap_or_default();
    let mut response = bytes(StatusCode::OK, content_type, content);
    if let Ok(age) = HeaderValue::from_str(&format!("public, max-age={seconds}")) {
        response.headers_mut().insert(CACHE_CONTROL, age);
    }
    response
}

/// The media type of a request body, without parameters.
#[must_use]
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

//! Bodies, content negotiation and responses.

use std::convert::Infallible;

use bytes::Bytes;
use fluyt_api::{Error, Reason};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::Value;

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
pub async fn collect(mut body: Body) -> Result<Bytes, Error> {
    let mut collected = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|e| Error::bad_request(format!("unable to read the request body: {e}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if collected.len() + data.len() > MAX_BODY {
            let message = format!("Request entity too large: limit is {MAX_BODY}");
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
    if error.retry_after_seconds > 0 {
        response
            .headers_mut()
            .insert(RETRY_AFTER, error.retry_after_seconds.into());
    }
    if error.reason == Reason::Unauthorized {
        response
            .headers_mut()
            .insert("www-authenticate", HeaderValue::from_static("Bearer"));
    }
    response
}

/// What a client wants to see of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    #[default]
    Object,
    Table,
    PartialMetadata,
}

/// Reads `Accept`.
///
/// # Errors
/// 406 when nothing of it can be served.
pub fn negotiate(headers: &HeaderMap) -> Result<View, Error> {
    let accept: Vec<&str> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect();
    let accept = accept.join(",");
    if accept.trim().is_empty() {
        return Ok(View::Object);
    }
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if !matches!(media, "application/json" | "*/*" | "application/*") {
            continue;
        }
        let parameter = |name: &str| {
            range
                .split(';')
                .skip(1)
                .filter_map(|p| p.trim().split_once('='))
                .find(|(k, _)| *k == name)
                .map(|(_, v)| v)
        };
        match (parameter("as"), parameter("g"), parameter("v")) {
            (None, _, _) => return Ok(View::Object),
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) => return Ok(View::Table),
            (
                Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                Some("meta.k8s.io"),
                Some("v1"),
            ) => {
                return Ok(View::PartialMetadata);
            }
            _ => {}
        }
    }
    Err(Error::new(
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json, application/json;as=Table;g=meta.k8s.io;v=v1, application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn view(accept: &str) -> Option<View> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        negotiate(&headers).ok()
    }

    #[test]
    fn negotiation() {
        assert_eq!(view("application/json"), Some(View::Object));
        assert_eq!(
            view("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
            Some(View::Table)
        );
        assert_eq!(
            view("application/vnd.kubernetes.protobuf,application/json"),
            Some(View::Object)
        );
        assert_eq!(
            view("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
            Some(View::PartialMetadata)
        );
        assert_eq!(view("image/png"), None);
    }
}

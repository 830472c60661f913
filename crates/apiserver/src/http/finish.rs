//! The last step of an answer: into the client's format, and compressed if it is large.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use fluyt_api::{cbor, protobuf};
use futures::StreamExt as _;
use http::Response;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue,
    USER_AGENT, VARY,
};
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::Value;

use super::accept::{Format, plain_format};
use super::{Body, BoxError, full};
use crate::features::Features;
use crate::request::{Query, RequestInfo};

/// Smaller answers are not compressed.
const GZIP_THRESHOLD: usize = 128 * 1024;

/// What a client takes, remembered while its request is handled.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    format: Format,
    /// Indented, for people.
    pretty: bool,
    gzip: bool,
}

impl Wanted {
    #[must_use]
    pub fn of(headers: &HeaderMap, info: &RequestInfo, features: Features) -> Self {
        let encodings = headers
            .get(ACCEPT_ENCODING)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        Self {
            format: plain_format(headers, features),
            pretty: info.verb != "watch" && is_pretty(headers, &info.query),
            gzip: encodings.split(',').any(|e| e.trim() == "gzip"),
        }
    }

    /// Brings an answer that is still JSON into the format that the client prefers.
    pub async fn convert(self, response: Response<Body>) -> Response<Body> {
        let is_json = response.headers().get(CONTENT_TYPE)
            == Some(&HeaderValue::from_static("application/json"));
        if !is_json || self.format == Format::Json && !self.pretty {
            return response;
        }
        let (mut parts, body) = response.into_parts();
        let Ok(collected) = body.collect().await else {
            return Response::from_parts(parts, full(""));
        };
        let json = collected.to_bytes();
        let Some(converted) = convert(self.format, &json) else {
            return Response::from_parts(parts, full(json));
        };
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(self.format.media_type()),
        );
        Response::from_parts(parts, full(converted))
    }

    /// Compresses an answer that turns out to be large.
    pub async fn compress(self, response: Response<Body>) -> Response<Body> {
        if !self.gzip || response.headers().contains_key(CONTENT_ENCODING) {
            return response;
        }
        let (mut parts, mut body) = response.into_parts();
        // Read on until it is known to be large, or over.
        let (mut head, mut length) = (Vec::new(), 0);
        while length <= GZIP_THRESHOLD {
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        length += data.len();
                        head.push(Ok(data));
                    }
                }
                Some(Err(error)) => {
                    head.push(Err(error));
                    break;
                }
                None => break,
            }
        }
        let large = length > GZIP_THRESHOLD;
        let rest = http_body_util::BodyStream::new(body).filter_map(|frame| async move {
            match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(error) => Some(Err(error)),
            }
        });
        let all = futures::stream::iter(head).chain(rest);
        if !large {
            return Response::from_parts(parts, data(all));
        }
        parts.headers.remove(CONTENT_LENGTH);
        parts
            .headers
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        parts
            .headers
            .append(VARY, HeaderValue::from_static("Accept-Encoding"));
        Response::from_parts(parts, data(gzip(all)))
    }
}

/// What the query says, else whether a person is likely to look at the answer.
fn is_pretty(headers: &HeaderMap, query: &Query) -> bool {
    match query.get("pretty") {
        Some(said) if !said.is_empty() => {
            matches!(said, "1" | "t" | "T" | "true" | "TRUE" | "True")
        }
        _ => {
            let agent = headers.get(USER_AGENT).and_then(|v| v.to_str().ok());
            let people = ["curl", "Wget", "Mozilla/5.0"];
            agent.is_some_and(|agent| people.iter().any(|p| agent.starts_with(p)))
        }
    }
}

fn data<S>(stream: S) -> Body
where
    S: futures::Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
{
    StreamBody::new(stream.map(|data| data.map(http_body::Frame::data))).boxed_unsync()
}

/// Compresses a stream, the fastest way: what goes over the wire changes little with more effort.
fn gzip<S>(stream: S) -> impl futures::Stream<Item = Result<Bytes, BoxError>> + Send
where
    S: futures::Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
{
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let state = Some((Box::pin(stream), encoder));
    futures::stream::unfold(state, |state| async move {
        let (mut stream, mut encoder) = state?;
        loop {
            match stream.next().await {
                Some(Ok(data)) => {
                    if let Err(error) = encoder.write_all(&data) {
                        return Some((Err(error.into()), None));
                    }
                    let ready = std::mem::take(encoder.get_mut());
                    if !ready.is_empty() {
                        return Some((Ok(ready.into()), Some((stream, encoder))));
                    }
                }
                Some(Err(error)) => return Some((Err(error), None)),
                None => {
                    let last = encoder.finish().map(Bytes::from);
                    return Some((last.map_err(Into::into), None));
                }
            }
        }
    })
}

/// A whole answer in a format.
#[must_use]
pub fn in_format(format: Format, value: &Value) -> Response<Body> {
    let content = match format {
        Format::Json => serde_json::to_vec(value).ok(),
        other => serde_json::to_vec(value)
            .ok()
            .and_then(|json| convert(other, &json)),
    };
    super::bytes(
        http::StatusCode::OK,
        format.media_type(),
        content.unwrap_or_default(),
    )
}

/// JSON in another format; `None` when it has no form there.
fn convert(format: Format, json: &[u8]) -> Option<Vec<u8>> {
    let value: Value = serde_json::from_slice(json).ok()?;
    match format {
        Format::Json => serde_json::to_vec_pretty(&value).ok(),
        Format::Yaml => serde_saphyr::to_string(&value).ok().map(String::into_bytes),
        Format::Protobuf => protobuf::body(&value),
        Format::Cbor => Some(cbor::encode(&value)),
    }
}

//! OpenAPI v2 and v3, made of the schema and the table of resources.

mod aggregated;
mod custom;
mod document;
mod gnostic;
mod operations;
mod parameters;
mod schemas;
mod v2;

use std::sync::Arc;

use ::http::header::{
    ACCEPT, CACHE_CONTROL, ETAG, EXPIRES, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
    LOCATION, VARY,
};
use ::http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::Server;
use crate::features::Feature;
use crate::http::{self as responses, Body};
use crate::request::Query;

/// A form of a document, with the names it is asked for by.
struct Form {
    accepted: [&'static str; 2],
    content_type: &'static str,
    message: Option<&'static gnostic::Message>,
}

const JSON: Form = Form {
    accepted: ["application/json", "application/json"],
    content_type: "application/json",
    message: None,
};

const V2_PROTOBUF: Form = Form {
    accepted: [
        "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    ],
    content_type: "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
    message: Some(&gnostic::V2),
};

const V3_PROTOBUF: Form = Form {
    accepted: [
        "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
        "application/com.github.proto-openapi.spec.v3@v1.0+protobuf",
    ],
    content_type: "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
    message: Some(&gnostic::V3),
};

/// Answers `/openapi/v2`, `/openapi/v3` and what is below; `None` for other paths and for documents that are not ours.
pub async fn handle(
    server: &Arc<Server>,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Option<Response<Body>> {
    let rest = path.strip_prefix("/openapi/")?.trim_end_matches('/');
    let served = server.caches.served();
    let cbor = server.config.features.has(Feature::Cbor);
    if rest == "v2" {
        let Some(form) = negotiate(headers, &V2_PROTOBUF) else {
            return Some(not_acceptable());
        };
        let others = aggregated::v2(server).await;
        let tag = document::hash_all(&served, cbor, &others);
        return Some(answer(headers, &form, &tag, || {
            document::v2(&served, cbor, others)
        }));
    }
    if rest == "v3" {
        let mut paths = aggregated::v3(server).await;
        for key in document::keys(&served) {
            let url = url(&key, &document::hash(&served, &key, cbor));
            paths.insert(key, json!({"serverRelativeURL": url}));
        }
        let index = json!({"paths": paths});
        let tag = crate::discovery::digest(index.to_string().as_bytes());
        return Some(answer(headers, &JSON, &tag, || index));
    }
    let key = rest.strip_prefix("v3/")?;
    if !document::keys(&served).contains(key) {
        return None;
    }
    let Some(form) = negotiate(headers, &V3_PROTOBUF) else {
        return Some(not_acceptable());
    };
    let tag = document::hash(&served, key, cbor);
    match query.get("hash") {
        None | Some("") => {}
        Some(hash) if hash == tag => {
            let mut response = answer(headers, &form, &tag, || {
                document::v3(&served, key, cbor).unwrap_or_default()
            });
            let year = jiff::SignedDuration::from_hours(24 * 365);
            let expires = jiff::Timestamp::now() + year;
            let expires = expires.strftime("%a, %d %b %Y %H:%M:%S UTC").to_string();
            set(&mut response, CACHE_CONTROL, "public, immutable");
            set(&mut response, EXPIRES, &expires);
            return Some(response);
        }
        // The document has changed since the client heard of it.
        Some(_) => {
            let mut response = Response::new(responses::full(""));
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            set(&mut response, LOCATION, &url(key, &tag));
            return Some(response);
        }
    }
    Some(answer(headers, &form, &tag, || {
        document::v3(&served, key, cbor).unwrap_or_default()
    }))
}

fn url(key: &str, hash: &str) -> String {
    format!("/openapi/v3/{key}?hash={hash}")
}

/// The first form that the client takes, in the order of its preference.
fn negotiate(headers: &HeaderMap, protobuf: &'static Form) -> Option<Form> {
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok());
    let accept = accept.filter(|a| !a.trim().is_empty()).unwrap_or("*/*");
    let mut ranges: Vec<(f32, &str)> = accept
        .split(',')
        .map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let quality = parts.find_map(|p| p.strip_prefix("q=")?.parse().ok());
            (quality.unwrap_or(1.0), media)
        })
        .collect();
    ranges.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranges.into_iter().find_map(|(_, media)| {
        let forms = [&JSON, protobuf];
        let form = forms.into_iter().find(|form| {
            matches!(media, "*/*" | "*" | "application/*") || form.accepted.contains(&media)
        })?;
        Some(Form { ..*form })
    })
}

fn not_acceptable() -> Response<Body> {
    let mut response = Response::new(responses::full(""));
    *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
    response
}

fn set(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// The document, unless the client has it.
fn answer(
    headers: &HeaderMap,
    form: &Form,
    tag: &str,
    make: impl FnOnce() -> Value,
) -> Response<Body> {
    let tag = format!("\"{tag}\"");
    let known = headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let known = known.is_some_and(|k| {
        k.split(',')
            .any(|k| k.trim().trim_start_matches("W/") == tag)
    });
    let mut response = if known {
        let mut response = Response::new(responses::full(""));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let document = make();
        let content = match form.message {
            None => serde_json::to_vec(&document).unwrap_or_default(),
            Some(message) => {
                let mut content = Vec::new();
                message.encode(&document, &mut content);
                content
            }
        };
        responses::bytes(StatusCode::OK, form.content_type, content)
    };
    set(&mut response, ETAG, &tag);
    set(&mut response, VARY, "Accept");
    response
}

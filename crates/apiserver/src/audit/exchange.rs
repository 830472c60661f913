//! The stages of one request's record. It is complete when the answer is, however that comes about: a request that is
//! given up, or whose handler panics, is recorded as such.

use ::http::Response;
use ::http::header::CONTENT_TYPE;
use fluyt_api::{Error, protobuf, resources};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::Record;
use super::answer::Completion;
use super::event::Stage;
use crate::http::{self, Body};
use crate::request::RequestInfo;

/// A request that is being handled.
pub struct Exchange {
    record: Record,
    kind: Kind,
    /// Whether a small answer may be a `Status` worth recording.
    may_be_status: bool,
}

/// What kind of answer there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An object in the client's format.
    Object,
    /// Bytes as they are.
    Other,
    /// It lasts as long as its client wants.
    LongRunning,
}

impl Exchange {
    pub(super) fn unaudited() -> Self {
        Self {
            record: Record::default(),
            kind: Kind::Other,
            may_be_status: false,
        }
    }

    pub(super) fn new(record: Record, info: &RequestInfo) -> Self {
        let kind = match info.is_long_running() {
            true => Kind::LongRunning,
            false if info.target.is_some() => Kind::Object,
            false => Kind::Other,
        };
        Self {
            record,
            kind,
            may_be_status: info.verb == "delete",
        }
    }

    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Records that the request has come.
    ///
    /// # Errors
    /// 500 when that has to be on record and cannot be.
    pub async fn received(&self) -> Result<(), Error> {
        if !self.record.is_audited() || self.record.emit(Stage::RequestReceived).await {
            return Ok(());
        }
        Err(Error::internal("failed to store audit event"))
    }

    /// Records the answer.
    pub async fn finish(
        mut self,
        answer: Result<Response<Body>, Error>,
    ) -> Result<Response<Body>, Error> {
        let record = std::mem::take(&mut self.record);
        if !record.is_audited() {
            return answer;
        }
        let mut response = answer.unwrap_or_else(|error| http::error(&error));
        let code = response.status().as_u16();
        let status = match response.extensions().get::<Error>() {
            Some(error) => error.to_status(),
            None => json!({"code": code}),
        };
        record.response_status(bounded(&status));
        if self.kind == Kind::LongRunning {
            record.emit(Stage::ResponseStarted).await;
        } else if record.wants_response() || self.may_be_status {
            response = with_object(&record, response).await;
        }
        Completion::new(record, self.kind == Kind::Object).with(&mut response);
        Ok(response)
    }
}

impl Drop for Exchange {
    /// A request that did not come to its end.
    fn drop(&mut self) {
        let record = std::mem::take(&mut self.record);
        if !record.is_audited() {
            return;
        }
        let stage = if std::thread::panicking() {
            record.response_status(
                json!({"metadata": {}, "status": "Failure", "reason": "InternalError",
                "message": "APIServer panic'd", "code": 500}),
            );
            Stage::Panic
        } else {
            record.response_status(json!({"metadata": {}, "status": "Success",
                "message": "Connection closed early", "code": 200}));
            Stage::ResponseComplete
        };
        emit_later(record, stage);
    }
}

pub(super) fn emit_later(record: Record, stage: Stage) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move {
            record.emit(stage).await;
        });
    }
}

/// The fields of a status that are recorded.
pub(super) fn bounded(status: &Value) -> Value {
    let mut bounded = json!({"metadata": {}});
    for field in ["status", "message", "reason", "details", "code"] {
        if !status[field].is_null() {
            bounded[field] = status[field].clone();
        }
    }
    bounded
}

/// Reads an answer to record it, and gives it back.
async fn with_object(record: &Record, response: Response<Body>) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let Ok(collected) = body.collect().await else {
        return Response::from_parts(parts, http::full(""));
    };
    let bytes = collected.to_bytes();
    let content_type = parts
        .headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok());
    let object = match content_type.unwrap_or_default() {
        json if json.starts_with("application/json") => serde_json::from_slice(&bytes).ok(),
        proto if proto.starts_with("application/vnd.kubernetes.protobuf") => decoded(&bytes),
        _ => None,
    };
    if let Some(object) = object {
        if object["kind"] == "Status" && object["apiVersion"] == "v1" {
            let mut status = bounded(&object);
            if status["code"].is_null() {
                status["code"] = parts.status.as_u16().into();
            }
            record.response_status(status);
        }
        if record.wants_response() {
            record.response_object(object);
        }
    }
    Response::from_parts(parts, http::full(bytes))
}

fn decoded(body: &[u8]) -> Option<Value> {
    let envelope = protobuf::open(body).ok()?;
    let (group, version) = envelope
        .api_version
        .rsplit_once('/')
        .unwrap_or(("", envelope.api_version));
    let ty = resources::type_of(group, version, envelope.kind)?;
    let mut object = protobuf::decode(ty, envelope.raw).ok()?;
    object["apiVersion"] = envelope.api_version.into();
    object["kind"] = envelope.kind.into();
    Some(object)
}
